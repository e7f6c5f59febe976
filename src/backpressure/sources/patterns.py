"""Patterns of paths: *, ?, [], **, {a,b} and ~, as in a shell.

    *, ?, []    within one name; a name that begins with a dot only where the pattern's
                does
    **          any number of directories
    {a,b}       either, nested too; braces without a comma are plain text
    ~, ~user    a home directory

A path that exists as it stands is that path, whatever characters it has.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from typing import Final

__all__ = ["PathPattern"]

_MOST_ALTERNATIVES: Final = 1000
_PIECE: Final = re.compile(r"\*\*/|\*+|\?|\[!?\]?[^\]/]*\]|[^*?\[]+|\[")


class PathPattern:
    """text: as it was given. ValueError where it cannot be read."""

    def __init__(self, text: str) -> None:
        if not text or "\0" in text:
            raise ValueError("a path is not empty, and has no NUL")
        self.text = text
        home = os.path.expanduser(text)
        if text.startswith("~") and home == text and not os.path.lexists(text):
            raise ValueError(f"{text}: there is no such home directory")
        path = os.path.abspath(home)
        #: All without braces.
        self.alternatives: tuple[str, ...] = (
            (path,) if os.path.lexists(path) else tuple(dict.fromkeys(_expanded(path)))
        )
        self._is_literal = os.path.lexists(path)
        self._expressions = [
            re.compile(re.escape(one) if self._is_literal else _expression(one), re.DOTALL)
            for one in self.alternatives
        ]

    def find(self) -> list[str]:
        """The paths that match and exist, in order; one without magic always."""
        found: set[str] = set()
        for one in self.alternatives:
            if not self._is_literal and glob.has_magic(one):
                found.update(glob.glob(one, recursive=True))
            else:
                found.add(one)
        return sorted(found)

    def matches(self, path: str) -> bool:
        """Whether a path would be found if it existed."""
        return any(one.fullmatch(path) for one in self._expressions)


def _expanded(text: str) -> Iterator[str]:
    """`text` with each of its first brace's alternatives, and so on."""
    pending, count = [text], 0
    while pending:
        one = pending.pop()
        brace = _first_brace(one)
        if brace is None:
            count += 1
            if count > _MOST_ALTERNATIVES:
                raise ValueError(f"{text}: more than {_MOST_ALTERNATIVES:,} alternatives")
            yield one
        else:
            start, end, parts = brace
            pending += [one[:start] + part + one[end:] for part in reversed(parts)]


def _first_brace(text: str) -> tuple[int, int, list[str]] | None:
    """Where the first {…,…} begins and ends, and what it holds."""
    for start, character in enumerate(text):
        if character != "{":
            continue
        depth, parts, begin = 0, [], start + 1
        for position in range(start, len(text)):
            if text[position] == "{":
                depth += 1
            elif text[position] == "}":
                depth -= 1
            if (text[position] == "," and depth == 1) or (text[position] == "}" and not depth):
                parts.append(text[begin:position])
                begin = position + 1
            if not depth:
                if len(parts) > 1:
                    return start, position + 1, parts
                break
    return None


def _expression(pattern: str) -> str:
    """A regular expression for what glob finds by this pattern."""
    result, at_start = [], True
    for piece in _PIECE.findall(pattern):
        if piece == "**/" and at_start:
            result.append(r"(?:(?!\.)[^/]+/)*")
        elif piece == "**" and at_start:
            result.append(r"(?:(?!\.)[^/]+/)*(?!\.)[^/]*")
        elif piece.startswith("*"):
            result.append((r"(?!\.)" if at_start else "") + "[^/]*")
            if piece == "**/":
                result.append("/")
        elif piece == "?":
            result.append((r"(?!\.)" if at_start else "") + "[^/]")
        elif piece.startswith("[") and len(piece) > 1:
            inner = piece[1:-1].replace("\\", "\\\\")
            negated = inner.startswith("!")
            inner = inner[1:] if negated else inner.replace("^", "\\^")
            result.append(f"[{'^' if negated else ''}{inner}]")
        else:
            result.append(re.escape(piece))
        at_start = piece.endswith("/")
    return "".join(result)
