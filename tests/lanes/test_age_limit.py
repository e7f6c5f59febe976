"""AgeLimit: from notes of when events had arrived to which of them are too old."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backpressure.lanes.age_limit import AgeLimit
from backpressure.testing import FakeClock


def make(seconds: float, clock: FakeClock) -> AgeLimit:
    return AgeLimit(seconds, clock.now, lambda priority, events: None)


def test_what_was_noted_longer_ago_is_too_old_and_nothing_else() -> None:
    clock = FakeClock(5.0)
    age = make(10.0, clock)
    age.note(3, 5.0)
    age.note(7, 8.0)
    assert age.look(15.0) == 0
    assert age.look(15.1) == 3
    assert [age.age_of(seq, 16.0) for seq in (2, 3, 6, 7)] == [10.0, 8.0, 8.0, 0.0]
    assert age.look(18.1) == 7
    # What is known already is no news, and a clock that steps back makes none older.
    age.note(7, 20.0)
    age.note(9, 20.0)
    age.note(10, 1.0)
    assert age.look(25.0) == 7
    assert age.look(30.1) == 10


def test_notes_near_each_other_become_one_of_the_latest_time() -> None:
    age = make(10.0, FakeClock())
    for number in range(1, 100_001):
        age.note(number, number * 1e-3)
    assert len(age._notes) <= 100 / 0.02 + 1
    age = make(1000.0, FakeClock())
    for number in range(1, 100_001):
        age.note(number, number * 1e-2)
    assert len(age._notes) <= 502
    # Never before its time, and not long after.
    for now in (1000.0, 1500.0, 1999.0):
        exact = (now - 1000.0) / 1e-2
        assert exact - 201 <= age.look(now) <= exact


@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 5)), min_size=1, max_size=60),
    st.floats(0.01, 10.0),
)
def test_no_event_is_dropped_before_its_time_nor_much_later(
    adds: list[tuple[float, int]], seconds: float
) -> None:
    clock = FakeClock()
    age = make(seconds, clock)
    arrived: list[float] = []
    for pause, events in adds:
        clock.advance(pause)
        arrived += [clock.now()] * events
        age.note(len(arrived), clock.now())
        expired = age.look(clock.now())
        for seq, at in enumerate(arrived):
            old = clock.now() - at
            if seq < expired:
                assert old > seconds
            else:
                assert old <= seconds + max(seconds / 500, 0.01)
