"""RingBuffer: which records it holds, and what goes in and comes out unchanged."""

from __future__ import annotations

import array
import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuf import RingBuffer
from tests.support.columns import Column

NEW_YEAR = datetime.datetime(2026, 1, 2)


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
def test_every_dtype_of_a_fixed_size(dtype: Any, value: object) -> None:
    ring = RingBuffer(4, dtype)
    one = np.zeros(3, dtype)
    one[1] = value
    assert ring.try_push(value)
    assert ring.push_many(one) == 3
    assert not ring.try_push(value)
    first = ring.try_pop()
    assert np.array(first, dtype) == one[1]
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
        ("M8[ns]", np.datetime64("2500-01-01"), ValueError),
        ("M8[ns]", datetime.datetime(2500, 1, 1), ValueError),
        ("M8[ns]", np.datetime64(2**62, "Y"), ValueError),
        ("M8[as]", np.datetime64(2**62, "s"), ValueError),
        ("M8[D]", datetime.datetime(2024, 5, 5, 23, 59), ValueError),
        ("M8[D]", np.datetime64("2024-05-05T23:59"), ValueError),
        ("m8[ns]", np.timedelta64(10**12, "s"), ValueError),
        ("m8[s]", datetime.timedelta(seconds=1.5), ValueError),
        ("m8[10s]", np.timedelta64(15, "s"), ValueError),
        ("m8[us]", datetime.timedelta.max, ValueError),
        ("m8[us]", datetime.timedelta(days=999_999_999), ValueError),
        ("m8[s]", 2**63, OverflowError),
        ("m8[s]", -(2**63), OverflowError),
        ("m8[s]", 1.5, TypeError),
        ("m8[s]", np.datetime64(5, "s"), TypeError),
        (">i8", np.timedelta64(5, "s"), TypeError),
        ([("a", "M8[ns]")], (np.datetime64("2500-01-01"),), ValueError),
        ([("a", "m8[us]", (2,))], (np.array([1000, 1500], "m8[ns]"),), ValueError),
        ([("a", "i4", (2,))], (np.ma.array([1, 2], mask=[True, False]),), ValueError),
        ("S4", b"ab\0", ValueError),
        ("U4", "ab\0", ValueError),
        ([("a", "S4")], (b"ab\0",), ValueError),
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
        ("M8[ns]", np.array(["2000-01-01", "2500-01-01"], "M8[s]"), ValueError),
        (">M8[D]", np.array(["2024-05-05T23:59"], ">M8[m]"), ValueError),
        ("m8[s]", np.array([1000, 1500], "m8[ms]"), ValueError),
        ("m8[s]", np.array([1, 2**63], "u8"), OverflowError),
        ([("a", "m8[s]")], np.array([(1500,)], [("a", "m8[ms]")]), ValueError),
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
        ("M8[s]", [NEW_YEAR], [NEW_YEAR]),
        ("M8[D]", [NEW_YEAR, NEW_YEAR.date(), None], [NEW_YEAR.date(), NEW_YEAR.date(), None]),
        ("M8[D]", np.array(["2026-01-02", "NaT"], "M8[ns]"), [NEW_YEAR.date(), None]),
        (
            "m8[s]",
            [datetime.timedelta(1), np.timedelta64(2000, "ms"), 3],
            [datetime.timedelta(seconds=seconds) for seconds in (86_400, 2, 3)],
        ),
        ("m8[D]", [datetime.timedelta(999_999_999)], [datetime.timedelta(999_999_999)]),
        ([("a", "m8[us]", (1,))], [(np.array([5000], "m8[ns]"),)], [([5],)]),
        ("V3", [b"a\0"], [b"a\0\0"]),
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


units = st.sampled_from(["W", "D", "h", "m", "s", "ms", "us", "ns"])


