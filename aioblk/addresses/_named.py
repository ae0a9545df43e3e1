"""All that an address can name: drivers, layers and NBD, each with its options."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, cast, final

from .._libblkio.properties import PROPERTIES
from ..drivers import CLASSES
from ..errors import OptionError
from ._layers import LAYERS
from ._values import Kind, Option

__all__ = ["NBD_SCHEMES", "Named", "choose", "find_named", "nbd_client", "spells_driver"]

_KINDS: Mapping[str, Kind] = {
    "connect_timeout": "seconds",
    "lost_after": "seconds",
    "reconnect_for": "seconds",
    "contexts": "texts",
    "tls": "object",
    "tls_certificates": "text",
    "tls_psk": "text",
}
"""Of options whose kind neither libblkio nor the default tells."""

NBD_SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix")


@final
class Named(NamedTuple):
    """A driver, a layer, or NBD."""

    name: str
    kind: Literal["driver", "layer", "nbd"]
    options: Mapping[str, Option]

    def option(self, name: str) -> str | None:
        """The option that *name* spells, if it has it."""
        return _spellings(self.options).get(_normal(name))


Factory: TypeAlias = Callable[..., Any]


def find_named(name: str) -> Named:
    """What *name* spells. OptionError: nothing, with what there is, and what was probably meant."""
    if name.lower() in NBD_SCHEMES:
        return Named("nbd", "nbd", _nbd_options())
    chosen = choose(name, (*CLASSES, *LAYERS, "nbd"), "driver or layer")
    if chosen in LAYERS:
        return Named(chosen, "layer", LAYERS[chosen].options)
    return _driver(chosen)


def spells_driver(name: str) -> str | None:
    """The driver that *name* spells, with dashes or underscores."""
    return _spellings(CLASSES).get(_normal(name))


@functools.cache
def _driver(name: str) -> Named:
    return Named(name, "driver", _options_of(CLASSES[name]))


def _options_of(factory: Factory) -> dict[str, Option]:
    """The arguments of a class are the options."""
    return {
        name: Option(
            _kind(name, parameter),
            is_needed=parameter.default is parameter.empty,
            words=("auto",) if name == "lock" else (),
        )
        for name, parameter in inspect.signature(factory).parameters.items()
    }


def _kind(name: str, parameter: inspect.Parameter) -> Kind:
    if name in _KINDS:
        return _KINDS[name]
    if isinstance(parameter.default, bool):
        return "flag"
    if isinstance(parameter.default, str):
        return "text"
    known = PROPERTIES.get(name.replace("_", "-"))
    return "text" if known is not None and known.kind == "str" else "number"


# --- NBD ----------------------------------------------------------------------------------------------------


def nbd_client() -> Factory:
    """The class of NBD devices, which is imported when one is named: it needs TLS."""
    from ..nbd._client.device import Nbd

    return cast(Factory, Nbd)


def _nbd_options() -> dict[str, Option]:
    """The client's, beside what its URI says."""
    options = _options_of(nbd_client())
    del options["uri"]
    return {"uri": Option("text", is_needed=True), **options}


# --- names --------------------------------------------------------------------------------------------------


def choose(name: str, choice: Iterable[str], what: str, driver: str | None = None) -> str:
    """The one of *choice* that *name* spells, be it with dashes or underscores.

    Raises:
        OptionError: none of them, with what there is, and what was probably meant.
    """
    spellings = _spellings(choice)
    if (normal := _normal(name)) in spellings:
        return spellings[normal]
    import difflib

    near = [spellings[match] for match in difflib.get_close_matches(normal[:100], spellings)]
    question = f" Did you mean {' or '.join(near)}?" if near else ""
    shown = name if len(name) <= 60 else f"{name[:57]}..."
    there = f"there are {', '.join(spellings.values())}" if spellings else "there are none"
    raise OptionError(f"no {what} {shown!r}; {there}.{question}", driver=driver)


def _spellings(choice: Iterable[str]) -> dict[str, str]:
    return {_normal(valid): valid for valid in choice}


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")
