"""Dead letters: events that were given up after their last attempt.

They are kept until they are replayed or purged.

The format is a lane's (blocks.py, segments.py, ledger.py) with lane number 0, and
outlives restarts as a lane does. A letter's id is its number in this store. Each event
of the store is, little-endian

     0  1  version, 1
     1  1  priority of the lane that gave the event up
     2  2  zero
     4  4  attempts
     8  8  number that the event had in its lane
    16  8  time in ns since 1970
    24  4  length of the error text
    28  …  error text in UTF-8, then the event

Safe for threads. A finaliser or signal's handler that interrupts a call of its own
thread can neither add nor read: that raises NotNow. What it purges is purged after
that call.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import numpy as np

from backpressure.base.errors import NotNow
from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.base.reentry import Reentry
from backpressure.spill.budget import DiskBudget
from backpressure.spill.config import SpillConfig, within
from backpressure.spill.dead_letter import DeadLetter
from backpressure.spill.files import FileSystem
from backpressure.spill.runs import Lost
from backpressure.spill.store import SpillStore

__all__ = ["DEAD_LETTER_CONFIG", "DeadLetter", "DeadLetterStore", "unpack_letter"]

LANE: Final = 0
_VERSION: Final = 1
_HEAD: Final = struct.Struct("<BBHIQQI")
# A sink's error may quote the whole event; its beginning says enough.
_MOST_ERROR_BYTES: Final = 4096
_CHUNK_EVENTS: Final = 256
_CHUNK_BYTES: Final = 1 << 20

#: Few and precious: small files, and a record that remembers 10,000 letters purged out
#: of turn.
DEAD_LETTER_CONFIG: Final = SpillConfig(segment_bytes=4 << 20, ack_record_bytes=256 << 10)


class DeadLetterStore:
    """Keeps dead letters in a directory that exists and belongs to it alone."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        buffer_id: UUID,
        config: SpillConfig = DEAD_LETTER_CONFIG,
        fs: FileSystem | None = None,
        *,
        most_letters: int | None = None,
        most_bytes: int | None = None,
        budget: DiskBudget | None = None,
        overflowed: Callable[[int], object] = lambda letters: None,
    ) -> None:
        """Raises as SpillStore does.

        most_letters, most_bytes: beyond them the oldest are forgotten. None: there is
            no limit. Bytes are those of the files.
        budget: shared with the lanes.
        overflowed: called with the number of letters that were forgotten.
        """
        if most_bytes is not None:
            config = within(config, most_bytes)
        self._store = SpillStore(directory, LANE, buffer_id, config, fs, budget)
        self._most_letters = most_letters
        self._most_bytes = most_bytes
        self._overflowed = overflowed
        #: How many were forgotten for want of room. Where the disk itself has none, it
        #: refuses the letter, and the event is tried once more.
        self.lost = 0
        # An id is taken and used in one step.
        self._reentry = Reentry(self._start_over)

    def __len__(self) -> int:
        return self._store.events_on_disk

    def add(self, letters: Sequence[DeadLetter]) -> int:
        """Keep them, durably; returns the id of the first, and the others follow.

        Raises DiskFull or DiskFailed, after which some may be kept, and adding all
        again keeps those twice; NotNow within another call of this thread.
        """
        if self._reentry.within():
            raise NotNow("this thread is adding dead letters: try again after that")
        packed = [_pack(letter) for letter in letters]
        offsets = np.zeros(len(packed) + 1, np.int64)
        np.cumsum([len(one) for one in packed], out=offsets[1:])
        lost = 0
        try:
            with self._reentry.lock:
                lost = self._make_room(len(packed), int(offsets[-1]))
                first = self._store.end_seq
                time_ns = letters[0].time_ns if letters else 0
                self._store.append(
                    first, np.frombuffer(b"".join(packed), np.uint8), offsets, 0.0, time_ns
                )
                self._store.sync()
        finally:
            if lost:
                self._overflowed(lost)
        return first

    def _make_room(self, letters: int, nbytes: int) -> int:
        """Forget the oldest where so many more would be too many; returns how many."""
        lost = 0
        kept = self.letters()
        while (self._most_letters is not None and len(self) + letters > self._most_letters) or (
            self._most_bytes is not None and self._store.bytes_on_disk + nbytes > self._most_bytes
        ):
            oldest = next(kept, None)
            if oldest is None:
                break
            self._store.forget(oldest.id)
            lost += 1
        self.lost += lost
        return lost

    def letters(self, from_id: int = 0) -> Iterator[DeadLetter]:
        """Those that are kept, in the order of their ids. Damage is passed over."""
        while True:
            found = self._store.read(from_id, _CHUNK_EVENTS, _CHUNK_BYTES)
            if found is None:
                return
            if isinstance(found, Lost):
                continue
            for number, one in enumerate(found.messages(), found.first_seq):
                yield unpack_letter(one, number)
            from_id = found.end_seq

    def replay(
        self, deliver: Callable[[DeadLetter], object], letters: Iterable[DeadLetter] | None = None
    ) -> int:
        """Deliver letters (None: all), each purged after that; returns how many.

        What `deliver` raises ends the replay and is passed on; that letter stays. A
        crash, or another replay beside this one, may make `deliver` see a letter twice.
        """
        kept = self.letters() if letters is None else letters
        return self._settle(kept, deliver, self._store.forget)

    def purge(self, letters: Iterable[DeadLetter] | None = None) -> int:
        """Delete letters (None: all that are there now); returns how many.

        Raises ValueError for one that is not there.
        """
        if letters is None:
            return self.replay(lambda letter: None)
        return self._settle(letters, lambda letter: None, partial(self._store.ack, count=1))

    def _settle(
        self,
        letters: Iterable[DeadLetter],
        deliver: Callable[[DeadLetter], object],
        settle: Callable[[int], None],
    ) -> int:
        count = 0
        try:
            for letter in letters:
                deliver(letter)
                settle(letter.id)
                count += 1
        finally:
            self._store.sync_acks()
        return count

    def close(self) -> None:
        """Close the files. A second call does nothing."""
        self._store.close()

    def _start_over(self) -> None:
        """A forked child uses none of its parent's files."""

    def __repr__(self) -> str:
        return f"DeadLetterStore({self._store.directory!r}, {len(self)} letters)"


