"""MessageRing against a deque, at the edges of its widths, and under threads."""

from __future__ import annotations

import threading
from collections import Counter, deque
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringbuf import MessageRing, Messages
from tests.support.models import share_and_proof
from tests.support.threads import run_threads

GRANULE = 64

messages = st.one_of(
    st.binary(max_size=40),
    st.binary(min_size=60, max_size=70),
    st.just(b""),
    st.binary(max_size=3000),
)


class RingMachine(RuleBasedStateMachine):
    """Every operation against a deque that knows which messages are where; positions
    start anywhere.
    """

    @initialize(
        capacity=st.sampled_from([4096, 8192, 1 << 16]),
        position=st.sampled_from([None, 2**32 - 40, 2**50 - 40, 2**32 - 1]),
        sequence=st.sampled_from([0, 2**32 - 20, 2**63 - 10]),
    )
    def make(self, capacity: int, position: int | None, sequence: int) -> None:
        self.ring = MessageRing(capacity)
        if position is not None:
            self.ring._start_at(position, sequence)
        else:
            sequence = 0
        self.consumer = self.ring.consumer()
        self.waiting: deque[bytes] = deque()
        self.next_out = self.next_in = sequence
        self.held: list[Messages] = []

    def pushed(self, given: list[bytes], count: int) -> None:
        self.waiting.extend(given[:count])
        self.next_in += count

    @rule(given=st.lists(messages, max_size=120), as_tuple=st.booleans())
    def push_many(self, given: list[bytes], as_tuple: bool) -> None:
        count = self.ring.push_many(tuple(given) if as_tuple else given)
        assert 0 <= count <= len(given)
        self.pushed(given, count)
        if not self.held and len(self.waiting) == count:
            # An empty ring takes whatever fits by size: header, one end each, payload.
            room = self.ring.capacity_bytes - 24 - 4 * len(given)
            assert count == len(given) or sum(map(len, given)) > room - GRANULE

    @rule(message=messages)
    def try_push(self, message: bytes) -> None:
        if self.ring.try_push(message):
            self.pushed([message], 1)
        else:
            assert self.waiting or self.held

    @rule(text=st.text(st.sampled_from("aé€😀\n\0"), max_size=30))
    def try_push_text(self, text: str) -> None:
        if self.ring.try_push(text):
            self.pushed([text.encode()], 1)

    @rule(
        lines=st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"\r")), max_size=60),
        tail=st.sampled_from([b"", b"t", b"no newline\0"]),
        final=st.booleans(),
    )
    def push_lines(self, lines: list[bytes], tail: bytes, final: bool) -> None:
        chunk = b"".join(line + b"\n" for line in lines) + tail
        expected = [*lines, tail] if final and tail else lines
        count, consumed = self.ring.push_lines(chunk, final)
        self.pushed(expected, count)
        if count == len(expected):
            assert chunk[consumed:] == (b"" if final else tail)
        else:
            assert chunk[:consumed] == b"".join(line + b"\n" for line in lines[:count])

    @rule(
        most=st.one_of(st.none(), st.integers(1, 50)),
        most_bytes=st.one_of(st.none(), st.integers(1, 300)),
        keep=st.booleans(),
    )
    def take(self, most: int | None, most_bytes: int | None, keep: bool) -> None:
        got = self.ring.take(most, most_bytes) if keep else self.ring.pop_many(most, most_bytes)
        expected: list[bytes] = []
        size = 0
        while self.waiting and len(expected) < (most or 10**9):
            size += len(self.waiting[0])
            if expected and most_bytes is not None and size > most_bytes:
                break
            expected.append(self.waiting.popleft())
        assert got.tolist() == expected == list(got)
        assert len(got) == len(expected)
        assert got.nbytes == sum(map(len, expected))
        assert got.data[got.offsets[0] : got.offsets[-1]].tobytes() == b"".join(expected)
        assert got.join(b"--", b"!") == (b"--".join(expected) + b"!" if expected else b"")
        if expected:
            assert got.first_seq == self.next_out
        self.next_out += len(expected)
        if keep:
            self.held.append(got)

    @rule(by_handle=st.booleans())
    def try_pop(self, by_handle: bool) -> None:
        got = (self.consumer if by_handle else self.ring).try_pop()
        assert got == (self.waiting.popleft() if self.waiting else None)
        assert got is None or type(got) is bytes
        self.next_out += got is not None

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_any(self, data: st.DataObject) -> None:
        taken = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        before = taken.tolist()
        self.ring.release(taken)
        self.ring.release(taken)
        assert taken.tolist() == before, "what was taken is a copy"

    @precondition(lambda self: any(len(taken) > 1 for taken in self.held))
    @rule(data=st.data())
    def split_any(self, data: st.DataObject) -> None:
        taken = data.draw(st.sampled_from([taken for taken in self.held if len(taken) > 1]))
        self.held.remove(taken)
        count = data.draw(st.integers(1, len(taken) - 1))
        first, rest = self.ring.split(taken, count)
        assert (first.tolist(), rest.tolist()) == (taken.tolist()[:count], taken.tolist()[count:])
        assert (first.first_seq, rest.first_seq) == (taken.first_seq, taken.first_seq + count)
        self.ring.release(taken)  # only the parts hold anything now
        self.held += [first, rest]

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "ring"):
            return
        self.ring._check()
        assert len(self.ring) == len(self.waiting)
        assert self.ring.next_seq == self.next_in
        if not self.waiting and not self.held:
            assert self.ring.used_bytes == 0
        assert self.ring.used_bytes <= self.ring.capacity_bytes


