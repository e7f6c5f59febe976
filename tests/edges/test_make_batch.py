"""make_batch: a batch for the unit test of a sink."""

from __future__ import annotations

import pytest

from backpressure import BatchStateError, InvalidEvents
from backpressure.testing import make_batch


def test_it_is_what_get_batch_gives() -> None:
    batch = make_batch([b"one", "two"], priority=2)
    assert batch.tolist() == [b"one", b"two"]
    assert (batch.priority, batch.attempt, batch.first_seq, len(batch)) == (2, 1, 0, 2)
    batch.ack()
    with pytest.raises(BatchStateError):
        batch.ack()


def test_it_may_be_a_redelivery() -> None:
    # The last: more failures than a breaker bears.
    for attempt in (4, 100):
        batch = make_batch([b"x"] * 3, attempt=attempt)
        assert (len(batch), batch.attempt) == (3, attempt)
        assert batch.id.endswith("-3-0+3")


@pytest.mark.parametrize("events", [[b"x" * 1_000_000], [b""] * 100_000, ["ü" * 100] * 1000])
def test_it_takes_what_is_large_or_many(events: list[bytes | str]) -> None:
    assert len(make_batch(events)) == len(events)


def test_it_needs_events() -> None:
    with pytest.raises(InvalidEvents):
        make_batch([])
    with pytest.raises(InvalidEvents):
        make_batch(b"bytes alone")
    with pytest.raises(ValueError, match="attempt"):
        make_batch([b"x"], attempt=0)
