"""Blocks: runs of events, each compressed and checksummed on its own.

Invariants

 1. A block lies at a multiple of 8 in its file and its length, padding included, is a
    multiple of 8.
 2. The header's own checksum covers all of it before that field; the body's covers
    header, stored bytes and padding. One changed bit anywhere is detected.
 3. A header is valid in one file at one place only: it holds the file's salt (8 random
    bytes, in the file's name and header) and its own position. So bytes of a payload
    are never taken for a header, even a copy of another block or of this very one, and
    what a disk wrote to the wrong place is detected.
 4. The events of a block have consecutive sequence numbers, and blocks of a lane
    ascend. Numbers between the end of one block and the start of the next never carried
    an event: a gap, which is not a loss.
 5. Every header repeats what was before it (its `link`): where the preceding block
    began and ended, and the rank, which is the number of events ever stored before. So
    when blocks are missing, the next good one says exactly how many events are lost,
    and where one block is missing, also which.

Layout, little-endian; offsets and sizes in bytes

     0  8  magic "PNSTKBLK"
     8  8  salt of the file
    16  8  position of this header in the file
    24  8  first_seq: number of the first event
    32  8  link.first: first_seq of the block before; in the first block ever, its own
    40  8  link.end: the number after the last one of the block before
    48  8  link.rank: events stored in this lane before this block
    56  8  time in ns since 1970 as the caller gave it, 0 where it gave none
    64  4  count: events in this block
    68  1  codec: 0 stored as it is, 1 zstd
    69  1  width: bytes of each length, 1, 2 or 4
    70  2  zero
    72  8  raw length: count × width + the payloads
    80  8  stored length, without padding
    88  4  CRC-32 of bytes 0 to 88, the stored bytes and the padding
    92  4  CRC-32 of bytes 0 to 92
    96  …  stored bytes, then zeros up to a multiple of 8

The stored bytes are the `count` lengths, then the payloads end to end; compressed, each
of the two is a zstd frame of its own, one after the other. With one frame for both, the
payloads would first have to be copied behind the lengths, which took 6 % of the time of
spilling.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from backpressure.spill.config import MAX_BLOCK_BYTES

__all__ = [
    "BLOCK_HEADER_BYTES",
    "BLOCK_MAGIC",
    "Body",
    "BlockHeader",
    "Decoder",
    "Encoder",
    "Link",
    "frame_block",
    "narrow",
    "parse_block_header",
    "stored_is_sound",
]

BLOCK_MAGIC: Final = b"PNSTKBLK"
_HEADER: Final = struct.Struct("<8s8sQQQQQQIBBHQQI")
_CRC: Final = struct.Struct("<I")
BLOCK_HEADER_BYTES: Final = _HEADER.size + _CRC.size
_BODY_CRC_AT: Final = _HEADER.size - _CRC.size
assert BLOCK_HEADER_BYTES == 96

RAW: Final = 0
ZSTD: Final = 1

_WIDTHS: Final[dict[int, np.dtype[Any]]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
}
#: The largest event (bytes): its length has four bytes.
MAX_EVENT_BYTES: Final = (1 << 32) - 1
# A block holds no more events than a quarter of its bytes, see Writer.append.
_MOST_EVENTS: Final = MAX_BLOCK_BYTES // 4
# Each block of a zstd frame yields at most 128 KiB and takes at least four bytes (RFC
# 8878, 3.1.1.2).
_MOST_EXPANSION: Final = (128 << 10) // 4
#: The last number: `first_seq + events` has eight bytes as well.
_LAST_SEQ: Final = (1 << 64) - 1


class Link(NamedTuple):
    """What was stored before a place in the lane."""

    first: int  #: first_seq of the last block before
    end: int  #: the number after its last event
    rank: int  #: events stored up to there

    @property
    def is_plausible(self) -> bool:
        """Whether it makes sense.

        The last block ends no earlier than it began, and no more events lie before a
        number than there are numbers.
        """
        return self.first <= self.end and self.end - self.first <= self.rank <= self.end


class BlockHeader(NamedTuple):
    """A header whose checksum is right and whose fields make sense."""

    position: int
    first_seq: int
    link: Link
    time_ns: int
    events: int
    codec: int
    width: int
    raw_length: int
    stored_length: int
    body_crc: int

    @property
    def end_seq(self) -> int:
        return self.first_seq + self.events

    @property
    def payload_length(self) -> int:
        return self.raw_length - self.events * self.width

    @property
    def total_length(self) -> int:
        """With header and padding."""
        return BLOCK_HEADER_BYTES + _padded(self.stored_length)

    @property
    def end_position(self) -> int:
        return self.position + self.total_length

    @property
    def end_link(self) -> Link:
        return Link(self.first_seq, self.end_seq, self.link.rank + self.events)


class Body(NamedTuple):
    """A block's content, without its place in a file."""

    codec: int
    width: int
    events: int
    raw_length: int
    parts: tuple[bytes | memoryview, ...]  #: the stored bytes

    @property
    def stored_length(self) -> int:
        return sum(map(len, self.parts))


def frame_block(
    body: Body, salt: bytes, position: int, first_seq: int, link: Link, time_ns: int
) -> bytes:
    """The bytes of a block that is to lie at `position`."""
    size = body.stored_length
    head = _HEADER.pack(
        BLOCK_MAGIC,
        salt,
        position,
        first_seq,
        *link,
        time_ns,
        body.events,
        body.codec,
        body.width,
        0,
        body.raw_length,
        size,
        0,
    )[:_BODY_CRC_AT]
    padding = bytes(_padded(size) - size)
    # Over the parts as they are: nothing is copied for the checksum, and zlib releases
    # the GIL for a long one.
    crc = zlib.crc32(head)
    for part in body.parts:
        crc = zlib.crc32(part, crc)
    head += _CRC.pack(zlib.crc32(padding, crc))
    return b"".join((head, _CRC.pack(zlib.crc32(head)), *body.parts, padding))


