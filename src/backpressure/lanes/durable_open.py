"""Opening the ring of a durable lane: the one that is there, or a new one.

The file that is there is used again where it fits: the size and kind asked for, of
this boot, with numbers that reach at least as far as the disk's. Otherwise the lane's
store gets what the file owes, and a new ring takes its place.

Invariants

 1. The old file keeps its name until a new one replaces it, in one step. So a crash
    leaves one of the two, and what was moved by then lies below the store's `end_seq`:
    the next opening does not move it twice.
 2. The new ring begins at a number that was never given out.

Names and directories go through the file system that is given; the content of the ring
file does not, since `ringbuf` maps it.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import Final, NamedTuple

from backpressure.base.errors import FormatError
from backpressure.lanes.ring_debt import NUMBERS_JUMP, check_numbers, debt_of
from backpressure.spill import SpillStore
from backpressure.spill.files import Files
from ringbuf import MessageRing, Messages, SharedFileError, salvage

__all__ = ["PIECE_BYTES", "OpenedRing", "open_ring"]

# One piece (bytes) of what is moved from a ring to the disk: some blocks, so that a
# consumer that comes meanwhile waits for a few milliseconds only.
PIECE_BYTES: Final = 1 << 20


class OpenedRing(NamedTuple):
    """A lane's ring, and what opening it has found."""

    ring: MessageRing
    #: Taken by a consumer or the spiller of an earlier run and not on disk: to be
    #: delivered before anything else of the ring. Oldest first.
    orphans: list[Messages]
    #: How many events of a ring from before a reboot were proved whole. They are on
    #: disk now.
    salvaged: int
    #: Events that the lane had and has no more: (first number, number after the last).
    missing: list[tuple[int, int]]


def open_ring(
    files: Files, path: str, lane_bytes: int, store: SpillStore, *, checksums: bool
) -> OpenedRing:
    """The ring in the file at `path`, whose disk tier is `store`.

    Raises FormatError where the file is damaged or of a later version, DiskFull or
    DiskFailed where the store refuses, and OSError; the same call may be tried again.
    """
    salvaged = 0
    missing: list[tuple[int, int]] = []
    first_seq = store.end_seq
    check_numbers(os.path.dirname(path), first_seq)
    with ExitStack() as undo:
        ring: MessageRing | None = None
        if files.exists(path):
            try:
                if MessageRing.needs_salvage(path):
                    first_seq, salvaged, missing = _salvage_ring(path, store)
                else:
                    ring = _attach_ring(path, undo)
                    if not _fits(ring, lane_bytes, checksums, first_seq):
                        first_seq = max(first_seq, ring.next_seq)
                        _move_all(ring, store)
                        ring.close()
                        ring = None
            except SharedFileError as error:
                raise FormatError(
                    path,
                    f"{error}. `forebay repair` moves it aside, to go on without what it held",
                ) from error
        if ring is None:
            ring = _make_ring(files, path, lane_bytes, first_seq, checksums=checksums, undo=undo)
        # An earlier run may have ended before it wrote them.
        ring.write_checksums()
        # Of what is released from here on, that part was on disk before: an earlier run
        # wrote it.
        ring.note_stored(store.end_seq)
        orphans = _take_orphans(ring, store)
        undo.pop_all()
    return OpenedRing(ring, orphans, salvaged, missing)


def _attach_ring(path: str, undo: ExitStack) -> MessageRing:
    ring = MessageRing.attach(path)
    # Until it is closed, what this process has taken from it is no orphan: an exception
    # keeps the ring alive, and the next attempt would not find these events.
    undo.callback(ring.close)
    check_numbers(path, ring.next_seq)
    return ring


def _fits(ring: MessageRing, lane_bytes: int, checksums: bool, end_seq: int) -> bool:
    capacity = MessageRing(lane_bytes).capacity_bytes  # as the ring rounds it
    return (
        ring.capacity_bytes == capacity and ring.checksums == checksums and ring.next_seq >= end_seq
    )


def _make_ring(
    files: Files,
    path: str,
    lane_bytes: int,
    first_seq: int,
    *,
    checksums: bool,
    undo: ExitStack,
) -> MessageRing:
    """An empty ring under that name."""
    building = path + ".new"
    files.unlink(building)
    ring = MessageRing(lane_bytes, path=building, first_seq=first_seq, checksums=checksums)
    undo.callback(ring.close)
    files.rename(building, path)
    # Otherwise power loss could bring back no ring, or one whose numbers end before
    # these.
    files.sync_directory(os.path.dirname(path))
    return ring


def _salvage_ring(path: str, store: SpillStore) -> tuple[int, int, list[tuple[int, int]]]:
    """Put on disk what is whole of a ring from before a reboot.

    Returns where numbers go on, how many events are whole, and which are missing.
    """
    found = salvage(path)
    check_numbers(path, found.next_seq)
    debt = debt_of(found, store.end_seq)
    salvaged = 0
    for first, end in debt.whole:
        for messages in found.messages(first, end):
            # Fast rather than small: the application waits for the buffer.
            store.append(messages.first_seq, messages.data, messages.offsets, 1.0, time.time_ns())
            salvaged += len(messages)
    store.sync()
    return max(store.end_seq, found.next_seq) + NUMBERS_JUMP, salvaged, debt.missing


def _move_all(ring: MessageRing, store: SpillStore) -> None:
    """Put on disk all that a ring holds, since the ring does not fit.

    First what an earlier run had taken from it, then what waits.
    """
    while len(messages := ring.take(None, PIECE_BYTES)):
        rest = messages[_count_stored(messages, store) :]
        if len(rest):
            store.append(rest.first_seq, rest.data, rest.offsets, 0.0, time.time_ns())
        ring.release(messages)
    store.sync()


def _take_orphans(ring: MessageRing, store: SpillStore) -> list[Messages]:
    """What a consumer or the spiller of an earlier run held and is not on disk."""
    orphans = []
    while len(messages := ring.take_orphaned(None, PIECE_BYTES)):
        stored = _count_stored(messages, store)
        if stored == len(messages):
            ring.release(messages)
            continue
        if stored:
            on_disk, messages = ring.split(messages, stored)
            ring.release(on_disk)
        orphans.append(messages)
    return orphans


def _count_stored(messages: Messages, store: SpillStore) -> int:
    """How many of them, from the front, the store has."""
    return min(max(store.end_seq - messages.first_seq, 0), len(messages))
