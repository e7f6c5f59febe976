"""The version of the installed distribution."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["version"]


@lru_cache(maxsize=1)
def version() -> str:
    """As "0.1.0"; "unknown" where the packages run from a checkout that is not
    installed.
    """
    from importlib import metadata  # not for every import of the package

    try:
        return metadata.version("forebay")
    except metadata.PackageNotFoundError:
        return "unknown"
