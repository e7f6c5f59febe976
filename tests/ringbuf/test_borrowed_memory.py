"""What a ring is given stays the caller's, and may change at any moment: nothing of
what is pushed changes with it.
"""

from __future__ import annotations

import array
import ctypes
import gc
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuf import LatencyHistogram, MessageRing, Messages, RingBuffer
from ringbuf._core.pinning import pins
from ringbuf._messages.gathered import Gathered
from ringbuf._messages.lines import count_lines
from tests.support.arrow import RELEASE, HandMade
from tests.support.threads import background, until

# The lengths below are such that a few of these messages fit into a small ring, and
# most do not.
EVENTS = [bytes([65 + i % 26]) * 900 + b"%d" % i for i in range(40)]


class Counted(bytes):
    """A message that tells when it is gone."""

    alive = 0

    def __init__(self, *_: object) -> None:
        type(self).alive += 1

    def __del__(self) -> None:
        type(self).alive -= 1


def fresh() -> list[bytes]:
    """The events, each an object that the list alone refers to."""
    return [bytes(bytearray(event)) for event in EVENTS]


def change_while_waiting(
    push: Callable[[Any, float], int],
    ring: MessageRing,
    events: list[bytes],
    change: Callable[[], object],
) -> list[bytes]:
    """Push in a thread into a ring that has room for some of it, change the list when
    the rest waits; returns what comes out.
    """
    got: list[bytes] = []
    with background(lambda: push(events, 30.0)):
        until(lambda: len(ring) > 0)
        change()
        junk = [b"\xee" * len(EVENTS[0]) for _ in range(200)]  # where the items may have been
        while len(got) < len(EVENTS):
            got += ring.pop_many(timeout=1.0).tolist()
    assert len(junk) == 200
    return got


CHANGES: list[Callable[[list[bytes]], object]] = [
    list.clear,
    list.reverse,
    lambda events: events.__setitem__(slice(None), [b"another"] * len(events)),
    lambda events: events.__delitem__(slice(5, None)),
    lambda events: events.extend([b"more"] * 1000),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by_handle", [False, True])
def test_a_list_may_change_while_its_push_waits(
    change: Callable[[list[bytes]], object], by_handle: bool
) -> None:
    ring = MessageRing(1 << 14)
    push = ring.producer().push_many if by_handle else ring.push_many
    events = fresh()
    assert change_while_waiting(push, ring, events, lambda: change(events)) == EVENTS
    ring._check()


def test_the_items_are_owned_not_only_the_list() -> None:
    events = [Counted(b"%d" % i) for i in range(100)]
    gathered = Gathered(events)
    events.clear()
    assert Counted.alive == 100
    ring = MessageRing(1 << 14)
    assert ring.push_gathered(gathered) == (100, 0)
    del gathered
    assert Counted.alive == 0
    assert ring.pop_many().tolist() == [b"%d" % i for i in range(100)]


def test_a_collection_may_change_the_list() -> None:
    ring = MessageRing(1 << 14)
    expected = fresh()[:10]
    threshold = gc.get_threshold()
    events: list[bytes] = []

    def clear(*_: object) -> None:
        events.clear()

    gc.callbacks.append(clear)
    gc.set_threshold(1)
    try:
        for _ in range(50):
            events[:] = expected
            ring.push_many(events)
            got = ring.pop_many().tolist()
            assert got in (expected, [])
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(clear)


def lying(base: type) -> type:
    class Liar(base):  # type: ignore[misc]
        def __len__(self) -> int:
            return 1000

        def __iter__(self) -> Iterator[bytes]:
            yield b"one"
            yield b"two"

        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("not asked")

    return Liar


@pytest.mark.parametrize("base", [list, tuple])
def test_a_subclass_that_lies_is_what_it_iterates_over(base: type) -> None:
    ring = MessageRing(4096)
    assert ring.push_many(lying(base)([b"a"] * 7)) == 2
    assert ring.pop_many().tolist() == [b"one", b"two"]


class LyingArray(np.ndarray[Any, Any]):
    """Says of itself what is not so."""

    shape: Any = (1 << 40,)
    size: Any = 1 << 40
    nbytes: Any = 1 << 40
    itemsize: Any = 1 << 20
    ndim: Any = 1
    base = None
    flags = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return 1 << 40


def test_an_array_that_lies_is_what_numpy_has_of_it() -> None:
    plain = np.array([1, 2, 3])
    liar = plain.view(LyingArray)
    ring = MessageRing(4096)
    assert ring.push_many(plain.view("V8").view(LyingArray)) == 3
    assert ring.pop_many().join(b"") == plain.tobytes()
    records = RingBuffer(8, "i8")
    assert records.push_many(liar) == 3
    assert records.pop_many().tolist() == [1, 2, 3]
    lines: Any = np.frombuffer(b"a\nb\n", np.uint8).view(LyingArray)
    assert ring.push_lines(lines) == (2, 4)
    histogram = LatencyHistogram()
    histogram.record_many(plain.astype(float).view(LyingArray))
    assert histogram.count == 3


def test_masked_messages_are_refused() -> None:
    ring = MessageRing(4096)
    masked: Any = np.ma.array([b"a", b"b"], mask=[False, True])
    with pytest.raises(ValueError, match="masked"):
        ring.push_many(masked)
    with pytest.raises(ValueError, match="masked"):
        LatencyHistogram().record_many(np.ma.array([1, 2], "u1", mask=[False, True]))
    assert len(ring) == 0
    assert ring.push_many(np.ma.array([b"a", b"b"], mask=[False, False])) == 2
    assert ring.push_many(masked.compressed()) == 1


# -------------------------------------------------------- memory that stays where it is


@pytest.mark.parametrize("kind", ["messages", "records"])
def test_an_array_can_not_be_resized_while_its_push_waits(kind: str) -> None:
    ring: MessageRing | RingBuffer
    ring = MessageRing(1 << 12) if kind == "messages" else RingBuffer(64, "i8")
    array: Any = np.arange(2000).astype("V8" if kind == "messages" else "i8")
    got = bytearray()
    with background(partial(ring.push_many, array, 30.0)):
        until(lambda: len(ring) > 0)
        with pytest.raises(ValueError, match="resize"):
            array.resize(1, refcheck=False)
        while len(got) < 16000:
            taken = ring.pop_many(timeout=1.0)
            got += taken.tobytes() if isinstance(taken, np.ndarray) else taken.join(b"")
    assert got == np.arange(2000).tobytes()
    array.resize(1, refcheck=False)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda owner: owner,
        lambda owner: owner[10:],
        lambda owner: owner.view("u1")[8:],
        lambda owner: owner.view(LyingArray),
        lambda owner: owner.reshape(10, 10)[2:],
        memoryview,
        lambda owner: memoryview(owner)[10:20],
        lambda owner: np.frombuffer(memoryview(owner), np.uint8),
    ],
)
def test_whatever_is_seen_of_an_array_pins_its_owner(wrap: Callable[[Any], Any]) -> None:
    owner = np.arange(100)
    seen = wrap(owner)
    held = pins(seen)
    with pytest.raises(ValueError, match="resize"):
        owner.resize(1, refcheck=False)
    del held
    del seen
    owner.resize(1, refcheck=False)


