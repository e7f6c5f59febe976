"""Lines of chunks: each way of newlines.pxd against a simple model, and within its
bounds.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringbuf import MessageRing
from ringbuf._messages.gathered import MessageTooLarge
from ringbuf._messages.lines import count_lines, expect_lines
from tests.support.processes import ended_well, forked

GRANULE = 64
HEADER = 24
FRAME_BYTES = 256 * 1024
MAX_FRAME_MESSAGES = 4096

# As in newlines.pxd; this machine may not have all of them.
NAMES = {0: "plain", 1: "avx2", 2: "avx512", 3: "neon"}
WAYS = [way for way in NAMES if MessageRing(1)._find_lines_by(way)]

#: Around the widths of vectors, and of what they overshoot.
sizes = st.one_of(
    st.integers(0, 3),
    st.integers(14, 18),
    st.integers(30, 34),
    st.integers(61, 67),
    st.integers(126, 130),
    st.integers(200, 280),
    st.integers(0, 1500),
)
ends = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\n\n"])


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """Lines of bytes that tell where they are from, and perhaps one without an end."""
    spans = draw(st.lists(st.tuples(sizes, ends, st.integers(1, 40)), max_size=12))
    alphabet = bytes(range(11, 256)) * 8
    parts = [
        alphabet[(7 * number) % 200 :][:size] + end
        for number, (size, end, times) in enumerate(spans)
        for _ in range(times)
    ]
    return b"".join(parts) + draw(st.sampled_from([b"", b"", b"x", b"no end" * 20, b"\r"]))


class Expected(NamedTuple):
    """What a chunk has, in the plainest words."""

    lines: list[bytes]
    #: Where in the chunk the line after each one begins.
    consumed: list[int]


def lines_of(chunk: bytes, final: bool) -> Expected:
    lines = chunk.split(b"\n")
    last = lines.pop()
    consumed, at = [], 0
    for line in lines:
        at += len(line) + 1
        consumed.append(at)
    if final and last:
        lines.append(last)
        consumed.append(len(chunk))
    return Expected(lines, consumed)


def ring_at(way: int, capacity: int, offset: int) -> MessageRing:
    """A ring that is empty, and so far from the end of its memory (granules)."""
    ring = MessageRing(capacity)
    assert ring._find_lines_by(way)
    if offset:
        ring._start_at(2 * ring.capacity_bytes // GRANULE - offset, 0)
    return ring


@pytest.mark.parametrize("way", WAYS, ids=NAMES.get)
@given(
    chunk=chunks(),
    final=st.booleans(),
    capacity=st.sampled_from([4096, 1 << 14, 1 << 18]),
    offset=st.integers(0, 60),
    most=st.one_of(st.none(), st.integers(1, 100)),
)
@example(chunk=b"\n" * 5000, final=True, capacity=1 << 18, offset=10, most=None)
@example(chunk=b"x\n" * 4096 + b"y", final=True, capacity=1 << 18, offset=0, most=None)
@example(chunk=b"x\n" * 4095 + b"y", final=True, capacity=1 << 18, offset=0, most=None)
@example(chunk=b"x\n" * 4096 + b"y", final=True, capacity=1 << 18, offset=0, most=4096)
@example(chunk=b"", final=True, capacity=4096, offset=0, most=None)
@example(chunk=b"\n", final=False, capacity=4096, offset=1, most=None)
def test_what_is_pushed(
    way: int, chunk: bytes, final: bool, capacity: int, offset: int, most: int | None
) -> None:
    ring = ring_at(way, capacity, offset)
    expected = lines_of(chunk, final)
    assert count_lines(chunk, final) == len(expected.lines)
    if any(len(line) > ring.max_message_bytes for line in expected.lines):
        with pytest.raises(MessageTooLarge):
            ring.push_lines(chunk, final)
        return
    wanted = len(expected.lines) if most is None else min(most, len(expected.lines))
    pushed, consumed, _ = ring.push_lines_seq(chunk, final, most)
    assert pushed <= wanted
    assert consumed == (expected.consumed[pushed - 1] if pushed else 0)
    if pushed < wanted:
        more = HEADER + len(expected.lines[pushed])
        assert ring.used_bytes + more > ring.capacity_bytes, "there was room for another"
    ring._check()
    assert ring.pop_many().tolist() == expected.lines[:pushed]


@pytest.mark.parametrize("way", WAYS, ids=NAMES.get)
@given(
    chunk=chunks(),
    final=st.booleans(),
    capacity=st.sampled_from([4096, 1 << 14]),
    offset=st.integers(0, 60),
)
def test_every_way_does_the_same(
    way: int, chunk: bytes, final: bool, capacity: int, offset: int
) -> None:
    """Lap after lap, also where the ring becomes full in the midst of a chunk."""
    seen = []
    for each in (0, way):
        ring = ring_at(each, capacity, offset)
        rest, log = chunk, []
        try:
            while True:
                pushed, consumed, first = ring.push_lines_seq(rest, final)
                messages = ring.pop_many()
                log.append((pushed, consumed, first if pushed else None, messages.tolist()))
                if not pushed:
                    break
                rest = rest[consumed:]
        except MessageTooLarge as error:
            log.append((error.index, error.nbytes, None, []))
        seen.append(log)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("way", WAYS, ids=NAMES.get)
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("extra", [-1, 0, 1, 65])
def test_lines_at_the_size_of_a_frame(way: int, final: bool, extra: int) -> None:
    ring = ring_at(way, 1 << 22, 0)
    long = b"l" * (FRAME_BYTES + extra)
    for chunk in (
        long,
        long + b"\n",
        b"a\n" + long + b"\nb\n",
        long + b"\n" + long,
        b"c" * (FRAME_BYTES - 2) + b"\nd\ne",
        (b"f" * 236 + b"\n") * 4000 + b"g",
        b"\n" * (2 * MAX_FRAME_MESSAGES + extra) + long + b"\n\n",
    ):
        expected = lines_of(chunk, final)
        pushed, consumed = ring.push_lines(chunk, final)
        assert pushed == len(expected.lines)
        assert consumed == (expected.consumed[-1] if expected.lines else 0)
        assert ring.pop_many().tolist() == expected.lines
        ring._check()


@pytest.mark.parametrize("way", WAYS, ids=NAMES.get)
@given(chunk=chunks(), final=st.booleans())
def test_no_store_beyond_the_frame(way: int, chunk: bytes, final: bool) -> None:
    """What lies there is another producer's."""
    ring = ring_at(way, 1 << 20, 0)
    memory = ring._memory_view()
    memory[:] = 0xAA
    ring.push_lines(chunk, final)
    assert ring.used_bytes < ring.capacity_bytes
    assert (memory[ring.used_bytes :] == 0xAA).all()


