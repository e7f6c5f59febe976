"""RingBuffer against a deque, at the edges of its widths, in both of its modes, and under threads."""

from __future__ import annotations

import array
import datetime
import pickle
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringbuf import MessageRing, Messages, RingBuffer
from tests.support.models import share_and_proof

#: As threads under a GIL use it; as those without one do; as processes do.
MODES = ["alone", "exchanges"] + ["shared"] * (sys.platform == "linux")


class Run:
    """One push or reservation, in the order of claims: what the consumers will see of it, and whether they can yet."""

    def __init__(self, records: list[int], *, ready: bool) -> None:
        self.records = deque(records)
        self.ready = ready


class RecordMachine(RuleBasedStateMachine):
    """Every operation against deques; positions start anywhere, blocks are held open and end in any order, well or not."""

    @initialize(
        capacity=st.sampled_from([2, 8, 64]),
        position=st.sampled_from([0, 2**31 - 64, 2**32 - 64, 2**61 - 64, 2**63 - 64, 2**64 - 64]),
        mode=st.sampled_from(MODES),
    )
    def make(self, capacity: int, position: int, mode: str) -> None:
        self.shared = mode == "shared"
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "ring" if self.shared else None
        self.ring = RingBuffer(capacity, np.int64, path=path)
        if position and not (self.shared and position > 2**62):
            self.ring._start_at(position)
        if mode == "exchanges":
            self.ring._use_exchanges()
        # Who pushes and who pops could as well be two processes.
        self.popping = RingBuffer.attach(path) if path is not None else self.ring
        self.capacity = capacity
        self.runs: deque[Run] = deque()
        self.number = 0
        self.given_back: list[list[int]] = []  # what peeks gave back, each list in order
        self.reserved: list[tuple[Any, Run]] = []
        self.peeked: list[tuple[Any, list[int]]] = []
        self.escaped: list[Any] = []

    @property
    def undisturbed(self) -> bool:
        """No block is open and none left anything behind: then room is known exactly."""
        left = self.escaped or self.given_back or any(not run.records for run in self.runs)
        return not (self.reserved or self.peeked or left)

    def numbers(self, count: int) -> list[int]:
        self.number += count
        return list(range(self.number - count, self.number))

    def waiting(self) -> int:
        return sum(len(run.records) for run in self.runs if run.ready) + sum(
            map(len, self.given_back)
        )

    def readable(self) -> list[int]:
        """What consumers would get now, in order: what was given back, oldest first, then all before an open reservation."""
        found = [number for part in sorted(self.given_back) for number in part]
        for run in self.runs:
            if not run.ready:
                break
            found += run.records
        return found

    def take(self, count: int) -> list[int]:
        """Take that many off the front of what is readable."""
        taken: list[int] = []
        self.given_back.sort()
        while count > len(taken) and self.given_back:
            part = self.given_back[0]
            taken.append(part.pop(0))
            if not part:
                del self.given_back[0]
        while count > len(taken):
            if self.runs[0].records:
                taken.append(self.runs[0].records.popleft())
            if not self.runs[0].records:
                self.runs.popleft()
        while self.runs and self.runs[0].ready and not self.runs[0].records:
            self.runs.popleft()
        return taken

    def pushed(self, records: list[int]) -> None:
        if records:
            self.runs.append(Run(records, ready=True))

    @rule(
        count=st.integers(0, 80),
        kind=st.sampled_from(["array", "list", "other dtype", "strided", "swapped"]),
    )
    def push_many(self, count: int, kind: str) -> None:
        given = self.numbers(count)
        array = np.array(given, {"other dtype": np.int32, "swapped": ">i8"}.get(kind, np.int64))
        room = self.capacity - self.waiting()
        exact = self.undisturbed
        if kind == "list":
            pushed = self.ring.push_many(given)
        else:
            pushed = self.ring.push_many(np.repeat(array, 2)[::2] if kind == "strided" else array)
        assert pushed == min(count, room) if exact else pushed <= min(count, room)
        self.pushed(given[:pushed])

    @rule()
    def try_push(self) -> None:
        given = self.numbers(1)
        room, exact = self.capacity - self.waiting(), self.undisturbed
        if self.ring.try_push(given[0]):
            assert room > 0
            self.pushed(given)
        else:
            assert room == 0 or not exact

    @rule()
    def try_pop(self) -> None:
        expected = self.readable()[:1]
        got = self.popping.try_pop()
        assert got == (expected[0] if expected else None)
        assert got is None or type(got) is int
        assert self.take(len(expected)) == expected

    @rule(count=st.integers(1, 80), into=st.booleans())
    def pop_many(self, count: int, into: bool) -> None:
        out = np.full(count, -1, np.int64) if into else None
        got = self.popping.pop_many(count, out)
        expected = self.readable()[:count]
        assert got.tolist() == expected
        assert self.take(len(expected)) == expected
        if out is not None:
            assert np.shares_memory(got, out) or len(got) == 0
            assert out[len(got) :].tolist() == [-1] * (count - len(got))

    @rule(count=st.integers(1, 80))
    def reserve(self, count: int) -> None:
        block = self.ring.reserve(count)
        span = block.__enter__()
        if len(span):
            given = self.numbers(len(span))
            span[:] = given
            self.runs.append(Run(given, ready=False))
            self.reserved.append((block, self.runs[-1]))
        else:
            block.__exit__(None, None, None)
            assert not self.undisturbed or self.waiting() == self.capacity

    @precondition(lambda self: self.reserved)
    @rule(
        data=st.data(),
        end=st.sampled_from(["well", "error", "escape", "error and escape", "forgotten"]),
    )
    def end_reserve(self, data: st.DataObject, end: str) -> None:
        if self.shared and "escape" in end:
            end = "error"  # it would delay what is behind it: see the test of that
        block, run = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
        run.ready = True
        if end == "well":
            block.__exit__(None, None, None)
            return
        run.records.clear()
        if "escape" in end:
            self.escaped.append(np.asarray(block))
        if end == "forgotten":
            del block
        elif end == "escape":
            with pytest.raises(BufferError, match="still alive"):
                block.__exit__(None, None, None)
        else:
            block.__exit__(KeyError, KeyError(), None)

    @precondition(lambda self: self.escaped)
    @rule(data=st.data(), gone=st.booleans())
    def use_escaped(self, data: st.DataObject, gone: bool) -> None:
        place = data.draw(st.integers(0, len(self.escaped) - 1))
        self.escaped[place][:] = -99  # nobody may ever see this
        if gone:
            del self.escaped[place]

    @rule(count=st.integers(1, 80))
    def peek(self, count: int) -> None:
        block = self.popping.peek(count)
        span = block.__enter__()
        readable = self.readable()
        taken = self.take(len(span))
        assert list(span) == taken == readable[: len(span)]
        assert len(span) or not readable
        if taken:
            self.peeked.append((block, taken))

    @precondition(lambda self: self.peeked)
    @rule(data=st.data(), end=st.sampled_from(["well", "error", "escape", "forgotten"]))
    def end_peek(self, data: st.DataObject, end: str) -> None:
        block, taken = self.peeked.pop(data.draw(st.integers(0, len(self.peeked) - 1)))
        if end == "well":
            block.__exit__(None, None, None)
            return
        self.given_back.append(taken)
        if end == "error":
            block.__exit__(KeyError, KeyError(), None)
        elif end == "escape":
            array = np.asarray(block)
            assert not array.flags.writeable
            with pytest.raises(BufferError, match="given back"):
                block.__exit__(None, None, None)
        else:
            del block

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "ring"):
            return
        reserved, taken = self.ring._check()
        assert reserved == sum(len(run.records) for _, run in self.reserved)
        assert taken >= sum(len(one) for _, one in self.peeked)
        if not self.escaped:
            assert taken == sum(len(one) for _, one in self.peeked)
        assert len(self.ring) == self.waiting()

    def teardown(self) -> None:
        if not hasattr(self, "ring"):
            return
        for block, _ in self.reserved + self.peeked:
            block.__exit__(None, None, None)
        for _, run in self.reserved:
            run.ready = True
        self.escaped.clear()
        assert self.ring.pop_many().tolist() == self.readable()
        assert self.ring._check() == (0, 0)
        assert self.ring.push_many(list(range(self.capacity))) == self.capacity, "room was lost"
        self.directory.cleanup()


