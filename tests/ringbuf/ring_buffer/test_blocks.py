"""RingBuffer: blocks that are reserved or shown, however they end; and handles."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from ringbuf import MessageRing, Messages, RingBuffer
from ringbuf._records.blocks import Span
from tests.support.threads import background


def fail(_: object) -> None:
    raise KeyError


def keep_and_fail(kept: list[Any], span: Span) -> None:
    kept.append(np.asarray(span))
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
        assert isinstance(span, Iterable)
        begun = iter(span)
        assert next(begun) == 1
    assert ring.pop_many().tolist() == [1, 9, 3, 4]
    for use in (
        lambda: span[0],
        lambda: part[0],
        lambda: len(span),
        lambda: list(span),
        lambda: next(begun),
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
        shown = [list(span) for span in (first, second, third)]
        assert shown == [[5, 6, 7], [8, 9, 10, 11, 12], []]
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
        keep_and_fail(escaped, span)
    if ring.path is not None:
        escaped.clear()
    ring.push_many([1, 2])
    with pytest.raises(KeyError), ring.peek(1) as span:
        keep_and_fail(escaped, span)
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
    ):  # the first one is not the last claim: it cannot be taken back, and holds nothing instead
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
        # 13 MB went through 4 MiB, and no more than the first few records of it were
        # ever written.
        assert not np.any(span["number"][6:])
        assert len(span) >= 61


def test_handles_and_views_come_from_a_ring_only() -> None:
    """Also by `__new__`, which would leave them without the memory that their methods
    use.
    """
    ring = RingBuffer(4, "i8")
    span = ring.reserve(1)
    messages = MessageRing(4096)
    for one in (ring.producer(), ring.consumer(), span, messages.producer(), messages.consumer()):
        kind: Any = type(one)
        for make in (kind, lambda kind=kind: kind.__new__(kind)):
            with pytest.raises(TypeError, match="is made by"):
                make()
    with pytest.raises(TypeError, match="are made by"):
        Messages.__new__(Messages)


class EndsTheBlock:
    """An index that ends the block which it is used in."""

    def __init__(self, block: Any) -> None:
        self.block, self.armed = block, False

    def __index__(self) -> int:
        if self.armed:
            self.armed = False
            with pytest.raises(BufferError):
                self.block.__exit__(None, None, None)
        return 0


@pytest.mark.parametrize("use", ["len", "get", "set", "exit"])
def test_a_block_that_ends_in_the_midst_of_a_use_ends_once(ring: RingBuffer, use: str) -> None:
    block = ring.reserve(4)
    block.__enter__()
    block[:] = [1, 2, 3, 4]
    index = EndsTheBlock(block)
    part = block[index:]
    index.armed = True
    match use:
        case "len":
            assert len(part) == 4
        case "get":
            assert part[0] == 1
        case "set":
            part[1] = 2
        case _:
            part.__exit__(None, None, None)
    with pytest.raises(ValueError, match="the view ended"):
        block.__exit__(None, None, None)
    del part
    capacity = ring.capacity
    for _ in range(3):
        ring.pop_many()
        assert ring.push_many(np.arange(capacity, dtype=ring.dtype)) == capacity
        assert len(ring.pop_many()) == capacity
        assert len(ring) == 0
    ring._check()


def test_a_block_ends_without_a_look_at_what_it_shows(ring: RingBuffer) -> None:
    """Which would need memory, and the user's code where a slice is made of it."""

    asked: list[bool] = []
    block = ring.reserve(4)
    block.__enter__()
    block[:] = [1, 2, 3, 4]

    class Counted:
        def __index__(self) -> int:
            asked.append(True)
            return 0

    part = block[Counted() :]
    before = len(asked)
    part.__exit__(None, None, None)
    assert len(asked) == before
    assert ring.pop_many().tolist() == [1, 2, 3, 4]


@pytest.mark.threads
@pytest.mark.parametrize("way", ["reserve", "peek"])
def test_two_threads_that_end_a_block_end_it_once(ring: RingBuffer, way: str) -> None:
    capacity = ring.capacity
    for _ in range(50):
        assert ring.push_many(np.zeros(4, ring.dtype)) == 4
        block = getattr(ring, way)(2)
        block.__enter__()
        barrier = threading.Barrier(2)

        def end(block: Any = block, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(30)
            with contextlib.suppress(ValueError):  # it has ended
                block.__exit__(None, None, None)

        with background(end, end):
            pass
        assert len(ring) == (6 if way == "reserve" else 2)
        assert len(ring.pop_many()) == (6 if way == "reserve" else 2)
        assert ring.push_many(np.zeros(capacity, ring.dtype)) == capacity
        assert len(ring.pop_many()) == capacity
    ring._check()