TestRingModel, TestRingModelInFull = share_and_proof(RingMachine, examples=150, steps=60)


def test_large_copies_wherever_they_lie() -> None:
    """They are made by vectors of 16 bytes, aligned where they are written."""
    ring = MessageRing(1 << 18)
    noise = np.random.default_rng(3).bytes(70_000)
    for before in range(0, 70, 3):
        for size in (2047, 2048, 2049, 2062, 2063, 2064, 2111, 2112, 4113, 70_000):
            given = [noise[:before], noise[:size], noise[-before:]]
            assert ring.push_many(given) == 3
            assert ring.pop_many().tolist() == given
    ring._check()


def test_capacity_is_reported_as_it_is() -> None:
    assert MessageRing(1).capacity_bytes == 4096
    assert MessageRing(4097).capacity_bytes == 8192
    assert MessageRing(1 << 20).capacity_bytes == 1 << 20


@pytest.mark.parametrize("bad", [0, -1, 1 << 60])
def test_capacity_out_of_range(bad: int) -> None:
    with pytest.raises(ValueError, match="capacity_bytes"):
        MessageRing(bad)


@pytest.mark.parametrize("bad", [1.5, "64", None])
def test_capacity_of_another_type(bad: object) -> None:
    with pytest.raises(TypeError, match="capacity_bytes"):
        MessageRing(bad)  # type: ignore[arg-type]


def test_the_largest_message_fits_an_empty_ring_and_one_byte_more_never_does() -> None:
    ring = MessageRing(4096)
    largest = b"x" * ring.max_message_bytes
    for _ in range(5):
        assert ring.try_push(largest)
        assert not ring.try_push(b"")
        assert ring.pop_many().tolist() == [largest]
    with pytest.raises(ValueError, match="holds at most 4,072"):
        ring.try_push(largest + b"y")
    with pytest.raises(ValueError, match="message 1 has"):
        ring.push_many([b"fine", largest + b"y"])
    with pytest.raises(ValueError, match="message 2 has"):
        ring.push_lines(b"a\nb\n" + largest + b"y\nc\n")
    assert len(ring) == 0, "an error pushes nothing"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (b"one", TypeError),
        ("one", TypeError),
        (7, TypeError),
        (iter([b"a"]), TypeError),
        ([b"a", 7], TypeError),
        ([b"a", None], TypeError),
        ([b"a", bytearray(b"b")], TypeError),
        (["\ud800"], UnicodeEncodeError),
        (np.zeros((2, 2), "S3"), ValueError),
        (np.array(["text"]), TypeError),
        (np.array([b"o", 7], dtype=object), TypeError),
        ({b"a": b"b"}, TypeError),
        ({b"a": b"b"}.keys(), TypeError),
        ({b"a": b"b"}.values(), TypeError),
        ({b"a": b"b"}.items(), TypeError),
        ({b"a"}, TypeError),
        (frozenset([b"a"]), TypeError),
        (Counter([b"a"]), TypeError),
        (MappingProxyType({b"a": b"b"}), TypeError),
    ],
)
def test_bad_messages_are_refused_before_anything_is_pushed(
    given: object, error: type[Exception]
) -> None:
    ring = MessageRing(4096)
    with pytest.raises(error):
        ring.push_many(given)
    assert len(ring) == 0
    assert ring.used_bytes == 0


