"""Look at a made site: it fetches nothing from elsewhere, its links lead somewhere, all names are in it.

By ./run docs: ``python -m tests.site build/docs``.
"""

import dataclasses
import enum
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FACES = (
    "aioblk",
    "aioblk.nbd",
    "aioblk.export",
    "aioblk.testing",
    "aioblk.testing.conformance",
    "aioblk.testing.plugin",
    "aioblk.metrics",
)
"""The modules with public names. What is in several is told of as the first one's."""

FETCHED = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "object": ("data",),
    "embed": ("src",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "input": ("src",),
    "image": ("href", "xlink:href"),
    "use": ("href", "xlink:href"),
}
"""What a browser fetches by itself, by element and attribute."""
NOT_FETCHED = {"canonical", "prev", "next", "edit", "alternate", "author", "license"}
"""Links that are for people, and for search engines."""

IN_STYLES = re.compile(r"""(?:@import\s+(?:url\(\s*)?|url\(\s*)["']?(?P<address>[^"')\s;]+)""")
ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


class Page(HTMLParser):
    """What of a page leads elsewhere, and where others can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.fetched += IN_STYLES.findall(attributes.get("style", ""))
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if tag != "link" or not NOT_FETCHED & set(attributes.get("rel", "").split()):
            for name in FETCHED.get(tag, ()):
                for each in (
                    attributes.get(name, "").split(",") if name == "srcset" else [attributes.get(name, "")]
                ):
                    self.fetched += each.split()[:1]

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.fetched += IN_STYLES.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def read(site: Path) -> dict[Path, Page]:
    return {
        path: Page(path.read_text()) for path in sorted(site.rglob("*")) if path.suffix in (".html", ".svg")
    }


def fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        yield from (
            f"{path.relative_to(site)} fetches {each}" for each in page.fetched if ELSEWHERE.match(each)
        )
    for path in sorted(site.rglob("*.css")):
        for each in IN_STYLES.findall(path.read_text()):
            if ELSEWHERE.match(each):
                yield f"{path.relative_to(site)} fetches {each}"


def links_to_nothing(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in (
            page.links if path.name != "404.html" else ()
        ):  # whose links are for a site at a host's root
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if aim.is_dir():
                aim /= "index.html"
            anchor = unquote(parts.fragment)
            if not aim.exists() or (anchor and aim in pages and anchor not in pages[aim].anchors):
                yield f"{path.relative_to(site)} links to {link}"


def public_names() -> Iterator[str]:
    """Every public name and, of classes, what they show that is aioblk's own."""
    seen = set[int]()
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) and id(thing) in seen:
                continue
            seen.add(id(thing))
            yield f"{face}.{name}"
            if inspect.isclass(thing):
                yield from (f"{face}.{name}.{member}" for member in members(thing))


def members(kind: type) -> list[str]:
    """Those that it has of private classes are its own. What pytest collects is for nobody to call."""
    told = {above for public in kind.__mro__[1:] if not is_private(public) for above in public.__mro__}
    found = {name for above in kind.__mro__ if above not in told for name in vars(above)}
    if dataclasses.is_dataclass(kind):
        found.update(field.name for field in dataclasses.fields(kind))
    if issubclass(kind, enum.Enum):
        found.update(kind.__members__)
    return sorted(name for name in found if not name.startswith(("_", "test_", "pytest")))


@functools.cache
def public_classes() -> frozenset[type]:
    things = [
        getattr(module, name) for module in map(importlib.import_module, FACES) for name in module.__all__
    ]
    return frozenset(thing for thing in things if inspect.isclass(thing))


def is_private(kind: type) -> bool:
    return kind.__module__.startswith("aioblk") and kind not in public_classes()


def names_without_a_place(pages: dict[Path, Page]) -> Iterator[str]:
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    yield from (f"{name} is not in the reference" for name in public_names() if name not in anchors)


def main(site: Path) -> int:
    site = site.resolve()
    pages = read(site)
    found = [
        *fetched_from_elsewhere(site, pages),
        *links_to_nothing(site, pages),
        *names_without_a_place(pages),
    ]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
