"""When events arrived: as fine as promised, in a bounded number of notes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backpressure.lanes.arrival_marks import _INTERVAL, _MOST, ArrivalMarks


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0.0, 0.05)), max_size=60), st.data())
def test_the_oldest_age_is_as_fine_as_the_interval(
    arrivals: list[tuple[int, float]], data: st.DataObject
) -> None:
    marks, times, now = ArrivalMarks(), list[float](), 100.0
    for events, pause in arrivals:
        now += pause
        if marks.is_due(now):
            marks.note(len(times), now)
        times += [now] * events
    taken = data.draw(st.integers(0, len(times)))
    marks.forget_before(taken)
    if taken < len(times):
        true = now - times[taken]
        assert true - 1e-9 <= marks.oldest_age(now) <= true + _INTERVAL + 1e-9


def test_many_notes_are_thinned_out() -> None:
    marks, now = ArrivalMarks(), 0.0
    for seq in range(5 * _MOST):
        now = seq * _INTERVAL
        marks.note(seq, now)
    assert len(marks._marks) <= _MOST
    apart = marks._interval
    assert apart > _INTERVAL
    for taken in range(0, 5 * _MOST, 501):
        marks.forget_before(taken)
        true = now - taken * _INTERVAL
        assert true - 1e-9 <= marks.oldest_age(now) <= true + 2 * apart
    marks.forget_before(5 * _MOST)
    assert marks._interval == _INTERVAL, "as fine again"


def test_notes_ascend_in_number_and_time() -> None:
    marks = ArrivalMarks()
    marks.note(10, 1.0)
    marks.note(5, 2.0)
    marks.note(20, 0.5)
    marks.forget_before(10)
    assert marks.oldest_age(3.0) == 2.0
