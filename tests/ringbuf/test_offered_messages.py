"""What is given as messages: taken as its library reads it, or refused with a hint, and
never taken apart. The same for the ring and for a buffer, whose adds stand on it.
"""

from __future__ import annotations

import array
import ctypes
import email.message
import math
import mmap
import re
import sqlite3
from collections import ChainMap, UserDict, UserList, deque, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backpressure import BufferManager, InvalidEvents
from ringbuf import MessageRing
from tests.support.columns import Column


def taken(messages: Any) -> list[bytes]:
    """What a ring and a buffer make of them, which is the same."""
    with MessageRing(1 << 16) as ring, BufferManager() as buffer:
        assert ring.push_many(messages) == len(ring)
        assert bool(buffer.add_events(messages))
        batch = buffer.get_batch()
        got = ring.pop_many().tolist()
        assert got == ([] if batch is None else batch.tolist())
        if batch is not None:
            batch.ack()
        return got


def refusal(messages: Any) -> str:
    """How a ring and a buffer refuse them, before anything has changed."""
    with MessageRing(1 << 16) as ring, BufferManager() as buffer:
        with pytest.raises((TypeError, ValueError)) as refused:
            ring.push_many(messages)
        with pytest.raises(InvalidEvents) as invalid:
            buffer.add_events(messages)
        ring._check()
        assert (len(ring), ring.used_bytes) == (0, 0)
        stats = buffer.stats()
        assert (stats.resident, stats.offered) == (0, 0)
        assert str(invalid.value) == str(refused.value)
        return str(refused.value)


Record = namedtuple("Record", "host message")


def sqlite_row() -> Any:
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    row = connection.execute("select 'a' as host, 'b' as message").fetchone()
    connection.close()
    return row


def mapped() -> Any:
    memory = mmap.mmap(-1, 6)
    memory[:] = b"hello\n"
    return memory


class Headers(UserDict[str, str]):
    pass


class Frame:
    """As a DataFrame of a library that knows no Arrow: iterates over its columns."""

    columns = ("host", "message")

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return iter(self.columns)


class Counted:
    """An iterator that knows how much is left, as tqdm's."""

    def __init__(self) -> None:
        self.left = ["a", "b"]

    def __len__(self) -> int:
        return len(self.left)

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> str:
        return self.left.pop()


NOT_MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "bytes": (lambda: b"abc", r"give \[message\]"),
    "str": (lambda: "abc", r"give \[message\]"),
    "numpy-bytes": (lambda: np.bytes_(b"abc"), r"give \[message\]"),
    "bytearray": (lambda: bytearray(b"abc"), r"\[bytes\(\.\.\.\)\].*add_lines"),
    "memoryview": (lambda: memoryview(b"abc"), r"\[bytes\(\.\.\.\)\].*add_lines"),
    "view-of-floats": (lambda: memoryview(array.array("d", [1.5])), r"\[bytes\(\.\.\.\)\]"),
    "array": (lambda: array.array("d", [1.5]), r"\[bytes\(\.\.\.\)\]"),
    "mmap": (mapped, r"\[bytes\(\.\.\.\)\].*add_lines"),
    "ctypes": (lambda: (ctypes.c_char * 3)(b"a", b"b", b"c"), r"\[bytes\(\.\.\.\)\]"),
    "ctypes-pointers": (lambda: (ctypes.c_char_p * 1)(b"a"), r"\[bytes\(\.\.\.\)\]"),
    "dict": (lambda: {"msg": "disk full", "level": "3"}, r"json\.dumps.*values\(\)"),
    "UserDict": (lambda: Headers({"a": "b"}), r"json\.dumps"),
    "ChainMap": (lambda: ChainMap({"a": "b"}), r"json\.dumps"),
    "keys": (lambda: {"a": "b"}.keys(), r"list\(\.\.\.\)"),
    "values": (lambda: {"a": "b"}.values(), r"list\(\.\.\.\)"),
    "headers": (lambda: message_of("a", "b"), "keys"),
    "row": (sqlite_row, "keys"),
    "namedtuple": (lambda: Record("a", "b"), r"_asdict\(\)"),
    "set": (lambda: {"a", "b"}, r"no order.*sorted"),
    "frozenset": (lambda: frozenset({"a"}), r"no order.*sorted"),
    "generator": (lambda: (text for text in "ab"), r"list\(\.\.\.\)"),
    "iterator": (lambda: iter(["a", "b"]), r"list\(\.\.\.\)"),
    "counted-iterator": (Counted, r"list\(\.\.\.\)"),
    "frame": (Frame, "one of its columns"),
    "number": (lambda: 7, "give a list"),
    "none": (lambda: None, "give a list"),
    "numpy-number": (lambda: np.float64(1.5), r"tobytes\(\)"),
    "numpy-record": (lambda: np.zeros(1, [("a", "S1"), ("b", "S1")])[0], r"tobytes\(\)"),
    "floats": (lambda: np.zeros(3), r"numbers.*tobytes\(\).*view\('V8'\)"),
    "integers": (lambda: np.arange(3, dtype="u1"), r"numbers.*view\('V1'\)"),
    "bools": (lambda: np.zeros(3, bool), "numbers"),
    "times": (lambda: np.zeros(3, "M8[s]"), "numbers"),
    "str-array": (lambda: np.array(["a"]), r"tolist\(\)"),
    "two-dimensional": (lambda: np.zeros((2, 2), "S1"), "one dimension"),
    "no-dimension": (lambda: np.array(b"a"), "one dimension"),
    "masked": (lambda: np.ma.array([b"a", b"b"], mask=[False, True]), "filled"),
    "masked-field": (
        lambda: np.ma.array(
            [(1, 2)], [("a", "i1"), ("b", "i1")], mask=np.array([(False, True)], "?,?")
        ),
        "filled",
    ),
    "masked-objects": (lambda: np.ma.array([b"a", "b"], object, mask=[False, True]), "filled"),
    "masked-item": (lambda: [b"a", np.ma.masked], "no value"),
    "masked-column": (lambda: Column(np.ma.array([b"a", b"b"], mask=[False, True])), "filled"),
    "none-in-array": (lambda: np.array([b"a", None], object), "no value"),
    "nan-in-array": (lambda: np.array([b"a", math.nan], object), "no value"),
    "numpy-nan": (lambda: [np.float32("nan")], "no value"),
    "numpy-nat": (lambda: [np.datetime64("NaT")], "no value"),
    "dict-in-list": (lambda: [{"a": "b"}], r"json\.dumps"),
    "bytearray-in-list": (lambda: [bytearray(b"a")], r"bytes\(message\)"),
    "number-in-list": (lambda: [7], r"str\(message\)"),
}