@pytest.mark.parametrize(
    "other", [b"ab", bytearray(b"ab"), memoryview(b"ab"), array.array("b"), 1, None]
)
def test_what_is_no_array_needs_no_pin(other: object) -> None:
    assert pins(other) is None


# ---------------------------------------------------------------- Arrow


def offsets(*places: int, form: str = "i") -> bytes:
    return struct.pack(f"={len(places)}{form}", *places)


@pytest.mark.parametrize("form", [b"z", b"u", b"Z", b"U"])
def test_an_arrow_array_is_moved_and_released_once(form: bytes) -> None:
    lent = HandMade(
        offsets(1, 3, 3, 6, form="i" if form.islower() else "q"), b"xabcde", 3, form=form
    )
    gathered = Gathered(lent)
    assert lent.released == 0
    assert not lent.array.release, "the one that moved it releases it"
    with pytest.raises(ValueError, match="consumed"):
        Gathered(lent)
    ring = MessageRing(4096)
    ring.push_gathered(gathered)
    assert ring.pop_many().tolist() == [b"ab", b"", b"cde"]
    del gathered
    assert lent.released == 1
    with pytest.raises(ValueError, match="consumed"):
        ring.push_many(lent)


def test_a_released_schema_is_refused() -> None:
    lent = HandMade(offsets(0, 1), b"a", 1)
    lent.schema.release = RELEASE()
    with pytest.raises(ValueError, match="consumed"):
        Gathered(lent)
    assert lent.array.release, "what was not taken is still the lender's"


def test_offsets_need_not_be_aligned() -> None:
    lent = HandMade(b"\0" + offsets(0, 2, 3, form="q"), b"abc", 2, form=b"Z")
    start = lent._pointers[1]
    assert start is not None
    lent._pointers[1] = start + 1
    assert MessageRing(4096).push_many(lent) == 2


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"length": -1}, "cannot be"),
        ({"offset": -1}, "cannot be"),
        ({"length": (1 << 63) - 1, "offset": (1 << 63) - 1}, "cannot be"),
        ({"offset": (1 << 60) - 1}, "cannot be"),
        ({"n_buffers": 0}, "3 buffers"),
        ({"n_buffers": 2}, "3 buffers"),
        ({"buffers": None}, "3 buffers"),
        ({"null_count": 1}, "null"),
    ],
)
def test_fields_that_can_not_be_are_refused(wrong: dict[str, Any], match: str) -> None:
    lent = HandMade(offsets(0, 1, 2), b"ab", 2)
    for name, value in wrong.items():
        setattr(lent.array, name, value)
    ring = MessageRing(4096)
    with pytest.raises(ValueError, match=match):
        ring.push_many(lent)
    assert len(ring) == 0
    assert lent.released == 1