@given(st.integers(-(2**63) + 1, 2**63 - 1), units, units, st.integers(0, 60))
def test_a_span_comes_out_as_long_as_it_went_in_or_is_refused(
    count: int, given_in: str, held_in: str, smaller: int
) -> None:
    lengths = {
        "W": 7 * 24 * 3600 * 10**9,
        "D": 24 * 3600 * 10**9,
        "h": 3600 * 10**9,
        "m": 60 * 10**9,
    }
    lengths |= {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
    count >>= smaller
    length = count * lengths[given_in]
    fits = length % lengths[held_in] == 0 and abs(length // lengths[held_in]) < 2**63
    ring = RingBuffer(4, f"m8[{held_in}]")
    unit: Any = given_in
    span = np.timedelta64(count, unit)
    pushes: list[Callable[[], int]] = [
        lambda: ring.try_push(span),
        lambda: ring.push_many(np.array([span])),
    ]
    for push in pushes:
        if fits:
            assert push() == 1
            assert int(ring.pop_many().astype(np.int64)[0]) * lengths[held_in] == length
        else:
            with pytest.raises(ValueError, match="out of range"):
                push()


def test_the_nanoseconds_of_a_time_of_pandas_count() -> None:
    class Timestamp(datetime.datetime):
        def to_numpy(self) -> np.datetime64:
            return np.datetime64(self, "ns") + np.timedelta64(5, "ns")

    ring = RingBuffer(4, "M8[ns]")
    assert ring.try_push(Timestamp(2026, 1, 2))
    assert ring.try_pop() == np.datetime64("2026-01-02T00:00:00.000000005")
    with pytest.raises(ValueError, match="finer than its unit"):
        RingBuffer(4, "M8[us]").try_push(Timestamp(2026, 1, 2))


def test_a_released_memoryview_is_refused_as_what_it_is() -> None:
    view = memoryview(b"ab")
    view.release()
    with pytest.raises(ValueError, match="released memoryview"):
        RingBuffer(4, "u1").push_many(view)


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, -1, 0, 2**30 - 1, 2**30, -(2**31), 10**18])
def test_ints_of_all_sizes_come_out_as_they_went_in(value: int) -> None:
    ring = RingBuffer(2, "i8")
    assert ring.try_push(value)
    assert ring.try_push(np.int64(value))
    assert ring.try_pop() == value
    assert ring.pop_many().tolist() == [value]


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 4)), max_size=60))
def test_an_int_that_was_popped_stays_what_it_is(steps: list[tuple[int, int]]) -> None:
    """The ring makes new ints of old ones, if those have no other user."""
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


def test_what_a_subclass_says_of_itself_is_not_asked_of_an_out() -> None:
    class Claims(np.ndarray[Any, Any]):
        dtype = property(lambda self: np.dtype("i8"))

    ring = RingBuffer(4, "i8")
    ring.push_many([1, 2, 3])
    objects = np.array([object(), object()], object)
    kept = objects.tolist()
    with pytest.raises(ValueError, match="out must be"):
        ring.pop_many(out=objects.view(Claims))
    assert objects.tolist() == kept
    memory = np.zeros(2, "i8")
    assert ring.pop_many(out=memory.view(Claims)).tolist() == [1, 2]
    assert ring.pop_many(out=memory[:1].view(np.matrix).A1.view(Claims)).tolist() == [3]
    assert memory.tolist() == [3, 2]


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2"])
def test_a_long_double_goes_in_alone_as_in_an_array(dtype: str) -> None:
    ring = RingBuffer(8, dtype)
    for value in ("0.5", "inf", "nan", "3"):
        number = np.longdouble(value)
        assert ring.try_push(number)
        assert ring.push_many([number]) == ring.push_many(np.array([number])) == 1
        assert [str(each) for each in ring.pop_many().tolist()] == [str(float(value))] * 3
    huge = np.longdouble("1e4000")
    if np.isfinite(huge):  # else it is no longer than a double here
        pushes: list[Callable[[Any], object]] = [
            ring.try_push,
            lambda number: ring.push_many(np.array([number])),
        ]
        for push in pushes:
            with pytest.raises(OverflowError, match="out of range"):
                push(huge)


@pytest.mark.parametrize("dtype", [object, np.dtype([("a", object)]), "S0", np.dtype(("i4", (2,)))])
def test_dtypes_without_a_fixed_size_are_refused(dtype: object) -> None:
    with pytest.raises((TypeError, ValueError), match="dtype"):
        RingBuffer(4, dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [0, -1, 2**40, 1.5, None])
