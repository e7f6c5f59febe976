"""Reserve: room that is given up when the disk is full.

So acks can still be recorded, and files begun and deleted.

For one thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from backpressure.spill.files import CREATE, FULL, Files

__all__ = ["RESERVE_NAME", "Reserve"]

RESERVE_NAME: Final = "reserve"


class Reserve:
    """An allocated file of `size` bytes, where the disk has room for it; 0: none."""

    def __init__(self, files: Files, directory: str, size: int) -> None:
        self._files = files
        self._path = os.path.join(directory, RESERVE_NAME)
        self._size = size
        self._is_there = False
        self.make()

    @property
    def nbytes(self) -> int:
        """What it takes of the disk at this moment."""
        return self._size if self._is_there else 0

    def make(self) -> None:
        """Allocate the file, unless it is there already or the disk has no room."""
        if self._size == 0 or self._is_there:
            return
        try:
            fd = self._files.open(self._path, CREATE)
        except FileExistsError:
            self._is_there = True
            return
        except OSError:
            return
        try:
            self._files.allocate(fd, self._size)
            self._is_there = True
        except OSError:
            self._files.try_unlink(self._path)
        finally:
            self._files.close(fd)

    def run(self, action: Callable[[], object]) -> None:
        """Call `action`; on a full disk, give up the reserve and call it again.

        Raises what the last call raised.
        """
        try:
            action()
        except OSError as error:
            if error.errno not in FULL or not self._is_there:
                raise
            self._is_there = False
            self._files.try_unlink(self._path)
            action()