@pytest.mark.parametrize(
    ("lent", "match"),
    [
        (HandMade(None, b"ab", 2), "no offsets"),
        (HandMade(offsets(0, 1, 2), None, 2), "no data"),
        (HandMade(offsets(0, 2, 1), b"ab", 2), "ascend"),
        (HandMade(offsets(-1, 0, 1), b"ab", 2), "ascend"),
        (HandMade(offsets(0, 1, -(1 << 31)), b"ab", 2), "ascend"),
        (HandMade(offsets(-(1 << 63), (1 << 63) - 1, form="q"), b"ab", 1, form=b"Z"), "ascend"),
        (HandMade(offsets(1, -(1 << 63), form="q"), b"ab", 1, form=b"Z"), "ascend"),
        (HandMade(offsets(0, 1 << 40, form="q"), b"ab", 1, form=b"Z"), "larger"),
    ],
)
def test_columns_that_can_not_be_are_refused(lent: HandMade, match: str) -> None:
    ring = MessageRing(4096)
    with pytest.raises(ValueError, match=match):
        ring.push_many(lent)
    assert len(ring) == 0


def test_no_messages_need_no_buffers() -> None:
    assert MessageRing(4096).push_many(HandMade(None, None, 0)) == 0
    assert MessageRing(4096).push_many(HandMade(offsets(0, 0), None, 1)) == 1


@pytest.mark.parametrize(
    "answer", [None, (), (1, 2), "ab", (HandMade(None, None, 0).capsules[0],) * 2]
)
def test_what_are_no_capsules_is_refused(answer: object) -> None:
    class Strange:
        def __arrow_c_array__(self) -> object:
            return answer

    with pytest.raises(TypeError, match="capsule"):
        Gathered(Strange())


@given(
    st.lists(st.integers(-3, 12), min_size=1, max_size=6),
    st.binary(min_size=12, max_size=12),
    st.none() | st.binary(min_size=1, max_size=1),
    st.integers(-1, 7),
    st.integers(-1, 7),
)
def test_columns_are_read_as_they_are_or_refused(
    places: list[int], data: bytes, validity: bytes | None, offset: int, length: int
) -> None:
    length = min(
        length, len(places) - 1 - offset
    )  # how long its buffers are, only the lender knows
    lent = HandMade(offsets(*places), data, length, validity=validity)
    lent.array.offset = offset
    lent.array.null_count = -1
    possible = min(offset, length) >= 0
    ends = places[offset : offset + length + 1] if possible else []
    marks = range(offset, offset + length) if possible and validity is not None else ()
    whole = all((validity or b"")[0] >> i & 1 for i in marks)
    ring = MessageRing(4096)
    if possible and (length == 0 or (min(ends) >= 0 and ends == sorted(ends) and whole)):
        assert ring.push_many(lent) == length
        assert ring.pop_many().tolist() == [data[start:end] for start, end in pairwise(ends)]
    else:
        with pytest.raises(ValueError, match=r"ascend|null|cannot be"):
            ring.push_many(lent)
        assert len(ring) == 0


def test_two_threads_can_not_consume_one_array() -> None:
    for _ in range(50):
        lent = HandMade(offsets(0, 1), b"a", 1)
        outcomes: list[str] = []
        meet = threading.Barrier(2)

        def consume(
            lent: HandMade = lent, meet: threading.Barrier = meet, outcomes: list[str] = outcomes
        ) -> None:
            meet.wait(30)
            try:
                Gathered(lent)
            except ValueError:
                outcomes.append("refused")
            else:
                outcomes.append("taken")

        with background(consume, consume):
            pass
        assert sorted(outcomes) == ["refused", "taken"]
        assert lent.released == 1