@pytest.mark.skipif(sys.platform == "win32", reason="mprotect")
@pytest.mark.platform
@pytest.mark.parametrize("way", WAYS, ids=NAMES.get)
def test_no_load_beyond_the_chunk(way: int) -> None:
    """A chunk between two pages that cannot be read, in a process that would die."""
    assert ended_well(forked(lambda: _read_beside_forbidden_pages(way)))


def _read_beside_forbidden_pages(way: int) -> None:
    import ctypes
    import mmap

    page = mmap.PAGESIZE
    area = mmap.mmap(-1, 6 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for forbidden in (start, start + 5 * page):
        assert protect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) == 0
    memory = np.frombuffer(area, np.uint8)[page : 5 * page]
    rng = np.random.default_rng(1)
    ring = ring_at(way, 1 << 16, 0)
    for size in [*range(300), *rng.integers(300, len(memory), 300).tolist()]:
        content = rng.integers(11, 256, size, np.uint8)
        content[rng.random(size) < rng.choice([0.0, 0.003, 0.02, 0.3])] = 10
        for part in (memory[:size], memory[len(memory) - size :]):
            part[:] = content
            chunk: Any = part
            assert count_lines(chunk, True) == len(lines_of(part.tobytes(), True).lines)
            ring.push_lines(chunk, True)
            assert ring.pop_many().tolist() == lines_of(part.tobytes(), True).lines


