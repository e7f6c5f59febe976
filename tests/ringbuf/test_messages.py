"""Messages over columns that were made elsewhere, and what can be done to the columns
of any.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringbuf import MessageRing, Messages


def test_they_are_a_view_of_the_columns() -> None:
    data = np.frombuffer(b"xxonetwo", np.uint8)
    offsets = np.array([2, 5, 5, 8])
    messages = Messages.from_columns(data, offsets, 7)
    assert np.shares_memory(messages.data, data)
    assert messages.offsets.tolist() == offsets.tolist()
    assert (len(messages), messages.nbytes, messages.first_seq) == (3, 6, 7)
    assert messages.tolist() == [b"one", b"", b"two"]
    assert messages.join(b"|") == b"one||two"
    tail = messages[1:]
    assert (tail.tolist(), tail.first_seq) == ([b"", b"two"], 8)
    del data, offsets, messages
    gc.collect()
    assert tail.tolist() == [b"", b"two"]


def test_no_messages() -> None:
    empty = Messages.from_columns(np.empty(0, np.uint8), np.zeros(1, np.int64))
    assert (len(empty), empty.tolist(), empty.join(), empty.first_seq) == (0, [], b"", 0)


def test_large_numbers() -> None:
    columns = np.zeros(3, np.uint8), np.arange(4)
    assert Messages.from_columns(*columns, first_seq=(1 << 64) - 4).first_seq == (1 << 64) - 4
    for first in (-1, (1 << 64) - 3, 1 << 64):
        with pytest.raises(ValueError, match="first_seq"):
            Messages.from_columns(*columns, first_seq=first)


@pytest.mark.parametrize(
    ("data", "offsets", "error"),
    [
        (b"abc", np.array([0, 3]), TypeError),
        (np.zeros(3, np.int8), np.array([0, 3]), TypeError),
        (np.zeros(3, np.uint8), [0, 3], TypeError),
        (np.zeros(3, np.uint8), np.array([0, 3], np.int32), TypeError),
        (np.zeros(3, np.uint8), np.array([0, 3], np.uint64), TypeError),
        (np.zeros(3, np.uint8), np.array([0, 3], ">i8"), TypeError),
        (np.zeros((1, 3), np.uint8), np.array([0, 3]), ValueError),
        (np.zeros(6, np.uint8)[::2], np.array([0, 3]), ValueError),
        (np.zeros(3, np.uint8), np.array([0, 9, 3, 9])[::2], ValueError),
        (np.zeros(3, np.uint8), np.zeros(0, np.int64), ValueError),
        (np.zeros(3, np.uint8), np.array([0, 4]), ValueError),
        (np.zeros(3, np.uint8), np.array([-1, 3]), ValueError),
        (np.zeros(3, np.uint8), np.array([0, 2, 1, 3]), ValueError),
        (np.zeros(3, np.uint8), np.array([0, 1 << 62, 3]), ValueError),
    ],
)
def test_what_are_no_columns_is_refused(data: Any, offsets: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Messages.from_columns(data, offsets)


@given(
    st.lists(st.integers(-2, 9) | st.integers(-(1 << 63), (1 << 63) - 1), max_size=6),
    st.binary(max_size=8),
)
def test_messages_are_what_the_columns_say_or_refused(places: list[int], data: bytes) -> None:
    columns = np.frombuffer(data, np.uint8), np.array(places, np.int64)
    if places and places[0] >= 0 and places[-1] <= len(data) and places == sorted(places):
        messages = Messages.from_columns(*columns)
        assert messages.tolist() == [data[start:end] for start, end in pairwise(places)]
        assert messages.offsets.tolist() == places
        assert messages.data.tobytes() == data
    else:
        with pytest.raises(ValueError, match="offsets"):
            Messages.from_columns(*columns)


def test_columns_may_change_afterwards() -> None:
    data = np.frombuffer(b"onetwo", np.uint8).copy()
    offsets = np.array([0, 3, 6])
    messages = Messages.from_columns(data, offsets)
    part = messages[1:]
    offsets[:] = 1 << 40
    assert messages.tolist() == [b"one", b"two"]
    with pytest.raises(ValueError, match="resize"):
        data.resize(1, refcheck=False)
    data[3:] = 33  # the bytes are shared
    assert part[0] == b"!!!"
    del messages
    with pytest.raises(ValueError, match="resize"):
        data.resize(1, refcheck=False)
    del part
    data.resize(1, refcheck=False)


class Liar(np.ndarray[Any, Any]):
    shape: Any = (1 << 40,)
    dtype: Any = np.dtype(np.uint8)

    def __len__(self) -> int:
        return 1 << 40


def test_columns_that_lie_are_what_numpy_has_of_them() -> None:
    data, offsets = np.zeros(3, np.uint8).view(Liar), np.array([0, 2, 3]).view(Liar)
    assert Messages.from_columns(data, offsets).tolist() == [b"\0\0", b"\0"]
    with pytest.raises(ValueError, match="within the 3 bytes"):
        Messages.from_columns(data, np.array([0, 4]))
    with pytest.raises(TypeError, match="data"):
        Messages.from_columns(np.zeros(3).view(Liar), np.array([0, 4]))


def test_a_masked_column_is_refused() -> None:
    with pytest.raises(ValueError, match="masked"):
        Messages.from_columns(
            np.ma.array([1, 2], "u1", mask=[False, True]),
            np.array([0, 2]),
        )


@pytest.mark.parametrize("first_seq", [1.5, "1", None, True])
def test_a_number_that_is_none_is_refused(first_seq: Any) -> None:
    with pytest.raises(TypeError, match="first_seq"):
        Messages.from_columns(np.zeros(3, np.uint8), np.array([0, 3]), first_seq)


def popped() -> Messages:
    ring = MessageRing(1 << 16)
    ring.push_many([b"one", b"two", b"three", b"four"])
    return ring.pop_many()


def made() -> Messages:
    return Messages.from_columns(
        np.frombuffer(b"onetwothreefour", np.uint8).copy(), np.array([0, 3, 6, 11, 15])
    )


@pytest.mark.parametrize("make", [popped, made, lambda: popped()[0:], lambda: made()[:4]])
def test_columns_can_not_be_written(make: Callable[[], Messages]) -> None:
    messages = make()
    part = messages[2:]
    arrays: list[Any] = [messages.data, messages.offsets, part.data, part.offsets]
    for array in arrays:
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="read-only"):
            array -= array[0]
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="resize"):
            array.resize(1, refcheck=False)
        with pytest.raises(TypeError, match="not writable"):
            ctypes.c_char.from_buffer(array)
    assert messages.tolist() == [b"one", b"two", b"three", b"four"]
    assert messages[2:].tolist() == [b"three", b"four"]
    assert messages[2:].offsets.tolist() == [6, 11, 15]
    assert messages.data is messages.data, "it is made once"


def test_columns_outlive_their_messages() -> None:
    messages = popped()
    data, offsets, exported = messages.data, messages[1:].offsets, messages.__arrow_c_array__()
    del messages
    gc.collect()
    assert data.tobytes() == b"onetwothreefour"
    assert offsets.tolist() == [3, 6, 11, 15]

    class Exported:
        def __arrow_c_array__(self) -> object:
            return exported

    ring = MessageRing(1 << 16)
    assert ring.push_many(Exported()) == 4
    assert ring.pop_many().tolist() == [b"one", b"two", b"three", b"four"]


def test_the_columns_of_no_messages() -> None:
    for empty in (MessageRing(4096).pop_many(), popped()[2:2], made()[4:]):
        assert len(empty) == 0
        assert len(empty.offsets) == 1
        assert empty.offsets.dtype == np.int64
        assert empty.data.dtype == np.uint8
    assert MessageRing(4096).pop_many().data.tolist() == []


def test_the_class_itself_makes_none() -> None:
    ways: list[Callable[[], Messages]] = [Messages, lambda: Messages.__new__(Messages)]
    for make in ways:
        with pytest.raises(TypeError, match="from_columns"):
            make()


@pytest.mark.parametrize("index", [4, -5, 10**30, -(10**30)])
def test_a_place_that_is_not_there(index: int) -> None:
    with pytest.raises(IndexError):
        popped()[index]


@pytest.mark.parametrize("text", [5, True, "x", None, [1, 2], 1.5])
def test_what_is_no_separator_is_refused_by_name(text: Any) -> None:
    messages = popped()
    with pytest.raises(TypeError, match=r"^sep must be bytes"):
        messages.join(text)
    with pytest.raises(TypeError, match=r"^end must be bytes"):
        messages.join(b"", text)
    with pytest.raises(TypeError, match=r"^sep must be bytes"):
        messages.join_into(bytearray(64), 0, text)


@pytest.mark.parametrize("text", [b"ab", bytearray(b"ab"), memoryview(b"ab"), np.bytes_(b"ab")])
def test_any_buffer_of_bytes_is_a_separator(text: Any) -> None:
    assert popped().join(text, text) == b"oneabtwoabthreeabfourab"
    target = bytearray(9)
    assert popped().join_into(target, sep=text) == (1, 5)
    assert target.startswith(b"oneab")