def message_of(*names: str) -> email.message.Message:
    message = email.message.Message()
    for name in names:
        message[name] = "text"
    return message


@pytest.mark.parametrize("kind", NOT_MESSAGES)
def test_what_only_looks_like_messages_is_refused_with_a_hint(kind: str) -> None:
    make, hint = NOT_MESSAGES[kind]
    said = refusal(make())
    assert re.search(hint, said), said


def test_a_refused_iterator_is_not_begun() -> None:
    given = Counted()
    refusal(given)
    assert len(given) == 2


def test_sequences_of_any_kind_are_taken() -> None:
    for given in (["a", b"b"], ("a", b"b"), deque(["a", b"b"]), UserList(["a", b"b"])):
        assert taken(given) == [b"a", b"b"]


# ---------------------------------------------------------------- numpy


def test_nuls_at_the_end_of_numpy_bytes_are_padding_as_numpy_reads_them() -> None:
    given = np.array([b"a", b"bcd", b"", b"e\0f", b"g\0"])
    assert taken(given) == [bytes(item) for item in given] == [b"a", b"bcd", b"", b"e\0f", b"g"]
    assert taken(np.char.encode(np.array(["a", "é"]), "utf-8")) == [b"a", "é".encode()]
    assert taken(given[::2]) == [b"a", b"", b"g"]
    assert taken(np.zeros(2, "S0")) == [b"", b""]


def test_the_limit_is_on_what_is_left_without_the_padding() -> None:
    ring = MessageRing(4096)
    wide = np.array([b"a", b"b"], f"S{ring.max_message_bytes + 1}")
    assert ring.push_many(wide) == 2
    wide[1] = b"x" * (ring.max_message_bytes + 1)
    with pytest.raises(ValueError, match="message 1 has"):
        ring.push_many(wide)


def test_raw_bytes_and_records_keep_theirs() -> None:
    assert taken(np.array([b"a\0", b"bc"], "V2")) == [b"a\0", b"bc"]
    records = np.array([(1, b"a"), (2, b"")], [("number", "<u2"), ("name", "S2")])
    assert taken(records) == [b"\1\0a\0", b"\2\0\0\0"]


def test_arrays_of_objects_are_their_objects() -> None:
    assert taken(np.array([b"a\0", "é"], object)) == [b"a\0", "é".encode()]
    assert taken(np.array([], object)) == []
    strided: Any = np.array([b"a", 7, "c"], object)[::2]
    assert taken(strided) == [b"a", b"c"]


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy 1 has no StringDType")
@pytest.mark.platform
def test_numpys_variable_strings_are_taken() -> None:
    texts = ["a", "", "é" * 40, "b\0"]
    kind: Any = np.dtypes.StringDType
    assert taken(np.array(texts, kind())) == [text.encode() for text in texts]
    assert "no value" in refusal(np.array(["a", None], kind(na_object=None)))
    assert taken(np.array(["a", "b"], kind(na_object=None))) == [b"a", b"b"]


def test_arrays_without_a_masked_item_are_arrays() -> None:
    assert taken(np.ma.array([b"a", b"bc"])) == [b"a", b"bc"]


def test_a_column_over_a_numpy_array_is_that_array() -> None:
    assert taken(Column(np.array([b"a", "b"], object))) == [b"a", b"b"]
    assert "numbers" in refusal(Column(np.zeros(2)))
