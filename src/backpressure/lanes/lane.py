"""Lane: the events of one priority, as one line of sequence numbers.

    0 ......... acked ......... read ......... write          acked ≤ read ≤ write

Invariants

 1. Events are delivered in the order of their numbers, and a nacked batch again before
    anything newer.
 2. What is accepted is acked, dead-lettered, dropped and counted, or resident.
 3. A push takes no lock: the ring is lock-free, and its write position is the count of
    what was accepted.
 4. Everything on the consumers' side is under the lane's lock, which is never held
    while the application's code runs.
 5. A finaliser or a signal's handler may push, count a rejection and read while its own
    thread holds the lock (see base/reentry.py): what is noted waits until it is free,
    and readings show the numbers as they stand. Nothing is handed out or dropped there.
 6. A signal's handler may raise at any point of a call, and no event is lost or counted
    twice by that. CPython runs handlers at the entry of a Python function, after a call
    and where a loop goes back. So what a change needs is made first, and the change
    itself is a run of statements without calls, marked `# At once:`. What it leaves to
    be done may be done again, by the next call: see `_front` and `_settled`.
"""

from __future__ import annotations

import threading
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from enum import Enum
from itertools import chain
from typing import Final
from weakref import ref

from backpressure.base.errors import BatchStateError, BufferClosed
from backpressure.base.frozen_dict import FrozenDict
from backpressure.base.histogram import EVENTS, SECONDS, Histogram
from backpressure.base.reasons import DropReason, RejectReason
from backpressure.base.reentry import Reentry, acquire_within, deferrable
from backpressure.lanes.age_limit import AgeLimit
from backpressure.lanes.arrival_marks import ArrivalMarks
from backpressure.lanes.attempts import Attempts, SinkRecord
from backpressure.lanes.handout import Handout, Holder, TakenMessages
from backpressure.lanes.stats import DiskStats, LaneStats
from backpressure.lanes.turns import Turn, next_turn
from ringbuf import MessageRing, Messages

__all__ = ["Fate", "Lane"]

# What is too old is dropped in pieces of this many bytes.
_AGED_BYTES: Final = 1 << 20


class Fate(Enum):
    """What becomes of some events of a batch."""

    ACKED = "acked"
    AGAIN = "again"
    DEAD = "dead"