TestRecordModel, TestRecordModelInFull = share_and_proof(RecordMachine, examples=200, steps=60)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("?", True),
        *((kind, 5) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")),
        *((kind, 0.5) for kind in ("f2", "f4", "f8")),
        ("c16", 1 + 2j),
        (">i4", 5),
        ("S5", b"abc"),
        ("U3", "äb"),
        ("V3", np.void(b"abc")),
        ("M8[s]", np.datetime64("2026-01-02", "s")),
        (np.dtype([("a", "i4"), ("b", "f8", (2,))]), (1, [2.0, 3.0])),
    ],
)
def test_every_dtype_of_a_fixed_size(dtype: object, value: object) -> None:
    ring = RingBuffer(4, dtype)  # type: ignore[arg-type]
    one = np.zeros(3, dtype)  # type: ignore[arg-type]
    one[1] = value
    assert ring.try_push(value)
    assert ring.push_many(one) == 3
    assert not ring.try_push(value)
    first = ring.try_pop()
    assert np.array(first, dtype) == one[1]  # type: ignore[arg-type]
    got = ring.pop_many()
    assert got.dtype == one.dtype
    assert got.tobytes() == one.tobytes()


@pytest.mark.parametrize(
    ("dtype", "bad", "error"),
    [
        ("i1", 128, OverflowError),
        ("u1", -1, OverflowError),
        ("i8", 2**63, OverflowError),
        ("i8", 0.5, TypeError),
        ("i8", "5", TypeError),
        ("i8", None, TypeError),
        ("?", 2, TypeError),
        ("f8", "x", TypeError),
        ("f4", 1e300, OverflowError),
        ("S2", b"abc", ValueError),
        ("U2", "abc", ValueError),
        ("u8", 2**64, OverflowError),
        (">u2", 2**16, OverflowError),
        ("f2", 1e6, OverflowError),
        ("f8", 10**400, OverflowError),
        ("c16", "x", TypeError),
        ("M8[s]", 5, TypeError),
        ([("a", "i4"), ("b", "f8")], (1, 2, 3), TypeError),
        ([("a", "i4"), ("b", "f8")], (1.5, 2), TypeError),
        ([("a", "u1"), ("b", "f8")], (256, 2), OverflowError),
        ([("a", "u1", (2,))], ([1, 2, 3],), ValueError),
    ],
)
def test_what_a_record_can_not_hold_is_refused(
    dtype: Any, bad: object, error: type[Exception]
) -> None:
    ring = RingBuffer(4, dtype)
    with pytest.raises(error):
        ring.try_push(bad)
    with pytest.raises(error):
        ring.push_many([np.zeros(1, dtype)[0], bad])
    assert len(ring) == 0


