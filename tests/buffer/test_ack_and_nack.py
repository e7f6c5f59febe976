"""Batches that are settled: acked, nacked, lost, delivered again, and how long a pause
that makes.
"""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest

from backpressure import (
    BatchStateError,
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
)
from backpressure.spill import DeadLetter
from backpressure.testing import FakeClock
from tests.support.buffers import SMALL, drain


def test_a_nacked_batch_comes_again_in_its_place_after_a_growing_pause() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(retry_backoff=1.0, max_retry_backoff=4.0), clock=clock)
    buffer.add_events([b"a"])
    seen = []
    for attempt in range(1, 4):
        batch = buffer.get_batch(max_events=1)
        assert batch is not None
        assert batch.tolist() == [b"a"]
        assert batch.attempt == attempt
        seen.append(batch.id)
        if attempt == 1:
            buffer.add_events([b"c"])
        if attempt == 3:
            # From the third failure on what is newer is tried beside it: see
            # tests/delivery/test_attempts.py.
            break
        batch.nack(OSError("sink is down"))
        pause = min(2.0 ** (attempt - 1), 4.0)
        clock.advance(pause * 0.49)
        assert buffer.get_batch() is None, "nothing newer may overtake it, and it still pauses"
        clock.advance(pause * 0.52)
    assert len(set(seen)) == 1, "an id must survive redelivery"
    assert batch is not None
    batch.ack()
    assert drain(buffer) == [b"c"]
    stats = buffer.stats()
    stats.check()
    assert (stats.redelivered, stats.batches_nacked) == (2, 2)


def test_pauses_grow_up_to_the_longest() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(retry_backoff=1.0, max_retry_backoff=4.0), clock=clock)
    buffer.add_events([b"a"])
    for attempt in range(1, 6):
        batch = buffer.get_batch()
        assert batch is not None
        assert batch.attempt == attempt
        batch.nack(OSError("sink is down"))
        pause = min(2.0 ** (attempt - 1), 4.0)
        clock.advance(pause * 0.49)
        assert buffer.get_batch() is None
        clock.advance(pause * 0.52)