def parse_block_header(raw: bytes | memoryview, salt: bytes, position: int) -> BlockHeader | None:
    """The header in these 96 bytes; None: no sound one of that file and place."""
    if len(raw) < BLOCK_HEADER_BYTES:
        return None
    (
        magic,
        its_salt,
        its_position,
        first,
        link_first,
        link_end,
        rank,
        time_ns,
        count,
        codec,
        width,
        zero,
        length,
        stored,
        crc,
    ) = _HEADER.unpack_from(raw)
    if magic != BLOCK_MAGIC or its_salt != salt or its_position != position:
        return None
    if _CRC.unpack_from(raw, _HEADER.size)[0] != zlib.crc32(raw[: _HEADER.size]):
        return None
    # A right checksum does not prove that the fields make sense: a writer may be
    # faulty, and an attacker can compute one.
    header = BlockHeader(
        position,
        first,
        Link(link_first, link_end, rank),
        time_ns,
        count,
        codec,
        width,
        length,
        stored,
        crc,
    )
    return None if zero or not _is_plausible(header) else header


def _is_plausible(header: BlockHeader) -> bool:
    """Whether a writer could have made it.

    Otherwise a reader could allocate what is not there, or count beyond the last
    number.
    """
    events, payload = header.events, header.payload_length
    if header.width not in _WIDTHS or payload < 0 or not 0 < events <= _MOST_EVENTS:
        return False
    if payload > (MAX_EVENT_BYTES if events == 1 else MAX_BLOCK_BYTES):
        return False
    if header.codec == RAW:
        if header.stored_length != header.raw_length:
            return False
    elif header.codec != ZSTD or header.raw_length > header.stored_length * _MOST_EXPANSION:
        return False
    link = header.link
    return link.is_plausible and link.end <= header.first_seq <= _LAST_SEQ - events


def stored_is_sound(raw: bytes | memoryview, header: BlockHeader) -> bool:
    """Whether `raw`, a whole block with header and padding, is as it was written."""
    if len(raw) != header.total_length:
        return False
    view = memoryview(raw)
    return zlib.crc32(view[BLOCK_HEADER_BYTES:], zlib.crc32(view[:_BODY_CRC_AT])) == header.body_crc


class Encoder:
    """Compresses events into bodies. For one thread at a time.

    It keeps one zstd context for each level.
    """

    def __init__(self) -> None:
        self._contexts: dict[int, zstandard.ZstdCompressor] = {}
        # A context of their own: zstd sets its tables up anew where sizes differ as
        # much as those of lengths and payloads.
        self._lengths_context = zstandard.ZstdCompressor(level=1, write_content_size=True)

    def encode(self, payload: memoryview, lengths: npt.NDArray[Any], level: int | None) -> Body:
        """The body of one block, with `lengths` as narrow() returns them.

        `level` None stores the events as they are, as does compression that gains
        nothing. The body may share the memory of its arguments.
        """
        count, width = len(lengths), lengths.itemsize
        size = count * width + len(payload)
        raw = (lengths.data.cast("B"), payload)
        if level is not None:
            context = self._contexts.get(level)
            if context is None:
                context = self._contexts[level] = zstandard.ZstdCompressor(
                    level=level, write_content_size=True
                )
            # Both release the GIL.
            body = Body(
                ZSTD,
                width,
                count,
                size,
                (self._lengths_context.compress(raw[0]), context.compress(payload)),
            )
            if body.stored_length < size:
                return body
        return Body(RAW, width, count, size, raw)


def narrow(lengths: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The lengths in as few bytes each as the longest one needs."""
    longest = int(np.max(lengths))
    return lengths.astype(_WIDTHS[1 if longest < 1 << 8 else 2 if longest < 1 << 16 else 4])


class Decoder:
    """Decompresses blocks; keeps one zstd context. For one thread at a time."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor()

    def decode(
        self, header: BlockHeader, block: bytes | memoryview, target: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.int64] | None:
        """Write the payloads of a sound block into `target`; returns their offsets.

        `target` has exactly `payload_length` bytes. None where the content is not what
        the header says, which this module never writes.
        """
        stored = memoryview(block)[BLOCK_HEADER_BYTES : BLOCK_HEADER_BYTES + header.stored_length]
        lengths = np.empty(header.events * header.width, np.uint8)
        if header.codec == RAW:
            if len(stored) != header.raw_length:
                return None
            raw = np.frombuffer(stored, np.uint8)
            lengths[:] = raw[: len(lengths)]
            target[:] = raw[len(lengths) :]
        elif not self._decompress(stored, lengths, target):
            return None
        offsets = np.zeros(header.events + 1, np.int64)
        np.cumsum(lengths.view(_WIDTHS[header.width]), out=offsets[1:])
        return offsets if offsets[-1] == header.payload_length else None

    def _decompress(self, stored: memoryview, *targets: npt.NDArray[np.uint8]) -> bool:
        # Directly into the target: with a bytes object in between, draining took twice
        # as long.
        try:
            if zstandard.frame_content_size(stored) != len(targets[0]):
                return False
            with self._context.stream_reader(
                stored, read_size=max(len(stored), 1), read_across_frames=True
            ) as reader:
                for target in targets:
                    view = target.data
                    at = 0
                    while at < len(view):
                        got = reader.readinto(view[at:])
                        if got == 0:
                            return False
                        at += got
        except zstandard.ZstdError:
            return False
        return True


def _padded(size: int) -> int:
    return (size + 7) & ~7
