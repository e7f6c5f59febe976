"""Framing: however a stream is cut, the same lines come out of it."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from backpressure.sources.framing import FramingError, make_framing
from tests.support.models import given_in_part

SYSLOG = [
    b"<34>1 2026-01-01T00:00:00Z host app - - - message",
    b"<13>Oct 11 22:14:15 mymachine su: 'su root' failed",
    b"<0>",
    b"<191>1 - - - - - - \xef\xbb\xbfu\xcc\x88",
]


def cut_all(name: str, pieces: list[bytes], most: int = 1 << 20) -> tuple[bytes, int]:
    """The lines of a stream that comes in pieces, and how many were skipped."""
    skipped: list[int] = []
    framing = make_framing(name, most, lambda: skipped.append(1))
    buffer, lines = bytearray(), b""
    for piece in pieces:
        buffer += piece
        done = 0
        while done < len(buffer):
            found, after = framing.cut(buffer, done, len(buffer))
            with found:
                lines += bytes(found)
            if after == done:
                break
            done = after
        del buffer[:done]
    rest = framing.finish(bytes(buffer))
    return lines + (rest + b"\n" if rest else b""), len(skipped)


def pieces_of(text: bytes, sizes: list[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(text[start : start + size])
        start += size
    return [*pieces, text[start:]]


def counted(*messages: bytes) -> bytes:
    return b"".join(b"%d %s" % (len(one), one) for one in messages)


@pytest.mark.parametrize("name", ["auto", "octet-counting"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_counted_messages_are_passed_as_they_are(name: str, size: int) -> None:
    stream = counted(*SYSLOG, b"<1>with a newline\n", b"<1>two\nlines") + b"\n" + counted(b"<2>x")
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    expected = b"\n".join([*SYSLOG, b"<1>with a newline", b"<1>two\nlines", b"<2>x", b""])
    assert cut_all(name, pieces) == (expected, 0)


@pytest.mark.parametrize(
    "stream",
    [
        b"<34>1 - - - - - - a line\n<13>another\n",
        b"49 is a number\n50 <34>1 within\n",
        b"2026-01-01 00:00:00 <34> begins with digits\n",
        b"200 <html>\n",
        b"049 <34>1 no count begins with a zero\n",
        b"1234567890 <34>1 nor has ten digits\n",
        b"17 <1234>\n",
        b"\n\n5 <1>ab\n",
        b"12",
        b"5 <1",
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_no_count_is_a_line(stream: bytes, size: int) -> None:
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    expected = stream if stream.endswith(b"\n") else stream + b"\n"
    assert cut_all("auto", pieces) == (expected, 0)


@given_in_part(
    100,
    lines=st.lists(st.binary(max_size=30).map(lambda one: one.replace(b"\n", b"")), max_size=12),
    most=st.integers(1, 40),
    sizes=st.lists(st.integers(0, 50), max_size=12),
    name=st.sampled_from(["newline", "octet-counting", "auto"]),
)
def test_what_is_too_long_costs_only_itself(
    lines: list[bytes], most: int, sizes: list[int], name: str
) -> None:
    if name != "newline":
        lines = [b"<1>" + line for line in lines]
    stream = b"".join(line + b"\n" for line in lines) if name == "newline" else counted(*lines)
    kept = [line for line in lines if len(line) <= most]
    expected = b"".join(line + b"\n" for line in kept)
    assert cut_all(name, pieces_of(stream, sizes), most) == (expected, len(lines) - len(kept))


def test_a_message_that_is_cut_off_is_kept_as_far_as_it_came() -> None:
    assert cut_all("auto", [b"50 <34>1 half of it"]) == (b"<34>1 half of it\n", 0)
    assert cut_all("octet-counting", [b"5"]) == (b"", 0)


@pytest.mark.parametrize("rest", [b"<34>1 no count\n", b"x", b"01 a", b"1234567890 a"])
def test_what_cannot_be_cut_is_an_error_after_what_could(rest: bytes) -> None:
    framing = make_framing("auto", 100, lambda: None)
    buffer = bytearray(counted(b"<1>a", b"<1>b") + rest)
    found, done = framing.cut(buffer, 0, len(buffer))
    assert bytes(found) == b"<1>a\n<1>b\n"
    with pytest.raises(FramingError, match="no count"):
        framing.cut(buffer, done, len(buffer))
