"""How docstrings become pages: what is written for help() and for editors is made the Markdown of a site.

A griffe extension; mkdocs.yml names it.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

FACES = (
    "aioblk",
    "aioblk.nbd",
    "aioblk.export",
    "aioblk.testing",
    "aioblk.testing.conformance",
    "aioblk.testing.plugin",
    "aioblk.metrics",
)
"""Modules whose names are public; each name is shown by the first of them that has it."""

ROLE = re.compile(r":(?P<role>class|meth|func|attr|mod):`(?P<name>[\w.]+)`")
PAGE = re.compile(r"\bdocs/(?P<page>[\w/-]+)\.md\b")
SECTIONS = ("Raises:", "Args:", "Returns:", "Yields:", "Attributes:")


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        public: dict[str, str] = {}
        for face in FACES:
            for name in loader.modules_collection[face].exports or ():
                public.setdefault(str(name), f"{face}.{name}")
        classes = [thing for thing in _everything(pkg) if isinstance(thing, griffe.Class)]
        for thing in classes:
            _add_overloaded(thing)
        for thing in classes:
            _take_over(thing, public)
        for thing in classes:
            _inherit_docstrings(thing, public)
        for thing in classes:
            thing.bases = [base for base in thing.bases if _is_shown(base, public)]
        for thing in _everything(pkg):
            if thing.docstring:
                thing.docstring.value = _as_markdown(thing.docstring.value, thing, public)


def _everything(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for member in list(thing.members.values()):
        if isinstance(member, griffe.Object):
            yield from _everything(member)


def _add_overloaded(thing: griffe.Class) -> None:
    """A stub has the overloads of a function, and nothing beside them that would show them."""
    for name, overloads in thing.overloads.items():
        if name in thing.members:
            continue
        first = overloads[0]
        shown = griffe.Function(
            name,
            parameters=first.parameters,
            returns=first.returns,
            decorators=[],
            lineno=first.lineno,
            endlineno=first.endlineno,
        )
        shown.docstring = next((each.docstring for each in overloads if each.docstring), None)
        thing.set_member(name, shown)
        shown.overloads = overloads


def _take_over(thing: griffe.Class, public: dict[str, str]) -> None:
    """What a class has from private ones is its own."""
    line = [above for above in thing.mro() if above.canonical_path.startswith("aioblk")]
    shown = {each.path for above in line if above.name in public for each in above.mro()}
    for above in line:
        if above.name not in public and above.path not in shown:
            for name, member in above.members.items():
                if name not in thing.members and not name.startswith("_"):
                    thing.set_member(name, griffe.Alias(name, member))


def _inherit_docstrings(thing: griffe.Class, public: dict[str, str]) -> None:
    """What says nothing of itself is as that of a class above."""
    if thing.name not in public:
        return
    for name, member in thing.members.items():
        if name.startswith("_") or member.docstring or isinstance(member, griffe.Alias):
            continue
        for above in thing.mro():
            other = above.members.get(name)
            if other is not None and other.docstring and above.name in public:
                text = f"As [`{above.name}.{name}`][{public[above.name]}.{name}]."
                member.docstring = griffe.Docstring(text, parent=member)
                break


def _is_shown(base: Any, public: dict[str, str]) -> bool:
    path = getattr(base, "canonical_path", str(base))
    return not path.startswith("aioblk") or path.split(".")[-1].split("[")[0] in public


def _as_markdown(text: str, thing: griffe.Object, public: dict[str, str]) -> str:
    text = ROLE.sub(lambda match: _link(match["name"], thing, public), text)
    text = PAGE.sub(lambda match: f"[{match['page']}](../{match['page']}.md)", text)
    return "\n".join(_with_code_and_lists(text.splitlines()))


def _link(name: str, thing: griffe.Object, public: dict[str, str]) -> str:
    first, *rest = name.removeprefix("aioblk.").split(".")
    if first in public and not rest:
        return f"[`{first}`][{public[first]}]"
    shown = ".".join([first, *rest])
    holder = thing if isinstance(thing, griffe.Class) else thing.parent
    if rest and first in public:
        return f"[`{shown}`][{public[first]}.{rest[0]}]"
    if isinstance(holder, griffe.Class) and first in holder.members:
        return f"[`{shown}`][{holder.path}.{first}]"
    return f"`{shown}`"


def _with_code_and_lists(lines: list[str]) -> Iterator[str]:
    """What stands indented below ``::`` is code; below another colon, a list of what has names."""
    here = 0
    while here < len(lines):
        line = lines[here]
        here += 1
        indented = here
        while indented < len(lines) and (not lines[indented].strip() or lines[indented].startswith("    ")):
            indented += 1
        block = [each.removeprefix("    ") for each in lines[here:indented]]
        if line.strip() in SECTIONS or line.startswith(" ") or not any(map(str.strip, block)):
            yield line
        elif line.endswith("::"):
            language = (
                "python"
                if re.search(
                    r"^(async |import |from |with |await |\w+ = |def |class )", "\n".join(block), re.MULTILINE
                )
                else "console"
            )
            yield from [
                line.removesuffix("::").rstrip() + (":" if line.strip(": ") else ""),
                "",
                f"```{language}",
            ]
            while not block[0].strip():
                block.pop(0)
            while not block[-1].strip():
                block.pop()
            yield from [*block, "```", ""]
            here = indented
        elif line.endswith(":"):
            yield from [line, ""]
            for each in block:
                named = re.match(r"([\w., ]+): (.*)", each)
                if named and not each.startswith(" "):
                    yield f"- {re.sub(r'[A-Za-z_]+', lambda m: f'`{m[0]}`', named[1])}: {named[2]}"
                else:
                    yield "  " + each.strip() if each.strip() else ""
            yield ""
            here = indented
        else:
            yield line