class Longest(random.Random):
    """The worst luck with jitter."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def fail_alone(buffer: BufferManager, clock: FakeClock, seconds: float) -> int:
    """One consumer, whose sink refuses everything at once; how many batches it was
    given.
    """
    attempts, end = 0, clock.now() + seconds
    while clock.now() < end:
        batch = buffer.get_batch()
        if batch is None:
            clock.advance(0.01)
        else:
            batch.nack()
            attempts += 1
    return attempts


def test_a_lone_consumer_of_a_dead_sink_opens_the_circuit_with_all_defaults() -> None:
    """Pauses that double up to 5 s would leave the breaker's window of 5 s short of
    results for ever.
    """
    clock = FakeClock()
    buffer = BufferManager(clock=clock, rng=Longest())
    buffer.add_events([b"x"])
    fail_alone(buffer, clock, 4.0)
    assert buffer.is_circuit_breaker_open()
    failures = buffer.stats().circuit_breaker.window_failures
    assert failures == buffer.config.circuit_breaker.min_requests
    # From then on single batches ask whether it is back, no oftener than the breaker's
    # probes would.
    assert fail_alone(buffer, clock, 120.0) <= 20 * 4
    assert buffer.is_circuit_breaker_open()
    clock.advance(buffer.stats().circuit_breaker.retry_after)
    batch = buffer.get_batch()
    assert batch is not None
    batch.ack()
    assert not buffer.is_circuit_breaker_open()


def test_a_bad_batch_among_good_ones_pauses_as_long_as_ever() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(max_attempts=None), clock=clock, rng=Longest())
    attempts, began = 0, clock.now()
    for step in range(650):
        if step == 50:
            buffer.add_events([b"bad"], priority=1)
        buffer.add_events([b"good"])
        while (batch := buffer.get_batch()) is not None:
            bad = batch[0] == b"bad"
            attempts += bad
            batch.nack() if bad else batch.ack()
        clock.advance(0.1)
    assert clock.now() - began == pytest.approx(65.0)
    assert not buffer.is_circuit_breaker_open()
    assert 15 <= attempts <= 25


def test_a_longest_pause_that_was_set_is_kept_while_nothing_succeeds() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(max_retry_backoff=5.0), clock=clock, rng=Longest())
    buffer.add_events([b"x"])
    assert fail_alone(buffer, clock, 60.0) < 25
    # Ten failures are evidence, however far apart they are.
    assert buffer.is_circuit_breaker_open()


def test_batches_out_at_the_same_time_come_back_in_order() -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(retry_backoff=0.0), clock=clock)
    buffer.add_events([b"%d" % i for i in range(6)])
    out = [buffer.get_batch(max_events=2) for _ in range(3)]
    for index in (2, 0, 1):
        batch = out[index]
        assert batch is not None
        batch.nack()
    clock.advance(1)
    assert drain(buffer) == [b"%d" % i for i in range(6)]


def test_a_batch_settles_once() -> None:
    buffer = BufferManager(SMALL)
    buffer.add_events([b"a"])
    batch = buffer.get_batch()
    assert batch is not None
    batch.ack()
    for again in (batch.ack, batch.nack):
        with pytest.raises(BatchStateError, match="before"):
            again()
    stats = buffer.stats()
    stats.check()
    assert (stats.acked, stats.batches_acked, stats.batches_nacked) == (1, 1, 0)


def test_with_acks_and_an_exception_nacks() -> None:
    clock = FakeClock()
    buffer = BufferManager(SMALL, clock=clock)
    buffer.add_events([b"a"])
    batch = buffer.get_batch()
    assert batch is not None
    with pytest.raises(OSError, match="down"), batch:
        raise OSError("down")
    clock.advance(10)
    again = buffer.get_batch()
    assert again is not None
    assert again.attempt == 2
    with again:
        pass
    assert buffer.stats().acked == 1
    buffer.add_events([b"b"])
    third = buffer.get_batch()
    assert third is not None
    with third:
        third.ack()  # settled inside: the end of the block changes nothing
    assert buffer.stats().acked == 2


def test_a_settled_batch_does_not_speak_for_its_redelivery() -> None:
    """The old object may live longer than the pause, or be collected while its events
    are out again.
    """
    clock = FakeClock()
    buffer = BufferManager(SMALL, clock=clock)
    buffer.add_events([b"a"])
    old = buffer.get_batch()
    assert old is not None
    old.nack()
    clock.advance(10)
    new = buffer.get_batch()
    assert new is not None
    assert (old.attempt, new.attempt) == (1, 2)
    with pytest.raises(BatchStateError):
        old.ack()
    del old
    gc.collect()
    assert buffer.get_batch() is None, "its events are out"
    assert buffer.stats().in_flight == 1
    new.ack()
    assert buffer.stats().acked == 1


def test_a_lost_batch_is_delivered_again() -> None:
    buffer = BufferManager(SMALL)
    buffer.add_events([b"a", b"b"])
    batch = buffer.get_batch()
    assert batch is not None
    del batch
    gc.collect()
    buffer.stats().check()
    assert buffer.stats().retrying == 2
    assert drain(buffer) == [b"a", b"b"]


def test_a_lost_batch_is_no_attempt(tmp_path: Path) -> None:
    config = BufferConfig(directory=tmp_path / "buffer", max_attempts=2, retry_backoff=0.0)
    with BufferManager(config) as buffer:
        buffer.add_events([b"good"])
        for _ in range(5):
            batch = buffer.get_batch()
            assert batch is not None
            assert batch.attempt == 1
            del batch
            gc.collect()
        again = buffer.get_batch()
        assert again is not None
        again.nack("no")
        assert buffer.stats().dead_lettered == 0
        again = buffer.get_batch()
        assert again is not None
        assert again.attempt == 2
        again.ack()


class Speechless(Exception):
    """What some library raises."""

    retry_after = "in a while"

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("ignored", [(), (Speechless,)])
def test_an_error_that_cannot_say_what_it_is_gives_the_batch_back(
    ignored: tuple[type[Exception], ...],
) -> None:
    breaker = CircuitBreakerConfig(ignored_exceptions=ignored)
    with BufferManager(BufferConfig(retry_backoff=0.0, circuit_breaker=breaker)) as buffer:
        buffer.add_events([b"x"])
        batch = buffer.get_batch()
        assert batch is not None
        batch.nack(Speechless())
        again = buffer.get_batch(timeout=5.0)
        assert again is not None
        assert again._handout.error == "Speechless"
        again.ack()


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("given", [False, True], ids=["all", "given"])
def test_a_letter_that_no_lane_can_hold_does_not_keep_back_the_others(
    tmp_path: Path, disk: bool, given: bool
) -> None:
    directory = str(tmp_path / "buffer") if disk else None
    with BufferManager(BufferConfig(lane_bytes=1 << 16, directory=directory)) as buffer:
        letters = buffer.dead_letters
        assert letters is not None
        events = [b"1", bytes(1 << 17), b"3", bytes(1 << 17), b"5"]
        letters.add(
            [
                DeadLetter(event=event, error="no", attempts=1, priority=3, seq=seq, time_ns=0)
                for seq, event in enumerate(events)
            ]
        )
        assert buffer.replay_dead_letters(list(letters.letters()) if given else None) == 3
        assert drain(buffer) == [b"1", b"3", b"5"]
        assert [len(letter.event) for letter in letters.letters()] == [1 << 17, 1 << 17]
        assert buffer.replay_dead_letters() == 0
