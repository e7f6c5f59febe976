"""Unpacking an upload piece by piece: never more than some MiB at once, however much a
few hostile bytes would unpack to.

One call of `unpack` gives pieces; between two of them nothing is held but the decoder's
own state and window. Both formats may consist of several members (frames) end to end,
as `cat a.gz b.gz` makes them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import zstandard

__all__ = ["UNPACKERS", "BadEncoding", "Unpacker"]

# Bytes that a gzip step gives at most.
_PIECE: Final = 1 << 18
# Fed to the zstd decoder at once, in bytes. It cannot be told to stop, and four bytes
# can make a block of 128 KiB: so that is 8 MiB at most. Of honest data a whole network
# chunk at once would be a third faster, still at 2 GB/s.
_ZSTD_STEP: Final = 256
# The largest window that RFC 9659 lets a sender use over HTTP, in bytes.
_ZSTD_WINDOW: Final = 8 << 20
# 16 + the largest window of deflate: with a gzip header, and nothing else.
_GZIP_WBITS: Final = 31


class BadEncoding(ValueError):
    """The bytes are not what Content-Encoding says, or end too early."""


class Unpacker(Protocol):
    """One upload's decoder."""

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What `data`, the next bytes of the upload, unpacks to; BadEncoding where it
        cannot be.
        """
        ...

    def finish(self) -> None:
        """The upload is over: BadEncoding where something is missing."""
        ...


class _Identity:
    def unpack(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class _Gzip:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_WBITS)
        self._whole = False  # the last member has ended

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_WBITS)
            try:
                piece = self._member.decompress(data, _PIECE)
            except zlib.error as error:
                raise BadEncoding(f"the body is not gzip: {error}") from None
            if piece:
                yield piece
            self._whole = self._member.eof
            # What a member has still to give when all its input is read comes with the
            # input after it: its own checksum, if nothing else.
            data = self._member.unused_data if self._whole else self._member.unconsumed_tail

    def finish(self) -> None:
        if not self._whole:
            raise BadEncoding("the gzip body ends too early")


class _Zstd:
    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame = self._context.decompressobj()
        self._whole = False

    def unpack(self, data: bytes) -> Iterator[bytes]:
        view = memoryview(data)
        for start in range(0, len(view), _ZSTD_STEP):
            step: bytes | memoryview = view[start : start + _ZSTD_STEP]
            while step:
                if self._frame.eof:
                    self._frame = self._context.decompressobj()
                try:
                    piece = self._frame.decompress(step)
                except zstandard.ZstdError as error:
                    raise BadEncoding(
                        f"the body is not zstd with a window of at most 8 MiB: {error}"
                    ) from None
                if piece:
                    yield piece
                self._whole = self._frame.eof
                step = self._frame.unused_data if self._whole else b""

    def finish(self) -> None:
        if not self._whole:
            raise BadEncoding("the zstd body ends too early")


#: By the value of Content-Encoding.
UNPACKERS: Final[dict[str, Callable[[], Unpacker]]] = {
    "": _Identity,
    "identity": _Identity,
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "zstd": _Zstd,
}