def test_messages_of_every_size_come_out_one_at_a_time() -> None:
    ring = MessageRing(1 << 21)
    sizes = [0, 1, 2, 39, 40, 41, 4095, 262_143, 262_144, 1 << 20, 0]
    given = [bytes([number]) * size for number, size in enumerate(sizes)]
    for _ in range(3):
        assert ring.push_many(given) == len(given)
        assert [ring.try_pop() for _ in range(len(given) + 1)] == [*given, None]
        ring._check()
        assert ring.used_bytes == 0


def test_bytes_that_were_popped_stay_what_they_are() -> None:
    """Those of one byte, and of none, are objects that the interpreter shares."""
    ring = MessageRing(4096)
    kept = []
    for number in range(256):
        assert ring.push_many([bytes([number]), b"", b"x%d" % number]) == 3
        kept += [ring.try_pop(), ring.try_pop(), ring.try_pop()]
    assert kept == [
        made for number in range(256) for made in (bytes([number]), b"", b"x%d" % number)
    ]
    assert len(bytes(0)) == 0
    assert [bytes([number])[0] for number in range(256)] == list(range(256))


def test_one_message_is_popped_beside_what_is_held() -> None:
    ring = MessageRing(4096)
    ring.push_many([b"a", b"b", b"c", b"d"])
    held = ring.take(2)
    assert ring.try_pop() == b"c"
    ring._check()
    assert ring.used_bytes > 0
    ring.release(held)
    assert ring.try_pop() == b"d"
    assert ring.try_pop() is None
    assert ring.used_bytes == 0


@pytest.mark.parametrize("bad", [0, -1])
def test_limits_below_one_are_refused(bad: int) -> None:
    ring = MessageRing(4096)
    ring.push_many([b"a"])
    with pytest.raises(ValueError, match="max_messages"):
        ring.pop_many(bad)
    with pytest.raises(ValueError, match="max_bytes"):
        ring.pop_many(None, bad)
    assert len(ring) == 1


def test_numpy_items_are_messages_of_their_size() -> None:
    ring = MessageRing(4096)
    assert ring.push_many(np.array([1, 2, 3], "<u2").view("V2")[::2]) == 2
    assert ring.push_many(np.zeros(1, [("number", "<u2"), ("name", "S2")])) == 1
    assert ring.push_many(np.array([], "S5")) == 0
    assert ring.push_many(np.array([], "S99999")) == 0, "none of them is too large"
    assert ring.pop_many().tolist() == [b"\1\0", b"\3\0", b"\0\0\0\0"]


def test_any_contiguous_buffer_holds_lines() -> None:
    ring = MessageRing(4096)
    text = b"a\nb\n"
    chunks: list[Any] = [bytearray(text), memoryview(text), np.frombuffer(text, np.uint8)]
    for chunk in chunks:
        assert ring.push_lines(chunk) == (2, 4)
    with pytest.raises(BufferError):
        ring.push_lines(memoryview(b"abcd")[::2])
    with pytest.raises(TypeError):
        ring.push_lines("text")  # type: ignore[arg-type]
    assert len(ring) == 6