@pytest.mark.parametrize(
    ("dtype", "bad", "error"),
    [
        ("i8", np.zeros((2, 2), "i8"), ValueError),
        ("i8", np.array(5), ValueError),
        ("i8", np.zeros(2, "f8"), TypeError),
        ("i8", np.zeros(2, "S3"), TypeError),
        ("i8", np.zeros(2, object), TypeError),
        ("u8", np.zeros(2, "i8"), TypeError),
        ("i4", np.array([1, 2**31]), OverflowError),
        ("i8", np.array([1, 2**63], "u8"), OverflowError),
        ("f4", np.array([1, 1e300]), OverflowError),
        ("S2", np.array([b"a", b"abc"]), ValueError),
        ([("a", "i4")], np.zeros(2, [("b", "i4")]), TypeError),
        ([("a", "i4")], np.array([(2**31,)], [("a", "i8")]), OverflowError),
        ([("a", "i4", (2,))], np.zeros(2, [("a", "i4", (3,))]), TypeError),
        ("i8", 5, TypeError),
        ("i8", "ab", TypeError),
        ("i8", b"ab", TypeError),
        ("i8", iter([1]), TypeError),
        ("S1", "ab", TypeError),
    ],
)
def test_arrays_that_do_not_fit_are_refused(dtype: Any, bad: Any, error: type[Exception]) -> None:
    ring = RingBuffer(4, dtype)
    with pytest.raises(error):
        ring.push_many(bad)
    assert len(ring) == 0
    assert ring._check() == (0, 0)