class Lane:
    """One priority's ring, its deliveries, and its counts.

    In memory; see durable_lane.py for the one with a disk tier. sink: what the buffer's
    sink has taken, of all lanes.
    """

    def __init__(
        self,
        priority: int,
        ring: MessageRing,
        sink: SinkRecord | None = None,
        age: AgeLimit | None = None,
    ) -> None:
        """age: how old an event may be; None: as old as it likes."""
        self.priority = priority
        self._age = age
        self.ring = ring
        self.sink: Final = SinkRecord() if sink is None else sink
        #: An item for each Batch that ended unsettled. Appended without the lock, and
        #: not by Python: a signal's handler that raises in a `__del__` ends that.
        self.abandoned: deque[object] = deque()
        # One consumer at a time takes, so that batches leave in order.
        self._taking = threading.RLock()
        self._reentry = Reentry(self._start_over, self._taking)
        self._lock = self._reentry.lock
        #: What `catch_up` is to do.
        self.deferred: Final = self._reentry.deferred
        #: Whether this call has interrupted another one of its own thread.
        self.is_within: Callable[[], bool] = self._reentry.within
        # With consumers, each with a reference that tells of its Batch's end.
        self._out: dict[Handout, ref[Holder] | None] = {}
        self._retries: tuple[Handout, ...] = ()  # ascending
        # Taken from the ring and still waiting, oldest first: what the call under way
        # has taken, or one that did not come to its end.
        self._front: list[Messages] = []
        # Being written to disk at this moment: they must not be settled meanwhile.
        self._moving: frozenset[TakenMessages] = frozenset()
        # Counted as settled, and their room still to be freed.
        self._settled: list[TakenMessages] = []
        self._arrivals = ArrivalMarks()
        self._closed = False
        #: Seconds that the last batch took of which the sink has taken something.
        self.last_latency = 0.0
        # Counts of events. What was accepted is the ring's own count of what was
        # pushed.
        self._rejected: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._taken = 0  # from the ring, and no longer waiting
        self._next_seq = ring.next_seq  # of the next event that was never delivered
        self._acked = 0
        self._in_flight = 0
        self._retrying = 0
        self._redelivered = 0
        self._dead_lettered = 0
        self._batches_acked = 0
        self._batches_nacked = 0
        self._queue_delay = Histogram(SECONDS)
        self._batch_latency = Histogram(SECONDS)
        self._batch_events = Histogram(EVENTS)

    # ------------------------------------------------------------ producers

    @property
    def ages(self) -> bool:
        """Whether events can become too old: then each arrival is to be noted."""
        return self._age is not None

    def arrived(self, first_seq: int, now: float) -> None:
        """Note that the events from `first_seq` on arrived at `now`."""
        if self._age is not None:
            self._note_arrival(self._age)
        if self._arrivals.is_due(now):
            self._mark(first_seq, now)

    @deferrable
    def _note_arrival(self, age: AgeLimit) -> None:
        with self._lock:
            # In this order: what is pushed in between is younger.
            end_seq = self.ring.next_seq
            age.note(end_seq, age.now())

    @deferrable
    def _mark(self, first_seq: int, now: float) -> None:
        with self._lock:
            self._arrivals.note(first_seq, now)

    @deferrable
    def reject(self, events: int, reason: RejectReason) -> None:
        """Count events that were offered and not accepted."""
        with self._lock:
            self._rejected[reason] += events

    def drop_oldest(self, events: int, nbytes: int, reason: DropReason = "oldest") -> int:
        """Drop about that many of the oldest events that no consumer holds.

        Returns how many were dropped, 0 where that makes no room.
        """
        if self.is_within():
            return 0
        with self._taking:
            with self._lock:
                self._collect_abandoned()
                if self._closed:
                    return 0
                if self._retries and self._retries[0].messages.first_seq < self._oldest_seq_out():
                    handout = self._retries[0]
                    self._drop_retry(handout, handout.parts, (), reason)
                    return len(handout.messages)
                if self._out:
                    # What a consumer holds is older than all that waits, and room is
                    # made from the oldest on.
                    return 0
            taken = self._fetch_oldest(max(events, 1), max(nbytes, 1))
            if taken is None:
                return 0
            with self._lock:
                self._drop_taken(taken, reason)
            return len(taken.messages)

    def expire(self) -> int:
        """Drop what is too old, as far as that takes neither a wait nor the disk.

        Returns how many events were dropped now.
        """
        return self._expire(self._fetch_aged)

    def _expire(self, fetch: Callable[[int], TakenMessages | None]) -> int:
        age = self._age
        if age is None or self.is_within():
            return 0
        dropped = 0
        acquired: list[bool] = []
        try:
            # Another consumer drops what it finds, and the spiller may be writing.
            if not acquire_within(self._taking, acquired):
                return 0
            with self._lock:
                if self._closed:
                    return 0
                self._collect_abandoned()
                end_seq = age.look(age.now())
                dropped += self._drop_aged_retries(end_seq)
            while (taken := fetch(end_seq)) is not None:
                with self._lock:
                    self._drop_taken(taken, "age")
                dropped += len(taken.messages)
        finally:
            if acquired:
                self._taking.release()
        if dropped:
            age.dropped(self.priority, dropped)
        return dropped

    # ------------------------------------------------------------ consumers

    def ready(self, now: float) -> bool:
        """Whether `next_handout` is worth calling.

        It may find nothing, but what waits is never overlooked.
        """
        if self.abandoned or self.deferred:
            return True
        if not self._retries:
            return self._has_waiting()
        return self._turn(self._retries, now).ready

    @property
    def has_retries(self) -> bool:
        """Whether any nacked batch is to be delivered again."""
        return bool(self._retries)

    def retry_at(self, now: float) -> float | None:
        """When the pause of a nacked batch ends after which there is something to
        deliver; None: none pauses.
        """
        return self._turn(self._retries, now).retry_at

    def asks(self, now: float) -> bool:
        """Whether what goes out next should although the circuit is open: a suspect
        keeps it so.
        """
        if not self._retries:
            return False
        return self._turn(self._retries, now).asks

    def next_handout(
        self, max_events: int, max_bytes: int, now: float, holder: Holder | None = None
    ) -> Handout | None:
        """The oldest events that are owed and with no consumer.

        A nacked batch as it was, else what waits; of both, what is not too old. None:
        there are none, or a nacked batch still pauses. holder: given the handout at
        once, so that it can be abandoned from its first moment.
        """
        if self.is_within():
            return None
        if self.deferred:
            self.catch_up()
        aged = 0
        try:
            with self._taking:
                while True:
                    dropped, handout = self._next_handout(max_events, max_bytes, now, holder)
                    aged += dropped
                    if handout is not None or not dropped:
                        break
        finally:
            if aged and self._age is not None:
                self._age.dropped(self.priority, aged)
        if self.deferred:
            self.catch_up()
        return handout

    def _next_handout(
        self, max_events: int, max_bytes: int, now: float, holder: Holder | None
    ) -> tuple[int, Handout | None]:
        """One try, under `_taking`: how many events were too old, and what is next."""
        dropped = end_seq = 0
        comparison = False
        with self._lock:
            if self.abandoned or self._settled:
                self._collect_abandoned()
            if self._closed:
                return 0, None
            if self._age is not None:
                # What came without a note, from another process, has arrived by now.
                self._age.note(self.ring.next_seq, self._age.now())
                end_seq = self._age.look(self._age.now())
                dropped = self._drop_aged_retries(end_seq)
            if self._retries:
                turn = self._turn(self._retries, now)
                if not turn.ready:
                    return dropped, None
                if turn.suspect is not None:
                    comparison = turn.suspect.attempts.compared = True
                if turn.retry is not None:
                    return dropped, self._hand_out_again(turn.retry, comparison, holder)
            waited = self._oldest_age(now)
        taken = self._fetch_oldest(max_events, max_bytes)
        if taken is None:
            return dropped, None
        aged = self._count_aged(taken, end_seq) if self._age is not None else 0
        with self._lock:
            if aged:
                # The others are for the next try.
                self._drop_taken(self._first_of(taken, aged), "age")
                return dropped + aged, None
            handout = Handout(self, (taken,))
            handout.comparison = comparison
            self._queue_delay.record(waited)
            count = len(taken.messages)
            held = None
            if holder is not None:
                holder._handout = handout
                held = ref(holder, self.abandoned.append)
            self._count_taken(taken, count)
            # At once:
            self._in_flight += count
            self._out[handout] = held
        return dropped, handout

    def ack(self, handout: Handout, latency: float) -> None:
        """The events were processed, `latency` seconds after the handout.

        Raises BatchStateError, BufferClosed.
        """
        events = len(handout.messages)
        while True:
            with self._lock:
                if not self._moving or self._moving.isdisjoint(handout.parts):
                    if not handout.out or handout.settling:
                        self._check_out(handout)
                    # At once:
                    handout.out = False
                    del self._out[handout]
                    self._in_flight -= events
                    self._acked += events
                    self._batches_acked += 1
                    self._settled += handout.parts
                    # To here.
                    self.last_latency = latency
                    self._batch_latency.record(latency)
                    self._batch_events.record(events)
                    self._free_settled()
                    return
            # An ack that returned while its events were on their way to disk could be
            # forgotten by a crash.
            with self._taking:
                pass

    def nack(self, handout: Handout, not_before: float) -> None:
        """Owe a claimed batch again, not before that time. Raises BufferClosed."""
        with self._lock:
            self._check_claimed(handout)
            self._give_back(handout, (handout,), not_before)

    def halve(self, handout: Handout, not_before: float) -> None:
        """Owe a claimed batch again in two halves, each with its attempts anew.

        Raises BufferClosed.
        """
        with self._taking, self._lock:  # not while the spiller writes it
            self._check_claimed(handout)
            self._give_back(handout, self._halves(handout, handout.parts), not_before)

    @contextmanager
    def claim(self, handout: Handout) -> Iterator[None]:
        """Within this no other call settles the batch, while this one judges it and
        writes its dead letters; then `nack`, `halve` or `settle` follows.

        Raises BatchStateError, BufferClosed. An error leaves the batch as it was, if
        that came before its end.
        """
        claimed = False
        try:
            with self._lock:
                self._check_out(handout)
                # At once:
                handout.settling = claimed = True
            yield
        except BaseException:
            if claimed:
                handout.settling = False
            raise

    def settle(
        self,
        handout: Handout,
        runs: Sequence[tuple[int, Fate]],
        latency: float,
        not_before: float,
        halve: bool = False,
    ) -> None:
        """Settle a claimed batch event by event: those up to each index have that fate.

        halve: what is to be delivered again goes out in two halves. Raises
        BufferClosed.
        """
        with self._taking, self._lock:  # not while the spiller writes it
            self._check_claimed(handout)
            again: list[TakenMessages] = []
            settled: list[TakenMessages] = []
            acked = dead = 0
            stretches = handout.cut(self.ring, [stop for stop, _ in runs])
            for (_, fate), parts in zip(runs, stretches, strict=True):
                if fate is Fate.AGAIN:
                    again += parts
                    continue
                events = sum(len(part.messages) for part in parts)
                if fate is Fate.ACKED:
                    acked += events
                else:
                    dead += events
                settled += parts
            pieces: tuple[Handout, ...] = ()
            if again and halve:
                pieces = self._halves(handout, tuple(again))
            elif again:
                pieces = (self._piece(handout, tuple(again), handout.attempts),)
            self._give_back(handout, pieces, not_before, 0 if acked else 1)
            # At once:
            self._acked += acked
            self._dead_lettered += dead
            self._settled += settled
            if acked:
                self._batches_acked += 1
            # To here.
            if acked:
                self.last_latency = latency
                self._batch_latency.record(latency)
                self._batch_events.record(acked)
            self._free_settled()

    def hurry(self, now: float) -> None:
        """End all pauses."""
        with self._lock:
            for handout in self._retries:
                handout.not_before = min(handout.not_before, now)

    def put_back(self, handout: Handout, not_before: float) -> None:
        """Owe the batch again, as if it had never been out.

        What ended this attempt says nothing about the batch.
        """
        with self._lock:
            self._check_out(handout)
            handout.counted = False
            self._give_back(handout, (handout,), not_before)

    def discard(self, reason: DropReason) -> int:
        """Drop everything and deliver nothing from now on.

        Also what is with consumers. Returns how many events.
        """
        with self._taking:
            with self._lock:
                self._closed = True
                owed = (*self._out, *self._retries)
                parts = [part for handout in owed for part in handout.parts]
                lost = self._in_flight + self._retrying
                dropped = self._dropped[reason] + lost
                for handout in owed:
                    handout.out = False
                # At once:
                self._out = {}
                self._retries = ()
                self._in_flight = self._retrying = 0
                if lost:
                    self._dropped[reason] = dropped
                self._settled += parts
                # To here.
                self._free_settled()
            while (taken := self._fetch_oldest(1 << 30, 1 << 20)) is not None:
                with self._lock:
                    self._drop_taken(taken, reason)
                lost += len(taken.messages)
        return lost

    # ------------------------------------------------------------ what there is

    @property
    def resident(self) -> int:
        """Events accepted and neither acked, dropped nor dead-lettered."""
        self.catch_up()
        with self._lock:
            return self._count_waiting(self.ring.next_seq) + self._in_flight + self._retrying

    @property
    def settled_by_sink(self) -> int:
        """Events that the sink has taken or given up, a moment ago at most."""
        return self._acked + self._dead_lettered

    def waiting(self) -> int:
        """Events that were never delivered, in the ring and on disk."""
        self.catch_up()
        with self._lock:
            return self._count_waiting(self.ring.next_seq)

    def owed_from(self) -> int:
        """The number from which on events may be owed: all below it are settled."""
        self.catch_up()
        with self._lock:
            next_seq = self.ring.next_seq
            waiting = self._count_waiting(next_seq)
            owed = [self._next_seq if waiting else next_seq]
            owed += [one.messages.first_seq for one in (*self._out, *self._retries)]
            return min(owed)

    def oldest_age(self, now: float) -> float:
        """Seconds that the oldest waiting event has waited; 0.0: none waits.

        As fine as the interval of the marks.
        """
        within = self.is_within()
        with self._lock:
            return self._oldest_age(now, within)

    def stats(self, now: float) -> LaneStats:
        """A snapshot of one moment."""
        self.catch_up()
        within = self.is_within()
        with self._lock:
            if not within:
                self._collect_abandoned()
            next_seq = self.ring.next_seq  # read once: producers go on meanwhile
            accepted, waiting = self._count_accepted(next_seq), self._count_waiting(next_seq)
            return LaneStats(
                priority=self.priority,
                offered=accepted + self._rejected.total(),
                accepted=accepted,
                rejected=FrozenDict(dict(self._rejected)),
                acked=self._acked,
                dead_lettered=self._dead_lettered,
                dropped=FrozenDict(dict(self._dropped)),
                resident=waiting + self._in_flight + self._retrying,
                waiting=waiting,
                in_flight=self._in_flight,
                retrying=self._retrying,
                redelivered=self._redelivered,
                batches_acked=self._batches_acked,
                batches_nacked=self._batches_nacked,
                used_bytes=self.ring.used_bytes,
                capacity_bytes=self.ring.capacity_bytes,
                oldest_age=self._oldest_age(now, within),
                queue_delay=self._queue_delay.stats(),
                batch_latency=self._batch_latency.stats(),
                batch_events=self._batch_events.stats(),
                disk=self._disk_stats(),
            )

    # ------------------------------------------------------------ what DurableLane over

    def _fetch_oldest(self, max_events: int, max_bytes: int) -> TakenMessages | None:
        """The oldest events that were never delivered.

        Under `_taking`; they wait until they are counted with `_count_taken`.
        """
        front = self._front
        if front:
            self._split_front(_fitting(front[0], max_events, max_bytes))
        else:
            self._take(max_events, max_bytes)
            if not front:
                return None
        messages = front[0]
        return TakenMessages(messages, [messages])

    def _take(self, max_events: int | None, max_bytes: int) -> None:
        """Take what waits in the ring to `_front`, which is empty."""
        # In a single call, and not Python's: no handler can come between the taking
        # and the keeping, or leave one of no messages there.
        self._front.extend(filter(len, map(self.ring.take, (max_events,), (max_bytes,))))

    def _split_front(self, count: int) -> None:
        """Let the first of `_front` have no more than `count` messages."""
        first = self._front[0]
        if count < len(first):
            parts = chain.from_iterable(map(self.ring.split, (first,), (count,)))
            self._front[:1] = parts  # which splits, as in `_take`

    def _first_of(self, taken: TakenMessages, count: int) -> TakenMessages:
        """The first of what `_fetch_oldest` returned."""
        if taken.stored:
            return TakenMessages(taken.messages[:count], [], count)
        self._split_front(count)
        return TakenMessages(self._front[0], [self._front[0]])

    def _fetch_aged(self, end_seq: int) -> TakenMessages | None:
        """A piece of what waits below `end_seq`, under `_taking`."""
        if self._front:
            aged = end_seq - self._front[0].first_seq
        else:
            # In this order: what is pushed in between makes the piece smaller.
            waiting = self.ring.count()
            aged = end_seq - (self.ring.next_seq - waiting) if waiting else 0
        return Lane._fetch_oldest(self, aged, _AGED_BYTES) if aged > 0 else None

    def _count_aged(self, taken: TakenMessages, end_seq: int) -> int:
        """How many of these, from the front, are too old."""
        return min(max(end_seq - taken.messages.first_seq, 0), len(taken.messages))

    def _has_waiting(self) -> bool:
        """Whether any event was never delivered. Called without a lock."""
        return len(self.ring) > 0 or len(self._front) > 0

    def _count_taken(self, taken: TakenMessages, count: int) -> None:
        """What `_fetch_oldest` returned, of `count` messages, waits no more.

        Under the lock, as all that follows.
        """
        first_seq = taken.messages.first_seq
        # At once, with what the caller does next:
        del self._front[0]
        self._taken += count
        self._next_seq = first_seq + count

    def _settle_messages(self, taken: TakenMessages) -> None:
        """None of these messages is owed any more: free their room. Also twice."""
        for held in taken.held:
            self.ring.release(held)

    def _count_waiting(self, next_seq: int) -> int:
        """Events below `next_seq` that were never delivered."""
        return next_seq - self._taken

    def _count_accepted(self, next_seq: int) -> int:
        """Events that were accepted, of those below `next_seq`."""
        return next_seq

    def _disk_stats(self) -> DiskStats | None:
        return None

    # ------------------------------------------------------------ calls within calls

    def settle_later(self, handout: Handout, settle: Callable[[], object]) -> None:
        """Have `settle` called once the call that was interrupted is over.

        Raises BatchStateError, BufferClosed.
        """
        self._check_out(handout)
        self.deferred.append(settle)

    def catch_up(self) -> None:
        """Do what was put off, if this call has interrupted none itself."""
        if self.deferred and not self.is_within():
            self._reentry.apply()

    def _start_over(self) -> None:
        """A forked child's buffer is closed, and uses no lane."""

    # ------------------------------------------------------------ under the lock

    def _turn(self, retries: Sequence[Handout], now: float) -> Turn:
        """What goes out next; also without the lock."""
        return next_turn(retries, now, self.sink, self._has_waiting)

    def _hand_out_again(self, before: Handout, comparison: bool, holder: Holder | None) -> Handout:
        """A new delivery of a nacked batch."""
        attempt = before.attempt + 1 if before.counted else before.attempt
        handout = Handout(self, before.parts, attempt, before.error, before.attempts)
        handout.again = True
        handout.comparison = comparison
        count = len(handout.messages)
        retries = tuple([one for one in self._retries if one is not before])
        held = None
        if holder is not None:
            holder._handout = handout
            held = ref(holder, self.abandoned.append)
        # At once:
        self._retries = retries
        self._retrying -= count
        self._redelivered += count
        self._in_flight += count
        self._out[handout] = held
        return handout

    def _drop_taken(self, taken: TakenMessages, reason: DropReason) -> None:
        """Drop what `_fetch_oldest` returned."""
        count = len(taken.messages)
        dropped = self._dropped[reason] + count
        self._count_taken(taken, count)
        # At once:
        self._dropped[reason] = dropped
        self._settled += (taken,)
        # To here.
        self._free_settled()

    def _drop_retry(
        self,
        handout: Handout,
        old: Sequence[TakenMessages],
        fresh: tuple[TakenMessages, ...],
        reason: DropReason,
    ) -> int:
        """Drop these parts of the first nacked batch, which keeps the others; how many
        events.
        """
        events = sum(len(part.messages) for part in old)
        retries = self._retries[1:]
        if fresh:
            # A Batch of the old one may still be read.
            rest = copy(handout)
            rest.keep(fresh)
            retries = _with(retries, (rest,))
        dropped = self._dropped[reason] + events
        # At once:
        self._retries = retries
        self._retrying -= events
        self._dropped[reason] = dropped
        self._settled += old
        # To here.
        self._free_settled()
        return events

    def _drop_aged_retries(self, end_seq: int) -> int:
        """Drop what is too old of the nacked batches that are next; how many events.

        Under `_taking` as well: the spiller must not be writing them.
        """
        dropped = 0
        while self._retries and self._retries[0].messages.first_seq < end_seq:
            handout = self._retries[0]
            old: list[TakenMessages] = []
            fresh: list[TakenMessages] = []
            for part in handout.parts:
                aged = self._count_aged(part, end_seq)
                if 0 < aged < len(part.messages):
                    first, rest = part.cut(self.ring, (aged,))
                    old.append(first)
                    fresh.append(rest)
                else:
                    (old if aged else fresh).append(part)
            if not old:
                break
            dropped += self._drop_retry(handout, old, tuple(fresh), "age")
        return dropped

    def _free_settled(self) -> None:
        """Free the room of what was settled, also by a call that a handler ended."""
        settled = self._settled
        while settled:
            self._settle_messages(settled[-1])
            del settled[-1]

    def _oldest_age(self, now: float, within: bool = False) -> float:
        arrivals = self._arrivals
        if not within:
            arrivals.forget_before(self._next_seq)
        if self._count_waiting(self.ring.next_seq) == 0:
            return 0.0
        return arrivals.oldest_age(now)

    def _oldest_seq_out(self) -> float:
        return min((handout.messages.first_seq for handout in self._out), default=float("inf"))

    def _check_out(self, handout: Handout) -> None:
        """Raise BatchStateError or BufferClosed where no consumer has it any more."""
        if not handout.out or handout.settling:
            if self._closed:
                raise BufferClosed("the buffer was closed and has counted this batch as lost")
            raise BatchStateError("this batch was acked or nacked before")

    def _check_claimed(self, handout: Handout) -> None:
        """Raise BufferClosed where the buffer was closed after `claim`."""
        if not handout.out:
            self._check_out(handout)

    def _give_back(
        self,
        handout: Handout,
        pieces: tuple[Handout, ...],
        not_before: float,
        nacked: int = 1,
    ) -> None:
        """A delivery has ended, and these are owed again, not before that time; the
        handout itself, or new ones with what is left of it.
        """
        events, again = len(handout.messages), sum([len(one.messages) for one in pieces])
        retries = _with(self._retries, pieces)
        for piece in pieces:
            piece.not_before = not_before
        # At once, with what the caller does next:
        handout.out = handout.settling = False
        del self._out[handout]
        self._in_flight -= events
        self._batches_nacked += nacked
        self._retrying += again
        self._retries = retries

    def _halves(
        self, handout: Handout, parts: tuple[TakenMessages, ...]
    ) -> tuple[Handout, Handout]:
        whole = Handout(self, parts)
        events = len(whole.messages)
        first, second = whole.cut(self.ring, (events // 2, events))
        mine, others = handout.attempts.halve(self.sink)
        return (
            self._piece(handout, tuple(first), mine),
            self._piece(handout, tuple(second), others),
        )

    def _piece(
        self, handout: Handout, parts: tuple[TakenMessages, ...], attempts: Attempts
    ) -> Handout:
        """These parts of a batch that failed, to be delivered by themselves."""
        piece = Handout(self, parts, handout.attempt, handout.error, attempts)
        piece.out = False
        return piece

    def _collect_abandoned(self) -> None:
        """Owe again what no consumer can settle any more, and end what other calls have
        left undone.

        Nothing says that a sink has failed, so no attempt is counted.
        """
        if self._settled and not self._closed:
            self._free_settled()
        ended = len(self.abandoned)
        if not ended:
            return
        for handout, held in tuple(self._out.items()):
            # Where a call was settling it, that one has ended, or it would still hold
            # the batch.
            if handout.out and held is not None and held() is None:
                handout.counted = False
                self._give_back(handout, (handout,), 0.0)
        for _ in range(ended):
            self.abandoned.popleft()


def _with(retries: tuple[Handout, ...], pieces: Sequence[Handout]) -> tuple[Handout, ...]:
    """These nacked batches as well, in their order."""
    both = list(retries)
    for piece in pieces:
        insort(both, piece)
    return tuple(both)


def _fitting(messages: Messages, max_events: int, max_bytes: int) -> int:
    """How many of its first events are within these limits, at least 1."""
    count = min(len(messages), max_events)
    if messages.nbytes > max_bytes:
        offsets = messages.offsets
        count = min(count, int((offsets[: count + 1] - offsets[0] <= max_bytes).sum()) - 1)
    return max(count, 1)
