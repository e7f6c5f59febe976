"""Rings that are closed, also while others work or wait, or that were never made."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringbuf import MessageRing, RingBuffer
from ringbuf._messages.gathered import Gathered
from tests.support.threads import until

# A wait that takes this long (seconds) has hung: far longer than any scheduling delay.
LONG = 30.0


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    if request.param == "memory":
        return None
    if sys.platform != "linux":
        pytest.skip("path= needs Linux")
    return tmp_path / "ring"


@pytest.fixture
def messages(path: Path | None) -> MessageRing:
    return MessageRing(4096, path=path)


@pytest.fixture(params=["quick", "floats", "by-steps", "structured"])
def records(request: pytest.FixtureRequest, path: Path | None) -> RingBuffer:
    dtype = {"quick": "i8", "floats": "f8", "by-steps": "i2"}.get(request.param, [("a", "i4")])
    return RingBuffer(32, dtype, path=path)


def begin(make: Callable[[], AbstractContextManager[object]]) -> object:
    return make().__enter__()


def uses_of_messages(ring: MessageRing) -> Iterator[Callable[[], object]]:
    """Every use of the ring and of its handles, made before it is closed."""
    ring.push_many([b"a", b"b", b"c", b"d"])
    held, parts = ring.take(1), ring.take(2)
    for side in (ring, ring.producer()):
        yield partial(side.try_push, b"x")
        yield partial(side.push, b"x", timeout=LONG)
        yield partial(side.push_many, [b"x"])
        yield partial(side.push_many, [])
        yield partial(side.push_lines, b"x\n")
    for taker in (ring, ring.consumer()):
        yield taker.try_pop
        yield taker.pop_many
        yield partial(taker.pop_many, timeout=LONG)
        yield taker.take
        yield taker.fileno
        yield partial(taker.release, held)
        yield partial(taker.split, parts, 1)
    yield lambda: ring.push_gathered(Gathered([b"x"]))
    yield lambda: ring.push_lines_seq(b"x\n")
    yield lambda: ring.take_orphaned()
    yield lambda: ring.count()
    yield lambda: len(ring)
    yield lambda: ring.note_stored(1)
    yield lambda: ring.warm_ahead(1)
    yield ring.defer_checksums
    yield ring.write_checksums
    yield lambda: ring.producer()
    yield lambda: ring.consumer()
    yield lambda: ring._check()
    yield lambda: ring.__enter__()


def uses_of_records(ring: RingBuffer) -> Iterator[Callable[[], object]]:
    one: Any = 1 if ring.dtype.names is None else (1,)
    ring.push_many([one] * 4)
    array = np.zeros(3, ring.dtype)
    for side in (ring, ring.producer()):
        yield partial(side.try_push, one)
        yield partial(side.try_push, array[0])
        yield partial(side.push, array[0], timeout=LONG)
        yield partial(side.push, one, timeout=LONG)
        yield partial(side.push_many, [one])
        yield partial(side.push_many, array)
        yield partial(side.push_many, array[:0])
        yield partial(begin, partial(side.reserve, 2))
        yield partial(len, side)
    for reader in (ring, ring.consumer()):
        yield reader.try_pop
        yield partial(reader.pop, timeout=LONG)
        yield reader.pop_many
        yield partial(reader.pop_many, out=array[:0])
        yield partial(begin, partial(reader.peek, 2))
        yield reader.fileno
    yield lambda: ring.producer()
    yield lambda: ring.consumer()
    yield lambda: ring._check()
    yield lambda: ring.__enter__()


def assert_all_raise(uses: list[Callable[[], object]]) -> None:
    for number, use in enumerate(uses):
        with pytest.raises(ValueError, match="the ring is closed"):
            pytest.fail(f"use {number} returned {use()!r}")


def test_every_use_of_a_closed_ring_of_messages_raises(messages: MessageRing) -> None:
    uses = list(uses_of_messages(messages))
    assert not messages.closed
    messages.close()
    messages.close()
    assert messages.closed
    assert_all_raise(uses)
    assert "closed" in repr(messages)
    assert (messages.capacity_bytes, messages.next_seq) == (4096, 4)
    assert 0 < messages.used_bytes <= 4096
    if messages.path is not None:
        assert sorted(MessageRing.attach(messages.path).pop_many().tolist()) != []


def test_every_use_of_a_closed_ring_of_records_raises(records: RingBuffer) -> None:
    uses = list(uses_of_records(records))
    assert not records.closed
    records.close()
    records.close()
    assert records.closed
    assert_all_raise(uses)
    assert "closed" in repr(records)
    assert records.capacity == 32


def test_the_end_of_a_block_closes(path: Path | None, tmp_path: Path) -> None:
    with MessageRing(4096, path=path) as messages:
        messages.try_push(b"x")
    with RingBuffer(8, "i8", path=path and tmp_path / "records") as records:
        records.try_push(1)
    assert messages.closed
    assert records.closed


def test_a_handle_made_while_the_ring_closes_is_closed() -> None:
    for _ in range(25):
        ring = RingBuffer(8, "i8")
        handles: list[Any] = []

        def make(ring: RingBuffer = ring, handles: list[Any] = handles) -> None:
            try:
                while True:
                    handles.append(ring.producer())
            except ValueError:
                pass

        thread = threading.Thread(target=make)
        thread.start()
        ring.close()
        thread.join()
        assert_all_raise([partial(handle.try_push, 1) for handle in handles])


class Call:
    """A call in a thread of its own that has to end with the ring."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.said: list[object] = []
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        time.sleep(0.02)  # so that it sleeps, most likely; it has to end in any case

    def _run(self) -> None:
        try:
            self.said.append(self._call())
        except ValueError as error:
            self.said.append(str(error))

    def end(self) -> list[object]:
        self._thread.join(LONG)
        return self.said


