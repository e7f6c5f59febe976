"""AdaptiveBatchManager where batches differ: urgent ones beside large ones, and those
that something else limits.
"""

from __future__ import annotations

import pytest

from backpressure.policies.adaptive_batch_manager import AdaptiveBatchManager
from backpressure.testing import FakeClock
from tests.support.adaptive_batch_manager import Sink, make, period

# --- mixed loads: what counts is events


def mixed(
    manager: AdaptiveBatchManager,
    clock: FakeClock,
    sink: Sink,
    evaluations: int,
    *,
    tiny: int = 10,
    each: int = 10,
    filled: bool = True,
) -> list[int]:
    """Intervals of ten batches of the manager's size, with `tiny` urgent ones of `each`
    events after each of them.
    """
    sizes = []
    for _ in range(evaluations):
        for _ in range(10):
            size = manager.batch_size
            manager.record(size, sink.latency(size), filled)
            for _ in range(tiny):
                manager.record(each, sink.latency(each), False)
        clock.advance(manager.config.evaluation_interval)
        manager.evaluate()
        sizes.append(manager.batch_size)
    return sizes


@pytest.mark.parametrize("tiny", [2, 10, 100, 1_000])
def test_tiny_urgent_batches_do_not_hide_that_the_large_ones_are_full(tiny: int) -> None:
    clock = FakeClock()
    manager = make(clock)
    assert mixed(manager, clock, Sink(1e-6, 0.01), 3, tiny=tiny) == [59_900, 69_800, 79_700]
    assert manager.metrics().filled > 0.8


@pytest.mark.parametrize("tiny", [2, 10, 100, 1_000])
def test_tiny_urgent_batches_do_not_hide_that_the_large_ones_are_late(tiny: int) -> None:
    clock = FakeClock()
    manager = make(clock)
    sizes = mixed(manager, clock, Sink(1e-5, 0.01), 6, tiny=tiny)
    assert sizes[0] <= 45_000
    assert sizes[-1] == pytest.approx(18_000, rel=0.03)  # (0.19 - 0.01) / 1e-5
    assert manager.metrics().p95_latency == pytest.approx(1e-5 * sizes[-2] + 0.01)


def test_a_mix_that_changes_does_not_look_like_a_growth_that_lowered_throughput() -> None:
    clock = FakeClock()
    manager = make(clock)
    sink = Sink(1e-6, 0.01)
    assert mixed(manager, clock, sink, 1, tiny=0) == [59_900]
    # Now two thirds of the sink's time go into small batches: events per second of all
    # batches fall by half.
    assert mixed(manager, clock, sink, 1, tiny=12, each=100) == [69_800]
    assert manager.metrics().reverted == 0


def test_small_batches_that_are_most_of_the_load_decide() -> None:
    clock = FakeClock()
    manager = make(clock)
    # 10 large ones have 500,000 events, 1,000 small ones 1,000,000: the load does not
    # fill the large ones.
    assert mixed(manager, clock, Sink(1e-6, 0.001), 1, tiny=100, each=1_000) == [50_000]
    assert manager.metrics().filled == pytest.approx(1 / 3)


@pytest.mark.parametrize("outlier", [0.5, 60.0])
def test_one_outlier_among_the_large_ones_of_a_mixed_load_changes_nothing(outlier: float) -> None:
    clock = FakeClock()
    manager = make(clock)
    sink = Sink(4e-6, 0.01)
    settled = mixed(manager, clock, sink, 15)[-1]
    for _ in range(4):
        manager.record(settled, outlier, True)
        assert mixed(manager, clock, sink, 1) == [settled]


# --- batches that something else limits


def test_batches_that_can_not_tell_do_not_let_the_size_grow_nor_hide_that_others_fill() -> None:
    clock = FakeClock()
    manager = make(clock)
    for others in (0, 3):
        for _ in range(20):
            manager.record(10_000, 0.01, None)  # closed by their bytes, say
        for _ in range(others):
            manager.record(50_000, 0.05, True)
        clock.advance(10.0)
        assert manager.evaluate() == (59_900 if others else 50_000)


