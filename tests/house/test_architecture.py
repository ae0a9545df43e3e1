"""The house stays as docs/architecture.md draws it: rooms in wings, arrows down only, no circles.

What is imported for types counts, and so do the stubs of what is compiled.
"""

import ast
import functools
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import aioblk
from aioblk._former import FORMER

from ..support.scripts import run_script

PACKAGE = Path(aioblk.__file__).parent

FLOORS = (
    ("__init__",),
    ("_former",),
    ("__main__",),
    ("cli",),
    ("testing",),
    ("metrics",),
    ("addresses",),
    ("nbd", "export", "copying"),
    ("drivers",),
    ("layers", "services"),
    ("_device",),
    ("_queues",),
    ("_memory",),
    ("_libblkio",),
    ("_native",),
    ("_sync",),
    ("errors", "_version"),
)
"""From the top. A wing knows those below it."""

FACES = {"__init__", "__main__"}
"""What programs import, and what people run."""

MOST_ROOMS = 19  # at the root, beside its faces; what is added is put into a wing, or argued here
# metrics.py: it looks at any block device, so it lies above all of them; what it needs is an extra, so it is
# imported by its own name. cli/: it is above all that programs import, and imported by none of it.
# export/: it is what nbd/ is, by other protocols, and programs that are clients of NBD need none of it.
# copying/: it is more than a layer does, and knows no names of devices.
# _version.py: builds read it, and should not import the package for that.
KNOWS_NO_DEVICE = ("services", "_sync")
"""Wings that can be used without any device."""


def _floor(wing: str) -> int:
    return next(number for number, wings in enumerate(FLOORS) if wing in wings)


def _modules() -> Iterator[tuple[str, Path]]:
    """Each module's name within the package, "" for its face."""
    for path in sorted(PACKAGE.rglob("*.py*")):
        if path.suffix in (".py", ".pyi"):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


MODULES = dict(_modules())


def _imports(module: str, path: Path) -> Iterator[str]:
    """The modules of the package that one imports."""
    package = module.split(".") if module else []
    if path.stem != "__init__":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            target = ".".join(filter(None, base))
            for name in node.names:
                inner = f"{target}.{name.name}".lstrip(".")
                yield inner if inner in MODULES else target
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("aioblk"), f"{path}: import relatively"
        elif isinstance(node, ast.Import):
            assert not any(each.name.startswith("aioblk") for each in node.names), (
                f"{path}: import relatively"
            )


@functools.cache
def arrows() -> dict[str, set[str]]:
    return {module: set(_imports(module, path)) - {module} for module, path in MODULES.items()}


def _wing(module: str) -> str:
    return module.split(".")[0] or "__init__"


def test_every_room_has_its_floor() -> None:
    wings = {_wing(module) for module in MODULES}
    assert wings == {wing for floor in FLOORS for wing in floor}
    assert len(wings - FACES) <= MOST_ROOMS


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module: str) -> None:
    ours = _wing(module)
    up = sorted(
        target
        for target in arrows()[module]
        if _wing(target) != ours and _floor(_wing(target)) <= _floor(ours)
    )
    assert not up, f"{module} imports {', '.join(up)}, which lie above it or beside"


def test_there_are_no_circles() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_some_wings_can_be_used_without_a_device() -> None:
    devices = {"_device", "_queues", "_libblkio", "drivers"}
    for module, targets in arrows().items():
        if _wing(module) in KNOWS_NO_DEVICE:
            assert not devices & set(map(_wing, targets)), module


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_wings_are_named_everywhere_in_the_same_words(page: str) -> None:
    assert aioblk.__doc__
    words = inspect.cleandoc(aioblk.__doc__).partition("none above::\n\n")[2]
    assert textwrap.dedent(words).rstrip() in (PACKAGE.parent / page).read_text()
    named = {line.split()[0].rstrip("/").removesuffix(".py") for line in words.splitlines()}
    assert named == {wing for floor in FLOORS for wing in floor} - FACES - {"_former", "_version"}


# --- public names -------------------------------------------------------------------------------------------


def test_names_are_where_type_checkers_are_told_that_they_are() -> None:
    told: dict[str, str] = {}
    for node in ast.walk(ast.parse(MODULES[""].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            told.update({name.name: node.module or "" for name in node.names})
    later = aioblk._MODULE_OF
    assert later == {name: told[name] for name in later}
    assert set(later) == set(told) - {"FORMER", "FormerPaths", "Request", "View", "explained"}
    assert set(aioblk.__all__) == {*later, "Request", "View"}


def test_what_lies_behind_the_names_is_imported_when_one_is_asked_for() -> None:
    done = run_script("""
        import sys, aioblk

        def imported():
            return sorted(name for name in sys.modules if name.startswith("aioblk."))

        print(*imported())
        assert "checksum" in dir(aioblk) and not hasattr(aioblk, "shell")
        before = imported()
        assert aioblk.OptionError.__module__ == "aioblk.errors"
        print(*sorted(set(imported()) - set(before)))
        assert aioblk.__dict__["OptionError"] is aioblk.errors.OptionError
        from aioblk import *
        assert copy.__module__ == "aioblk.copying.transfer" and set(aioblk.__all__) < set(globals())
    """)
    first, second = done.stdout.splitlines()
    assert first == "aioblk._former aioblk._native aioblk._native._core"
    assert second == "aioblk.errors"


# --- former paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMER)
def test_what_had_another_path_is_found_there_too(name: str) -> None:
    sys.modules.pop(f"aioblk.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"aioblk.{name} is at another place now"):
        module = importlib.import_module(f"aioblk.{name}")
    assert module is importlib.import_module(f"aioblk.{FORMER[name]}")
