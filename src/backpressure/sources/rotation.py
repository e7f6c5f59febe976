"""What rotation leaves beside a file: which names its earlier generations may have."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection
from typing import Final, NamedTuple

__all__ = ["Sibling", "directory_and_name", "is_rotated_name", "names_by_inode", "siblings"]

# What rotation puts behind or into a name: a number, a date, or one of the words that
# are in use. "app-error.log" is another log than "app.log".
_MARK: Final = r"[.\-_](?:\d[\d.\-_T:]*|old|prev|last)"
_COMPRESSED: Final = r"\.(?:gz|bz2|xz|zst|lz4|Z|zip)"


class Sibling(NamedTuple):
    """A file beside a followed one, by a name that rotation may have given it."""

    path: str
    found: os.stat_result
    compressed: bool


def directory_and_name(path: str) -> tuple[str, str]:
    """Where the file lies that `path` leads to: rotation happens there, not beside a
    link.
    """
    directory, name = os.path.split(os.path.realpath(path))
    return directory, name


def is_rotated_name(name: str, base: str) -> bool:
    """Whether rotation may have renamed `base` to `name`."""
    return _name_expression(base).fullmatch(name) is not None


def siblings(path: str) -> list[Sibling]:
    """The regular files that may be earlier generations of `path`, oldest first.

    OSError where the directory cannot be read.
    """
    directory, base = directory_and_name(path)
    expression = _name_expression(base)
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            match = expression.fullmatch(entry.name)
            if match is None:
                continue
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # it is gone by now
            if stat.S_ISREG(about.st_mode):
                found.append(Sibling(entry.path, about, match["compressed"] is not None))
    return sorted(found, key=lambda one: (one.found.st_mtime_ns, one.path))


def names_by_inode(path: str, inodes: Collection[int]) -> dict[int, list[str]]:
    """The names that these inodes have in the directory of `path`. OSError."""
    names: dict[int, list[str]] = {}
    with os.scandir(directory_and_name(path)[0]) as entries:
        for entry in entries:
            if entry.inode() in inodes:
                names.setdefault(entry.inode(), []).append(entry.path)
    return names


def _name_expression(base: str) -> re.Pattern[str]:
    stem, suffix = os.path.splitext(base)
    inside = f"{re.escape(stem)}{_MARK}{re.escape(suffix)}" if suffix else r"(?!)"
    return re.compile(rf"(?:{re.escape(base)}{_MARK}|{inside})(?P<compressed>{_COMPRESSED})?")