def test_bad_capacities_are_refused(bad: object) -> None:
    with pytest.raises((TypeError, ValueError), match="capacity"):
        RingBuffer(bad, "i8")  # type: ignore[arg-type]


def test_masked_records_are_refused() -> None:
    ring = RingBuffer(4, "i8")
    records = np.ma.masked_array([1, 2], mask=[False, True])
    with pytest.raises(ValueError, match="masked"):
        ring.push_many(records)
    column: Any = Column
    with pytest.raises(ValueError, match="masked"):
        ring.push_many(column(records))
    assert ring.push_many(records[:1]) == 1
    assert ring.push_many(column(records[:1])) == 1


ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)


@pytest.mark.parametrize(
    "dtype", [ALIGNED, np.dtype((np.record, ALIGNED)), np.dtype([("a", "i4", 2)])]
)
def test_a_record_may_come_as_an_array_of_no_dimensions(dtype: np.dtype[Any]) -> None:
    ring = RingBuffer(8, dtype)
    rows = np.zeros(3, dtype)
    rows["a"] = np.arange(1, 4).reshape(3, *[1] * (rows["a"].ndim - 1))
    assert ring.try_push(rows[0])
    assert ring.try_push(np.array(rows[1], dtype))
    assert ring.push_many([np.array(rows[2], dtype), rows[0]]) == 2
    assert ring.pop_many()["a"].tolist() == rows[[0, 1, 2, 0]]["a"].tolist()
    with pytest.raises(TypeError, match="other fields"):
        ring.try_push(np.zeros((), [("other", "i4")]))
    with pytest.raises((TypeError, ValueError)):
        ring.try_push(np.zeros(2, dtype))


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "f2", "c16", ">i4"])
def test_one_masked_number_is_refused(dtype: str) -> None:
    ring = RingBuffer(8, dtype)
    masked_numbers: list[Any] = [np.ma.masked, np.ma.array(1, dtype, mask=True)]
    for masked in masked_numbers:
        with pytest.raises(ValueError, match="masked"):
            ring.try_push(masked)
        with pytest.raises(ValueError, match="masked"):
            ring.push_many([1, masked])
    assert ring.try_push(np.ma.array(1, dtype, mask=False))
    assert ring.pop_many().tolist() == [1]


def test_masked_fields_are_refused() -> None:
    ring = RingBuffer(8, ALIGNED)
    records: Any = np.ma.zeros(2, ALIGNED)
    assert ring.push_many(records) == 2
    assert ring.try_push(records[1])
    records.mask["b"][1] = True
    pushes: list[Callable[[], object]] = [
        lambda: ring.push_many(records),
        lambda: ring.push_many([records[1]]),
        lambda: ring.try_push(records[1]),
        lambda: ring.try_push(np.ma.masked),
        lambda: ring.try_push((1, np.ma.masked)),
    ]
    for push in pushes:
        with pytest.raises(ValueError, match="masked"):
            push()
    assert len(ring) == 3


@pytest.mark.parametrize("base", ["<i4", ">i4"])
@pytest.mark.parametrize("fields", ["<i2", ">i2"])
def test_a_number_with_fields_is_refused(base: str, fields: str) -> None:
    """numpy calls it native by its fields alone."""
    dtype = np.dtype((np.dtype(base), {"low": (fields, 0), "high": (fields, 2)}))
    for made in (dtype, dtype.newbyteorder()):
        with pytest.raises(TypeError, match="a number and its fields"):
            RingBuffer(8, made)
    assert RingBuffer(8, np.dtype({"names": ["low"], "formats": [fields], "itemsize": 4})).try_push(
        (7,)
    )


@pytest.mark.parametrize(
    "records", [{1: 2}, {1: 2}.keys(), {1: 2}.values(), {1, 2}, frozenset([1])]
)
def test_what_has_no_order_is_no_sequence_of_records(records: Any) -> None:
    ring = RingBuffer(8, "i8")
    with pytest.raises(TypeError, match="must be a sequence or an array, not a "):
        ring.push_many(records)
    assert len(ring) == 0
