"""AdaptiveBatchManager while events are refused, and under pressure."""

from __future__ import annotations

import pytest

from backpressure.policies.adaptive_batch_manager import AdaptiveBatchManager
from backpressure.testing import FakeClock
from tests.support.adaptive_batch_manager import Sink, make, period

# --- while events are refused


def refuse(
    manager: AdaptiveBatchManager, clock: FakeClock, sink: Sink, seconds: float, full: float = 1.0
) -> list[int]:
    """Batches one after the other while events are refused, a share `full` of their
    events in full ones; all sizes in turn.
    """
    sizes, end = [manager.batch_size], clock.now() + seconds
    while clock.now() < end:
        size = manager.batch_size
        parts = [size] if full == 1.0 else [size, *[size // 4] * round(4 * (1.0 - full) / full)]
        for part in parts:
            clock.advance(sink.latency(part))
            manager.record(part, sink.latency(part), part == size)
        if manager.evaluate(0.0, refusing=True) != sizes[-1]:
            sizes.append(manager.batch_size)
    return sizes


def test_the_first_refusals_are_looked_at_soon_and_the_size_leaps() -> None:
    clock = FakeClock()
    manager = make(clock, initial_batch_size=10_000)
    sink = Sink(1e-6, 0.01)
    period(manager, clock, [0.5] * 20)  # an interval of another time
    size = manager.batch_size
    began = clock.now()
    clock.advance(5.0)
    assert refuse(manager, clock, sink, 1.5) == [size, 2 * size]
    assert clock.now() - began < 7.0
    assert len(refuse(manager, clock, sink, 8.0)) == 1  # the next look is a whole interval later


def test_a_steady_refusal_brings_no_look_before_its_time() -> None:
    clock = FakeClock()
    manager = make(clock, initial_batch_size=10_000, max_batch_size=10_000)
    sink = Sink(1e-6, 0.01)
    refuse(manager, clock, sink, 30.0)
    begun = manager._begun
    refuse(manager, clock, sink, 9.5)
    assert manager._begun - begun in (0.0, pytest.approx(10.0, abs=0.1))


def test_a_fifth_of_full_batches_is_enough_to_grow_while_events_are_refused() -> None:
    for full, grows in ((0.3, True), (0.1, False)):
        clock = FakeClock()
        manager = make(clock, initial_batch_size=10_000)
        refuse(manager, clock, Sink(1e-6, 0.01), 12.0, full)
        assert (manager.batch_size > 10_000) is grows
        clock = FakeClock()
        manager = make(clock, initial_batch_size=10_000)
        Sink(1e-6, 0.01).run(manager, clock, 2, available=5_000)
        assert manager.batch_size == 10_000


def test_nothing_shrinks_in_time_while_events_are_refused() -> None:
    """Under mere pressure it does: latency is what binds there."""
    sizes = []
    for refusing in (False, True):
        clock = FakeClock()
        manager = make(clock, initial_batch_size=30_000)
        sink = Sink(5e-6, 0.001)
        for size in (20_000, 30_000):  # so that the fit tells a from b
            manager.adjust(size)
            sink.run(manager, clock, 1)
        manager.adjust(30_000)
        for _ in range(20):
            manager.record(30_000, sink.latency(30_000), True)
        clock.advance(10.0)
        if refusing:
            manager.evaluate(0.8, True)
            for _ in range(20):
                manager.record(30_000, sink.latency(30_000), True)
            clock.advance(1.0)
        sizes.append(manager.evaluate(0.8, refusing))
    assert sizes[0] < 30_000 <= sizes[1]


def test_a_leap_that_lowered_throughput_is_taken_back_and_not_tried_again_while_it_lasts() -> None:
    class Knee(Sink):
        def latency(self, size: int) -> float:
            return 1e-6 * size * (1.0 if size <= 12_000 else 2.0) + 0.005

    clock = FakeClock()
    manager = make(clock, initial_batch_size=10_000)
    sizes = refuse(manager, clock, Knee(0.0, 0.0), 60.0)
    assert sizes[:3] == [10_000, 20_000, 10_000]
    assert max(sizes[3:], default=0) < 20_000


def test_four_batches_decide_nothing_and_wait_for_the_fifth() -> None:
    clock = FakeClock()
    manager = make(clock)
    assert period(manager, clock, [5.0] * 4) == 50_000
    assert period(manager, clock, [5.0]) == 45_000


def test_batches_asked_for_before_a_cut_do_not_cut_again() -> None:
    clock = FakeClock()
    manager = make(clock)
    sink = Sink(4e-6, 0.02)
    sink.run(manager, clock, 10)
    settled = manager.batch_size
    for _ in range(20):
        manager.record(2 * settled, 0.4, True)
    for _ in range(20):
        manager.record(settled, sink.latency(settled), True)
    clock.advance(10.0)
    assert manager.evaluate() == settled


@pytest.mark.parametrize("a", [1e-7, 0.0])
def test_a_target_that_no_size_meets_does_not_cost_throughput(a: float) -> None:
    clock = FakeClock()
    manager = make(clock)
    sizes = Sink(a, 1.0).run(manager, clock, 100)
    # A trial step now and then is what finds out that the sink is still so.
    assert set(sizes) == {50_000, 45_000}
    assert sizes.count(45_000) <= 15


def test_cuts_that_turn_out_not_to_help_are_undone_up_to_where_they_began() -> None:
    clock = FakeClock()
    manager = make(clock)
    sink = Sink(1e-5, 0.02)
    assert sink.run(manager, clock, 2)[-1] == 22_500  # from 50,000 by 45,000
    sink.a, sink.b = 0.0, 1.0
    assert sink.run(manager, clock, 1) == [50_000]


def test_cuts_that_did_help_are_not_undone_later() -> None:
    clock = FakeClock()
    manager = make(clock)
    sink = Sink(1e-5, 0.02)
    settled = sink.run(manager, clock, 20)[-1]
    sink.a, sink.b = 0.0, 1.0
    assert max(sink.run(manager, clock, 20)) == settled


# --- pressure


def test_pressure_shrinks_where_the_events_bind_down_to_a_tenth_of_overhead() -> None:
    clock = FakeClock()
    manager = make(clock, initial_batch_size=40_000)
    sink = Sink(1e-6, 0.001)
    sizes = sink.run(manager, clock, 40, pressure=1.0)
    assert sizes[-1] == pytest.approx(9_000, abs=1)  # there a * n is 0.009 and b 0.001
    assert min(sizes) == sizes[-1]
    assert (
        sink.run(manager, clock, 20)[-1] > 90_000
    )  # and the end of the pressure lets it grow again


def test_pressure_does_not_shrink_where_overhead_binds() -> None:
    for a, b in ((1e-7, 0.1), (1e-6, 0.1), (0.0, 0.05)):
        clock = FakeClock()
        manager = make(clock)
        sizes = Sink(a, b).run(manager, clock, 40, pressure=1.0)
        assert min(sizes) >= 50_000
        assert sizes[-1] > 80_000  # larger batches are what raises capacity here


def test_pressure_on_a_late_sink_does_not_shrink_below_what_overhead_allows() -> None:
    clock = FakeClock()
    manager = make(clock)
    sink = Sink(1e-5, 0.03)  # the target asks for 17,000, a tenth of overhead for 27,000
    pressed = sink.run(manager, clock, 10, pressure=1.0)
    assert min(pressed) == pressed[-1] == pytest.approx(27_000, abs=1)
    assert sink.run(manager, clock, 10)[-1] == pytest.approx(16_000, rel=0.03)
    assert sink.run(manager, clock, 30, pressure=1.0)[-1] <= 17_000  # late if it grew


def test_a_little_pressure_changes_nothing() -> None:
    clock, other = FakeClock(), FakeClock()
    pressed, free = make(clock), make(other)
    assert Sink(1e-6, 0.001).run(pressed, clock, 20, pressure=0.4) == Sink(1e-6, 0.001).run(
        free, other, 20
    )


def test_noise_does_not_make_small_changes() -> None:
    clock = FakeClock()
    changes: list[tuple[int, int]] = []
    manager = make(clock, lambda old, new, reason: changes.append((old, new)))
    sink = Sink(1e-5, 0.03, noise=0.1)
    for pressure in (1.0, 0.0, 1.0):
        sink.run(manager, clock, 60, pressure=pressure)
    assert len(changes) > 5
    assert all(abs(new - old) >= 0.02 * old - 1 for old, new in changes)


def test_pressure_counts_as_one_at_most() -> None:
    clock, other = FakeClock(), FakeClock()
    beyond, full = make(clock), make(other)
    assert Sink(1e-6, 0.001).run(beyond, clock, 9, pressure=4.0) == Sink(1e-6, 0.001).run(
        full, other, 9, pressure=1.0
    )