def _pack(letter: DeadLetter) -> bytes:
    error = letter.error.encode("utf-8", "replace")[:_MOST_ERROR_BYTES]
    head = _HEAD.pack(
        _VERSION, letter.priority, 0, letter.attempts, letter.seq, letter.time_ns, len(error)
    )
    return head + error + letter.event


def unpack_letter(raw: bytes, number: int) -> DeadLetter:
    """The letter in an event of the store.

    Bytes that are none become a letter whose event is all of them, so that they can be
    seen and purged.
    """
    if len(raw) < _HEAD.size:
        return _malformed_letter(raw, number, f"it has {len(raw)} bytes")
    version, priority, _, attempts, seq, time_ns, size = _HEAD.unpack_from(raw)
    start = _HEAD.size + size
    if version != _VERSION:
        return _malformed_letter(
            raw, number, f"it has version {version}, and this release reads {_VERSION}"
        )
    if start > len(raw) or not 1 <= priority <= PRIORITY_LEVELS:
        return _malformed_letter(raw, number, "its head makes no sense")
    # Cut to a number of bytes, the text may end within a character.
    error = raw[_HEAD.size : start].decode("utf-8", "replace")
    return DeadLetter(
        event=raw[start:],
        error=error,
        attempts=attempts,
        priority=priority,
        seq=seq,
        time_ns=time_ns,
        id=number,
    )


def _malformed_letter(raw: bytes, number: int, why: str) -> DeadLetter:
    return DeadLetter(
        event=raw,
        error=f"this is no dead letter: {why}",
        attempts=0,
        priority=PRIORITY_LEVELS,
        seq=0,
        time_ns=0,
        id=number,
    )