def test_messages_index_slice_and_convert() -> None:
    ring = MessageRing(4096)
    ring.push_many([b"a", b"", b"ccc", b"dd"])
    got = ring.pop_many()
    assert got[0] == b"a"
    assert got[-1] == b"dd"
    with pytest.raises(IndexError):
        got[4]
    with pytest.raises(IndexError):
        got[-5]
    part = got[1:3]
    assert part.tolist() == [b"", b"ccc"]
    assert part.first_seq == 1
    assert part.nbytes == 3
    assert np.shares_memory(part.data, got.data)
    assert part[1:].join() == b"ccc"
    assert len(got[3:1]) == 0
    assert np.array(got).tolist() == [b"a", b"", b"ccc", b"dd"]
    with pytest.raises(ValueError, match="steps of 1"):
        got[::2]


def test_arrow_in_and_out() -> None:
    pa = pytest.importorskip(
        "pyarrow", reason="pyarrow is not installed: pip install 'forebay[arrow]'"
    )
    ring = MessageRing(1 << 16)
    rows = [b"a", b"", "é".encode(), b"dd"]
    for kind in (pa.binary(), pa.large_binary()):
        assert ring.push_many(pa.array(rows, kind)) == 4
        assert ring.push_many(pa.array(rows, kind).slice(1, 2)) == 2
    for kind in (pa.string(), pa.large_string()):
        assert ring.push_many(pa.array(["é"], kind)) == 1
    expected = (rows + rows[1:3]) * 2 + ["é".encode()] * 2
    got = ring.pop_many()
    assert got.tolist() == expected
    column = pa.array(got)
    part = pa.array(got[1:3])
    del got
    column.validate(full=True)
    assert column.to_pylist() == expected
    assert part.to_pylist() == expected[1:3]
    with pytest.raises(ValueError, match="message 1 is null"):
        ring.push_many(pa.array([b"a", None, b"c"]))
    assert ring.push_many(pa.array([b"a", None, b"c"]).slice(2)) == 1
    with pytest.raises(TypeError, match="binary or string"):
        ring.push_many(pa.array([1, 2]))


def test_payload_can_not_be_taken_for_framing() -> None:
    """Fill the memory with everything that a tag of this or a coming lap could look
    like, and go over it again.
    """
    ring = MessageRing(4096)
    granules = ring.capacity_bytes // GRANULE
    for lap in range(1, 6):
        for granule in range(granules):
            tag = ((lap + 1) * granules + granule) & ~(granules - 1)
            hostile = np.uint64(tag).tobytes() * 40  # covers five granules
            assert ring.try_push(hostile)
            ring._check()
            assert ring.pop_many().tolist() == [hostile]
            assert ring.pop_many().tolist() == [], "something was found that was not pushed"


def test_an_empty_ring_goes_back_to_its_start() -> None:
    ring = MessageRing(8 << 20)
    block = b"x" * 1000
    seen = 0
    for _ in range(100):
        assert ring.push_many([block] * 300) == 300
        taken = ring.take()
        assert taken.first_seq == seen
        seen += 300
        ring.release(taken)
        ring._check()
        assert ring.used_bytes == 0
    # 30 MB went through, and no more than its first MiB or so was ever written.
    assert not np.any(ring._memory_view()[4 << 20 :])


def test_join_into_fills_a_small_buffer_piece_by_piece() -> None:
    ring = MessageRing(1 << 16)
    rows = [b"x" * (i % 40) for i in range(300)]
    ring.push_many(rows)
    got = ring.pop_many()
    for size in (45, 64, 1000, 100_000):
        target = bytearray(size)
        joined, start = b"", 0
        while start < len(got):
            count, nbytes = got.join_into(target, start, b"\r\n")
            assert count > 0
            assert start + count == len(got) or nbytes + len(rows[start + count]) + 2 > size, (
                "one more would have fitted"
            )
            joined += target[:nbytes]
            start += count
        assert joined == b"".join(row + b"\r\n" for row in rows)
    assert got.join_into(bytearray(5), 39) == (0, 0)
    assert got.join_into(bytearray(5), 300) == (0, 0)
    with pytest.raises(ValueError, match="start"):
        got.join_into(bytearray(5), 301)
    with pytest.raises(BufferError):
        got.join_into(b"read only")


