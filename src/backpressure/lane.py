"""Lane: the events of one priority, as one line of sequence numbers.

    0 ......... acked ......... read ......... write          acked ≤ read ≤ write

Invariants. Events are delivered in the order of their numbers, redeliveries in their place before anything newer; what is
accepted is acked, dropped and counted, or resident. A push takes no lock: the ring is lock-free, and its write position is the
count of what was accepted. Everything on the consumers' side is under the lane's lock, which is held for one copy at most
and never across anybody else's code.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter, deque
from types import MappingProxyType
from typing import Final

from backpressure.errors import BatchStateError, BufferClosed
from backpressure.histogram import EVENTS, SECONDS, Histogram
from backpressure.stats import LaneStats
from ringbuf import MessageRing, Messages

__all__ = ["Delivery", "Lane"]

# The time of arrival is noted this often (seconds): a finer reading of an event's age helps nobody …
_MARK_INTERVAL: Final = 0.01
# … and at most this many notes are kept: an old backlog is noted more coarsely.
_MAX_MARKS: Final = 1024


class Delivery:
    """One handing-out of messages, from the moment they are taken until it is settled, and until the next one if it is nacked.

    A redelivery is a new Delivery: the old one's Batch may still be around, and must not speak for the new one.
    """

    __slots__ = ("attempt", "error", "lane", "messages", "not_before", "out")

    def __init__(self, lane: Lane, messages: Messages, attempt: int = 1, error: str | None = None) -> None:
        self.lane = lane
        self.messages = messages
        self.attempt = attempt
        self.error = error  #: what the last nack said
        self.not_before = 0.0
        #: With a consumer, neither acked nor nacked.
        self.out = True

    def __lt__(self, other: Delivery) -> bool:
        return self.messages.first_seq < other.messages.first_seq


class Lane:
    """One priority's ring, its deliveries, and its books."""

    def __init__(self, priority: int, lane_bytes: int) -> None:
        self.priority = priority
        self.ring = MessageRing(lane_bytes)
        #: Deliveries whose Batch was lost: appended without the lock, by a finaliser.
        self.abandoned: deque[Delivery] = deque()
        self._lock = threading.Lock()
        self._out: set[Delivery] = set()
        self._retries: list[Delivery] = []  # a heap by first_seq
        self._marks: deque[tuple[int, float]] = deque()  # (sequence number, time at which it had arrived)
        self._mark_interval = _MARK_INTERVAL
        self._closed = False
        # The books, in events. What was accepted is the ring's own count of what was pushed.
        self._rejected: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._taken = 0
        self._acked = 0
        self._in_flight = 0
        self._retrying = 0
        self._redelivered = 0
        self._batches_acked = 0
        self._batches_nacked = 0
        self._queue_delay = Histogram(SECONDS)
        self._batch_latency = Histogram(SECONDS)
        self._batch_events = Histogram(EVENTS)

    # ------------------------------------------------------------ producers

    def arrived(self, first_seq: int, now: float) -> None:
        """Note that the events from `first_seq` on arrived at `now`."""
        marks = self._marks
        if marks and now - marks[-1][1] < self._mark_interval:
            return
        with self._lock:
            if not marks:
                self._mark_interval = _MARK_INTERVAL
            elif len(marks) >= _MAX_MARKS:
                self._marks = marks = deque(list(marks)[::2])
                self._mark_interval *= 2
            # Of two producers the later number may come first; the line of marks has to ascend in both.
            if not marks or (first_seq > marks[-1][0] and now > marks[-1][1]):
                marks.append((first_seq, now))

    def reject(self, events: int, reason: str) -> None:
        """Count events that were offered and not accepted."""
        with self._lock:
            self._rejected[reason] += events

    def drop_oldest(self, events: int, nbytes: int) -> int:
        """Drop about that many of the oldest events that no consumer holds; returns how many, 0 where that makes no room."""
        with self._lock:
            self._collect_abandoned()
            if self._retries and self._retries[0].messages.first_seq < self._oldest_out():
                delivery = heapq.heappop(self._retries)
                self._retrying -= len(delivery.messages)
                dropped = delivery.messages
            elif self._out:
                # What a consumer holds is older than all that waits, and room is made from the oldest on.
                return 0
            else:
                dropped = self.ring.take(max(events, 1), max(nbytes, 1))
                self._taken += len(dropped)
            self._dropped["oldest"] += len(dropped)
        self.ring.release(dropped)
        return len(dropped)

    # ------------------------------------------------------------ consumers

    def ready(self, now: float) -> bool:
        """Whether `next_delivery` would have something."""
        if self.abandoned:
            return True
        retry_at = self.retry_at()
        return retry_at <= now if retry_at is not None else len(self.ring) > 0

    def retry_at(self) -> float | None:
        """When the pause of the nacked batch at the front ends, or None."""
        # Without the lock: an iterator of a list bears its changing.
        front = next(iter(self._retries), None)
        return None if front is None else front.not_before

    def next_delivery(self, max_events: int, max_bytes: int, now: float) -> Delivery | None:
        """The oldest events that are owed to a consumer: a nacked batch as it was, else what waits in the ring."""
        with self._lock:
            self._collect_abandoned()
            if self._closed:
                return None
            if self._retries:
                if self._retries[0].not_before > now:
                    return None  # nothing newer may overtake it
                before = heapq.heappop(self._retries)
                delivery = Delivery(self, before.messages, before.attempt + 1, before.error)
                count = len(delivery.messages)
                self._retrying -= count
                self._redelivered += count
            else:
                waited = self._oldest_age(now)
                messages = self.ring.take(max_events, max_bytes)
                count = len(messages)
                if count == 0:
                    return None
                delivery = Delivery(self, messages)
                self._taken += count
                self._queue_delay.record(waited)
            self._in_flight += count
            self._out.add(delivery)
            return delivery

    def ack(self, delivery: Delivery, latency: float) -> None:
        events = len(delivery.messages)
        with self._lock:
            self._take_back(delivery)
            self._acked += events
            self._batches_acked += 1
            self._batch_latency.record(latency)
            self._batch_events.record(events)
        self.ring.release(delivery.messages)

    def nack(self, delivery: Delivery, not_before: float) -> None:
        with self._lock:
            self._take_back(delivery)
            self._batches_nacked += 1
            self._owe(delivery, not_before)

    def discard(self, reason: str) -> int:
        """Give up everything, also what is with consumers; from now on nothing is delivered. Returns how many events."""
        with self._lock:
            self._closed = True
            lost = self._in_flight + self._retrying
            held = [delivery.messages for delivery in (*self._out, *self._retries)]
            for delivery in self._out:
                delivery.out = False
            self._out.clear()
            self._retries.clear()
            self._in_flight = self._retrying = 0
            while len(waiting := self.ring.take(None, 1 << 20)):
                self._taken += len(waiting)
                lost += len(waiting)
                held.append(waiting)
                for messages in held:
                    self.ring.release(messages)
                held.clear()
            if lost:
                self._dropped[reason] += lost
        for messages in held:
            self.ring.release(messages)
        return lost

    # ------------------------------------------------------------ what there is

    @property
    def resident(self) -> int:
        """Events accepted and neither acked, dropped nor dead."""
        with self._lock:
            return self.ring.next_seq - self._taken + self._in_flight + self._retrying

    def waiting(self) -> int:
        """Events in the ring that were never delivered."""
        return len(self.ring)

    def oldest_age(self, now: float) -> float:
        """Seconds that the oldest waiting event has waited, to the interval of the marks; 0.0 where none waits."""
        with self._lock:
            return self._oldest_age(now)

    def stats(self, now: float) -> LaneStats:
        with self._lock:
            self._collect_abandoned()
            accepted = self.ring.next_seq
            waiting = accepted - self._taken
            return LaneStats(
                priority=self.priority,
                offered=accepted + self._rejected.total(),
                accepted=accepted,
                rejected=MappingProxyType(dict(self._rejected)),
                acked=self._acked,
                dead_lettered=0,
                dropped=MappingProxyType(dict(self._dropped)),
                resident=waiting + self._in_flight + self._retrying,
                waiting=waiting,
                in_flight=self._in_flight,
                retrying=self._retrying,
                redelivered=self._redelivered,
                batches_acked=self._batches_acked,
                batches_nacked=self._batches_nacked,
                used_bytes=self.ring.used_bytes,
                capacity_bytes=self.ring.capacity_bytes,
                oldest_age=self._oldest_age(now),
                queue_delay=self._queue_delay.stats(),
                batch_latency=self._batch_latency.stats(),
                batch_events=self._batch_events.stats(),
            )

    # ------------------------------------------------------------ under the lock

    def _oldest_age(self, now: float) -> float:
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= self._taken:
            marks.popleft()
        if not marks or self.ring.next_seq == self._taken:
            marks.clear()
            return 0.0
        return max(0.0, now - marks[0][1])

    def _oldest_out(self) -> float:
        return min((delivery.messages.first_seq for delivery in self._out), default=float("inf"))

    def _take_back(self, delivery: Delivery) -> None:
        if not delivery.out:
            if self._closed:
                raise BufferClosed("the buffer was closed and has counted this batch as lost")
            raise BatchStateError("this batch was acked or nacked before")
        delivery.out = False
        self._out.discard(delivery)
        self._in_flight -= len(delivery.messages)

    def _owe(self, delivery: Delivery, not_before: float) -> None:
        delivery.not_before = not_before
        self._retrying += len(delivery.messages)
        heapq.heappush(self._retries, delivery)

    def _collect_abandoned(self) -> None:
        while self.abandoned:
            delivery = self.abandoned.popleft()
            if delivery.out:
                self._take_back(delivery)
                self._batches_nacked += 1
                self._owe(delivery, 0.0)