@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
@pytest.mark.platform
@pytest.mark.single_thread
@pytest.mark.parametrize("way", ["push", "pop", "row", "view of a row"])
def test_an_array_cannot_be_resized_while_its_ring_takes_a_slot(tmp_path: Path, way: str) -> None:
    """The first use of a shared ring runs Python code, and so may a signal's handler
    there.
    """
    rows = way in ("row", "view of a row")
    dtype = np.dtype([("number", "i8")] if rows else "i8")
    ring = RingBuffer(1 << 12, dtype, path=tmp_path / "ring")
    array = np.full(100, 7, "i8").view(dtype).copy()
    if way == "pop":
        RingBuffer.attach(tmp_path / "ring").push_many(np.arange(100))
    refused: list[str] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "reopen":
            try:
                array.resize(1, refcheck=False)
            except ValueError as error:
                refused.append(str(error))

    row = array[7] if way == "row" else array[7:8]
    sys.setprofile(watch)
    try:
        if rows:
            done = 100 * ring.try_push(row)
        else:
            done = ring.push_many(array) if way == "push" else len(ring.pop_many(out=array))
    finally:
        sys.setprofile(None)
    assert (done, len(refused)) == (100, 1)
    if rows:
        assert ring.pop_many().tolist() == [(7,)]
    else:
        assert array.tolist() == ([7] * 100 if way == "push" else list(range(100)))


# ---------------------------------------------------------------- buffers of objects


def _array(values: Any, dtype: Any) -> Any:
    return np.array(values, dtype)


def _one_object() -> Any:
    return [(1, object())]


def _objects(count: int) -> list[Any]:
    return [object() for _ in range(count)]


OBJECTS: dict[str, Callable[[], Any]] = {
    "array": lambda: np.array([object(), "text", b"bytes"], object),
    "two-dimensional": lambda: np.array([[object()], [object()]], object),
    "structured": lambda: np.array([(1, object())], [("number", "i8"), ("it", "O")]),
    "nested": lambda: np.array(
        [((object(), 1), 2)], [("in", [("it", "O"), ("n", "i8")]), ("m", "i8")]
    ),
    "subarray": lambda: np.zeros(2, [("many", "O", (3,))]),
    "beside-times": lambda: np.zeros(2, [("when", "M8[s]"), ("it", "O")]),
    "record": lambda: np.rec.array(_one_object(), [("number", "i8"), ("it", "O")]),
    "masked": lambda: np.ma.array([object()], object),
    "subclass": lambda: np.array([object()], object).view(Liar),
    "view": lambda: memoryview(_array([object()], object)),
    "view-structured": lambda: memoryview(_array([(1, object())], [("number", "i8"), ("it", "O")])),
    "ctypes": lambda: (ctypes.py_object * 3)(*_objects(3)),
}


class Liar(np.ndarray[Any, Any]):
    dtype: Any = np.dtype(np.uint8)


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_are_neither_read_nor_written_over(kind: str) -> None:
    """numpy lends their pointers as bytes, to be written too: a push would tell
    addresses, a write would be a crash.
    """
    ring = MessageRing(4096)
    ring.push_many([b"A" * 16, b"B"])
    messages = ring.pop_many()
    owner = OBJECTS[kind]()
    before = repr(owner)
    uses: list[Callable[[], object]] = [
        lambda: messages.join_into(owner),
        lambda: messages.join_into(bytearray(64), 0, owner),
        lambda: messages.join(owner),
        lambda: messages.join(b"", owner),
        lambda: ring.push_lines(owner),
        lambda: ring.push_lines_seq(owner, True),
        lambda: ring.producer().push_lines(owner, True),
        lambda: count_lines(owner),
        lambda: Messages.from_columns(owner, np.zeros(1, np.int64)),
        lambda: Messages.from_columns(np.zeros(1, np.uint8), owner),
    ]
    if kind not in ("ctypes", "view", "view-structured", "two-dimensional", "masked"):
        uses.append(lambda: ring.push_many(owner))
    for number, use in enumerate(uses):
        with pytest.raises((TypeError, ValueError) if kind == "beside-times" else TypeError):
            pytest.fail(f"use {number} returned {use()!r}")
    assert len(ring) == 0
    assert repr(owner) == before


def test_whatever_else_lies_in_a_buffer_is_bytes() -> None:
    ring = MessageRing(4096)
    named: Any = np.array([(7, 8)], [("O", "u1"), ("OverO", "u1")])
    chunks: list[Any] = [
        named,
        memoryview(named),
        np.array(["1970-01-01"], "M8[D]"),
        np.array(["ab"]),
        array.array("d", [1.5]),
        (ctypes.c_int * 2)(1, 2),
    ]
    for chunk in chunks:
        content = chunk.tobytes() if hasattr(chunk, "tobytes") else bytes(chunk)
        assert ring.push_lines(chunk, True) == (1, len(content)), chunk
        assert ring.pop_many().tolist() == [content]
    target: Any = np.zeros(2, [("Other", "u4"), ("when", "M8[s]")])
    ring.push_many([b"abc"])
    assert ring.pop_many().join_into(target) == (1, 4)
    assert target.tobytes().startswith(b"abc\n")
