"""Quarantine: damaged segments, kept aside after everything in them was settled.

`forebay repair` and `forebay export --all` use them.

For one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from backpressure.spill.files import Files
from backpressure.spill.segments import Segment

__all__ = ["QUARANTINE_SUFFIX", "Quarantine"]

#: What is added to the name of a file that is kept aside.
QUARANTINE_SUFFIX: Final = ".damaged"


class Quarantine:
    """The files kept aside in one directory, at most `most_bytes` of them.

    The oldest are deleted first.
    """

    def __init__(
        self, files: Files, directory: str, most_bytes: int, found: Iterable[tuple[str, int]]
    ) -> None:
        """`found`: name and size of each file that is there, oldest first."""
        self._files = files
        self._directory = directory
        self._most_bytes = most_bytes
        self._kept = list(found)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """The size of all files kept aside."""
        return sum(size for _, size in self._kept)

    def add(self, segment: Segment) -> None:
        """Rename the file of a segment. Raises OSError."""
        name = segment.name + QUARANTINE_SUFFIX
        try:
            self._files.rename(self._join(segment.name), self._join(name))
        except FileNotFoundError:
            return
        self._kept.append((name, segment.size))
        while self.nbytes > self._most_bytes:
            self._files.try_unlink(self._join(self._kept.pop(0)[0]))

    def _join(self, name: str) -> str:
        return os.path.join(self._directory, name)