def test_late_batches_closed_by_their_bytes_are_made_smaller_at_once() -> None:
    clock = FakeClock()
    manager = make(clock)
    sizes = []
    for _ in range(8):
        size = min(manager.batch_size, 5_000)  # what fits into the bytes
        for _ in range(10):
            manager.record(size, 1e-4 * size + 0.01, None if size == 5_000 else True)
        clock.advance(10.0)
        sizes.append(manager.evaluate())
    assert sizes[0] == 4_500  # a trial step from what they had, not from 50,000, which none has
    assert sizes[-1] == pytest.approx(1_800, rel=0.03)


def test_batches_below_every_allowed_size_are_not_cut_for_being_late() -> None:
    clock = FakeClock()
    manager = make(clock)
    for _ in range(5):
        for _ in range(10):
            manager.record(20, 1.0, False)  # a slow night: no batch size makes these faster
        clock.advance(10.0)
        assert manager.evaluate() == 50_000


def test_a_consumer_that_asks_for_more_than_the_size_does_not_stop_adaptation() -> None:
    clock = FakeClock()
    manager = make(clock, initial_batch_size=10_000)
    sink = Sink(1e-6, 0.01)
    sizes = []
    for _ in range(12):
        for size in (80_000, 60_000, 80_000, 40_000, 80_000, 80_000):
            manager.record(size, sink.latency(size), size == 80_000)
        clock.advance(10.0)
        sizes.append(manager.evaluate())
    assert sizes[0] == 19_900
    assert sizes[-1] >= 80_000
    metrics = manager.metrics()
    assert metrics.seconds_per_batch == pytest.approx(0.01, rel=0.01)
    assert metrics.throughput > 0.0
    assert metrics.p95_latency > 0.0


def test_larger_batches_that_are_late_cut_only_where_the_fit_says_that_the_size_is_late_too() -> (
    None
):
    clock = FakeClock()
    manager = make(clock)
    for a, wanted in ((2.5e-6, 50_000), (1e-5, 25_000)):  # 80,000 take 0.2 s and more in both
        for _ in range(2):
            for size in (80_000, 60_000) * 5:
                manager.record(size, a * size + 0.02, None)
            clock.advance(10.0)
            manager.evaluate()
            manager.adjust(manager.batch_size)  # begins a new run of cuts, and forgets no fit
            if manager.batch_size != 50_000:
                break
        assert manager.batch_size == wanted


def test_larger_batches_fill_the_size_also_where_they_had_asked_for_still_more() -> None:
    clock = FakeClock()
    manager = make(clock, initial_batch_size=10_000)
    for _ in range(10):
        manager.record(60_000, 0.05, False)  # of 80,000
    clock.advance(10.0)
    assert manager.evaluate() == 19_900


def test_larger_late_batches_of_one_size_say_nothing_about_the_size() -> None:
    clock = FakeClock()
    manager = make(clock)
    for _ in range(10):
        manager.record(80_000, 0.3, None)
    clock.advance(10.0)
    assert manager.evaluate() == 50_000


def test_throughput_is_not_compared_between_larger_batches_and_those_of_the_size() -> None:
    for first, second in ((80_000, None), (None, 80_000)):  # None: as large as the size
        clock = FakeClock()
        manager = make(clock, initial_batch_size=20_000)
        for explicit, latency in ((first, 0.01), (second, 0.05)):
            for _ in range(10):
                manager.record(explicit or manager.batch_size, latency, True)
            clock.advance(10.0)
            manager.evaluate()
        assert manager.metrics().reverted == 0
        assert manager.batch_size > 20_000


def test_small_batches_that_are_said_to_be_full_are_cut_for_being_late() -> None:
    clock = FakeClock()
    manager = make(clock)
    for _ in range(10):
        manager.record(20, 1.0, True)
    clock.advance(10.0)
    assert manager.evaluate() == 1_000


def test_a_growth_from_a_throughput_beyond_the_clock_is_not_taken_back() -> None:
    clock = FakeClock()
    manager = make(clock)
    assert period(manager, clock, [0.0] * 10) == 59_900
    assert period(manager, clock, [0.05] * 10) == 69_800