@pytest.mark.parametrize(
    ("dtype", "given", "expected"),
    [
        ("i8", np.array([1, 2], ">i8"), [1, 2]),
        ("i8", np.array([1, 2], "u2"), [1, 2]),
        ("i4", np.array([-1, 2]), [-1, 2]),
        ("i8", np.array([1, 2, 3], "u8"), [1, 2, 3]),
        ("i8", np.arange(6)[::-2], [5, 3, 1]),
        ("i8", range(3), [0, 1, 2]),
        ("i8", [True, np.int8(3), np.uint64(5)], [1, 3, 5]),
        ("u1", memoryview(b"ab"), [97, 98]),
        ("u1", bytearray(b"ab"), [97, 98]),
        ("i4", array.array("i", [4, 5]), [4, 5]),
        ("u8", [1, 2**64 - 1], [1, 2**64 - 1]),
        (">u8", [1, 2**64 - 1], [1, 2**64 - 1]),
        ("f4", [1, 0.5, np.float64(2), float("inf")], [1.0, 0.5, 2.0, float("inf")]),
        ("f4", np.array([1, 0.5]), [1.0, 0.5]),
        ("?", [True, np.False_], [True, False]),
        ("c8", [1, 2j], [1, 2j]),
        ("U5", ["äöü", "abcde"], ["äöü", "abcde"]),
        ("S5", np.array([b"abc"], "S9"), [b"abc"]),
        ("M8[s]", [datetime.datetime(2026, 1, 2)], [datetime.datetime(2026, 1, 2)]),
        ([("a", "i4"), ("b", "S2")], [(1, b"x"), (2, b"yy")], [(1, b"x"), (2, b"yy")]),
        (
            [("a", "i4"), ("b", "S2")],
            np.array([(1, b"x")], [("a", "i8"), ("b", "S2")]),
            [(1, b"x")],
        ),
        ([("a", [("x", "u1"), ("y", "f8")])], [((1, 2),)], [((1, 2.0),)]),
        ("i8", [], []),
        ("S3", (), []),
    ],
)
def test_what_can_be_converted_is(dtype: Any, given: Any, expected: list[Any]) -> None:
    ring = RingBuffer(4, dtype)
    assert ring.push_many(given) == len(expected)
    got = ring.pop_many()
    assert got.dtype == np.dtype(dtype)
    assert got.tolist() == expected


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, -1, 0, 2**30 - 1, 2**30, -(2**31), 10**18])
def test_ints_of_all_sizes_come_out_as_they_went_in(value: int) -> None:
    ring = RingBuffer(2, "i8")
    assert ring.try_push(value)
    assert ring.try_push(np.int64(value))
    assert ring.try_pop() == value
    assert ring.pop_many().tolist() == [value]


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 4)), max_size=60))
def test_an_int_that_was_popped_stays_what_it_is(steps: list[tuple[int, int]]) -> None:
    """The ring makes new ints of old ones, and may only where nobody has them any more."""
    ring = RingBuffer(4, "i8")
    kept: list[tuple[int, str]] = []
    for number, drop in steps:
        for value in (number, number >> 32, number >> 56):
            expected = str(value)
            assert ring.try_push(value)
            got = ring.try_pop()
            assert (str(got), got == value, got + 1, hash(got)) == (
                expected,
                True,
                value + 1,
                hash(value),
            )
            kept.append((got, expected))
            del got
        del kept[:drop]
        assert [str(one) for one, _ in kept] == [expected for _, expected in kept]


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros(4, "i4"), ValueError),
        (np.zeros(4, ">i8"), ValueError),
        (np.zeros((4, 1), "i8"), ValueError),
        (np.zeros(8, "i8")[::2], ValueError),
        (np.frombuffer(bytes(32), "i8"), ValueError),
        ([0, 0], TypeError),
    ],
)
def test_a_bad_out_is_refused_and_takes_nothing(out: Any, error: type[Exception]) -> None:
    ring = RingBuffer(4, "i8")
    ring.push_many([1, 2])
    with pytest.raises(error, match="out must be"):
        ring.pop_many(4, out=out)
    with pytest.raises(ValueError, match="max_items"):
        ring.pop_many(0)
    assert ring.pop_many(1, out=np.zeros(0, "i8")).tolist() == []
    assert ring.pop_many().tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [object, np.dtype([("a", object)]), "S0", np.dtype(("i4", (2,)))])
