"""The version, and its only place: builds read it here, and so does whoever shows it.

It is a plain assignment of a string, so that builds need not import the package.
"""

__all__ = ["VERSION"]

VERSION = "0.1.0.dev0"
