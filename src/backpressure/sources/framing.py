"""Framing: how a stream of bytes is cut into lines and messages.

    newline          each line ends with b"\\n"; what is left at the end is a line too
    octet-counting   RFC 6587, 3.4.1: the length in digits, a blank, and a message of so
                     many bytes, which may be of RFC 5424, of RFC 3164, or anything else
    auto             by the first bytes of the stream: digits, a blank and a priority
                     (`57 <34>`) are a count, anything else is a line

Syslog senders do not mix the two on one connection, and a line that only looks like a
count must not be taken for one in its middle: so `auto` decides once. A message goes on
as it is, but for a line end at its end: as a line. Where one has line ends within it,
it is as many events as it has lines; in what a sink writes that is the same.

Pure: bytes in, bytes out. Each is for one stream, and keeps its state.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["FRAMINGS", "Framing", "FramingError", "make_framing"]

# A count of more digits is none: a message of a GB is more than any limit.
_MOST_DIGITS: Final = 9
_COUNT: Final = re.compile(rb"[1-9][0-9]{0,%d} <[0-9]{1,3}>" % (_MOST_DIGITS - 1))
_BEGIN_OF_COUNT: Final = re.compile(rb"[1-9][0-9]{0,%d}(?: (?:<[0-9]{0,3})?)?" % (_MOST_DIGITS - 1))
_LINE_ENDS: Final = b"\r\n"
_ZERO: Final = ord("0")


class FramingError(ValueError):
    """There is no count where one has to be: what follows cannot be cut."""


class Framing(Protocol):
    """Cuts one stream."""

    #: The least room for bytes that are not cut yet, if the longest is to fit.
    room: int

    def cut(self, buffer: bytearray, begin: int, end: int) -> tuple[memoryview, int]:
        """Whole lines, with their newlines, out of the beginning of buffer[begin:end],
        and where what follows them begins. The lines may be a part of `buffer` itself:
        release them before it is changed.

        FramingError: this cannot go on. All that came before has been given.
        """
        ...

    def finish(self, rest: bytes) -> bytes:
        """The stream has ended with `rest`: what is a line of it."""
        ...


class _Newline:
    def __init__(self, most: int, skipped: Callable[[], None]) -> None:
        self.room = most + 1
        self._skipped = skipped
        self._skipping = False

    def cut(self, buffer: bytearray, begin: int, end: int) -> tuple[memoryview, int]:
        if self._skipping:
            after = buffer.find(b"\n", begin, end) + 1
            if not after:
                return memoryview(b""), end
            self._skipping = False
            begin = after
        # In more than this a line that is too long would have room.
        end = min(end, begin + self.room)
        after = buffer.rfind(b"\n", begin, end) + 1
        if after:
            return memoryview(buffer)[begin:after], after
        if end - begin >= self.room:
            self._skipped()
            self._skipping = True
            begin = end
        return memoryview(b""), begin

    def finish(self, rest: bytes) -> bytes:
        return b"" if self._skipping else rest


class _Counted:
    def __init__(self, most: int, skipped: Callable[[], None]) -> None:
        self._most = most
        self.room = most + _MOST_DIGITS + 1
        self._skipped = skipped
        self._to_skip = 0

    def cut(self, buffer: bytearray, begin: int, end: int) -> tuple[memoryview, int]:
        with memoryview(buffer) as view:
            data = bytes(view[begin:end])
        messages: list[bytes] = []
        done = min(self._to_skip, len(data))
        self._to_skip -= done
        while done < len(data):
            start = data.find(b" ", done, done + _MOST_DIGITS + 1) + 1
            digits = data[done : start - 1] if start else data[done : done + _MOST_DIGITS + 1]
            if not digits.isdigit() or data[done] == _ZERO or len(digits) > _MOST_DIGITS:
                if data[done] in _LINE_ENDS:  # some senders end a message so
                    done += 1
                    continue
                if not messages:
                    head = data[done : done + _MOST_DIGITS + 1]
                    raise FramingError(f"there is no count of bytes in {head!r}")
                break  # what is whole comes first, and then this again
            if not start:
                break
            length = int(digits)
            stop = start + length
            if length > self._most:
                self._skipped()
                done = min(stop, len(data))
                self._to_skip = stop - done
            elif stop > len(data):
                break
            else:
                message = data[start:stop]
                messages.append(message if message.endswith(b"\n") else message + b"\n")
                done = stop
        return memoryview(b"".join(messages)), begin + done

    def finish(self, rest: bytes) -> bytes:
        """What has come of a message that was cut off: better than nothing."""
        _, blank, message = rest.partition(b" ")
        return message if blank and not self._to_skip else b""


class _Auto:
    def __init__(self, most: int, skipped: Callable[[], None]) -> None:
        self._most, self._skipped = most, skipped
        self._chosen: Framing | None = None
        self.room = most + _MOST_DIGITS + 1

    def cut(self, buffer: bytearray, begin: int, end: int) -> tuple[memoryview, int]:
        if self._chosen is None:
            head = bytes(buffer[begin : min(end, begin + _MOST_DIGITS + 8)])
            if not _COUNT.match(head) and _BEGIN_OF_COUNT.fullmatch(head):
                return memoryview(b""), begin  # the next bytes tell
            kind = _Counted if _COUNT.match(head) else _Newline
            self._chosen = kind(self._most, self._skipped)
        return self._chosen.cut(buffer, begin, end)

    def finish(self, rest: bytes) -> bytes:
        return rest if self._chosen is None else self._chosen.finish(rest)


#: By the name in a configuration.
FRAMINGS: Final[dict[str, Callable[[int, Callable[[], None]], Framing]]] = {
    "auto": _Auto,
    "newline": _Newline,
    "octet-counting": _Counted,
}


def make_framing(name: str, most: int, skipped: Callable[[], None]) -> Framing:
    """One for a new stream.

    most: bytes in a line or message; `skipped` is called for a longer one.
    """
    return FRAMINGS[name](most, skipped)
