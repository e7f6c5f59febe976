"""Messages over columns that were made elsewhere."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from ringbuf import Messages


def test_they_are_a_view_of_the_columns() -> None:
    data = np.frombuffer(b"xxonetwo", np.uint8)
    offsets = np.array([2, 5, 5, 8])
    messages = Messages.from_columns(data, offsets, 7)
    assert messages.data is data
    assert messages.offsets is offsets
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
def test_what_are_no_columns_is_refused(
    data: object, offsets: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Messages.from_columns(data, offsets)


def test_the_class_itself_makes_none() -> None:
    with pytest.raises(TypeError, match="from_columns"):
        Messages()
