"""AdaptiveBatchManager: its config, its bounds, by hand, and under threads."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading

import pytest
from hypothesis import strategies as st

from backpressure.base.errors import ConfigError
from backpressure.policies.adaptive_batch_manager import AdaptiveBatchConfig, AdaptiveBatchManager
from backpressure.testing import FakeClock
from tests.support.adaptive_batch_manager import Sink, make, period
from tests.support.models import given_in_part
from tests.support.threads import in_thread, run_threads

# --- config


def test_defaults_are_those_of_the_design() -> None:
    config = AdaptiveBatchConfig()
    assert (config.initial_batch_size, config.min_batch_size, config.max_batch_size) == (
        50_000,
        1_000,
        100_000,
    )
    assert (config.target_latency, config.adjustment_factor, config.evaluation_interval) == (
        0.2,
        0.1,
        10.0,
    )
    assert (config.throughput_target, config.adaptive_enabled) == (2_000_000, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("initial_batch_size", 999),
        ("initial_batch_size", 100_001),
        ("initial_batch_size", 50_000.0),
        ("min_batch_size", 0),
        ("min_batch_size", True),
        ("max_batch_size", 999),
        ("target_latency", 0.0),
        ("target_latency", math.nan),
        ("target_latency", "0.2"),
        ("adjustment_factor", 0.51),
        ("evaluation_interval", math.inf),
        ("throughput_target", -1),
        ("max_linger", -0.001),
        ("max_linger", math.nan),
        ("max_linger", 61.0),
        ("adaptive_enabled", 1),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: must be") as caught:
        AdaptiveBatchConfig(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


# --- linger, flushes


def test_linger_is_a_tenth_of_the_target_at_most() -> None:
    assert make(FakeClock()).linger == 0.005
    assert make(FakeClock(), target_latency=0.02).linger == pytest.approx(0.002)
    assert make(FakeClock(), target_latency=60.0, max_linger=1.0).linger == 1.0
    assert make(FakeClock(), max_linger=0.0).linger == 0.0
    assert make(FakeClock(), adaptive_enabled=False).metrics().linger == 0.0


def test_flushes_are_counted_by_reason() -> None:
    manager = make(FakeClock())
    before = manager.metrics()
    assert set(before.flushes) == {
        "size",
        "bytes",
        "linger",
        "pressure",
        "close",
        "flush",
        "retry",
        "ready",
    }
    manager.flushed("size")
    manager.flushed("size")
    manager.flushed("linger")
    assert {reason: n for reason, n in manager.metrics().flushes.items() if n} == {
        "size": 2,
        "linger": 1,
    }
    assert not any(before.flushes.values())
    with pytest.raises(TypeError):
        before.flushes["size"] = 1  # type: ignore[index]


# --- bounds


BATCH = st.tuples(
    st.integers(-1, 200_000),
    st.one_of(st.floats(0.0, 5.0), st.sampled_from([0.0, 1e-9, 1e9, math.inf, math.nan, -1.0])),
    st.booleans(),
)

STEP = st.tuples(
    st.lists(BATCH, max_size=12),
    st.sampled_from([0.0, 5.0, 10.0, 10.0, 10.0, 1e6, -50.0]),
    st.floats(-1.0, 2.0),
    st.booleans(),
)


@given_in_part(
    150,
    bounds=st.tuples(st.integers(1, 5_000), st.integers(0, 100_000), st.floats(0.0, 1.0)),
    factor=st.floats(0.001, 0.5),
    steps=st.lists(STEP, max_size=25),
)
def test_stays_within_bounds_whatever_happens(
    bounds: tuple[int, int, float],
    factor: float,
    steps: list[tuple[list[tuple[int, float, bool]], float, float, bool]],
) -> None:
    least, span, place = bounds
    clock = FakeClock(1_000.0)
    changes: list[tuple[int, int]] = []
    manager = make(
        clock,
        lambda old, new, reason: changes.append((old, new)),
        min_batch_size=least,
        max_batch_size=least + span,
        initial_batch_size=least + int(span * place),
        adjustment_factor=factor,
    )
    size = manager.batch_size
    for batches, seconds, pressure, at_size in steps:
        for events, latency, filled in batches:
            manager.record(size if at_size and events > 0 else events, latency, filled)
        clock.set(clock.now() + seconds)
        before, told = size, len(changes)
        seen = [sample[0] for kind in manager._samples._kinds for sample in kind.kept]
        comparable = [n for n in seen if n <= before]
        largest = max(comparable if len(comparable) >= 5 else seen, default=0)
        size = manager.evaluate(pressure)
        assert size == manager.batch_size
        assert isinstance(size, int)
        assert least <= size <= least + span
        assert size >= min(before, largest) // 2 or manager.metrics().reverted  # one step at a time
        assert changes[told:] == ([(before, size)] if size != before else [])
        metrics = manager.metrics()
        assert 0.0 <= metrics.score <= 1.0
        assert metrics.seconds_per_event >= 0.0
        assert metrics.seconds_per_batch >= 0.0
        assert metrics.grown + metrics.cut + metrics.reverted == len(changes)


# --- disabled, by hand, the rest


def test_disabled_does_nothing_by_itself() -> None:
    clock = FakeClock()
    manager = make(clock, adaptive_enabled=False)
    assert set(Sink(1e-5, 0.02).run(manager, clock, 10, pressure=1.0)) == {50_000}
    assert set(Sink(0.0, 0.001).run(manager, clock, 10)) == {50_000}
    assert manager.metrics().throughput == pytest.approx(50_000 / 0.001)  # but it measures
    manager.adjust(20_000)
    assert manager.batch_size == 20_000
    assert set(Sink(0.0, 0.001).run(manager, clock, 10)) == {20_000}


def test_adjust_takes_effect_at_once_and_is_the_new_start() -> None:
    clock = FakeClock()
    told: list[tuple[int, int, str]] = []
    manager = make(clock, lambda *change: told.append(change))
    for _ in range(10):
        manager.record(50_000, 5.0, True)  # would cut at the next evaluation
    clock.advance(9.0)
    manager.adjust(60_000)
    assert manager.batch_size == 60_000
    assert told == [(50_000, 60_000, "set by hand")]
    manager.adjust(60_000)
    assert len(told) == 1
    for _ in range(10):
        manager.record(60_000, 0.01, True)
    clock.advance(9.0)
    assert manager.evaluate() == 60_000  # a whole interval from the adjustment
    clock.advance(1.0)
    assert manager.evaluate() == 69_900
    manager.adjust(10_000)
    assert (
        period(manager, clock, [0.05] * 10) == 19_900
    )  # slower than 60,000 in 0.01, but no growth did that


@pytest.mark.parametrize("size", [999, 100_001, 0, -5, 2_000.0, True, "2000"])
def test_adjust_refuses_what_is_out_of_bounds_and_says_what_is_allowed(size: object) -> None:
    manager = make(FakeClock())
    with pytest.raises(ValueError, match="from 1,000 to 100,000") as caught:
        manager.adjust(size)  # type: ignore[arg-type]
    assert isinstance(caught.value, ConfigError)
    assert manager.batch_size == 50_000


def test_not_due_costs_one_clock_reading_and_no_lock() -> None:
    readings = 0

    class Counting:
        def now(self) -> float:
            nonlocal readings
            readings += 1
            return 3.0

    manager = AdaptiveBatchManager(clock=Counting())
    readings = 0
    with manager._lock:  # evaluate would hang if it took the lock
        in_thread(manager.evaluate)
    assert readings == 1


def test_score() -> None:
    clock = FakeClock()
    manager = make(clock, adaptive_enabled=False, throughput_target=1_000_000)
    assert manager.score == 1.0
    period(manager, clock, [0.1] * 10)  # 500,000 a second, in time
    assert manager.score == pytest.approx((0.5 + 1.0) / 2)
    period(manager, clock, [0.4] * 10)  # 125,000 a second, twice the target latency
    assert manager.score == pytest.approx((0.125 + 0.5) / 2)
    period(manager, clock, [0.01] * 10)
    assert manager.score == 1.0


def test_throughput_counts_batches_that_overlap() -> None:
    clock = FakeClock()
    manager = make(clock, adaptive_enabled=False)
    period(manager, clock, [1.0] * 80)  # 80 seconds of the sink in 10 of the clock: eight at a time
    assert manager.metrics().throughput == pytest.approx(80 * 50_000 / 10.0)


def test_metrics_are_frozen_and_count() -> None:
    clock = FakeClock()
    manager = make(clock)
    period(manager, clock, [0.01] * 10)
    manager.record(0, 0.1, False)
    manager.record(10, -0.1, False)
    metrics = manager.metrics()
    assert (metrics.batches, metrics.events, metrics.grown, metrics.filled) == (10, 500_000, 1, 1.0)
    assert metrics.batch_size == 59_900
    with pytest.raises(dataclasses.FrozenInstanceError):
        metrics.batches = 0  # type: ignore[misc]


def test_a_clock_that_steps_back_begins_a_new_interval() -> None:
    clock = FakeClock(1_000.0)
    manager = make(clock, adaptive_enabled=False)
    for _ in range(10):
        manager.record(50_000, 0.1, True)
    clock.set(0.0)
    assert manager.evaluate() == 50_000
    assert manager.metrics().throughput == 0.0  # not evaluated yet
    clock.advance(9.0)
    manager.evaluate()
    assert manager.metrics().throughput == 0.0
    clock.advance(1.0)
    manager.evaluate()
    assert manager.metrics().throughput == pytest.approx(500_000)


def test_latencies_that_a_coarse_clock_shows_as_zero_do_no_harm() -> None:
    clock = FakeClock()
    manager = make(clock)
    assert period(manager, clock, [0.01] * 10) == 59_900
    sizes = [period(manager, clock, [0.0] * 10) for _ in range(8)]
    assert sizes[-1] == 100_000
    assert manager.metrics().throughput == pytest.approx(100_000)
    assert manager.metrics().reverted == 0


def test_on_change_runs_without_the_lock_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    seen: list[int] = []

    def broken(old: int, new: int, reason: str) -> None:
        seen.append(in_thread(lambda: manager.metrics().batch_size))
        raise RuntimeError("no")

    manager = make(clock, broken)
    with caplog.at_level(logging.ERROR, logger="backpressure"):
        assert period(manager, clock, [0.01] * 10) == 59_900
        manager.adjust(2_000)
    assert seen == [59_900, 2_000]
    assert "50000 -> 59900" in caplog.text


def test_an_evaluation_that_was_overtaken_does_nothing() -> None:
    class Overtaken(FakeClock):
        """After one evaluation has read the time, another one is made, and five more
        batches come in.
        """

        overtakes = False

        def now(self) -> float:
            now = super().now()
            if self.overtakes:
                self.overtakes = False
                assert manager.evaluate() == 59_900
                for _ in range(5):
                    manager.record(59_900, 0.01, True)
            return now

    clock = Overtaken()
    manager = make(clock)
    for _ in range(5):
        manager.record(50_000, 0.01, True)
    clock.advance(10.0)
    clock.overtakes = True
    assert manager.evaluate() == 59_900
    assert not clock.overtakes
    assert manager.metrics().grown == 1


def test_threads_that_evaluate_at_once_make_one_change() -> None:
    clock = FakeClock()
    changes: list[int] = []
    manager = make(clock, lambda old, new, reason: changes.append(new))
    meet = threading.Barrier(4)

    def work() -> None:
        for _ in range(20):
            for _ in range(5):
                manager.record(manager.batch_size, 0.01, True)
            if meet.wait(10.0) == 0:
                clock.advance(10.0)
            meet.wait(10.0)
            manager.evaluate()
            meet.wait(10.0)

    run_threads([work] * 4)
    assert changes == [59_900, 69_800, 79_700, 89_600, 99_500, 100_000]
    assert manager.metrics().batches == 400