def test_dtypes_without_a_fixed_size_are_refused(dtype: object) -> None:
    with pytest.raises((TypeError, ValueError), match="dtype"):
        RingBuffer(4, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, -1, 2**40, 1.5, None])
def test_bad_capacities_are_refused(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="capacity"):
        RingBuffer(bad, "i8")  # type: ignore[arg-type]


@pytest.fixture(params=MODES)
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> RingBuffer:
    ring = RingBuffer(8, "i8", path=tmp_path / "ring" if request.param == "shared" else None)
    if request.param == "exchanges":
        ring._use_exchanges()
    return ring


def fail(_: object) -> None:
    raise KeyError


def test_a_span_ends_with_its_block(ring: RingBuffer) -> None:
    block = ring.reserve(4)
    with pytest.raises(ValueError, match="begins with its block"):
        len(block)
    with block as span:
        part = span[1:]
        span[:] = 1, 2, 3, 4
        part[0] = 9
        assert len(ring) == 0, "published too early"
        with pytest.raises(ValueError, match="one block"):
            block.__enter__()
        with pytest.raises(IndexError):
            span[4]
    assert ring.pop_many().tolist() == [1, 9, 3, 4]
    for use in (
        lambda: span[0],
        lambda: part[0],
        lambda: len(span),
        lambda: list(span),
        lambda: span.__setitem__(0, 9),
        lambda: np.asarray(span),
        lambda: span.__exit__(None, None, None),
    ):
        with pytest.raises(ValueError, match="the view ended with its block"):
            use()
    assert "ended" in repr(span)


def test_a_span_is_used_like_an_array() -> None:
    ring = RingBuffer(4, [("a", "i4"), ("b", "f8", (2,))])
    with ring.reserve(3) as span:
        span["a"] = 1, 2, 3
        span["b"][1:] = 0.5
        span[0] = (7, [1, 2])
        copy = span[0]
        copy["a"] = 100  # a copy: the block can end while it is alive
        assert np.asarray(span, dtype=span[0].dtype).shape == (3,)
        assert np.asarray(span["a"], dtype="f8").tolist() == [7.0, 2.0, 3.0]
        assert [one["a"] for one in span] == [7, 2, 3]
    with ring.peek(3) as span:
        assert span["a"][1] == 2
        assert type(span["a"][1]) is int
        assert span["b"][2].tolist() == [0.5, 0.5]
        with pytest.raises(ValueError, match="read-only"):
            span["a"][0] = 1
        assert np.asarray(span["b"]).sum() == 5
    assert len(ring) == 0