@pytest.mark.uninstrumented
def test_memory_is_used_again_only_when_nobody_refers_to_it() -> None:
    ring = MessageRing(1 << 20)

    def popped(fill: bytes) -> Messages:
        ring.push_many([fill * 100_000])
        return ring.pop_many()

    first = popped(b"a")
    where = first.data.ctypes.data
    del first
    again = popped(b"b")
    assert again.data.ctypes.data == where, "the memory is not used again"
    column: Any = popped(b"e").data
    kept: dict[str, Any] = {
        "column": again.data,
        "slice": popped(b"c").data[10:20],
        "messages": popped(b"d")[0:1],
        "their column": popped(b"g")[0:1].data,
        "offsets": popped(b"h").offsets,
        "memoryview": memoryview(column),
        "iterator": iter(popped(b"f")),
    }
    del again, column
    for _ in range(10):
        popped(b"!")
    assert kept["column"].tobytes() == b"b" * 100_000
    assert kept["slice"].tobytes() == b"c" * 10
    assert kept["messages"].tolist() == [b"d" * 100_000]
    assert kept["memoryview"].tobytes() == b"e" * 100_000
    assert next(kept["iterator"]) == b"f" * 100_000
    assert kept["their column"].tobytes() == b"g" * 100_000
    assert kept["offsets"].tolist() == [0, 100_000]


def test_memory_that_serves_others_is_shown_to_nobody() -> None:
    ring = MessageRing(1 << 20)
    ring.push_many([b"a" * 100_000])
    base: Any = ring.pop_many().data.base
    block = base.obj  # what the array has its memory from
    del base
    with pytest.raises(BufferError, match="gone"):
        memoryview(block)
    ring.push_many([b"a" * 100_000])
    messages = ring.pop_many()
    base = messages.data.base
    block = base.obj
    del base
    with pytest.raises(BufferError, match="written"):
        messages[0:1].join_into(block)
    view = memoryview(block)
    assert view.readonly
    del messages
    assert view[-100_000:] == b"a" * 100_000


def test_threads_that_share_memory_get_their_own() -> None:
    """Pieces of some size, so that their memory goes from hand to hand; each shows what
    its own messages were.
    """
    ring = MessageRing(1 << 22)

    def work(fill: bytes) -> None:
        kept: list[np.ndarray] = []
        for i in range(60):
            ring.push_many([fill * 70_000])
            got = ring.pop_many(1)
            if not len(got):
                continue
            array = got[0:1].data if i % 2 else got.data
            first = array[0]
            del got
            kept = [*kept[-2:], array]
            assert (array == first).all()
            for one in kept:
                assert (one == one[0]).all()

    run_threads([partial(work, bytes([65 + i])) for i in range(4)])


def test_it_can_not_be_copied() -> None:
    import copy
    import pickle

    ring = MessageRing(4096)
    with pytest.raises(TypeError, match="live shared state"):
        copy.copy(ring)
    with pytest.raises(TypeError, match="live shared state"):
        pickle.dumps(ring)


# ---------------------------------------------------------------- threads


