"""What is public and to be awaited, found by looking: coroutines, and what gives something to be awaited."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import aioblk
import aioblk.export
import aioblk.nbd
import aioblk.testing

__all__ = ["awaited", "defined_by"]

AWAITABLE = {
    *("Awaitable", "Coroutine", "Request", "Begun", "_Result"),
    *("AsyncIterator", "AsyncGenerator", "AbstractAsyncContextManager"),
}
SPECIAL = {"__aenter__", "__aexit__", "__anext__", "__await__"}
REQUESTS = {name for name in vars(aioblk.BlockDevice) if name.endswith("_many")}
"""Of these, overloads say what they return."""
STUB = Path(aioblk.__file__).parent / "_native" / "_core.pyi"


@cache
def _compiled() -> dict[tuple[str, str], str]:
    """What methods of compiled classes return, by the names of both."""
    return {
        (kind.name, method.name): ast.unparse(method.returns)
        for kind in ast.parse(STUB.read_text()).body
        if isinstance(kind, ast.ClassDef)
        for method in kind.body
        if isinstance(method, ast.FunctionDef) and method.returns is not None
    }


def _returns(kind: type, name: str, method: object) -> str:
    if inspect.ismethoddescriptor(method):
        return _compiled().get((defined_by(kind, name).__name__, name), "")
    return _annotated(method)


def _annotated(function: object) -> str:
    return str(getattr(function, "__annotations__", {}).get("return", ""))


def _gives_something_to_await(function: object, returned: str) -> bool:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return True
    return returned.partition("[")[0].rpartition(".")[2] in AWAITABLE


def _is_awaited(kind: type, name: str, method: object) -> bool:
    method = getattr(method, "__func__", method)
    if _gives_something_to_await(method, _returns(kind, name, method)):
        return True
    return name in REQUESTS or (name == "__await__" and callable(method))


def defined_by(kind: type, name: str) -> type:
    """Which class a method is of."""
    return next(base for base in kind.__mro__ if name in vars(base))


def awaited() -> Iterator[tuple[type | None, str]]:
    """Methods with their class, and functions."""
    for module in (aioblk, aioblk.nbd, aioblk.export, aioblk.testing):
        for public in module.__all__:
            thing = getattr(module, public)
            if not inspect.isclass(thing):
                if inspect.isfunction(thing) and _gives_something_to_await(thing, _annotated(thing)):
                    yield None, public
                continue
            for name in dir(thing):
                is_public = name in SPECIAL or not name.startswith("_")
                if is_public and _is_awaited(thing, name, inspect.getattr_static(thing, name)):
                    yield thing, name