@pytest.mark.parametrize("kind", ["messages", "records"])
def test_who_waits_finds_out(path: Path | None, kind: str) -> None:
    def make() -> Any:
        return (
            MessageRing(4096, path=path) if kind == "messages" else RingBuffer(8, "i8", path=path)
        )

    item: Any = b"x" * 1000 if kind == "messages" else 1
    empty, full = make(), make()
    fd = empty.fileno()
    pops = [Call(partial(side.pop_many, timeout=None)) for side in (empty, empty.consumer())]
    assert [call.said for call in pops] == [[], []]
    empty.close()
    assert [call.end() for call in pops] == [["the ring is closed"]] * 2
    assert select.select([fd], [], [], LONG)[0] == [fd]

    while full.try_push(item):
        pass
    pushes = [Call(partial(side.push, item)) for side in (full, full.producer())]
    assert [call.said for call in pushes] == [[], []]
    full.close()
    assert [call.end() for call in pushes] == [["the ring is closed"]] * 2


@pytest.mark.parametrize("kind", ["messages", "records"])
@pytest.mark.parametrize("handles", [False, True])
def test_a_push_that_met_the_end_half_way_tells_how_much_is_in(
    path: Path | None, kind: str, handles: bool
) -> None:
    is_bytes = kind == "messages"
    ring: Any = MessageRing(4096, path=path) if is_bytes else RingBuffer(8, "i8", path=path)
    other = type(ring).attach(path) if path is not None else None
    side = ring.producer() if handles else ring
    items: Any = [b"%02d" % i + b"x" * 500 for i in range(12)] if is_bytes else range(12)
    call = Call(lambda: side.push_many(items, timeout=None))
    until(lambda: len(ring) > 0)
    ring.close()
    count: Any
    (count,) = call.end()
    assert count == (ring.next_seq if is_bytes else 8)
    assert 0 < count < len(items)
    if other is not None:
        assert list(other.pop_many()) == list(items[:count])
    assert_all_raise([lambda: side.push_many(items, timeout=LONG)])


# ---------------------------------------------------------------- what was under way


