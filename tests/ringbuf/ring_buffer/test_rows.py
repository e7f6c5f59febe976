"""RingBuffer: records with fields, one at a time, beside what numpy makes of them."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import itertools
import pickle
import sys
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringbuf import RingBuffer
from ringbuf._records.convert import as_records
from tests.support.ring_buffer import MODES
from tests.support.threads import background

TICK = np.dtype([("time", "i8"), ("price", "f8"), ("name", "S8")])
# An equal one that is another object.
SAME = np.dtype([("time", "i8"), ("price", "f8"), ("name", "S8")])
# Others, of which the second has the same size and fields.
CONVERTIBLE = np.dtype([("time", ">i4"), ("price", "f4"), ("name", "S20")])
ELSEWHERE = np.dtype(
    {"names": ["time", "price", "name"], "formats": ["i8", "f8", "S8"], "offsets": [16, 8, 0]}
)
ONE = (7, 1.5, b"abc")
NEW_YEAR = datetime.datetime(2026, 1, 1)


def rows_of(dtype: Any = TICK) -> np.ndarray[Any, Any]:
    rows = np.zeros(3, dtype)
    rows["time"] = 1, 2, 3
    rows["price"] = 0.5, 1.5, 2.5
    rows["name"] = b"a", b"bc", b"def"
    return rows


def view_of(rows: Any) -> memoryview:
    return memoryview(rows)


@pytest.fixture(params=MODES)
def ticks(request: pytest.FixtureRequest, tmp_path: Path) -> RingBuffer:
    return ring_of(TICK, request.param, tmp_path / "ring")


def ring_of(dtype: Any, mode: str, path: Path, capacity: int = 8) -> RingBuffer:
    ring = RingBuffer(capacity, dtype, path=path if mode == "shared" else None)
    if mode == "exchanges":
        ring._use_exchanges()
    return ring


# ---------------------------------------------------------------- what goes in


class CTick(ctypes.Structure):
    _fields_ = [("time", ctypes.c_int64), ("price", ctypes.c_double)]


class Named(NamedTuple):
    time: int
    price: float
    name: bytes


class Lends:
    """What numpy makes an array of, and has no buffer."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return rows_of()[:1]


FACES: dict[str, Callable[[], Any]] = {
    "void": lambda: rows_of()[1],
    "void of an equal dtype": lambda: rows_of(SAME)[1],
    "void of its own memory": lambda: rows_of()[1].copy(),
    "record": lambda: rows_of().view(np.recarray)[1],
    "one row": lambda: rows_of()[1:2],
    "one row of an equal dtype": lambda: rows_of(SAME)[1:2],
    "one row of many": lambda: rows_of()[1::5],
    "one row that cannot be written": lambda: np.frombuffer(rows_of()[1:2].tobytes(), TICK),
    "no dimensions": lambda: rows_of()[1:2].reshape(()),
    "recarray": lambda: rows_of().view(np.recarray)[1:2],
    "masked, of which nothing is": lambda: np.ma.array(rows_of())[1:2],
    "memoryview": lambda: view_of(rows_of())[1:2],
    "memoryview of no dimensions": lambda: view_of(rows_of()[1:2].reshape(())),
    "tuple": lambda: (2, 1.5, b"bc"),
    "named tuple": lambda: Named(2, 1.5, b"bc"),
    "tuple of scalars": lambda: (np.int16(2), np.float32(1.5), np.bytes_(b"bc")),
    "void of another dtype": lambda: rows_of(CONVERTIBLE)[1],
    "one row of another dtype": lambda: rows_of(CONVERTIBLE)[1:2],
    "memoryview of another dtype": lambda: view_of(rows_of(CONVERTIBLE))[1:2],
    "fields elsewhere": lambda: rows_of(ELSEWHERE)[1],
}


@pytest.mark.parametrize("face", FACES)
def test_a_row_goes_in_by_every_face(ticks: RingBuffer, face: str) -> None:
    for _ in range(2):  # what was found out at the first is remembered at the second
        assert ticks.try_push(FACES[face]())
        assert ticks.producer().try_push(FACES[face]())
        assert ticks.push_many([FACES[face]()]) == 1
    got = ticks.pop_many()
    assert got.tolist() == [(2, 1.5, b"bc")] * 6
    assert got.dtype == TICK


