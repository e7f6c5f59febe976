"""Public names of a package that are imported when they are first asked for (PEP 562).

A package says where its names are from, and imports nothing itself. So importing it
costs next to nothing, and a program loads what it uses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazy_names"]


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package, from a table of modules and the names, between
    spaces, that each of them defines.

    A name that was looked up once is an attribute of the package like any other.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}

    def look_up(name: str) -> object:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home_of[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return look_up
