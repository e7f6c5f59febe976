"""Admission.raise_for_rejection: every reason has its class, and each error says what
to do.
"""

from __future__ import annotations

import math
import queue
from typing import Any

import pytest

from backpressure import (
    Admission,
    BackpressureError,
    BufferClosed,
    BufferConfig,
    BufferFull,
    BufferManager,
    FlowControlConfig,
    NeverAdmitted,
    NotNow,
    Priority,
    RateLimited,
)
from backpressure.testing import FakeClock
from tests.support.buffers import EVENT, SMALL, add_all


def raised(admission: Admission) -> BackpressureError:
    with pytest.raises(BackpressureError) as caught:
        admission.raise_for_rejection()
    return caught.value


@pytest.mark.parametrize("admission", [Admission(3, 0), Admission(0, 0), Admission(5, 0, None)])
def test_nothing_is_raised_where_nothing_was_rejected(admission: Admission) -> None:
    admission.raise_for_rejection()


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("full", BufferFull),
        ("rate", RateLimited),
        ("share", RateLimited),
        ("delay", RateLimited),
        ("emergency", RateLimited),
        ("closed", BufferClosed),
        (None, RateLimited),
        ("some day", RateLimited),
    ],
)
def test_each_reason_has_its_class(reason: Any, kind: type[BackpressureError]) -> None:
    error = raised(Admission(3, 2000, reason, 0.25))
    assert type(error) is kind
    assert str(error).startswith("2,000 of 2,003 events were rejected: ")
    if isinstance(error, NotNow):
        assert error.retry_after == 0.25
        assert "the first 3 were accepted: try the rest again" in str(error)
    nothing_taken = str(raised(Admission(0, 1, reason, 0.25)))
    assert "accepted" not in nothing_taken
    assert isinstance(error, BufferClosed) or "try them again" in nothing_taken


def test_a_rate_of_zero_and_what_it_leaves() -> None:
    """No token comes any more; but a share may still be had when others stop asking,
    it is not known when.
    """
    never = raised(Admission(3, 2, "rate", math.inf))
    assert type(never) is NeverAdmitted
    assert isinstance(never, ValueError)
    assert not isinstance(never, NotNow), "it would be waited for"
    assert "raise the rate" in str(never)
    later = raised(Admission(3, 2, "share", math.inf))
    assert isinstance(later, RateLimited)
    assert later.retry_after == 0.0


def test_a_full_lane() -> None:
    with BufferManager(BufferConfig(lane_bytes=4096)) as buffer:
        events = [bytes(100)] * 100
        admission = buffer.add_events(events)
        with pytest.raises(queue.Full) as caught:
            admission.raise_for_rejection()
        assert isinstance(caught.value, BufferFull)
        taken = admission.accepted
        assert f"the first {taken} were accepted: try the rest again" in str(caught.value)
        buffer.close(timeout=0)


def test_a_rate_that_is_used_up() -> None:
    clock = FakeClock()
    limits = FlowControlConfig(max_events_per_second=10, burst_size=4)
    with BufferManager(BufferConfig(flow_control=limits), clock=clock) as buffer:
        events = [b"x"] * 6
        admission = buffer.add_events(
            events
        )  # more than the burst: a prefix enters, and the rest can later
        error = raised(admission)
        assert isinstance(error, RateLimited)
        assert error.retry_after == admission.retry_after == pytest.approx(0.1)
        clock.advance(2 * error.retry_after + 1e-6)
        buffer.add_events(events[admission.accepted :]).raise_for_rejection()

        buffer.adjust_flow_control_rate(0)
        assert type(raised(buffer.add_events(events))) is NeverAdmitted
        buffer.adjust_flow_control_rate(100)
        clock.advance(1.0)
        buffer.add_events([b"x"]).raise_for_rejection()
        buffer.close(timeout=0)


def test_what_is_shed_in_an_emergency() -> None:
    clock = FakeClock()
    with BufferManager(SMALL, clock=clock) as buffer:
        add_all(buffer, [EVENT] * 3, Priority.BACKGROUND)
        for _ in range(5):
            buffer._control.flow.record_outcome(0, 100)
        clock.advance(1.5)
        buffer.add_events([b"x"] * 5, Priority.BACKGROUND)
        admission = buffer.add_events([b"x"] * 5, Priority.BACKGROUND)
        assert admission.reason == "emergency"
        error = raised(admission)
        assert isinstance(error, RateLimited)
        assert error.retry_after == admission.retry_after > 0.0
        assert "the sink fails" in str(error)
        buffer.close(timeout=0)


def test_an_add_that_is_under_way_when_the_buffer_closes() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096))
    chunk = b"a line of some length\n" * 1000
    assert isinstance(raised(buffer.add_lines(chunk)), BufferFull)
    pending = buffer._intake.pending_lines(chunk, Priority.NORMAL, True, None)
    buffer.close(timeout=0)
    error = raised(buffer._intake.finish(pending, float("inf")))
    assert isinstance(error, BufferClosed)
    assert "the buffer is closed" in str(error)