def test_a_structure_of_ctypes_is_a_row() -> None:
    for dtype in ([("time", "i8"), ("price", "f8")], [("time", "i4"), ("price", ">f8")]):
        ring = RingBuffer(8, dtype)
        for _ in range(2):
            assert ring.try_push(CTick(2, 1.5))
        assert ring.pop_many().tolist() == [(2, 1.5)] * 2
    with pytest.raises(TypeError, match="other fields"):
        RingBuffer(8, [("a", "i8"), ("b", "f8")]).try_push(CTick(2, 1.5))


REFUSED: dict[str, Callable[[], Any]] = {
    "other names": lambda: np.zeros(1, [("a", "i8"), ("b", "f8"), ("c", "S8")])[0],
    "other names, one row": lambda: np.zeros(1, [("a", "i8"), ("b", "f8"), ("c", "S8")]),
    "other names, memoryview": lambda: view_of(
        np.zeros(1, [("a", "i8"), ("b", "f8"), ("c", "S8")])
    ),
    "other kinds": lambda: np.zeros(1, [("time", "f8"), ("price", "i8"), ("name", "i8")])[0],
    "raw bytes": lambda: bytes(24),
    "a bytearray": lambda: bytearray(24),
    "bytes as a buffer": lambda: memoryview(bytes(24)),
    "an array of bytes": lambda: np.zeros(24, np.uint8),
    "void without fields": lambda: np.void(bytes(24)),
    "no row": lambda: rows_of()[:0],
    "two rows": lambda: rows_of()[:2],
    "two rows of a memoryview": lambda: view_of(rows_of())[:2],
    "two dimensions": lambda: rows_of()[:1].reshape(1, 1),
    "two dimensions of a memoryview": lambda: view_of(rows_of()[:1].reshape(1, 1)),
    "a list": lambda: list(ONE),
    "too short": lambda: ONE[:2],
    "too long": lambda: (*ONE, 1),
    "nothing": lambda: (),
    "a string": lambda: "abc",
    "a number": lambda: 5,
    "None": lambda: None,
    "an array by its method": Lends,
    "a released memoryview": lambda: _released(),
    "masked": lambda: np.ma.array(rows_of()[:1], mask=[(False, True, False)]),
    "a masked row": lambda: np.ma.array(rows_of()[:1], mask=[(False, True, False)])[0],
    "does not fit": lambda: (2**63, 1.5, b"abc"),
    "a float for an int": lambda: (1.5, 1.5, b"abc"),
    "too many bytes": lambda: (1, 1.5, b"abcdefghi"),
    "a NUL at the end": lambda: (1, 1.5, b"abc\0"),
    "a tuple in a tuple": lambda: ((1,), 1.5, b"abc"),
}


def _released() -> memoryview:
    view = view_of(rows_of())
    view.release()
    return view


@pytest.mark.parametrize("face", REFUSED)
def test_what_is_no_row_is_refused(ticks: RingBuffer, face: str) -> None:
    for known in FACES.values():  # whatever was remembered
        assert ticks.try_push(known())
        ticks.pop_many()
    for push in (ticks.try_push, ticks.push, ticks.producer().try_push):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            push(REFUSED[face]())
    assert len(ticks) == 0


def test_what_a_subclass_says_of_itself_is_not_asked() -> None:
    class Void(np.void):  # type: ignore[misc]
        dtype: Any = TICK

    class Claims(np.ndarray[Any, Any]):
        dtype = property(lambda self: TICK)

    class Tuple(tuple[Any, ...]):
        def __getitem__(self, at: Any) -> Any:
            return (1, 2.0, b"z")[at]

    ring = RingBuffer(8, TICK)
    other = np.zeros(1, [("a", "i8"), ("b", "f8"), ("c", "S8")])
    with pytest.raises(TypeError):
        ring.try_push(Void(bytes(24)))
    with pytest.raises(TypeError):
        ring.try_push(other.view(Claims))
    assert ring.try_push(Tuple(ONE))
    assert ring.pop_many().tolist() == [(1, 2.0, b"z")]


