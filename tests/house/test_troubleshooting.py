"""Troubleshooting has each thing that ``aioblk info`` and the device's own refusals can say."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioblk
from aioblk._libblkio.hints import _ENTRIES
from aioblk._libblkio.refusals import Refusals

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs/troubleshooting.md").read_text().split())
SHORTEST = 9  # characters of a piece of text that say something by themselves


def pieces_of(text: ast.expr) -> list[str]:
    """What always is in it."""
    constants = [each.value for each in ast.walk(text) if isinstance(each, ast.Constant)]
    return [each for each in constants if isinstance(each, str) and len(each.strip()) >= SHORTEST]


def are_told_of(pieces: list[str]) -> bool:
    return any(piece.strip(" ,;:()") in PAGE for piece in pieces)


def found_by_info() -> Iterator[tuple[str, list[str]]]:
    """What the checks of a machine can find, as pieces of text, by where each is made."""
    tree = ast.parse((ROOT / "aioblk/cli/machine.py").read_text())
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        texts = {
            node.targets[0].id: node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Check":
                found = node.args[2]
            elif isinstance(node, ast.Return) and function.name == "_why_no_ring":
                assert isinstance(node.value, ast.Tuple)
                found = node.value.elts[0]
            else:
                continue
            if isinstance(found, ast.Name):
                found = texts.get(found.id, found)
            if pieces := pieces_of(found):
                yield f"{function.name}:{node.lineno}", pieces


def said_of_requests() -> Iterator[tuple[str, list[str]]]:
    """What refusals say, by their reasons."""
    tree = ast.parse((ROOT / "aioblk/_libblkio/refusals.py").read_text())
    [match] = [node for node in ast.walk(tree) if isinstance(node, ast.Match)]
    for case in match.cases:
        if isinstance(case.pattern, ast.MatchValue) and isinstance(case.pattern.value, ast.Constant):
            returned = [each.value for each in case.body if isinstance(each, ast.Return) and each.value]
            if pieces := [piece for each in returned for piece in pieces_of(each)]:
                yield str(case.pattern.value.value), pieces


FINE = {"rings can be made", "needs a backend that listens on a socket"}
INFO = {place: pieces for place, pieces in found_by_info() if not FINE & set(pieces)}


@pytest.mark.parametrize("pieces", INFO.values(), ids=INFO)
def test_what_info_finds_is_there(pieces: list[str]) -> None:
    assert are_told_of(pieces), pieces


def test_that_is_all_of_it() -> None:
    functions = {place.partition(":")[0] for place in INFO}
    assert functions >= {
        "_why_no_ring",
        "_nvme",
        "_vdpa",
        "_vfio",
        "_unbound",
        "_module",
        "_permissions",
        "_pinned",
    }
    assert len(INFO) >= 25


@pytest.mark.parametrize("text", sorted({text for *_, text in _ENTRIES}))
def test_every_hint_is_there(text: str) -> None:
    assert text in PAGE


REFUSALS = dict(said_of_requests())


@pytest.mark.parametrize("pieces", REFUSALS.values(), ids=REFUSALS)
def test_every_refusal_is_there(pieces: list[str]) -> None:
    assert are_told_of(pieces), pieces


@pytest.mark.parametrize("reason", ["lost", "closed"])
def test_so_is_what_is_put_together(reason: str) -> None:
    message = Refusals("io_uring", aioblk.Limits())(reason, "read", 0, 512).message
    assert str(message).rpartition("; ")[2] in PAGE


def test_refusals_are_looked_for_by_reason() -> None:
    assert {"alignment", "range", "bounce-cap", "read-only", "thread", "fork"} < set(REFUSALS)