def stress(producers: int, consumers: int, per_producer: int, capacity: int) -> None:
    """Each producer numbers its messages; the consumers check order, count, and that
    there is nothing twice.
    """
    ring = MessageRing(capacity)
    failures: list[BaseException] = []
    received: list[list[tuple[int, list[bytes]]]] = [[] for _ in range(consumers)]
    left = producers
    lock = threading.Lock()

    def produce(number: int) -> None:
        nonlocal left
        prefix = b"%d:" % number
        at = 0
        while at < per_producer and not failures:
            many = 1 + (at * 7 + number) % 90
            batch = [
                prefix + b"%d:" % i + b"." * (i % 50)
                for i in range(at, min(at + many, per_producer))
            ]
            kind = at % 3
            if kind == 0:
                done = ring.push_many(batch)
            elif kind == 1:
                done, _ = ring.push_lines(b"\n".join(batch), True)
            else:
                done = int(ring.try_push(batch[0]))
            at += done
        with lock:
            left -= 1

    def consume(number: int) -> None:
        mine = received[number]
        held: list[Messages] = []
        while not failures:
            finished = left == 0
            got = ring.take(1 + len(mine) % 200)
            if len(got) == 0:
                if finished:
                    break
            else:
                mine.append((got.first_seq, got.tolist()))
                held.append(got)
            if len(held) > 3:
                ring.release(held.pop(len(mine) % 4))
            elif len(got) == 0 and held:
                ring.release(held.pop())
        for one in held:
            ring.release(one)

    work = [partial(produce, number) for number in range(producers)]
    work += [partial(consume, number) for number in range(consumers)]
    run_threads(work, failures)

    ring._check()
    assert len(ring) == 0
    assert ring.used_bytes == 0
    runs = sorted(run for one in received for run in one)
    expected_seq = 0
    last = [-1] * producers
    for first_seq, batch in runs:
        assert first_seq == expected_seq, "sequence numbers have a gap or come twice"
        expected_seq += len(batch)
        for message in batch:
            number, i, dots = message.split(b":")
            assert int(i) == last[int(number)] + 1, "a producer's messages are out of order"
            assert len(dots) == int(i) % 50
            last[int(number)] = int(i)
    assert last == [per_producer - 1] * producers


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (4, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("capacity", [4096, 1 << 20])
def test_stress(producers: int, consumers: int, capacity: int) -> None:
    stress(producers, consumers, 12_000 // producers, capacity)


def test_what_can_not_be_split_is_refused_and_left_as_it_is() -> None:
    ring = MessageRing(1 << 12)
    ring.push_many([b"a", b"b", b"c"])
    taken = ring.take(3)
    for count in (-1, 0, 3, 4):
        with pytest.raises(ValueError, match="count must be from 1 to 2"):
            ring.split(taken, count)
    first, rest = ring.split(taken, 1)
    with pytest.raises(ValueError, match="only what take"):
        ring.split(taken, 1)
    ring.release(rest)
    with pytest.raises(ValueError, match="only what take"):
        ring.split(rest, 1)
    assert ring.used_bytes > 0
    ring.release(first)
    assert ring.used_bytes == 0
    with pytest.raises(ValueError, match="only what take"):
        ring.split(ring.pop_many(), 1)


@pytest.mark.parametrize("bad", [-1, 2**63 + 1, 2**64 - 2, 2**64, 10**30])
def test_a_first_number_from_where_numbers_could_end_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="first_seq must be from 0 to 2\\*\\*63"):
        MessageRing(4096, first_seq=bad)
    ring = MessageRing(4096, first_seq=2**63)
    assert ring.push_many([b"a", b"b"]) == 2
    assert (ring.pop_many().first_seq, ring.next_seq) == (2**63, 2**63 + 2)


class Reentering:
    """An argument that makes the ring itself, while another call converts it."""

    def __init__(self, ring: MessageRing) -> None:
        self.ring = ring
        self.taken: Messages | None = None

    def make(self) -> None:
        self.ring.__init__(8192)
        self.ring.push_many([b"first"] * 4)
        self.taken = self.ring.take(4)

    def __index__(self) -> int:
        self.make()
        return 0

    def __bool__(self) -> bool:
        self.make()
        return False

    def __fspath__(self) -> str:
        self.make()
        return "never-made"


@pytest.mark.parametrize("name", ["capacity_bytes", "first_seq", "checksums", "path"])
def test_a_ring_is_made_once_whatever_its_arguments_do(name: str) -> None:
    ring = MessageRing.__new__(MessageRing)
    evil = Reentering(ring)
    arguments: dict[str, Any] = {"capacity_bytes": 8192, name: evil}
    with pytest.raises((TypeError, ValueError), match=r"made once|capacity_bytes"):
        ring.__init__(**arguments)
    assert evil.taken is not None
    ring.release(evil.taken)
    assert ring.used_bytes == 0
    ring._check()


def test_what_could_not_be_made_can_be_made_later(tmp_path: Path) -> None:
    ring = MessageRing.__new__(MessageRing)
    with pytest.raises((FileNotFoundError, NotImplementedError)):
        ring.__init__(4096, path=tmp_path / "nowhere" / "ring")
    with pytest.raises(TypeError, match="never made"):
        ring.try_push(b"x")
    ring.__init__(4096)
    assert ring.try_push(b"x")