def test_a_dtype_that_is_renamed_is_another(tmp_path: Path) -> None:
    names = [("a", "i8"), ("b", "i8")]
    own, equal = np.dtype(names), np.dtype(names)
    ring = RingBuffer(8, own)
    row = np.ones(1, equal)[0]
    view = view_of(np.ones(1, names))
    for _ in range(2):
        assert ring.try_push(row)
        assert ring.try_push(view)
    equal.names = "c", "d"
    with pytest.raises(TypeError, match="other fields"):
        ring.try_push(row)
    equal.names = "a", "b"
    assert ring.try_push(row)
    own.names = "e", "f"
    for renamed in (row, view):
        with pytest.raises(TypeError, match="other fields"):
            ring.try_push(renamed)
    assert len(ring) == 5


def test_padding_goes_in_as_it_is() -> None:
    dtype = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    row = np.frombuffer(b"\1" + b"p" * 7 + bytes(8), dtype)
    ring = RingBuffer(8, dtype)
    assert ring.try_push(row)
    assert ring.try_push(row[0])
    assert ring.try_push((1, 0.0))
    assert ring.try_pop().tobytes() == row.tobytes()
    assert [one.tobytes()[1:8] for one in ring.pop_many()] == [b"p" * 7, bytes(7)]


def test_a_buffer_that_numpy_lends_and_cannot_read_is_a_row() -> None:
    """Of a dtype that is aligned but at its end."""
    dtype = np.dtype([("a", "i8"), ("b", "S3")])
    rows = np.array([(1, b"x"), (2, b"y")], dtype)
    with contextlib.suppress(RuntimeError):
        np.asarray(view_of(rows))
    ring = RingBuffer(8, dtype)
    for _ in range(2):
        assert ring.try_push(view_of(rows)[1:])
    assert ring.push_many([view_of(rows)[:1], view_of(rows)[1:]]) == 2
    assert ring.pop_many().tolist() == [(2, b"y"), (2, b"y"), (1, b"x"), (2, b"y")]
    with pytest.raises((TypeError, ValueError)):
        ring.try_push(view_of(rows))


def test_raw_bytes_are_rows_too() -> None:
    ring = RingBuffer(8, "V4")
    for record in (np.void(b"abcd"), np.zeros(1, "V4")[0], b"ab", np.void(b"xy")):
        assert ring.try_push(record)
    assert [ring.try_pop().tobytes() for _ in range(4)] == [b"abcd", bytes(4), b"ab\0\0", b"xy\0\0"]
    with pytest.raises(ValueError, match="too long"):
        ring.try_push(np.void(b"abcde"))
    assert ring.try_push(np.zeros(1, "V4"))
    assert ring.push_many([np.zeros(1, "V4"), np.void(b"abcd")]) == 2
    for record in (np.zeros(2, "V4"), memoryview(b"abcd"), np.zeros(1, "i4"), 5):
        with pytest.raises((TypeError, ValueError)):
            ring.try_push(record)


@pytest.mark.parametrize("size", [500, 504, 505, 2000, 300_000])
@pytest.mark.parametrize("mode", MODES)
def test_rows_of_every_size(mode: str, size: int, tmp_path: Path) -> None:
    dtype = np.dtype([("number", "i8"), ("text", f"S{size}")])
    ring = ring_of(dtype, mode, tmp_path / "ring", 2)
    for _ in range(3):
        for record in ((5, b"x" * size), np.array([(6, b"y")], dtype)[0]):
            assert ring.try_push(record)
        assert not ring.try_push((7, b""))
        assert [ring.try_pop().item() for _ in range(2)] == [(5, b"x" * size), (6, b"y")]
        assert ring.try_pop() is None
    assert ring._check() == (0, 0)


# ------------------------------------------------ beside what numpy makes of a tuple


class Colour(IntEnum):
    RED = 1


# Without long doubles, of which some bytes are whatever they were.
FORMATS = [
    *("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"),
    *(">i2", ">i4", ">u8", ">f4", ">f8", ">U3", "S1", "S5", "U4", "V3"),
    *("M8[s]", "M8[10ns]", ">M8[D]", "m8[us]", ">m8[s]", "M8"),
]