def test_spans_end_where_the_memory_ends(ring: RingBuffer) -> None:
    ring.push_many(range(6))
    ring.pop_many(5)
    with ring.reserve(8) as first, ring.reserve(8) as second, ring.reserve(8) as third:
        assert [len(first), len(second), len(third)] == [2, 5, 0]
        assert list(third) == np.asarray(third).tolist() == []
        first[:] = 6, 7
        second[:] = range(8, 13)
    with ring.peek(100) as first, ring.peek(100) as second, ring.peek(1) as third:
        assert [list(first), list(second), list(third)] == [[5, 6, 7], [8, 9, 10, 11, 12], []]
    assert ring._check() == (0, 0)


@pytest.mark.parametrize("passed_first", [False, True])
def test_an_array_that_outlives_its_reservation_harms_nobody(
    ring: RingBuffer, passed_first: bool
) -> None:
    with pytest.raises(BufferError, match="not published"), ring.reserve(3) as span:
        escaped = np.asarray(span)
    assert ring.push_many(range(100)) == 5
    assert len(ring) == 5
    if ring.path is not None:
        assert ring.try_pop() is None, "there it delays what is behind it"
        escaped[:] = -1
        del escaped
        assert ring.pop_many().tolist() == [0, 1, 2, 3, 4]
        assert ring._check() == (0, 0)
        return
    if passed_first:
        assert ring.pop_many().tolist() == [0, 1, 2, 3, 4]
        assert ring.push_many(range(100)) == 0, "its memory is still out"
    escaped[:] = -1
    view = escaped[1:]
    del escaped
    assert view.tolist() == [-1, -1]
    del view
    if passed_first:
        assert ring.push_many(range(100)) == 8
        assert ring.pop_many().tolist() == list(range(8))
    else:
        assert ring.pop_many().tolist() == [0, 1, 2, 3, 4]
    assert ring.push_many(range(100)) == 8
    ring._check()


def test_an_error_in_a_block_is_what_the_caller_sees(ring: RingBuffer) -> None:
    escaped: list[Any] = []
    with pytest.raises(KeyError), ring.reserve(3) as span:
        fail(escaped.append(np.asarray(span)))
    if ring.path is not None:
        escaped.clear()
    ring.push_many([1, 2])
    with pytest.raises(KeyError), ring.peek(1) as span:
        fail(escaped.append(np.asarray(span)))
    assert escaped[-1].tolist() == [1]
    assert ring.pop_many().tolist() == [1, 2]
    escaped.clear()
    assert ring._check() == (0, 0)


def test_an_aborted_reservation_is_as_if_it_had_never_been(ring: RingBuffer) -> None:
    with pytest.raises(KeyError), ring.reserve(8) as span:
        fail(len(span))
    assert ring.push_many(range(100)) == 8, "the room came back"
    ring.pop_many()
    block = ring.reserve(3)
    block.__enter__()
    assert ring.push_many(range(100)) == 5
    assert ring.try_pop() is None, "nothing overtakes a reservation"
    block.__exit__(KeyError, KeyError(), None)
    assert len(ring) == 5
    assert ring.pop_many().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(KeyError), ring.reserve(8) as span:
        fail(len(span))
    assert ring._check() == (0, 0)


def test_a_full_ring_of_aborted_reservations_is_empty(ring: RingBuffer) -> None:
    blocks = [ring.reserve(4), ring.reserve(4)]
    for block in blocks:
        assert len(block.__enter__()) == 4
    for block in (
        blocks
    ):  # the first one is not the last claim: it can not be taken back, and holds nothing instead
        block.__exit__(KeyError, KeyError(), None)
    assert len(ring) == 0
    assert ring.push_many(range(100)) == 8
    assert ring.pop_many().tolist() == list(range(8))


def test_a_peek_that_fails_gives_back(ring: RingBuffer) -> None:
    ring.push_many([1, 2, 3, 4, 5, 6])
    first, second = ring.peek(2), ring.peek(2)
    assert list(first.__enter__()) == [1, 2]
    assert list(second.__enter__()) == [3, 4]
    assert ring.try_pop() == 5
    second.__exit__(KeyError, KeyError(), None)
    assert len(ring) == 3
    first.__exit__(KeyError, KeyError(), None)
    assert len(ring) == 5
    assert ring.try_pop() == 1, "the oldest first"
    assert ring.pop_many().tolist() == [2, 3, 4, 6]
    ring._check()


