"""DurableLane: a lane whose ring is a file, with a disk tier below it: what it has
accepted outlives the process.

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
 4. Room in the ring that is free because its events are on disk is noted to be that,
    before it is free: power loss may take them from the disk and leave them in the
    ring. See ring_debt.py for what is made of a ring that another boot left.

Threads. As of a Lane; besides, one thread at a time spills. It holds `_taking` while it
writes a piece, so that no consumer comes in between; producers never wait for it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Final

from backpressure.base.errors import FormatError, NotNow
from backpressure.lanes.lane import Handout, Lane, TakenMessages
from backpressure.lanes.ring_debt import NUMBERS_JUMP, check_numbers, debt_of
from backpressure.lanes.stats import DiskStats
from backpressure.spill import (
    BufferDirectory,
    DeadLetter,
    DeadLetterStore,
    Lost,
    SpillConfig,
    SpillStore,
)
from backpressure.spill.files import Files, LocalFileSystem
from ringbuf import MessageRing, Messages, SharedFileError, salvage

__all__ = ["DurableLane"]

# One piece (bytes) of what is moved from the ring to the disk, and from an old ring to
# another: some blocks, so that a consumer who comes meanwhile waits for a few
# milliseconds only.
_PIECE_BYTES: Final = 1 << 20
_RING_NAME: Final = "ring"


class DurableLane(Lane):
    """One priority's lane in a buffer's directory. Opened, it holds what it held when
    it was closed, killed, or cut off.
    """

    def __init__(
        self,
        priority: int,
        lane_bytes: int,
        directory: BufferDirectory,
        config: SpillConfig,
        dead_letters: DeadLetterStore,
        max_attempts: int | None,
        checksums: bool = True,
    ) -> None:
        path = directory.lane(f"lane-{priority}")
        self.store = SpillStore(path, priority, directory.buffer_id, config)
        self._dead_letters = dead_letters
        self._max_attempts = max_attempts
        #: Events that the lane had and has no more, found when it was opened: (first
        #: number, number after the last).
        self.missing: list[tuple[int, int]] = []
        #: Events of a ring from before a reboot that were proved whole, and are on disk
        #: now.
        self.salvaged = 0
        ring = self._open_ring(os.path.join(path, _RING_NAME), lane_bytes, checksums)
        # What is released from here on because it is on disk already was written by an
        # earlier run.
        ring.note_stored(self.store.end_seq)
        super().__init__(priority, ring)
        #: Times that max_disk_bytes left no room, counted by the spiller.
        self.over_budget = 0
        # Taken from the ring and never delivered, oldest first: older than what the
        # ring holds, newer than what the disk holds.
        self._front: deque[TakenMessages] = deque()
        self._front_events = 0
        self._collect_orphans()
        self._disk_next = self.store.first_seq
        self._disk_waiting = self.store.events_on_disk
        self._ring_start = ring.next_seq
        self._ring_waiting = ring.count()  # at the start
        self._in_ring_before = self._ring_waiting - self._ring_start
        # No event that nobody has taken from the ring has a lower number.
        self._ring_next = max(
            [self.store.end_seq, *(c.messages.first_seq + len(c.messages) for c in self._front)]
        )
        self._recovered = self._disk_waiting + self._front_events + self._ring_waiting
        self._next_seq = (
            self.store.first_seq
            if self._disk_waiting
            else ring.next_seq - self._ring_waiting - self._front_events
        )
        self._lost_ranges = 0
        self._stored_before = self.store.stats().appended_events

    # ------------------------------------------------------------ opening

    def _open_ring(self, path: str, lane_bytes: int, checksums: bool) -> MessageRing:
        """The ring as it was left; or a new one, and on disk what could be had of the
        old one.

        It is a new one where another size or kind is wanted, and where another boot
        left it.
        """
        first_seq = self.store.end_seq
        check_numbers(os.path.dirname(path), first_seq)
        if os.path.exists(path):
            try:
                if MessageRing.needs_salvage(path):
                    first_seq = self._salvage(path)
                else:
                    ring = MessageRing.attach(path)
                    check_numbers(path, ring.next_seq)
                    fits = (
                        ring.capacity_bytes == MessageRing(lane_bytes).capacity_bytes
                        and ring.checksums == checksums
                    )
                    if fits and ring.next_seq >= first_seq:
                        return ring
                    first_seq = max(first_seq, ring.next_seq)
                    self._move_all(ring)
                    del ring
            except SharedFileError as error:
                raise FormatError(
                    path, f"{error}. `forebay repair` moves it aside, to go on without what it held"
                ) from error
        building = path + ".new"
        if os.path.exists(building):
            os.unlink(building)
        ring = MessageRing(lane_bytes, path=building, first_seq=first_seq, checksums=checksums)
        os.replace(building, path)
        # Else a power loss could bring back none, or one whose numbers end before
        # these.
        Files(LocalFileSystem()).sync_directory(os.path.dirname(path))
        return ring

    def _salvage(self, path: str) -> int:
        """Put on disk what of a ring from before a reboot is whole, and say what is
        missing; returns where numbers go on.
        """
        found = salvage(path)
        check_numbers(path, found.next_seq)
        debt = debt_of(found, self.store.end_seq)
        for first, end in debt.whole:
            for messages in found.messages(first, end):
                # Fast rather than small: somebody waits for the buffer.
                self.store.append(
                    messages.first_seq, messages.data, messages.offsets, 1.0, time.time_ns()
                )
                self.salvaged += len(messages)
        self.store.sync()
        self.missing += debt.missing
        return max(self.store.end_seq, found.next_seq) + NUMBERS_JUMP

    def _move_all(self, ring: MessageRing) -> None:
        while len(messages := ring.take(None, _PIECE_BYTES)):
            skip = min(max(self.store.end_seq - messages.first_seq, 0), len(messages))
            rest = messages[skip:]
            if len(rest):
                self.store.append(rest.first_seq, rest.data, rest.offsets, 0.0, time.time_ns())
            ring.release(messages)
        self.store.sync()

    def _collect_orphans(self) -> None:
        """What a consumer or the spiller of an earlier run held: on disk already, or to
        be delivered first.
        """
        while len(messages := self.ring.take_orphaned(None, _PIECE_BYTES)):
            skip = min(max(self.store.end_seq - messages.first_seq, 0), len(messages))
            if skip == len(messages):
                self.ring.release(messages)
                continue
            if skip:
                stored, messages = self.ring.split(messages, skip)
                self.ring.release(stored)
            self._front.append(TakenMessages(messages, messages))
            self._front_events += len(messages)

    # ------------------------------------------------------------ to disk

    def fill(self) -> float:
        """How full the ring is, 0 to 1."""
        return self.ring.used_bytes / self.ring.capacity_bytes

    def spill(self, pressure: float) -> int:
        """Move the oldest piece of what the ring holds to disk; returns how many bytes
        of payload that were, 0: none is left.

        `pressure` (0 to 1) chooses how much time compression may take. Raises DiskFull
        or DiskFailed; then nothing is lost, and the same call may be tried again.
        """
        with self._taking:
            return self._store_out(pressure) or self._store_next(pressure)

    def _store_next(self, pressure: float) -> int:
        """Write the oldest piece of what waits."""
        if not self._front:
            messages = self.ring.take(None, _PIECE_BYTES)
            if not len(messages):
                return 0
            with self._lock:
                self._front.append(TakenMessages(messages, messages))
                # In this order, and so for what goes on to disk: `_has_waiting` looks
                # without the lock.
                self._front_events += len(messages)
                self._count_from_ring(messages)
        return self._store_front(pressure)

    def _store_out(self, pressure: float) -> int:
        """Write what consumers hold, or have given back, of the ring: it is older than
        what waits there.
        """
        with self._lock:
            self._collect_abandoned()
            all_taken = [
                handout.taken
                for handout in (*self._out, *self._retries)
                if handout.taken.held is not None
            ]
            for taken in all_taken:
                taken.moving = True
        all_taken.sort(key=lambda taken: taken.messages.first_seq)
        moved = 0
        try:
            for taken in all_taken:
                moved += self._store_taken(taken, pressure)
        finally:
            with self._lock:
                for taken in all_taken:
                    taken.moving = False
        return moved

    def _store_taken(self, taken: TakenMessages, pressure: float) -> int:
        rest = taken.messages[taken.stored :]
        try:
            self.store.append(rest.first_seq, rest.data, rest.offsets, pressure, time.time_ns())
        finally:
            with self._lock:
                self.ring.note_stored(self.store.end_seq)
                before, taken.stored = taken.stored, self._stored_of(taken)
                taken.held = self._release_first(taken.held, taken.stored - before)
                taken.moving = False
        return max(rest.nbytes, 1)

    def _stored_of(self, taken: TakenMessages) -> int:
        return min(
            max(self.store.end_seq - taken.messages.first_seq, taken.stored), len(taken.messages)
        )

    def _release_first(self, held: Messages | None, count: int) -> Messages | None:
        """Free the room of so many of them, which are on disk now; returns the others."""
        if held is None or count == 0:
            return held
        if count == len(held):
            self.ring.release(held)
            return None
        stored, rest = self.ring.split(held, count)
        self.ring.release(stored)
        return rest

    def _store_front(self, pressure: float) -> int:
        taken = self._front[0]
        messages = taken.messages
        try:
            self.store.append(
                messages.first_seq, messages.data, messages.offsets, pressure, time.time_ns()
            )
        finally:
            with self._lock:
                self.ring.note_stored(self.store.end_seq)
                stored = self._stored_of(taken)
                if stored:
                    if self._disk_waiting == 0:
                        self._disk_next = messages.first_seq
                    self._disk_waiting += stored
                    self._front_events -= stored
                    self._front.popleft()
                    rest = self._release_first(taken.held, stored)
                    if rest is not None:
                        self._front.appendleft(TakenMessages(rest, rest))
        return max(messages.nbytes, 1)

    @property
    def durable_seq(self) -> int:
        """Every accepted event with a lower number is settled, or survives power loss."""
        with self._lock:
            return self._durable_seq()

    def _durable_seq(self) -> int:
        # Looked at first: what is pushed meanwhile has higher numbers.
        in_ring = [next_seq := self.ring.next_seq]
        if self._in_ring(next_seq):
            in_ring.append(self._ring_next)
        in_ring += [taken.messages.first_seq for taken in self._front]
        in_ring += [
            handout.taken.messages.first_seq + handout.taken.stored
            for handout in (*self._out, *self._retries)
            if handout.taken.held is not None
        ]
        durable = self.store.durable_seq
        return min(in_ring) if durable >= self.store.end_seq else min(durable, *in_ring)

    # ------------------------------------------------------------ what a lane in memory does otherwise

    def _fetch(self, max_events: int, max_bytes: int) -> TakenMessages | None:
        while self._disk_waiting:
            found = self.store.read(self._disk_next, max_events, max_bytes)
            if found is None:
                break
            if isinstance(found, Lost):
                with self._lock:
                    self._disk_waiting -= min(found.events, self._disk_waiting)
                    self._disk_next = max(self._disk_next, found.end_seq)
                    self._dropped["damaged"] += found.events
                    self._lost_ranges += 1
                continue
            return TakenMessages(found.messages(), None, len(found))
        if self._front:
            taken = self._front[0]
            count = _fitting(taken, max_events, max_bytes)
            if count < len(taken.messages):
                with self._lock:
                    self._front.popleft()
                    self._front.extendleft(reversed(taken.split(self.ring, count)))
            return self._front[0]
        return super()._fetch(max_events, max_bytes)

    def _has_waiting(self) -> bool:
        # Without the lock, as consumers ask this of every lane each time. Tiers are
        # looked at in the order in which events move, and what moves is counted in the
        # next before it is taken off the last: what is there all the while is never
        # overlooked. `_taken` before `next_seq`, so that what comes and goes in between
        # makes it too much and not too little.
        return (
            self._in_ring_before - self._taken + self.ring.next_seq > 0
            or self._front_events > 0
            or self._disk_waiting > 0
        )

    def _count_taken(self, taken: TakenMessages) -> None:
        count = len(taken.messages)
        self._next_seq = taken.messages.first_seq + count
        if taken.stored:
            self._disk_waiting -= count
            self._disk_next = self._next_seq
        elif self._front:
            self._front_events -= count
            self._front.popleft()
        else:
            self._count_from_ring(taken.messages)

    def _count_from_ring(self, messages: Messages) -> None:
        self._taken += len(messages)
        self._ring_next = messages.first_seq + len(messages)

    def _settle(self, taken: TakenMessages) -> None:
        if taken.stored:
            self.store.ack(taken.messages.first_seq, taken.stored)
        if taken.held is not None:
            self.ring.release(taken.held)

    def _waiting(self, next_seq: int) -> int:
        return self._disk_waiting + self._front_events + self._in_ring(next_seq)

    def _in_ring(self, next_seq: int) -> int:
        """Events in the ring that nobody has had: what was there at the start, and what
        came since.
        """
        return self._in_ring_before + next_seq - self._taken

    def _accepted(self, next_seq: int) -> int:
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
            refused_full=stats.refused_full + self.over_budget,
        )

    # ------------------------------------------------------------ events that fail again and again

    def nack(self, handout: Handout, not_before: float) -> int:
        """As of any lane; but after `max_attempts` the batch is halved until the single
        event is found, which is given up.
        """
        if self._max_attempts is None or handout.attempt < self._max_attempts:
            return super().nack(handout, not_before)
        if len(handout.messages) == 1:
            return self._give_up(handout, not_before)
        with self._taking, self._lock:  # not while it is being written
            self._take_back(handout)
            self._batches_nacked += 1
            for taken in handout.taken.split(self.ring, len(handout.messages) // 2):
                # Each half has one attempt more.
                half = Handout(self, taken, handout.attempt - 1, handout.error)
                half.out = False
                self._owe(half, not_before)
        return 0

    def _give_up(self, handout: Handout, not_before: float) -> int:
        letter = DeadLetter(
            event=handout.messages[0],
            error=handout.error or "",
            attempts=handout.attempt,
            priority=self.priority,
            seq=handout.messages.first_seq,
            time_ns=time.time_ns(),
        )
        try:
            self._dead_letters.add([letter])
            kept = True
        except NotNow:
            kept = False
        with self._taking, self._lock:
            self._take_back(handout)
            self._batches_nacked += 1
            if kept:
                self._dead_lettered += 1
                self._settle(handout.taken)
            else:
                # No room for it on the disk: then it is tried once more.
                self._owe(handout, not_before)
        return int(kept)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Deliver nothing any more, and let go of the files. What is owed is in them."""
        with self._taking, self._lock:
            self._closed = True
            for handout in (*self._out, *self._retries):
                handout.out = False
            self.store.close()
            self.ring.close()


def _fitting(taken: TakenMessages, max_events: int, max_bytes: int) -> int:
    """How many of its first events are within these limits; one at least."""
    messages = taken.messages
    count = min(len(messages), max_events)
    if messages.nbytes > max_bytes:
        offsets = messages.offsets
        count = min(count, int((offsets[: count + 1] - offsets[0] <= max_bytes).sum()) - 1)
    return max(count, 1)
