"""DurableLane: a lane whose ring is a file, with a disk tier below it.

What it has accepted outlives the process.

    0 ......... acked ......... read ......... write
                [===== on disk =====|===== in the ring =====)

Invariants

 1. The disk holds a prefix of what is owed and the ring the suffix. So whatever goes to
    disk goes oldest first: first what consumers hold or have given back, then what
    waits.
 2. What goes to disk stays in the ring until it is written, and what is written is
    trusted: a crash in between leaves events in both, and the ones in the ring whose
    number is below the store's `end_seq` are dropped when the lane is opened again.
 3. Only an ack frees an event, in whichever tier it is.
 4. Room in the ring that is free because its events are on disk is marked as such
    before it is freed, and has its checksums: power loss may take them from the disk
    and leave them in the ring. ring_debt.py says what a ring that another boot left
    still owes.

Threads: as of a Lane; besides, one thread at a time spills. It holds `_taking` while it
writes a piece, so that no consumer comes in between; producers never wait for it. An
ack of events on disk writes the store's ack record under the lane's lock, and syncs it
there when a file is about to be deleted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

from backpressure.base.errors import BufferClosed, NotNow
from backpressure.lanes.age_limit import AgeLimit
from backpressure.lanes.attempts import SinkRecord
from backpressure.lanes.durable_open import PIECE_BYTES, open_ring
from backpressure.lanes.handout import TakenMessages
from backpressure.lanes.lane import Lane
from backpressure.lanes.stats import DiskStats
from backpressure.spill import BufferDirectory, Lost, SpillConfig, SpillStore
from backpressure.spill.budget import DiskBudget
from backpressure.spill.files import Files
from ringbuf import Messages

__all__ = ["RING_NAME", "DurableLane", "lane_name"]

#: The ring's file in a lane's directory.
RING_NAME: Final = "ring"
_NONE: Final[frozenset[TakenMessages]] = frozenset()


def lane_name(priority: int) -> str:
    """What a priority's lane is called in the directory of a buffer."""
    return f"lane-{priority}"


