"""Devices by their addresses: text from command lines and configuration files, and what it opens.

``quantities.py`` reads sizes, times and rates, ``_escapes.py`` odd characters, ``_values.py`` the values of
options, ``_named.py`` has all that can be named, ``address.py`` reads and writes addresses, ``_layered.py``
opens a device with the layers over it, ``opening.py`` is the door.
"""

from .address import Address, parse_address
from .opening import Openable, open, open_locked, parse_properties
from .quantities import parse_duration, parse_rate, parse_size

__all__ = [
    "Address",
    "Openable",
    "open",
    "open_locked",
    "parse_address",
    "parse_duration",
    "parse_properties",
    "parse_rate",
    "parse_size",
]
