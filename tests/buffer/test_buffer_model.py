"""BufferManager against a dict of deques: the books after every step of random
histories.
"""

from __future__ import annotations

import random
from collections import deque

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backpressure import (
    Admission,
    Batch,
    BufferConfig,
    BufferManager,
    FlowControlConfig,
    WhenFull,
)
from backpressure.testing import FakeClock
from tests.support.models import share_and_proof


class BufferMachine(RuleBasedStateMachine):
    """Every call against a dict of deques; both conservation lines after every step."""

    @initialize(
        when_full=st.sampled_from([WhenFull.REJECT, WhenFull.DROP_OLDEST]),
        slow=st.booleans(),
        levels=st.integers(1, 5),
        max_age=st.sampled_from([None, 1.0, 30.0]),
    )
    def make(self, when_full: WhenFull, slow: bool, levels: int, max_age: float | None) -> None:
        self.levels = levels
        self.max_age = max_age
        self.added_at: dict[bytes, float] = {}
        self.clock = FakeClock(100.0)
        flow = (
            FlowControlConfig(max_events_per_second=50, burst_size=40, priority_levels=levels)
            if slow
            else FlowControlConfig(priority_levels=levels)
        )
        self.buffer = BufferManager(
            BufferConfig(
                lane_bytes=4096,
                when_full=when_full,
                retry_backoff=0.5,
                flow_control=flow,
                max_age=max_age,
            ),
            clock=self.clock,
            rng=random.Random(
                1
            ),  # jitter of its own would make hypothesis see another run each time
        )
        self.drops = when_full is WhenFull.DROP_OLDEST
        self.owed: dict[int, deque[bytes]] = {
            p: deque() for p in range(1, 6)
        }  # not yet acked, in order
        self.offered = self.accepted = self.acked = 0
        self.out: list[tuple[Batch, list[bytes]]] = []
        self.number = 0

    def took(self, priority: int, events: list[bytes], admission: Admission) -> None:
        assert admission.accepted + admission.rejected == len(events)
        assert (admission.reason is None) == (admission.rejected == 0)
        assert (admission.first_seq is None) == (admission.accepted == 0)
        self.offered += len(events)
        self.accepted += admission.accepted
        self.owed[priority].extend(events[: admission.accepted])
        for event in events[: admission.accepted]:
            self.added_at[event] = self.clock.now()

    def numbered(self, sizes: list[int]) -> list[bytes]:
        events = []
        for size in sizes:
            events.append(b"%06d" % self.number + b"." * size)
            self.number += 1
        return events

    @rule(
        priority=st.integers(1, 5), sizes=st.lists(st.sampled_from([0, 10, 500, 1500]), max_size=12)
    )
    def add_events(self, priority: int, sizes: list[int]) -> None:
        priority = min(priority, self.levels)
        events = self.numbered(sizes)
        self.took(priority, events, self.buffer.add_events(events, priority=priority))

    @rule(
        priority=st.integers(1, 5), sizes=st.lists(st.sampled_from([0, 10, 500, 1500]), max_size=12)
    )
    def add_lines(self, priority: int, sizes: list[int]) -> None:
        priority = min(priority, self.levels)
        events = self.numbered(sizes)
        chunk = b"".join(event + b"\n" for event in events)
        admission = self.buffer.add_lines(chunk, priority=priority)
        assert chunk[: admission.consumed] == b"".join(
            event + b"\n" for event in events[: admission.accepted]
        )
        self.took(priority, events, admission)

    @rule(most=st.one_of(st.none(), st.integers(1, 5)))
    def get(self, most: int | None) -> None:
        batch = self.buffer.get_batch(most)
        if batch is not None:
            events = batch.tolist()
            # Neither too old, nor is anything before it of its priority that is not.
            assert not any(map(self.is_too_old, events))
            self.out.append((batch, events))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), ok=st.booleans())
    def settle(self, data: st.DataObject, ok: bool) -> None:
        batch, events = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        assert batch.tolist() == events, "a batch must not change while it is out"
        if ok:
            batch.ack()
            self.acked += len(events)
            for event in events:
                self.owed[batch.priority].remove(event)
        else:
            batch.nack("refused")

    def is_too_old(self, event: bytes) -> bool:
        """Surely: arrival is noted to 10 ms, or a five-hundredth of the limit."""
        if self.max_age is None:
            return False
        age = self.clock.now() - self.added_at[event]
        return age > self.max_age + max(0.01, self.max_age / 500)

    def is_young(self, event: bytes) -> bool:
        return self.max_age is None or self.clock.now() - self.added_at[event] <= self.max_age

    @rule(seconds=st.sampled_from([0.01, 0.4, 3.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def books_balance(self) -> None:
        if not hasattr(self, "buffer"):
            return
        stats = self.buffer.stats()
        stats.check()
        dropped = sum(stats.dropped.values())
        assert (stats.offered, stats.accepted, stats.acked) == (
            self.offered,
            self.accepted,
            self.acked,
        )
        assert stats.resident == self.accepted - self.acked - dropped
        assert stats.in_flight == sum(len(events) for _, events in self.out)
        assert self.drops or set(stats.dropped) <= {"age"}
        assert self.max_age is not None or "age" not in stats.dropped
        if not self.drops:
            self.ages_are_right()

    def ages_are_right(self) -> None:
        """Per priority: what was dropped is not more than is too old, none of which is
        with a consumer.
        """
        held = {event for _, events in self.out for event in events}
        for priority, lane in self.buffer.stats().lanes.items():
            owed = self.owed[priority]
            young = sum(self.is_young(event) for event in owed if event not in held)
            gone = lane.dropped.get("age", 0)
            assert lane.resident == len(owed) - gone >= young + lane.in_flight

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        # Whatever is owed, and not too old, is delivered in order, once everything that
        # is out has come back.
        for held, _ in self.out:
            held.nack()
        delivered: dict[int, list[bytes]] = {p: [] for p in range(1, 6)}
        # Beyond every backoff and reset time, or in small steps while events are young.
        step = 60.0 if self.max_age is None else 0.05
        for _ in range(1000):
            self.clock.advance(step)
            batch = self.buffer.get_batch()
            if batch is None:
                if self.buffer.stats().resident == 0:
                    break
                continue
            assert not any(map(self.is_too_old, batch))
            delivered[batch.priority] += batch
            batch.ack()
        self.buffer.stats().check()
        assert self.buffer.stats().resident == 0
        for priority, events in delivered.items():
            owed = list(self.owed[priority])
            assert events == sorted(events), "order within a priority"
            if self.drops or self.max_age is not None:
                assert set(events) <= set(owed)
            else:
                assert events == owed


TestBufferModel, TestBufferModelInFull = share_and_proof(BufferMachine, examples=120, steps=50)
