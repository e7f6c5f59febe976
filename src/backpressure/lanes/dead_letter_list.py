"""DeadLetterList: the dead letters of a buffer in memory.

It keeps the newest within its bounds, and counts what it had to forget. It is used as
a DeadLetterStore is, and ends with the process.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from backpressure.spill.dead_letter import DeadLetter

__all__ = ["DeadLetterList"]

# A sink's error may quote the whole event; its beginning says enough.
_MOST_ERROR_CHARACTERS: Final = 4096


class DeadLetterList:
    """Bounded by a number of letters and by bytes of events and errors. Safe for any
    thread.

    overflowed: called, without a lock, with the number of letters that were forgotten
        for want of room.
    """

    def __init__(
        self,
        overflowed: Callable[[int], object] = lambda letters: None,
        *,
        most_letters: int,
        most_bytes: int,
    ) -> None:
        self._overflowed = overflowed
        self._most_letters = most_letters
        self._most_bytes = most_bytes
        self._lock = threading.RLock()
        self._letters: OrderedDict[int, DeadLetter] = OrderedDict()
        # Taken by `next`, also where a finaliser adds in the midst of an add.
        self._ids = itertools.count()
        self._nbytes = 0
        #: How many were forgotten for want of room.
        self.lost = 0

    def __len__(self) -> int:
        return len(self._letters)

    def add(self, letters: Sequence[DeadLetter]) -> int:
        """Keep them; returns the id of the first."""
        lost, first = 0, -1
        with self._lock:
            for letter in letters:
                kept = replace(
                    letter, id=next(self._ids), error=letter.error[:_MOST_ERROR_CHARACTERS]
                )
                size = _size(kept)
                first = kept.id if first < 0 else first
                # Without a call, as all that changes both: no signal's handler can
                # raise in between.
                self._letters[kept.id] = kept
                self._nbytes += size
            while len(self._letters) > self._most_letters or (
                self._nbytes > self._most_bytes and len(self._letters) > 1
            ):
                _, oldest = self._letters.popitem(last=False)
                self._nbytes -= _size(oldest)
                lost += 1
            self.lost += lost
        if lost:
            self._overflowed(lost)
        return first

    def letters(self, from_id: int = 0) -> Iterator[DeadLetter]:
        """Those that are kept, in the order of their ids."""
        with self._lock:
            kept = list(self._letters.values())
        return (letter for letter in kept if letter.id >= from_id)

    def replay(
        self, deliver: Callable[[DeadLetter], object], letters: Iterable[DeadLetter] | None = None
    ) -> int:
        """Deliver letters (None: all), each purged after that; returns how many.

        What `deliver` raises ends the replay and is passed on; that letter stays.
        """
        count = 0
        for letter in self.letters() if letters is None else letters:
            deliver(letter)
            with self._lock:
                found = self._letters.pop(letter.id, None)
                if found is not None:
                    self._nbytes -= _size(found)
            count += 1
        return count

    def purge(self, letters: Iterable[DeadLetter] | None = None) -> int:
        """Delete letters (None: all that are there now); returns how many.

        Raises ValueError for one that is not there.
        """
        count = 0
        with self._lock:
            for letter in list(self._letters.values()) if letters is None else letters:
                if letter.id not in self._letters:
                    raise ValueError(f"no dead letter has the id {letter.id}")
                self._nbytes -= _size(self._letters.pop(letter.id))
                count += 1
        return count

    def close(self) -> None:
        """Nothing is to be closed: they can be read as long as the list is held."""

    def __repr__(self) -> str:
        return f"DeadLetterList({len(self)} letters)"


def _size(letter: DeadLetter) -> int:
    return len(letter.event) + len(letter.error)