@pytest.mark.parametrize("way", WAYS, ids=NAMES.get)
def test_a_chunk_that_changes_meanwhile(way: int) -> None:
    """Its lines are what was there at some moment: of that size, and of its bytes."""
    ring = ring_at(way, 1 << 20, 0)
    ring._memory_view()[:] = 0xAA
    chunk: Any = np.full(200_000, 0x42, np.uint8)
    ended = threading.Event()

    def change() -> None:
        rng = np.random.default_rng(2)
        while not ended.is_set():
            chunk[:] = 0x42
            chunk[rng.integers(0, len(chunk), 2000)] = 10

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            pushed, consumed = ring.push_lines(chunk, True)
            messages = ring.pop_many()
            assert len(messages) == pushed
            assert messages.nbytes + pushed in (consumed, consumed + 1)
            assert np.isin(messages.data, (0x42, 10)).all()
    finally:
        ended.set()
        thread.join()


# ---------------------------------------------------------------- too long


def first_too_long(lines: list[bytes], limit: int) -> tuple[int, int] | None:
    return next(((i, len(line)) for i, line in enumerate(lines) if len(line) > limit), None)


@given(chunk=chunks(), final=st.booleans(), limit=st.integers(0, 400))
@example(chunk=b"a" * 10 + b"\n" + b"b" * 11, final=True, limit=10)
@example(chunk=b"a" * 10 + b"\n" + b"b" * 11, final=False, limit=10)
@example(chunk=b"\n" * 70 + b"b" * 65 + b"\n", final=False, limit=64)
def test_a_line_over_the_limit_is_refused(chunk: bytes, final: bool, limit: int) -> None:
    expected = lines_of(chunk, final)
    found = first_too_long(expected.lines, limit)
    if found is None:
        assert count_lines(chunk, final, limit) == len(expected.lines)
        return
    for look in (count_lines, expect_lines):
        with pytest.raises(MessageTooLarge) as refused:
            look(chunk, final, limit)
        assert (refused.value.index, refused.value.nbytes, refused.value.limit) == (*found, limit)


def test_a_line_over_the_limit_is_refused_in_a_large_chunk() -> None:
    chunk = b"x" * 99 + b"\n"
    large = chunk * 10_000 + b"y" * 101 + b"\n" + chunk
    with pytest.raises(MessageTooLarge) as refused:
        expect_lines(large, True, 100)
    assert (refused.value.index, refused.value.nbytes) == (10_000, 101)
    assert expect_lines(large, True, 101)[1] is False


# ---------------------------------------------------------------- guesses


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("size", [0, 1, 237, 4096, 5000])
def test_a_guess_is_rather_too_high(size: int, final: bool) -> None:
    chunk = (b"x" * size + b"\n") * (2_000_000 // (size + 1)) + b"y"
    lines, certain = expect_lines(chunk, final)
    assert not certain
    assert count_lines(chunk, final) <= lines <= 4 * count_lines(chunk, final) + 2000


def test_a_small_chunk_is_counted() -> None:
    for chunk in (b"", b"x", b"\n", b"x\ny", b"x\n" * 30_000):
        for final in (False, True):
            assert expect_lines(chunk, final) == (count_lines(chunk, final), True)
    assert expect_lines(b"x" * 100_000, False) == (30, False)


# ---------------------------------------------------------------- start


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
@pytest.mark.platform
@pytest.mark.uninstrumented
def test_a_new_ring_is_not_read() -> None:
    """Its memory is touched when it is used, and not to make sure that it is empty."""
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    MessageRing(1 << 20)
    before = faults()
    ring = MessageRing(1 << 30)
    assert faults() - before < 32
    assert len(ring) == 0
