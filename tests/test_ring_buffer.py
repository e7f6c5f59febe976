"""RingBuffer against a deque, at the edges of its widths, in both of its modes, and under threads."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringbuf import RingBuffer


class RecordMachine(RuleBasedStateMachine):
    """Every operation against a deque; positions start anywhere, blocks are held open and end in any order."""

    @initialize(
        capacity=st.sampled_from([2, 8, 64]),
        position=st.sampled_from([0, 2**32 - 64, 2**31 - 64, 2**60 - 64]),
        exchanges=st.booleans(),
    )
    def make(self, capacity: int, position: int, exchanges: bool) -> None:
        self.ring = RingBuffer(capacity, np.int64)
        if position:
            self.ring._start_at(position)
        if exchanges:
            self.ring._use_exchanges()
        self.capacity = capacity
        self.waiting: deque[int] = deque()
        self.number = 0
        self.held: list[tuple[object, int]] = []  # open peek blocks, and how many records each occupies

    def numbers(self, count: int) -> list[int]:
        self.number += count
        return list(range(self.number - count, self.number))

    @rule(count=st.integers(0, 80), kind=st.sampled_from(["array", "list", "other dtype", "strided"]))
    def push_many(self, count: int, kind: str) -> None:
        given = self.numbers(count)
        if kind == "list":
            pushed = self.ring.push_many(given)
        elif kind == "strided":
            pushed = self.ring.push_many(np.repeat(np.array(given, np.int64), 2)[::2])
        else:
            pushed = self.ring.push_many(np.array(given, np.int64 if kind == "array" else np.int32))
        if not self.held:
            assert pushed == min(count, self.capacity - len(self.waiting))
        self.waiting.extend(given[:pushed])

    @rule()
    def try_push(self) -> None:
        (number,) = self.numbers(1)
        if self.ring.try_push(number):
            self.waiting.append(number)
        else:
            assert self.held or len(self.waiting) == self.capacity

    @rule()
    def try_pop(self) -> None:
        expected = self.waiting.popleft() if self.waiting else None
        got = self.ring.try_pop()
        assert got == expected
        assert got is None or type(got) is int

    @rule(count=st.integers(1, 80), into=st.booleans())
    def pop_many(self, count: int, into: bool) -> None:
        out = np.full(count, -1, np.int64) if into else None
        got = self.ring.pop_many(count, out)
        expected = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]
        assert got.tolist() == expected
        if out is not None:
            assert np.shares_memory(got, out) or len(got) == 0
            assert out[len(got) :].tolist() == [-1] * (count - len(got))

    @rule(count=st.integers(1, 80), fail=st.booleans())
    def reserve(self, count: int, fail: bool) -> None:
        try:
            with self.ring.reserve(count) as span:
                given = self.numbers(len(span))
                span[:] = given
                if fail:
                    raise KeyError
        except KeyError:
            return
        self.waiting.extend(given)

    @rule(count=st.integers(1, 80))
    def peek(self, count: int) -> None:
        block = self.ring.peek(count)
        span = block.__enter__()
        expected = [self.waiting.popleft() for _ in range(len(span))]
        assert list(span) == expected
        assert len(span) > 0 or not self.waiting
        self.held.append((block, len(span)))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end_peek(self, data: st.DataObject) -> None:
        block, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        block.__exit__(None, None, None)  # type: ignore[attr-defined]

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "ring"):
            self.ring._check()
            assert len(self.ring) == len(self.waiting)
            assert len(self.waiting) + sum(count for _, count in self.held) <= self.capacity

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            for block, _ in self.held:
                block.__exit__(None, None, None)  # type: ignore[attr-defined]
            assert self.ring.pop_many().tolist() == list(self.waiting)
            self.ring._check()
            assert self.ring.push_many(list(range(self.capacity))) == self.capacity, "room was lost"


RecordMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestRecordModel = RecordMachine.TestCase


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
    ],
)
def test_what_a_record_can_not_hold_is_refused(dtype: str, bad: object, error: type[Exception]) -> None:
    ring = RingBuffer(4, dtype)
    with pytest.raises(error):
        ring.try_push(bad)
    with pytest.raises(error):
        ring.push_many([np.zeros(1, dtype)[0], bad])
    assert len(ring) == 0


@pytest.mark.parametrize("bad", [np.zeros((2, 2), "i8"), np.zeros(2, "f8"), np.zeros(2, "S3"), 5, "ab"])
def test_arrays_that_do_not_fit_are_refused(bad: object) -> None:
    ring = RingBuffer(4, "i8")
    with pytest.raises((TypeError, ValueError)):
        ring.push_many(bad)  # type: ignore[arg-type]
    assert len(ring) == 0


@pytest.mark.parametrize("dtype", [object, np.dtype([("a", object)]), "S0", np.dtype(("i4", (2,)))])
def test_dtypes_without_a_fixed_size_are_refused(dtype: object) -> None:
    with pytest.raises((TypeError, ValueError), match="dtype"):
        RingBuffer(4, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, -1, 2**40, 1.5, None])
def test_bad_capacities_are_refused(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="capacity"):
        RingBuffer(bad, "i8")  # type: ignore[arg-type]


def test_a_span_ends_with_its_block() -> None:
    ring = RingBuffer(8, "i8")
    with ring.reserve(4) as span:
        span[:] = 1, 2, 3, 4
        assert len(ring) == 0, "published too early"
    assert ring.pop_many().tolist() == [1, 2, 3, 4]
    for use in (lambda: span[0], lambda: span.__setitem__(0, 9), lambda: np.asarray(span)):
        with pytest.raises(ValueError, match="block"):
            use()
    escaped = None
    with pytest.raises(BufferError), ring.reserve(2) as span:
        escaped = np.asarray(span)
    assert len(ring) == 0
    escaped[:] = 7  # harms nobody
    assert ring.push_many([1] * 8) > 0
    del escaped
    ring.pop_many()
    ring._check()


def test_a_peek_that_fails_gives_back() -> None:
    ring = RingBuffer(8, "i8")
    ring.push_many([1, 2, 3])
    block = ring.peek(2)
    span = block.__enter__()
    assert list(span) == [1, 2]
    assert ring.try_pop() == 3
    block.__exit__(KeyError, KeyError(), None)
    assert ring.pop_many().tolist() == [1, 2]
    ring._check()


def stress(producers: int, consumers: int, per_producer: int, exchanges: bool) -> None:
    """Each producer numbers its records; the consumers check order, count, and that there is nothing twice."""
    ring = RingBuffer(256, [("producer", "i8"), ("number", "i8")])
    if exchanges:
        ring._use_exchanges()
    failures: list[BaseException] = []
    received: list[list[tuple[int, int]]] = [[] for _ in range(consumers)]
    left = producers
    lock = threading.Lock()
    start = threading.Barrier(producers + consumers)

    def produce(number: int) -> None:
        nonlocal left
        handle = ring.producer()
        start.wait()
        at = 0
        while at < per_producer and not failures:
            many = min(1 + at % 40, per_producer - at)
            if at % 3 == 0:
                at += handle.try_push((number, at))
            elif at % 3 == 1:
                with handle.reserve(many) as span:
                    span["producer"] = number
                    span["number"] = np.arange(at, at + len(span))
                    at += len(span)
            else:
                records = np.zeros(many, ring.dtype)
                records["producer"] = number
                records["number"] = np.arange(at, at + many)
                at += handle.push_many(records)
        with lock:
            left -= 1

    def consume(number: int) -> None:
        handle = ring.consumer()
        start.wait()
        mine = received[number]
        while not failures:
            finished = left == 0
            if len(mine) % 3 == 0:
                with handle.peek(30) as span:
                    got = [(int(one["producer"]), int(one["number"])) for one in span]
            else:
                got = handle.pop_many(1 + len(mine) % 60).tolist()
            mine += got
            if finished and not got:
                return

    def guarded(target: object, number: int) -> None:
        try:
            target(number)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=guarded, args=(produce, i)) for i in range(producers)]
    threads += [threading.Thread(target=guarded, args=(consume, i)) for i in range(consumers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    assert not failures, failures
    ring._check()
    assert len(ring) == 0
    everything = [one for mine in received for one in mine]
    assert len(everything) == per_producer * producers
    assert len(set(everything)) == len(everything), "a record came twice"
    for mine in received:
        newest = [-1] * producers
        for producer, number in mine:
            assert number > newest[producer], "a producer's records are out of order"
            newest[producer] = number


@pytest.fixture
def fast_switching() -> Iterator[None]:
    """Let threads take turns every few instructions rather than every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (4, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("exchanges", [False, True])
@pytest.mark.usefixtures("fast_switching")
def test_stress(producers: int, consumers: int, exchanges: bool) -> None:
    stress(producers, consumers, 8_000 // producers, exchanges)
