"""Large chunks of lines: their number is guessed, and the books are exact."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure import BufferConfig, BufferManager, FlowControlConfig
from backpressure.buffer import payload
from backpressure.buffer.batch import Batch
from backpressure.testing import FakeClock
from ringbuf._messages.lines import count_lines

LARGE = 64 * 1024
#: Lines of one size, and how many bytes of them.
spans = st.tuples(st.sampled_from([0, 1, 20, 237, 1000, 9000]), st.integers(0, 60_000))


@st.composite
def large_chunks(draw: st.DrawFn) -> bytes:
    parts = [
        (b"%06d" % number + b"." * size)[:size] + b"\n"
        for size, nbytes in draw(st.lists(spans, min_size=1, max_size=6))
        for number in range(nbytes // (size + 1))
    ]
    chunk = b"".join(parts)
    if len(chunk) <= LARGE:
        chunk += b"x" * draw(st.sampled_from([1, 230])) * (LARGE + 1 - len(chunk))
    return chunk + draw(st.sampled_from([b"", b"\n", b"no end"]))


def lines_in(chunk: bytes, final: bool) -> list[bytes]:
    lines = chunk.split(b"\n")
    last = lines.pop()
    return [*lines, last] if final and last else lines


def taken_from(buffer: BufferManager) -> list[bytes]:
    events: list[bytes] = []
    batch: Batch | None
    while (batch := buffer.get_batch(10**6)) is not None:
        events += batch.tolist()
        batch.ack()
    return events


@given(
    chunk=large_chunks(),
    final=st.booleans(),
    changeable=st.booleans(),
    lane_bytes=st.sampled_from([1 << 14, 1 << 16, 1 << 22]),
    burst=st.sampled_from([10, 5_000, 300_000, 2_000_000]),
)
def test_the_books_are_exact(
    chunk: bytes, final: bool, changeable: bool, lane_bytes: int, burst: int
) -> None:
    """As if all lines had been counted before: what is in, what is not, the tokens."""
    clock = FakeClock(1000.0)
    lines = lines_in(chunk, final)
    flow = FlowControlConfig(max_events_per_second=1000, burst_size=burst, priority_levels=1)
    config = BufferConfig(lane_bytes=lane_bytes, flow_control=flow)
    with BufferManager(config, clock=clock) as buffer:
        if max(map(len, lines), default=0) > buffer._lanes[0].ring.max_message_bytes:
            return
        admission = buffer.add_lines(bytearray(chunk) if changeable else chunk, final=final)
        assert admission.accepted + admission.rejected == len(lines)
        assert admission.accepted <= burst
        assert admission.reason == (
            None if not admission.rejected else "rate" if admission.accepted == burst else "full"
        )
        consumed = sum(map(len, lines[: admission.accepted])) + admission.accepted
        assert admission.consumed == min(consumed, len(chunk))
        metrics = buffer.stats().flow_control
        assert metrics.admitted == (admission.accepted,)
        assert metrics.tokens == burst - admission.accepted
        lane = buffer.stats().lanes[1]
        assert lane.offered == len(lines)
        assert lane.rejected.get(admission.reason or "", 0) == admission.rejected
        assert taken_from(buffer) == lines[: admission.accepted]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were read only to count lines."""
    sizes: list[int] = []

    def noting(chunk: Any, *arguments: Any) -> int:
        sizes.append(len(chunk))
        return count_lines(chunk, *arguments)

    monkeypatch.setattr(payload, "count_lines", noting)
    return sizes


def test_lines_are_not_counted_before_they_are_pushed(counted: list[int]) -> None:
    chunk = (b"x" * 236 + b"\n") * 4000
    with BufferManager() as buffer:
        assert buffer.add_lines(chunk).accepted == 4000
        assert counted == []
        assert buffer.add_lines(chunk + b"tail", final=False).consumed == len(chunk)
        assert counted == [4]
        assert len(taken_from(buffer)) == 8000


def test_lines_are_counted_once_where_the_guess_was_too_low(counted: list[int]) -> None:
    chunk = b"x" * 10_000 + b"\n" + b"y\n" * 100_000
    with BufferManager() as buffer:
        assert buffer.add_lines(chunk).accepted == 100_001
        assert len(counted) == 1
        assert len(taken_from(buffer)) == 100_001


def test_a_chunk_without_a_line_is_no_event() -> None:
    with BufferManager() as buffer:
        admission = buffer.add_lines(b"x" * 100_000, final=False)
        assert (admission.accepted, admission.rejected, admission.consumed) == (0, 0, 0)
        assert buffer.stats().flow_control.admitted == (0,) * 5
