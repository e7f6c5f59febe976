"""Which failures count, when a batch is halved, and what is compared with what.

A lane is driven by hand, with a fake clock: no thread, no pause in real time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backpressure import (
    Batch,
    BatchRejected,
    BatchTooLarge,
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    PartialFailure,
    SinkUnavailable,
)
from backpressure.testing import FakeClock
from tests.support.buffers import numbered

# Never opens: these tests are of the batches, not of the circuit.
CALM = CircuitBreakerConfig(min_requests=2**31)
Send = Callable[[Batch], object]


class Bench:
    """A buffer, its clock, and one consumer that calls a sink."""

    def __init__(self, directory: Path | None = None, **settings: Any) -> None:
        self.clock = FakeClock(100.0)
        settings.setdefault("circuit_breaker", CALM)
        # Given, it is not shortened for the breaker's sake.
        settings.setdefault("max_retry_backoff", 5.0)
        settings.setdefault("lane_bytes", 1 << 16)
        self.buffer = BufferManager(
            BufferConfig(directory=directory, **settings),
            clock=self.clock,
            rng=random.Random(1),
        )
        self.calls: list[tuple[float, list[bytes]]] = []
        self.got: list[bytes] = []

    def run(self, send: Send, seconds: float, most: int | None = None) -> None:
        """Deliver for that time."""
        end = self.clock.now() + seconds
        step = 0.001
        while self.clock.now() < end:
            batch = self.buffer.get_batch(most)
            if batch is None:
                self.clock.advance(step)
                step = min(step * 1.2, 0.05)
                continue
            step = 0.001
            events = batch.tolist()
            self.calls.append((self.clock.now(), events))
            try:
                send(batch)
            except Exception as error:
                batch.nack(error)
            else:
                batch.ack()
                self.got += events
            self.buffer.stats().check()

    @property
    def letters(self) -> list[tuple[bytes, str]]:
        store = self.buffer.dead_letters
        assert store is not None
        return [(one.event, one.error) for one in store.letters()]


@pytest.fixture(params=["memory", "directory"])
def bench(request: Any, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**settings: Any) -> Bench:
        directory = tmp_path / "buffer" if request.param == "directory" else None
        benches.append(Bench(directory, **settings))
        return benches[-1]

    yield make
    for one in benches:
        one.buffer.close(timeout=0)


def poisoned(*poison: bytes, error: Exception) -> Send:
    def send(batch: Batch) -> None:
        if set(poison) & set(batch):
            raise error

    return send


FAULTS = [ValueError("bad"), OSError("bad"), TimeoutError("bad"), SinkUnavailable("bad")]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", [0, 9, 18])
def test_what_is_good_beside_poison_is_delivered_within_a_second(
    bench: Callable[..., Bench], error: Exception, place: int
) -> None:
    one = bench()
    events = numbered(19)
    poison = events.pop(place)
    one.buffer.add_events([*events[:place], poison, *events[place:]])
    one.run(poisoned(poison, error=error), 1.0)
    assert sorted(one.got) == sorted(events)
    assert one.buffer.stats().resident == 1, "nothing says yet that it is not the sink"
    # Other events show that it is.
    for number in range(200):
        one.buffer.add_events([b"later %d" % number])
        one.run(poisoned(poison, error=error), 0.25)
    one.run(poisoned(poison, error=error), 1.0)
    assert one.letters == [(poison, "bad")]
    assert one.buffer.stats().resident == 0
    assert len(one.got) == 18 + 200


def test_poison_in_a_large_batch(bench: Callable[..., Bench]) -> None:
    one = bench(lane_bytes=1 << 22)
    events = numbered(50_000)
    one.buffer.add_events(events)
    one.run(poisoned(events[31_234], error=ValueError("bad")), 1.0)
    assert len(one.got) == 49_999


def test_two_poisons_side_by_side_at_the_front(bench: Callable[..., Bench]) -> None:
    one = bench()
    events = numbered(16)
    one.buffer.add_events(events)
    one.run(poisoned(*events[:2], error=ValueError("bad")), 2.0)
    assert sorted(one.got) == events[2:]


def test_a_batch_that_is_named_goes_at_once(bench: Callable[..., Bench]) -> None:
    one = bench()
    events = numbered(100)
    one.buffer.add_events(events)
    one.run(poisoned(events[37], error=BatchRejected("no JSON")), 0.001)
    assert sorted(one.got) == [*events[:37], *events[38:]]
    assert one.letters == [(events[37], "no JSON")]
    assert len(one.calls) <= 2 * 7 + 1


def test_an_outage_counts_against_nothing(bench: Callable[..., Bench]) -> None:
    one = bench(max_attempts=1)
    events = numbered(1000)
    one.buffer.add_events(events[:500])

    def away(batch: Batch) -> None:
        raise OSError("away")

    one.run(lambda batch: None, 0.01, most=100)
    one.got.clear()
    one.buffer.add_events(events[500:])
    one.run(away, 60.0, most=100)
    assert one.buffer.stats().dead_lettered == 0
    assert one.buffer.stats().resident == 500
    one.run(lambda batch: None, 10.0)
    assert one.got == events[500:], "nor does it cost the order"
    assert one.letters == []


def test_a_long_outage_holds_little_in_memory(bench: Callable[..., Bench]) -> None:
    """Comparisons take new events out of the ring only up to a bound."""
    one = bench()
    one.buffer.add_events(numbered(1000))

    def away(batch: Batch) -> None:
        raise OSError("away")

    one.run(away, 600.0, most=10)
    lane = one.buffer.stats().lanes[3]
    assert lane.retrying <= 8 * 10


def test_a_failure_counts_only_if_others_were_taken(bench: Callable[..., Bench]) -> None:
    one = bench(max_attempts=2)
    one.buffer.add_events([b"bad"], priority=1)

    def send(batch: Batch) -> None:
        if b"bad" in batch.tolist():
            raise ValueError("bad")

    one.run(send, 60.0)
    assert one.buffer.stats().resident == 1, "it was alone"
    one.buffer.add_events([b"good"])
    one.run(send, 10.0)
    assert one.buffer.stats().resident == 1, "one failure since something was taken"
    one.buffer.add_events([b"good"])
    one.run(send, 10.0)
    assert one.letters == [(b"bad", "bad")]


def test_none_never_gives_up(bench: Callable[..., Bench]) -> None:
    one = bench(max_attempts=None)
    one.buffer.add_events([b"bad"], priority=1)
    for _ in range(100):
        one.buffer.add_events([b"good"])
        one.run(poisoned(b"bad", error=ValueError("bad")), 1.0)
    assert one.letters == []
    assert one.buffer.stats().resident == 1
    assert len(one.got) == 100


def test_a_sink_that_rejects_everything_fills_no_dead_letters(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.buffer.add_events(numbered(1000))

    def send(batch: Batch) -> None:
        raise BatchRejected("401 by another name")

    one.run(send, 60.0)
    assert len(one.letters) == 9
    assert one.buffer.stats().circuit_breaker.failed > 0
    one.run(lambda batch: None, 10.0)
    assert len(one.got) == 991


def test_a_batch_too_large_teaches_the_size(bench: Callable[..., Bench]) -> None:
    one = bench(lane_bytes=1 << 20)
    events = [b"x" * 100 for _ in range(5000)]
    one.buffer.add_events(events)
    refused = 0

    def send(batch: Batch) -> None:
        nonlocal refused
        if batch.nbytes > 30_000:
            refused += 1
            raise BatchTooLarge("at most 30 kB")

    one.run(send, 0.5)
    assert len(one.got) == 5000
    first = refused
    assert first <= 2 * 16
    one.buffer.add_events(events)
    one.run(send, 0.5)
    assert len(one.got) == 10_000
    assert refused - first <= 4
    sizes = [sum(map(len, events)) for _, events in one.calls[-10:]]
    assert max(sizes) > 15_000, "nor are they smaller than need be"


def test_a_single_event_that_is_too_large_is_a_dead_letter(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.buffer.add_events([b"small", b"L" * 1000, b"small"])

    def send(batch: Batch) -> None:
        if batch.nbytes > 500:
            raise BatchTooLarge("at most 500")

    one.run(send, 0.1)
    assert one.got == [b"small", b"small"]
    assert one.letters == [(b"L" * 1000, "at most 500")]


# ------------------------------------------------------------ event by event


def test_settle_event_by_event(bench: Callable[..., Bench]) -> None:
    one = bench()
    events = numbered(10)
    one.buffer.add_events(events)
    batch = one.buffer.get_batch()
    assert batch is not None
    batch.settle(retry=[1, 4, 7], reject={0: "malformed", 9: ValueError("too old")})
    stats = one.buffer.stats()
    stats.check()
    assert (stats.acked, stats.dead_lettered, stats.retrying) == (5, 2, 3)
    assert one.letters == [(events[0], "malformed"), (events[9], "too old")]
    one.clock.advance(1.0)
    rest = one.buffer.get_batch()
    assert rest is not None
    assert rest.tolist() == [events[1], events[4], events[7]]
    assert rest.seqs.tolist() == [1, 4, 7]
    assert (rest.first_seq, rest.attempt, len(rest)) == (1, 2, 3)
    key = rest.id
    rest.nack(OSError("away"))
    one.clock.advance(1.0)
    again = one.buffer.get_batch()
    assert again is not None
    assert again.id == key != batch.id
    again.ack()
    stats = one.buffer.stats()
    stats.check()
    assert (stats.acked, stats.resident) == (8, 0)


def test_an_id_names_its_events(bench: Callable[..., Bench]) -> None:
    """Batches of the same first number and length, of other events."""
    one = bench()
    seen = set()
    for retry in ([0, 2], [0, 3], [0, 1]):
        one.buffer.add_events(numbered(5))
        batch = one.buffer.get_batch()
        assert batch is not None
        assert batch.id not in seen
        seen.add(batch.id)
        batch.settle(retry=retry)
        one.clock.advance(1.0)
        rest = one.buffer.get_batch()
        assert rest is not None
        assert rest.id not in seen
        seen.add(rest.id)
        assert (rest.seqs - rest.first_seq).tolist() == retry
        rest.ack()


@pytest.mark.parametrize(
    ("retry", "reject"),
    [([10], []), ([-1], []), ([0, 0], []), ([0], [0]), (["0"], []), ([], {10: "x"}), ([0.0], [])],
)
def test_a_mistake_settles_nothing(
    bench: Callable[..., Bench], retry: list[Any], reject: Any
) -> None:
    one = bench()
    one.buffer.add_events(numbered(10))
    batch = one.buffer.get_batch()
    assert batch is not None
    with pytest.raises(ValueError, match=r"retry|reject"):
        batch.settle(retry=retry, reject=reject)
    assert not batch.settled
    # Out of a sink it is a fault of the sink.
    batch.nack(PartialFailure(retry=retry, reject=reject))
    one.clock.advance(1.0)
    again = one.buffer.get_batch()
    assert again is not None
    assert len(again) == 10
    again.settle()
    assert one.buffer.stats().acked == 10


def test_an_event_that_is_always_to_be_retried_is_given_up(bench: Callable[..., Bench]) -> None:
    one = bench()
    events = numbered(6)
    one.buffer.add_events(events)

    def send(batch: Batch) -> None:
        again = [index for index, event in enumerate(batch) if event in events[2:4]]
        if again:
            raise PartialFailure("not these", retry=again)

    for number in range(100):
        one.buffer.add_events([b"later %d" % number])
        one.run(send, 1.0)
        if len(one.letters) == 2:
            break
    assert sorted(event for event, _ in one.letters) == events[2:4]
    assert one.buffer.stats().resident == 0


def test_numpy_indices_are_indices(bench: Callable[..., Bench]) -> None:
    import numpy as np

    one = bench()
    one.buffer.add_events(numbered(6))
    batch = one.buffer.get_batch()
    assert batch is not None
    batch.settle(retry=np.flatnonzero(np.array([0, 1, 0, 1, 0, 0])), reject=np.array([5]))
    stats = one.buffer.stats()
    assert (stats.acked, stats.dead_lettered, stats.retrying) == (3, 1, 2)


# ------------------------------------------------------------ in general


@settings(max_examples=60, deadline=None)
@example(bad={0, 1, 20}, kinds=[ValueError] * 6, most=None, outage=0.0)
@example(bad={6, 8, 18, 19, 20, 32}, kinds=[OSError] * 6, most=1, outage=0.0)
@given(
    bad=st.sets(st.integers(0, 39), max_size=6),
    kinds=st.lists(
        st.sampled_from([ValueError, OSError, BatchRejected, BatchTooLarge]), min_size=6
    ),
    most=st.sampled_from([None, 1, 7]),
    outage=st.floats(0.0, 30.0),
)
def test_whatever_is_bad_all_the_rest_is_delivered(
    bad: set[int], kinds: list[type[Exception]], most: int | None, outage: float
) -> None:
    """Any events, any errors, an outage in between; at the end only what is bad is
    left, or among the dead letters.
    """
    one = Bench()
    events = numbered(40)
    errors = {events[index]: kinds[place](place) for place, index in enumerate(sorted(bad))}
    one.buffer.add_events(events[:20])

    def send(batch: Batch) -> None:
        for event in batch:
            if event in errors:
                raise errors[event]

    def away(batch: Batch) -> None:
        raise OSError("away")

    one.run(send, 1.0, most)
    one.run(away, outage, most)
    assert {event for event, _ in one.letters} <= set(errors)
    one.buffer.add_events(events[20:]).raise_for_rejection()
    one.run(send, 60.0, most)
    one.buffer.add_events([b"last"])
    one.run(send, 10.0, most)
    good = {event for event in events if event not in errors}
    assert set(one.got) == good | {b"last"}
    assert len(one.got) == len(good) + 1, "nothing is delivered twice"
    assert {event for event, _ in one.letters} <= set(errors)
    one.buffer.close(timeout=0)