class DurableLane(Lane):
    """One priority's lane in a buffer's directory.

    Opened, it holds what it held when it was closed, killed, or cut off.
    """

    def __init__(
        self,
        priority: int,
        lane_bytes: int,
        directory: BufferDirectory,
        config: SpillConfig,
        sink: SinkRecord | None = None,
        checksums: bool = True,
        age: AgeLimit | None = None,
        budget: DiskBudget | None = None,
    ) -> None:
        """Open what is there, or begin, through the file system of `directory`.

        Raises FormatError for a file that is damaged, of a later version or of another
        buffer, DiskFull or DiskFailed where the disk refuses, and OSError; the same
        call may be tried again.
        """
        path = directory.lane(lane_name(priority))
        self.store = SpillStore(path, priority, directory.buffer_id, config, directory.fs, budget)
        try:
            opened = open_ring(
                Files(directory.fs),
                os.path.join(path, RING_NAME),
                lane_bytes,
                self.store,
                checksums=checksums,
            )
        except BaseException:
            self.store.close()
            raise
        ring = opened.ring
        super().__init__(priority, ring, sink, age)
        self.is_within = self.store.within_or(self._reentry)
        if age is not None:
            age.note(ring.next_seq, age.now())
        #: Events that the lane had and has no more, found when it was opened: (first
        #: number, number after the last).
        self.missing = opened.missing
        #: Events of a ring from before a reboot that were proved whole, and are on disk
        #: now.
        self.salvaged = opened.salvaged
        # Older than what waits in the ring, newer than what is on disk.
        self._front += opened.orphans
        self._disk_next = self.store.first_seq
        self._disk_waiting = self.store.events_on_disk
        self._ring_start = ring.next_seq
        ring_waiting = ring.count() + sum(map(len, opened.orphans))
        self._in_ring_before = ring_waiting - self._ring_start
        # No event that waits in the ring has a lower number.
        self._ring_next = max(
            [self.store.end_seq, *(one.first_seq + len(one) for one in opened.orphans)]
        )
        self._recovered = self._disk_waiting + ring_waiting
        self._next_seq = (
            self.store.first_seq if self._disk_waiting else ring.next_seq - ring_waiting
        )
        self._lost_ranges = 0
        self._stored_before = self.store.stats().appended_events

    # ------------------------------------------------------------ to disk

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""
        return self.ring.used_bytes / self.ring.capacity_bytes

    def spill(self, pressure: float) -> int:
        """Move the oldest piece of what the ring holds to disk.

        Returns its bytes of payload, at least 1; 0: nothing is left. `pressure` (0 to
        1) chooses how much time compression may take. Raises DiskFull or DiskFailed;
        then nothing is lost, and the same call may be tried again. BufferClosed after
        `close`.
        """
        with self._taking:
            if self._closed:
                raise BufferClosed("the lane is closed, and what it owes is in its files")
            # Also of what leaves the ring now: power loss may take from the disk what
            # was not synced, and leave it there.
            self.ring.write_checksums()
            moved = self._store_handed_out(pressure) or self._store_waiting(pressure)
        self.catch_up()
        return moved

    def sync(self) -> None:
        """Make durable what is on disk. Raises DiskFull or DiskFailed."""
        self.store.sync()
        self.catch_up()

    def _store_waiting(self, pressure: float) -> int:
        """Write the oldest piece of what waits in the ring."""
        if not self._front:
            self._take(None, PIECE_BYTES)
        self._find_stored()
        return self._store_front(pressure) if self._front else 0

    def _find_stored(self) -> None:
        """Count what a call wrote that a handler ended before it could count it."""
        while self._front and self.store.end_seq > self._front[0].first_seq:
            with self._lock:
                self._move_stored()

    def _store_handed_out(self, pressure: float) -> int:
        """Write what the ring holds for consumers that have it or gave it back.

        It is older than what waits in the ring.
        """
        moved = 0
        try:
            with self._lock:
                self._collect_abandoned()
                all_taken = [
                    taken
                    for handout in (*self._out, *self._retries)
                    for taken in handout.parts
                    if taken.held
                ]
                all_taken.sort(key=lambda taken: taken.messages.first_seq)
                self._moving = frozenset(all_taken)
            for taken in all_taken:
                moved += self._store_taken(taken, pressure)
        finally:
            self._moving = _NONE
        return moved

    def _store_taken(self, taken: TakenMessages, pressure: float) -> int:
        """Write what of these is not on disk yet, and free its room in the ring."""
        rest = taken.messages[self._count_stored(taken) :]
        try:
            if len(rest):
                self.store.append(
                    rest.first_seq, rest.data, rest.offsets, pressure, self._arrived_ns(rest)
                )
        finally:
            with self._lock:
                self.ring.note_stored(self.store.end_seq)
                taken.stored = self._count_stored(taken)
                self._release_stored(taken)
                self._moving -= {taken}
        return max(rest.nbytes, 1)

    def _arrived_ns(self, messages: Messages) -> int:
        """By when all of these had arrived, in ns since 1970: it is kept with them."""
        age, now_ns = self._age, time.time_ns()
        if age is None:
            return now_ns
        with self._lock:
            seconds = age.age_of(messages.first_seq + len(messages) - 1, age.now())
        return max(0, now_ns - int(seconds * 1e9))

    def _count_stored(self, taken: TakenMessages) -> int:
        """How many of these, from the front, are on disk by now."""
        return min(
            max(self.store.end_seq - taken.messages.first_seq, taken.stored), len(taken.messages)
        )

    def _release_stored(self, taken: TakenMessages) -> None:
        """Free the room in the ring of those that are on disk."""
        in_ring = len(taken.messages) - taken.stored
        pieces = taken.pieces_of(self.ring, sum(map(len, taken.held)) - in_ring)
        for held in taken.held[:pieces]:
            self.ring.release(held)
        del taken.held[:pieces]

    def _store_front(self, pressure: float) -> int:
        """Write the oldest of what was taken from the ring and never delivered."""
        messages = self._front[0]
        try:
            self.store.append(
                messages.first_seq,
                messages.data,
                messages.offsets,
                pressure,
                self._arrived_ns(messages),
            )
        finally:
            with self._lock:
                self._move_stored()
        return max(messages.nbytes, 1)

    def _move_stored(self) -> None:
        """Count what of the first of `_front` is on disk as what waits there."""
        messages, end_seq = self._front[0], self.store.end_seq
        first_seq = messages.first_seq
        stored = min(end_seq - first_seq, len(messages))
        if stored <= 0:
            return
        self.ring.note_stored(end_seq)
        self._split_front(stored)
        # Their room is freed, and none of them is settled.
        room = TakenMessages(messages[:0], [self._front[0]])
        # At once, and in this order: see `_has_waiting`.
        if self._disk_waiting == 0:
            self._disk_next = first_seq
        self._disk_waiting += stored
        self._taken += stored
        self._ring_next = first_seq + stored
        del self._front[0]
        self._settled += (room,)
        # To here.
        self._free_settled()

    @property
    def durable_seq(self) -> int:
        """Every accepted event below it is settled, or survives power loss."""
        with self._lock:
            return self._durable_seq()

    def _durable_seq(self) -> int:
        # Read first: what is pushed meanwhile has higher numbers.
        in_ring = [next_seq := self.ring.next_seq]
        if self._count_in_ring(next_seq):
            in_ring.append(self._ring_next)
        in_ring += [messages.first_seq for messages in self._front]
        in_ring += [
            taken.messages.first_seq + taken.stored
            for handout in (*self._out, *self._retries)
            for taken in handout.parts
            if taken.held
        ]
        durable = self.store.durable_seq
        return min(in_ring) if durable >= self.store.end_seq else min(durable, *in_ring)

    # ------------------------------------------------------------ overrides of Lane

    def _fetch_oldest(self, max_events: int, max_bytes: int) -> TakenMessages | None:
        self._find_stored()
        while self._disk_waiting:
            found = self.store.read(self._disk_next, max_events, max_bytes)
            if found is None:
                break
            if isinstance(found, Lost):
                with self._lock:
                    waiting = max(self._disk_waiting - found.events, 0)
                    following = max(self._disk_next, found.end_seq)
                    dropped = self._dropped["damaged"] + found.events
                    # At once:
                    self._disk_waiting = waiting
                    self._disk_next = following
                    self._dropped["damaged"] = dropped
                    self._lost_ranges += 1
                continue
            return TakenMessages(found.messages(), [], len(found), found.written)
        return super()._fetch_oldest(max_events, max_bytes)

    def expire_stored(self) -> int:
        """As `expire`, also what is on disk, a piece at a time: for the spiller."""
        pieces = iter((True,))
        try:
            return self._expire(lambda end_seq: self._fetch_aged_stored(end_seq, pieces))
        except NotNow:
            return 0  # what cannot be read is for a consumer to hear of

    def _fetch_aged_stored(self, end_seq: int, pieces: Iterator[bool]) -> TakenMessages | None:
        if not self._disk_waiting:
            return self._fetch_aged(end_seq)
        if self._disk_next >= end_seq or not next(pieces, False):
            return None
        taken = self._fetch_oldest(end_seq - self._disk_next, PIECE_BYTES)
        if taken is None or not taken.stored:
            return None
        # Numbers left out may have made it too many.
        aged = Lane._count_aged(self, taken, end_seq)
        return self._first_of(taken, aged) if aged else None

    def _fetch_aged(self, end_seq: int) -> TakenMessages | None:
        if self._disk_waiting:
            return None  # older, and left to the spiller and the consumers
        return super()._fetch_aged(end_seq)

    def _count_aged(self, taken: TakenMessages, end_seq: int) -> int:
        aged = super()._count_aged(taken, end_seq)
        first_seq = taken.messages.first_seq
        if first_seq + aged < self._ring_start and taken.written and self._age is not None:
            # From before this run there is only the time that was kept with them, by
            # the system's clock.
            oldest_ns = time.time_ns() - int(self._age.seconds * 1e9)
            for block_end, time_ns in taken.written:
                if block_end > self._ring_start or not 0 < time_ns < oldest_ns:
                    break
                aged = max(aged, min(block_end - first_seq, len(taken.messages)))
        return aged

    def _has_waiting(self) -> bool:
        # Without the lock, since consumers ask every lane at each call. Tiers are read
        # in the order in which events move, and an event that moves is counted in the
        # next tier before it is subtracted from the last: what is there all the while
        # is never overlooked. `_taken` is read before `next_seq`, so that events that
        # come and go in between can only make the sum too large.
        return self._in_ring_before - self._taken + self.ring.next_seq > 0 or self._disk_waiting > 0

    def _count_taken(self, taken: TakenMessages, count: int) -> None:
        end_seq = taken.messages.first_seq + count
        # At once, with what the caller does next:
        if taken.stored:
            self._disk_waiting -= count
            self._disk_next = end_seq
        else:
            del self._front[0]
            self._taken += count
            self._ring_next = end_seq
        self._next_seq = end_seq

    def _settle_messages(self, taken: TakenMessages) -> None:
        # Not `stored`: a handler may have ended the call that wrote them.
        first_seq = taken.messages.first_seq
        if taken.stored or self.store.end_seq > first_seq:
            stored = self._count_stored(taken)
            if stored and not self.store.is_settled(first_seq, stored):
                self.store.ack(first_seq, stored)
        super()._settle_messages(taken)

    def _count_waiting(self, next_seq: int) -> int:
        return self._disk_waiting + self._count_in_ring(next_seq)

    def _count_in_ring(self, next_seq: int) -> int:
        """Events below `next_seq` that wait in the ring, or were taken from it.

        Those are the ones of the start, and those that came since.
        """
        return self._in_ring_before + next_seq - self._taken

    def _count_accepted(self, next_seq: int) -> int:
        return self._recovered + next_seq - self._ring_start

    def _disk_stats(self) -> DiskStats:
        stats = self.store.stats()
        return DiskStats(
            recovered=self._recovered,
            waiting=self._disk_waiting,
            events=stats.events_on_disk,
            used_bytes=stats.bytes_on_disk,
            spilled=stats.appended_events - self._stored_before,
            spilled_bytes=stats.appended_bytes,
            stored_bytes=stats.stored_bytes,
            durable_seq=self._durable_seq(),
            unsynced=max(self.ring.next_seq - self._durable_seq(), 0),
            lost_ranges=self._lost_ranges,
            failed_syncs=stats.failed_syncs,
            refused_full=stats.refused_full,
        )

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Deliver nothing any more, and close the files. What is owed is in them."""
        with self._taking, self._lock:
            self._closed = True
            for handout in (*self._out, *self._retries):
                handout.out = False
            self._free_settled()
            self.store.close()
            if not self.ring.closed:
                # What the disk refused stays here, and may be read after a reboot.
                self.ring.write_checksums()
            self.ring.close()