fields = st.one_of(
    st.sampled_from(FORMATS).map(np.dtype),
    st.tuples(st.sampled_from(["i2", ">f8", "S2"]), st.sampled_from([(2,), (1, 2)])).map(np.dtype),
    st.just(np.dtype([("x", "u1"), ("y", ">f4")])),
    st.just(np.dtype([("x", "i8"), ("y", [("z", "S3")])], align=True)),
)


@st.composite
def dtypes(draw: st.DrawFn) -> np.dtype[Any]:
    formats = draw(st.lists(fields, min_size=1, max_size=4))
    names = [f"field{number}" for number in range(len(formats))]
    match draw(st.sampled_from(["packed", "aligned", "apart", "over each other"])):
        case "packed":
            return np.dtype({"names": names, "formats": formats})
        case "aligned":
            return np.dtype({"names": names, "formats": formats}, align=True)
        case "apart":
            # They lie in another order than they are named in.
            step = max(one.itemsize for one in formats) + draw(st.integers(0, 5))
            offsets = [number * step + 1 for number in reversed(range(len(formats)))]
            return np.dtype({"names": names, "formats": formats, "offsets": offsets})
        case _:
            offsets = [draw(st.integers(0, 4)) for _ in formats]
            return np.dtype({"names": names, "formats": formats, "offsets": offsets})


numbers = st.one_of(
    st.integers(-130, 300),
    st.sampled_from([2**k + d for k in (15, 16, 31, 32, 53, 63, 64, 70) for d in (-1, 0, 1)]),
    st.sampled_from([-(2**k) + d for k in (7, 15, 31, 53, 63) for d in (-1, 0, 1)]),
)
floats = st.one_of(
    st.floats(),
    st.sampled_from([3.4e38, 3.5e38, -1e39, 1e-46, 65504.0, 65520.0]),
)
values = st.one_of(
    # These have no hash.
    st.builds(lambda: np.timedelta64(5)),
    st.builds(lambda: np.datetime64("NaT")),
    numbers,
    floats,
    st.booleans(),
    st.binary(max_size=6),
    st.text(max_size=5),
    st.text(st.characters(codec=None, categories=("Cs", "Lo", "Cc")), max_size=3),
    st.none(),
    numbers.filter(lambda n: -(2**63) <= n < 2**63).map(np.int64),
    numbers.filter(lambda n: 0 <= n < 2**64).map(np.uint64),
    st.integers(-128, 127).map(np.int8),
    floats.map(np.float64),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.sampled_from(
        [
            *(np.True_, np.False_, Colour.RED, 1j, np.complex64(1j), np.longdouble(0.1)),
            *(np.datetime64("2026-01-02"), np.datetime64(5, "s"), np.datetime64("NaT", "s")),
            *(np.array(5).view("M8[10ns]")[()], np.datetime64(5, "D")),
            *(np.timedelta64(5, "us"), np.timedelta64(5, "s")),
            *(datetime.datetime(2026, 1, 2), datetime.timedelta(1), datetime.date(2026, 1, 2)),
            *(np.bytes_(b"ab"), np.str_("ab"), np.void(b"abc"), bytearray(b"ab")),
            *([1, 2], (1, 2), [[1, 2]], [b"a", b"b"], np.array([1, 2]), np.array(5)),
            *((5, 0.5), (300, 0.5), (5,), (5, (b"abc",)), (5, (b"abcd",)), (5, [b"abc"])),
            *(np.array([(5, 0.5)], [("x", "u1"), ("y", ">f4")])[0], object()),
        ]
    ),
)


