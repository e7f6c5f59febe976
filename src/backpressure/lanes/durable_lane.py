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
    before it is freed: power loss may take them from the disk and leave them in the
    ring. ring_debt.py says what a ring that another boot left still owes.

Threads: as of a Lane; besides, one thread at a time spills. It holds `_taking` while it
writes a piece, so that no consumer comes in between; producers never wait for it. An
ack of events on disk writes the store's ack record under the lane's lock, and syncs it
there when a file is about to be deleted.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Final

from backpressure.base.errors import NotNow
from backpressure.lanes.durable_open import PIECE_BYTES, open_ring
from backpressure.lanes.handout import Handout, TakenMessages
from backpressure.lanes.lane import Lane
from backpressure.lanes.stats import DiskStats
from backpressure.spill import (
    BufferDirectory,
    DeadLetter,
    DeadLetterStore,
    Lost,
    SpillConfig,
    SpillStore,
)
from backpressure.spill.files import Files
from ringbuf import Messages

__all__ = ["DurableLane", "lane_name"]

_RING_NAME: Final = "ring"


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
        dead_letters: DeadLetterStore,
        max_attempts: int | None,
        checksums: bool = True,
    ) -> None:
        """Open what is there, or begin, through the file system of `directory`.

        Raises FormatError for a file that is damaged, of a later version or of another
        buffer, DiskFull or DiskFailed where the disk refuses, and OSError; the same
        call may be tried again.
        """
        path = directory.lane(lane_name(priority))
        self.store = SpillStore(path, priority, directory.buffer_id, config, directory.fs)
        self._dead_letters = dead_letters
        self._max_attempts = max_attempts
        try:
            opened = open_ring(
                Files(directory.fs),
                os.path.join(path, _RING_NAME),
                lane_bytes,
                self.store,
                checksums=checksums,
            )
        except BaseException:
            self.store.close()
            raise
        ring = opened.ring
        super().__init__(priority, ring)
        #: Events that the lane had and has no more, found when it was opened: (first
        #: number, number after the last).
        self.missing = opened.missing
        #: Events of a ring from before a reboot that were proved whole, and are on disk
        #: now.
        self.salvaged = opened.salvaged
        #: Times that max_disk_bytes left no room, counted by the spiller.
        self.over_budget = 0
        # Taken from the ring and never delivered, oldest first: older than what waits
        # in the ring, newer than what is on disk.
        self._front = deque(TakenMessages(messages, messages) for messages in opened.orphans)
        self._front_events = sum(map(len, opened.orphans))
        self._disk_next = self.store.first_seq
        self._disk_waiting = self.store.events_on_disk
        self._ring_start = ring.next_seq
        ring_waiting = ring.count()
        self._in_ring_before = ring_waiting - self._ring_start
        # No event that waits in the ring has a lower number.
        self._ring_next = max(
            [self.store.end_seq, *(one.first_seq + len(one) for one in opened.orphans)]
        )
        self._recovered = self._disk_waiting + self._front_events + ring_waiting
        self._next_seq = (
            self.store.first_seq
            if self._disk_waiting
            else ring.next_seq - ring_waiting - self._front_events
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
        then nothing is lost, and the same call may be tried again.
        """
        with self._taking:
            return self._store_handed_out(pressure) or self._store_waiting(pressure)

    def _store_waiting(self, pressure: float) -> int:
        """Write the oldest piece of what waits in the ring."""
        if not self._front:
            messages = self.ring.take(None, PIECE_BYTES)
            if not len(messages):
                return 0
            with self._lock:
                self._front.append(TakenMessages(messages, messages))
                # In this order, as for what goes on to disk: see `_has_waiting`.
                self._front_events += len(messages)
                self._count_from_ring(messages)
        return self._store_front(pressure)

    def _store_handed_out(self, pressure: float) -> int:
        """Write what the ring holds for consumers that have it or gave it back.

        It is older than what waits in the ring.
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
        """Write what of these is not on disk yet, and free its room in the ring."""
        rest = taken.messages[taken.stored :]
        try:
            self.store.append(rest.first_seq, rest.data, rest.offsets, pressure, time.time_ns())
        finally:
            with self._lock:
                self.ring.note_stored(self.store.end_seq)
                before, taken.stored = taken.stored, self._count_stored(taken)
                taken.held = self._release_first(taken.held, taken.stored - before)
                taken.moving = False
        return max(rest.nbytes, 1)

    def _count_stored(self, taken: TakenMessages) -> int:
        """How many of these, from the front, are on disk by now."""
        return min(
            max(self.store.end_seq - taken.messages.first_seq, taken.stored), len(taken.messages)
        )

    def _release_first(self, held: Messages | None, count: int) -> Messages | None:
        """Free the room of the first `count`, which are on disk; returns the others."""
        if held is None or count == 0:
            return held
        if count == len(held):
            self.ring.release(held)
            return None
        stored, rest = self.ring.split(held, count)
        self.ring.release(stored)
        return rest

    def _store_front(self, pressure: float) -> int:
        """Write the oldest of what was taken from the ring and never delivered."""
        taken = self._front[0]
        messages = taken.messages
        try:
            self.store.append(
                messages.first_seq, messages.data, messages.offsets, pressure, time.time_ns()
            )
        finally:
            with self._lock:
                self.ring.note_stored(self.store.end_seq)
                stored = self._count_stored(taken)
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
        """Every accepted event below it is settled, or survives power loss."""
        with self._lock:
            return self._durable_seq()

    def _durable_seq(self) -> int:
        # Read first: what is pushed meanwhile has higher numbers.
        in_ring = [next_seq := self.ring.next_seq]
        if self._count_in_ring(next_seq):
            in_ring.append(self._ring_next)
        in_ring += [taken.messages.first_seq for taken in self._front]
        in_ring += [
            handout.taken.messages.first_seq + handout.taken.stored
            for handout in (*self._out, *self._retries)
            if handout.taken.held is not None
        ]
        durable = self.store.durable_seq
        return min(in_ring) if durable >= self.store.end_seq else min(durable, *in_ring)

    # ------------------------------------------------------------ overrides of Lane

    def _fetch_oldest(self, max_events: int, max_bytes: int) -> TakenMessages | None:
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
        return super()._fetch_oldest(max_events, max_bytes)

    def _has_waiting(self) -> bool:
        # Without the lock, since consumers ask every lane at each call. Tiers are read
        # in the order in which events move, and an event that moves is counted in the
        # next tier before it is subtracted from the last: what is there all the while
        # is never overlooked. `_taken` is read before `next_seq`, so that events that
        # come and go in between can only make the sum too large.
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

    def _settle_messages(self, taken: TakenMessages) -> None:
        if taken.stored:
            self.store.ack(taken.messages.first_seq, taken.stored)
        if taken.held is not None:
            self.ring.release(taken.held)

    def _count_waiting(self, next_seq: int) -> int:
        return self._disk_waiting + self._front_events + self._count_in_ring(next_seq)

    def _count_in_ring(self, next_seq: int) -> int:
        """Events below `next_seq` that wait in the ring.

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
            refused_full=stats.refused_full + self.over_budget,
        )

    # ------------------------------------------------------------ failing events

    def nack(self, handout: Handout, not_before: float) -> int:
        """As of any lane, up to `max_attempts`.

        A batch that failed that often is halved until the single bad event is found,
        which becomes a dead letter.
        """
        if self._max_attempts is None or handout.attempt < self._max_attempts:
            return super().nack(handout, not_before)
        if len(handout.messages) == 1:
            return self._dead_letter(handout, not_before)
        with self._taking, self._lock:  # not while the spiller writes it
            self._end_delivery(handout)
            self._batches_nacked += 1
            for taken in handout.taken.split(self.ring, len(handout.messages) // 2):
                # Each half has one attempt more.
                half = Handout(self, taken, handout.attempt - 1, handout.error)
                half.out = False
                self._owe_again(half, not_before)
        return 0

    def _dead_letter(self, handout: Handout, not_before: float) -> int:
        """Give its one event up. Returns 1, or 0 where the disk has no room for it."""
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
            self._end_delivery(handout)
            self._batches_nacked += 1
            if kept:
                self._dead_lettered += 1
                self._settle_messages(handout.taken)
            else:
                # The event is tried once more.
                self._owe_again(handout, not_before)
        return int(kept)

    # ------------------------------------------------------------ the end

    def close(self) -> None:
        """Deliver nothing any more, and close the files. What is owed is in them."""
        with self._taking, self._lock:
            self._closed = True
            for handout in (*self._out, *self._retries):
                handout.out = False
            self.store.close()
            self.ring.close()


def _fitting(taken: TakenMessages, max_events: int, max_bytes: int) -> int:
    """How many of its first events are within these limits, at least 1."""
    messages = taken.messages
    count = min(len(messages), max_events)
    if messages.nbytes > max_bytes:
        offsets = messages.offsets
        count = min(count, int((offsets[: count + 1] - offsets[0] <= max_bytes).sum()) - 1)
    return max(count, 1)