def test_a_block_that_is_forgotten_ends_like_one_with_an_error(ring: RingBuffer) -> None:
    ring.push_many([1, 2])
    ring.reserve(2).__enter__()
    ring.peek(1).__enter__()
    assert ring.pop_many().tolist() == [1, 2]
    assert ring._check() == (0, 0)


def test_what_is_shown_outlives_the_ring() -> None:
    ring = RingBuffer(8, "i8")
    ring.push_many([1, 2, 3])
    consumer = ring.consumer()
    block = consumer.peek(2)
    array = np.asarray(block.__enter__())
    del ring, consumer, block
    assert array.tolist() == [1, 2]


@pytest.mark.parametrize("bad", [0, -1, 1.5, None, "2"])
def test_blocks_of_no_size_are_refused(ring: RingBuffer, bad: Any) -> None:
    for begin in (ring.reserve, ring.peek):
        with pytest.raises((TypeError, ValueError), match="n must be"):
            begin(bad)


def test_handles_are_the_ring(ring: RingBuffer) -> None:
    producer, consumer = ring.producer(), ring.consumer()
    assert producer.try_push(1)
    assert producer.push_many([2, 3]) == 2
    with producer.reserve(1) as span:
        span[0] = 4
    assert len(producer) == len(consumer) == len(ring) == 4
    assert consumer.capacity == 8
    assert consumer.dtype == np.int64
    assert consumer.try_pop() == 1
    assert consumer.pop_many(1).tolist() == [2]
    with consumer.peek(5) as span:
        assert list(span) == [3, 4]
    assert not hasattr(producer, "try_pop")
    assert not hasattr(consumer, "try_push")
    with pytest.raises(TypeError, match="made by"):
        type(producer)()
    with pytest.raises(TypeError, match="made by"):
        type(consumer)()


def test_live_state_can_not_be_copied(ring: RingBuffer) -> None:
    for one in (ring, ring.producer(), ring.consumer(), ring.peek(1)):
        with pytest.raises(TypeError, match="live shared state"):
            pickle.dumps(one)


def test_an_empty_ring_goes_back_to_its_start() -> None:
    dtype = np.dtype([("number", "i8"), ("filler", "V65528")])
    ring = RingBuffer(64, dtype)
    records = np.zeros(2, dtype)
    for number in range(1, 101):
        records["number"] = number
        assert ring.push_many(records) == 2
        if number % 2:
            got = ring.pop_many()["number"].tolist()
        else:
            with ring.peek(2) as span:
                got = list(span["number"])
        assert got == [number, number]
        assert ring._check() == (0, 0)
    with ring.reserve(64) as span:
        # 13 MB went through 4 MiB, and no more than the first few records of it were ever written.
        assert not np.any(span["number"][6:])
        assert len(span) >= 61


def test_handles_and_views_come_from_a_ring_only() -> None:
    """Also by `__new__`, which would leave them without the memory that their methods use."""
    ring = RingBuffer(4, "i8")
    span = ring.reserve(1)
    messages = MessageRing(4096)
    for one in (ring.producer(), ring.consumer(), span, messages.producer(), messages.consumer()):
        kind: Any = type(one)
        for make in (kind, lambda kind=kind: kind.__new__(kind)):
            with pytest.raises(TypeError, match="is made by"):
                make()
    empty = Messages.__new__(Messages)
    assert (len(empty), empty.tolist()) == (0, [])


def test_masked_records_are_refused() -> None:
    ring = RingBuffer(4, "i8")
    records = np.ma.masked_array([1, 2], mask=[False, True])
    with pytest.raises(ValueError, match="masked"):
        ring.push_many(records)
    assert ring.push_many(records[:1]) == 1