def fitting(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    """What goes into a field without a question."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return fitting(base).map(lambda value: np.full(shape, value, base).tolist())
    if dtype.names is not None:
        return st.tuples(*(fitting(dtype[name]) for name in dtype.names))
    if dtype.kind in "iu":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        ints = st.one_of(st.integers(low, high), st.sampled_from([low, high]))
        return st.one_of(ints, ints.map(dtype.type), st.integers(0, 100).map(np.uint8))
    if dtype.kind == "f":
        width: Any = 8 * dtype.itemsize
        reals: Any = st.floats(width=width)
        whole = st.integers(-(2**63), 2**63 - 1) if dtype.itemsize > 2 else st.integers(-9, 9)
        return st.one_of(reals, reals.map(dtype.type), whole, st.floats(width=16).map(np.float32))
    if dtype.kind in "mM":
        native = dtype.newbyteorder("=")
        return st.integers(-(2**40), 2**40).map(lambda count: np.array(count).view(native)[()])
    return {
        "b": st.booleans() | st.booleans().map(np.bool_),
        "c": st.complex_numbers(width=64),
        "S": st.binary(max_size=dtype.itemsize).map(lambda value: value.rstrip(b"\0")),
        "U": st.text(max_size=dtype.itemsize // 4).map(lambda value: value.rstrip("\0")),
        "V": st.binary(max_size=dtype.itemsize),
    }[dtype.kind]


@st.composite
def records(draw: st.DrawFn, dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """A tuple for a dtype that goes in, or of which one value is any, or each."""
    names = dtype.names or ()
    odd = draw(st.sampled_from([-1, *range(len(names)), -1, len(names)]))
    return tuple(
        draw(values if odd in (place, len(names)) else fitting(dtype[name]))
        for place, name in enumerate(names)
    )


def outcome(work: Callable[[], Any]) -> tuple[Any, ...]:
    """Its result, or how it fails."""
    try:
        return "gave", work()
    except Exception as error:
        return "raised", type(error), str(error)


INTS: list[Any] = [0, 1, -1, True, np.int8(-1), np.uint64(5), np.True_, Colour.RED, 1.0, None, b"1"]
INTS += [2**k + d for k in (7, 8, 15, 16, 31, 32, 63, 64) for d in (-1, 0)]
INTS += [-(2**k) - d for k in (7, 15, 31, 63) for d in (0, 1)]
REALS: list[Any] = [
    0.1,
    -0.0,
    float("inf"),
    float("nan"),
    3.4e38,
    3.5e38,
    -1e39,
    1e-46,
    2**53 + 1,
    2**63 - 1,
]
REALS += [2**24 + 1, 2**70, 10**400, True, np.float32(0.1), np.float64(1e300), np.float16(0.1), "1"]
REALS += [np.longdouble(0.1), np.int64(2**53 + 1), np.uint64(2**64 - 1), 1j]
TIMES: list[Any] = [np.datetime64(5, unit) for unit in ("s", "ms", "D")]
TIMES += [np.timedelta64(5, unit) for unit in ("s", "ms", "D")]
TIMES += [np.datetime64("NaT", "s"), np.datetime64("NaT"), np.timedelta64(5), None, 5, -(2**63)]
TIMES += [np.datetime64(1500, "ms"), np.timedelta64(1500, "ms"), NEW_YEAR, datetime.timedelta(1)]
BYTES: list[Any] = [
    b"",
    b"a",
    b"abc",
    b"abcd",
    b"a\0",
    b"a\0b",
    b"\0",
    "abc",
    np.bytes_(b"ab"),
    bytearray(b"a"),
]
TEXTS: list[Any] = [
    "",
    "a",
    "äöü",
    "abcd",
    "a\0",
    "\0a",
    "\U0001f600",
    "\ud800",
    b"abc",
    np.str_("ab"),
    1,
]


@pytest.mark.parametrize(
    ("formats", "given"),
    [
        (["i1", "i2", ">i4", "i8", ">i8", "u1", ">u2", "u4", "u8", ">u8", "?"], INTS),
        (["f2", "f4", ">f4", "f8", ">f8", "c8"], REALS),
        (["M8[s]", ">M8[s]", "M8[D]", "M8", "m8[s]", ">m8[s]", "m8[ms]", "m8"], TIMES),
        (["S3", "V3"], BYTES),
        (["U3", ">U3"], TEXTS),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_each_kind_of_field_at_its_edges(formats: list[str], given: list[Any]) -> None:
    for dtype in (np.dtype([("before", "i1"), ("it", one), ("after", "i1")]) for one in formats):
        ring = RingBuffer(2, dtype)
        for value in given:
            expected = outcome(partial(as_bytes, dtype, (1, value, 2)))
            got = outcome(partial(ring.try_push, (1, value, 2)))
            if expected[0] == "raised":
                assert got == expected, (dtype, value)
            else:
                assert got == ("gave", True), (dtype, value)
                assert ring.try_pop().tobytes() == expected[1], (dtype, value)
        assert len(ring) == 0


def as_bytes(dtype: np.dtype[Any], record: object) -> bytes:
    return as_records(dtype, [record]).tobytes()


@settings(max_examples=600)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_tuple_goes_in_as_numpy_has_it_or_is_refused_as_by_numpy(data: st.DataObject) -> None:
    dtype = data.draw(dtypes())
    record = data.draw(records(dtype))
    ring = RingBuffer(2, dtype)
    expected = outcome(lambda: as_bytes(dtype, record))
    got = outcome(lambda: ring.try_push(record))
    if expected[0] == "raised":
        assert got == expected
        assert len(ring) == 0
        return
    assert got == ("gave", True)
    popped = ring.try_pop()
    assert type(popped) is np.void
    assert popped.dtype == dtype
    assert popped.tobytes() == expected[1]
    # And as a plain assignment writes it, where it takes the same. SystemError: fields
    # over each other, of which one makes no text of the other.
    plain = np.zeros(1, dtype)
    with contextlib.suppress(TypeError, ValueError, SystemError):
        plain[0] = record
        assert as_seen(popped) == as_seen(plain[0])


def as_seen(row: Any) -> str:
    """NaN is what it looks like."""
    return repr([row[name] for name in row.dtype.names])


@settings(max_examples=200)
@given(st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_row_of_any_dtype_goes_in_or_is_refused_as_by_numpy(data: st.DataObject) -> None:
    """Of the same size or not; the ring has met one of its own dtype before."""
    dtype, other = data.draw(dtypes()), data.draw(dtypes())
    ring = RingBuffer(2, dtype)
    equal = pickle.loads(pickle.dumps(dtype))
    for own in (dtype, equal, equal):
        assert ring.try_push(np.zeros(1, own))
        assert ring.try_pop().tobytes() == bytes(dtype.itemsize)
    raw: Any = {"names": dtype.names, "formats": ["V1"] * len(dtype.names or ())}
    for made in (other, np.dtype(raw)):
        size = made.itemsize
        row = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), made)
        expected = outcome(partial(as_list, dtype, row[0]))
        faces: list[Any] = [row[0], row, row.reshape(())]
        for face in faces:
            got = outcome(partial(ring.try_push, face))
            if expected[0] == "raised":
                assert got[:2] == expected[:2]
            else:
                assert got == ("gave", True)
                assert repr(ring.pop_many().tolist()) == repr(expected[1])


def as_list(dtype: np.dtype[Any], row: object) -> list[Any]:
    found: list[Any] = as_records(dtype, [row]).tolist()
    return found


# ---------------------------------------------------------------- what comes out


def test_rows_that_were_popped_are_the_caller_s(ticks: RingBuffer) -> None:
    kept: list[Any] = []
    for number in range(100):
        assert ticks.try_push((number, 0.5, b"x"))
        row = ticks.try_pop()
        assert type(row) is np.void
        assert row.dtype is ticks.dtype
        assert row.item() == (number, 0.5, b"x")
        kept.append(row)
    assert [row["time"] for row in kept] == list(range(100))
    for row in kept[::2]:
        row["time"] = -1
    assert [row["time"] for row in kept] == [n if n % 2 else -1 for n in range(100)]
    for first, second in itertools.pairwise(kept):
        assert not np.shares_memory(first, second)
    ticks.push_many(rows_of())
    row = ticks.try_pop()
    row["time"] = 99
    ticks.close()
    del ticks
    gc.collect()
    assert row["time"] == 99
    assert kept[1].item() == (1, 0.5, b"x")


@pytest.mark.threads
def test_threads_that_share_a_ring_get_rows_of_their_own(ticks: RingBuffer) -> None:
    """By the ring itself: what it remembers, and the rows that it makes at once, are
    the same for all of them.
    """
    count = 1000
    got: list[list[Any]] = [[], []]

    def push(start: int) -> None:
        for number in range(start, count, 2):
            dtype = (TICK, SAME, CONVERTIBLE)[number // 2 % 3]
            row = np.array([(number, number / 2, b"%d" % number)], dtype)
            given: list[Any] = [row, row[0], row[0].item(), view_of(row)]
            while not ticks.push(given[number // 6 % 4], timeout=10):
                pass

    def pop(kept: list[Any]) -> None:
        while len(got[0]) + len(got[1]) < count:
            row = ticks.pop(timeout=0.05)
            if row is not None:
                kept.append(row)

    with background(partial(push, 0), partial(push, 1), partial(pop, got[0]), partial(pop, got[1])):
        pass
    for kept in got:
        for row in kept:
            number = int(row["time"])
            assert row.item() == (number, number / 2, b"%d" % number)
    assert sorted(int(row["time"]) for kept in got for row in kept) == list(range(count))
    assert ticks._check() == (0, 0)


def test_a_kept_row_keeps_little(ticks: RingBuffer) -> None:
    for dtype, most in ((TICK, 1024), ([("a", "V600")], 600), ([("a", "V5000")], 5000)):
        ring = RingBuffer(8, dtype)
        ring.push_many(np.zeros(1, dtype))
        row = ring.try_pop()
        assert row.base is not None
        assert row.base.nbytes <= most


def test_an_empty_ring_gives_none_and_makes_nothing(ticks: RingBuffer) -> None:
    before = sys.getallocatedblocks()
    for _ in range(1000):
        assert ticks.try_pop() is None
    assert sys.getallocatedblocks() - before < 100
    assert ticks.try_push(ONE)
    assert ticks.try_pop().item() == ONE


def test_records_of_numpy_come_out_as_such(ticks: RingBuffer) -> None:
    dtype = np.dtype((np.record, TICK))
    ring = RingBuffer(8, dtype)
    assert ring.try_push(ONE)
    row = ring.try_pop()
    assert type(row) is np.record
    assert (row.time, row.price, row.name) == ONE


def test_rows_are_waited_for(ticks: RingBuffer) -> None:
    assert ticks.pop(timeout=0.01) is None
    for _ in range(ticks.capacity):
        assert ticks.push(rows_of()[0], timeout=0)
    assert not ticks.push(ONE, timeout=0.01)
    assert ticks.pop(timeout=None).item() == (1, 0.5, b"a")


def test_an_empty_ring_of_rows_goes_back_to_its_start() -> None:
    dtype = np.dtype([("number", "i8"), ("filler", "V65528")])
    ring = RingBuffer(64, dtype)
    for number in range(1, 101):
        assert ring.try_push((number, b""))
        assert ring.try_pop()["number"] == number
        assert ring._check() == (0, 0)
    with ring.reserve(64) as span:
        assert not np.any(span["number"][6:])
        assert len(span) >= 61


@pytest.mark.single_thread
@pytest.mark.parametrize("mode", MODES)
def test_code_that_runs_while_a_row_is_made_may_use_the_ring(mode: str, tmp_path: Path) -> None:
    """A record of numpy has a dict, so a collection may begin where one is made."""
    ring = ring_of(np.dtype((np.record, TICK)), mode, tmp_path / "ring", 256)
    inside: list[Any] = []
    popping = False

    def collecting(phase: str, _: object) -> None:
        nonlocal popping
        if phase == "start" and not popping and len(inside) < 60:
            popping = True
            inside.append(ring.try_pop())
            popping = False

    got: list[Any] = []
    ring.push_many([(number, 0.0, b"") for number in range(200)])
    thresholds = gc.get_threshold()
    gc.callbacks.append(collecting)
    gc.set_threshold(1)
    try:
        while (row := ring.try_pop()) is not None:
            got.append(row)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collecting)
    assert inside
    inside = [row for row in inside if row is not None]
    assert sorted(row["time"] for row in got + inside) == list(range(200))
    assert ring._check() == (0, 0)


@pytest.mark.single_thread
def test_a_ring_that_is_closed_while_a_row_is_made_gives_none_away() -> None:
    ring = RingBuffer(8, np.dtype((np.record, TICK)))
    ring.push_many([ONE] * 4)

    def collecting(phase: str, _: object) -> None:
        ring.close()

    def pop_all() -> None:
        for _ in range(4):
            ring.try_pop()

    thresholds = gc.get_threshold()
    gc.callbacks.append(collecting)
    gc.set_threshold(1)
    try:
        with pytest.raises(ValueError, match="closed"):
            pop_all()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collecting)
