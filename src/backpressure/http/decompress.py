"""Unpacks an upload piece by piece.

Never more than some MiB at once, however much a few hostile bytes unpack to: one call
of `unpack` gives pieces, and between two of them nothing is held but the decoder's own
state and window. Both formats may consist of several members (frames) end to end, as
`cat a.gz b.gz` makes them. Zero bytes behind a gzip member are padding, as gzip itself
takes them: tapes and block devices are written so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import zstandard

__all__ = ["UNPACKERS", "BadEncoding", "Unpacker"]

# Bytes that a gzip step gives at most.
_PIECE: Final = 1 << 18
# Bytes that the zstd decoder is given at once. It cannot be told to stop, and four
# bytes can make a block of 128 KiB: 256 bytes make 8 MiB at most. Honest data would
# unpack a third faster by whole network chunks; this still does 2 GB/s.
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
        """What `data`, the next bytes of the upload, unpacks to; or BadEncoding."""
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
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._member = zlib.decompressobj(_GZIP_WBITS)
            try:
                piece = self._member.decompress(data, _PIECE)
            except zlib.error as error:
                raise BadEncoding(f"the body is not gzip: {error}") from None
            if piece:
                yield piece
            self._whole = self._member.eof
            # What a member still holds when all its input is read comes out with the
            # next input: at least its own checksum is yet to follow.
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