@pytest.mark.platform
@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
class TestUnderWay:
    def test_what_was_taken_is_for_others_in_parts_too(self, tmp_path: Path) -> None:
        ring = MessageRing(4096, path=tmp_path / "ring")
        other = MessageRing.attach(tmp_path / "ring")
        ring.push_many([b"%d" % i for i in range(6)])
        first, rest = ring.split(ring.take(4), 1)
        second, third = ring.split(rest, 1)
        ring.release(second)
        ring.close()
        for part in (first, third):
            with pytest.raises(ValueError, match="closed"):
                ring.release(part)
        again = [other.take_orphaned() for _ in range(3)]
        assert [messages.tolist() for messages in again] == [[b"0"], [b"2", b"3"], []]
        for messages in again:
            other.release(messages)
        assert other.pop_many().tolist() == [b"4", b"5"]
        other._check()
        assert other.used_bytes == 0

    def test_a_take_that_is_over_leaves_no_slot(self, tmp_path: Path) -> None:
        ring = MessageRing(4096, path=tmp_path / "ring")
        ring.push_many([b"a"] * 200)
        held = [ring.take(1) for _ in range(150)]  # of three participant slots
        assert MessageRing.look(tmp_path / "ring").participants == 3
        ring.release(held[70])
        ring.close()
        assert MessageRing.look(tmp_path / "ring").participants == 0
        other = MessageRing.attach(tmp_path / "ring")
        count = 0
        while len(messages := other.pop_many()):
            count += len(messages)
        assert count == 199

    @pytest.mark.parametrize("reading", [False, True])
    def test_an_open_block_keeps_the_slot(self, tmp_path: Path, reading: bool) -> None:
        ring = RingBuffer(8, "i8", path=tmp_path / "ring")
        other = RingBuffer.attach(tmp_path / "ring")
        ring.push_many([1, 2, 3])
        with ring.peek(2) if reading else ring.reserve(2) as span:
            ring.close()
            assert_all_raise([lambda: ring.try_push(1)])
            time.sleep(0.002)
            if reading:
                assert list(span) == [1, 2]
                assert other.pop_many().tolist() == [3], "what it reads stays where it is"
            else:
                assert other.pop_many().tolist() == [1, 2, 3]
                span[:] = 7, 8
                assert other.push_many(range(8)) == 6, "what it writes has its room"
        if reading:
            assert other.push_many(range(8)) == 8
        else:
            assert other.pop_many().tolist() == [7, 8, *range(6)]
        other.pop_many()
        other._check()
        # Its participant slot is free: of the 32, one is the other's.
        rings = [RingBuffer.attach(tmp_path / "ring") for _ in range(31)]
        for each in rings:
            each.try_pop()

    def test_what_a_block_gave_back_is_for_others(self, tmp_path: Path) -> None:
        ring = RingBuffer(8, "i8", path=tmp_path / "ring")
        other = RingBuffer.attach(tmp_path / "ring")
        ring.push_many([1, 2, 3])
        with pytest.raises(KeyError), ring.peek(2):
            raise KeyError
        ring.close()
        assert sorted(other.pop_many().tolist() + other.pop_many().tolist()) == [1, 2, 3]
        other._check()

    @pytest.mark.parametrize("kind", ["messages", "records"])
    def test_closing_beside_threads_that_work(
        self, tmp_path: Path, kind: str, in_full: bool
    ) -> None:
        """What each call returned holds, and no process ever gets a participant slot
        that another one still uses.
        """
        open_before = len(os.listdir("/proc/self/fd"))  # other tests of this process left some
        for round_number in range(25 if in_full else 8):
            path = tmp_path / f"ring-{round_number}"
            is_bytes = kind == "messages"
            ring: Any = (MessageRing if is_bytes else partial(RingBuffer, dtype="i8"))(
                1 << 12, path=path
            )
            other = type(ring).attach(path)
            pushed, popped = [0] * 3, [0] * 3

            def push(
                index: int, ring: Any = ring, pushed: list[int] = pushed, is_bytes: bool = is_bytes
            ) -> None:
                try:
                    while True:
                        pushed[index] += ring.push_many([b"xyz" if is_bytes else 3] * 5)
                except ValueError:
                    pass

            def pop(index: int, ring: Any = ring, popped: list[int] = popped) -> None:
                try:
                    while True:
                        popped[index] += len(ring.pop_many(7))
                except ValueError:
                    pass

            threads = [
                threading.Thread(target=work, args=(index,))
                for work in (push, pop)
                for index in range(3)
            ]
            for thread in threads:
                thread.start()
            time.sleep(0.002 * (round_number % 3))
            ring.close()
            count = 0
            for _ in range(20):  # takes the slots that get free
                count += len(other.pop_many(3))
            for thread in threads:
                thread.join()
            time.sleep(0.002)
            while len(found := other.pop_many()):
                count += len(found)
            other._check()
            assert sum(pushed) == sum(popped) + count
            # Descriptors of a round or two may wait for a collection; those of all
            # rounds may not.
            assert len(os.listdir("/proc/self/fd")) < open_before + 20


# ---------------------------------------------------------------- never made


def test_a_ring_that_was_never_made_says_so() -> None:
    ring = MessageRing.__new__(MessageRing)
    held = MessageRing(4096).take()
    uses: list[Callable[[], object]] = [
        lambda: ring.try_push(b"x"),
        lambda: ring.push_many([b"x"]),
        lambda: ring.push_lines(b"x\n"),
        lambda: ring.try_pop(),
        lambda: ring.pop_many(timeout=LONG),
        lambda: ring.take(),
        lambda: ring.take_orphaned(),
        lambda: ring.release(held),
        lambda: ring.split(held, 1),
        lambda: ring.fileno(),
        lambda: ring.close(),
        lambda: ring.producer(),
        lambda: ring.consumer(),
        lambda: ring.count(),
        lambda: len(ring),
        lambda: ring.next_seq,
        lambda: ring.used_bytes,
        lambda: ring.capacity_bytes,
        lambda: ring.max_message_bytes,
        lambda: ring.path,
        lambda: ring.checksums,
        lambda: ring.note_stored(1),
        lambda: ring.warm_ahead(1),
        ring.defer_checksums,
        ring.write_checksums,
        lambda: ring._check(),
        lambda: ring.__enter__(),
    ]
    for number, use in enumerate(uses):
        with pytest.raises(TypeError, match="never made"):
            pytest.fail(f"use {number} returned {use()!r}")
    assert repr(ring) == "MessageRing(never made)"
    ring.__init__(4096)
    assert ring.try_push(b"x")
    with pytest.raises(TypeError, match="made once"):
        ring.__init__(4096)


def test_handles_are_made_by_their_ring_alone() -> None:
    for ring in (MessageRing(4096), RingBuffer(8, "i8")):
        for handle in (ring.producer(), ring.consumer()):
            kind: Any = type(handle)
            with pytest.raises(TypeError, match="made by"):
                kind.__new__(kind)
    ring_kind: Any = RingBuffer
    with pytest.raises(TypeError):
        ring_kind.__new__(ring_kind)
