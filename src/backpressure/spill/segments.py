"""Segments: the files of a lane. A header, then blocks, until the file is full.

Invariants

 1. A file is called <serial>-<base>-<salt>.seg, each as 16 hexadecimal digits. Serials
    ascend by one for each new file of a lane; the base is the number of the first event
    that it is for; the salt is random. So the name repeats what a damaged header said,
    but for the link, which the first block repeats.
 2. A file appears under its name complete: it is written as <name>.tmp, made durable,
    renamed, and the directory is made durable, all before its first block counts as
    stored. A file <name>.tmp is what a crash left, and is deleted.
 3. Only the newest file is written to. Before the next one is made, it is made durable,
    or the record that everything in it was acked is. So only the newest has a torn tail
    that matters.
 4. A file is for the numbers from its base up to the base of the next. Where its link
    says that fewer events lie before than are in the files before it, those beyond the
    base were written again (after an fsync that failed), and the later file counts.
 5. The first 96 bytes keep magic, version and checksum in the same places in every
    later version. So a later version is told from damage, and refused.

Layout of the header, little-endian; blocks (see blocks.py) start at byte 96

     0  8  magic "PNSTKSEG"
     8  2  version, 1
    10  2  length of this header, 96
    12  4  lane
    16 16  UUID of the buffer
    32  8  serial
    40  8  base
    48  8  salt
    56 24  link: first, end, rank, as in a block
    80 12  zero
    92  4  CRC-32 of bytes 0 to 92

Recovery

 The directory is listed; of every file the header is read, of the newest also the
 blocks' headers, one after the other. Behind the last sound block is the torn tail; it
 is cut. Damage before it is found when it is read: then the reader looks for the next
 sound header, whose link says exactly what is missing, reports that once, and goes on.
 `forebay verify` names every damaged block.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final, NamedTuple
from uuid import UUID

from backpressure.base.errors import FormatError
from backpressure.spill.blocks import (
    BLOCK_HEADER_BYTES,
    BLOCK_MAGIC,
    BlockHeader,
    Link,
    parse_block_header,
)
from backpressure.spill.files import READ, UNREADABLE, Files

__all__ = [
    "SEGMENT_HEADER_BYTES",
    "Segment",
    "SegmentFile",
    "Unreadable",
    "frame_segment_header",
    "parse_segment_header",
    "parse_segment_name",
    "segment_name",
    "segment_owner",
]

SEGMENT_MAGIC: Final = b"PNSTKSEG"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHHI16sQQ8sQQQ12s")
_CRC: Final = struct.Struct("<I")
SEGMENT_HEADER_BYTES: Final = _HEADER.size + _CRC.size
assert SEGMENT_HEADER_BYTES == 96
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})\.seg")

# One read for several blocks. A larger one gains nothing: the kernel reads ahead.
_WINDOW_BYTES: Final = 1 << 20
# A disk fails to read whole pages.
_PAGE_BYTES: Final = 4096


class Segment(NamedTuple):
    """One file, as the index of a store knows it."""

    serial: int
    base: int
    salt: bytes
    link: Link
    size: int  #: bytes that count; see View for the newest one, while it is written
    sound: bool = True  #: whether the header was as it was written

    @property
    def name(self) -> str:
        return segment_name(self.serial, self.base, self.salt)


def segment_name(serial: int, base: int, salt: bytes) -> str:
    return f"{serial:016x}-{base:016x}-{salt.hex()}.seg"


def parse_segment_name(name: str) -> tuple[int, int, bytes] | None:
    """Serial, base and salt, or None where it is not the name of a segment."""
    found = _NAME.fullmatch(name)
    return (
        None if found is None else (int(found[1], 16), int(found[2], 16), bytes.fromhex(found[3]))
    )


def frame_segment_header(lane: int, buffer_id: UUID, segment: Segment) -> bytes:
    head = _HEADER.pack(
        SEGMENT_MAGIC,
        VERSION,
        SEGMENT_HEADER_BYTES,
        lane,
        buffer_id.bytes,
        segment.serial,
        segment.base,
        segment.salt,
        *segment.link,
        bytes(12),
    )
    return head + _CRC.pack(zlib.crc32(head))


def parse_segment_header(
    raw: bytes, path: str, lane: int, buffer_id: UUID | None
) -> Segment | None:
    """The header, or None where it is damaged. buffer_id None: of any buffer.

    Raises FormatError where it is sound, but of a later version, or of another buffer
    or lane.
    """
    if len(raw) < SEGMENT_HEADER_BYTES:
        return None
    magic, version, _, its_lane, its_buffer, serial, base, salt, *link, _ = _HEADER.unpack_from(raw)
    if magic != SEGMENT_MAGIC or _CRC.unpack_from(raw, _HEADER.size)[0] != zlib.crc32(
        raw[: _HEADER.size]
    ):
        return None
    if version != VERSION:
        raise FormatError(
            path,
            f"has format version {version}, and this release reads version {VERSION}: "
            "use a later release",
        )
    if buffer_id is not None and (its_buffer != buffer_id.bytes or its_lane != lane):
        raise FormatError(
            path,
            f"belongs to lane {its_lane} of buffer {UUID(bytes=its_buffer)}, "
            f"not to lane {lane} of {buffer_id}: move it back",
        )
    segment = Segment(serial, base, salt, Link(*link), 0)
    return segment if segment.link.is_plausible and segment.link.end <= base else None


def segment_owner(raw: bytes) -> UUID | None:
    """The UUID in a sound header of any version."""
    if len(raw) < SEGMENT_HEADER_BYTES or _CRC.unpack_from(raw, _HEADER.size)[0] != zlib.crc32(
        raw[: _HEADER.size]
    ):
        return None
    return UUID(bytes=raw[16:32]) if raw.startswith(SEGMENT_MAGIC) else None


class Unreadable(Exception):
    """The disk cannot read these bytes (EIO and the like), nor at a second try."""


class SegmentFile:
    """Reads one segment. Keeps one window of it in memory. For one thread at a time."""

    def __init__(
        self, files: Files, path: str, salt: bytes, window_bytes: int = _WINDOW_BYTES
    ) -> None:
        self.path = path
        self._window_bytes = window_bytes
        self._files = files
        self._salt = salt
        self._fd = files.open(path, READ)
        self._window = b""
        self._start = 0

    def close(self) -> None:
        self._files.close(self._fd)

    def size(self) -> int:
        return self._files.size(self._fd)

    def view(self, position: int, size: int, limit: int) -> memoryview:
        """`size` bytes at `position`, fewer where the file ends.

        Empty where they reach beyond `limit`. Raises Unreadable.
        """
        if position + size > limit:
            return memoryview(b"")
        at = position - self._start
        if at < 0 or at + size > len(self._window):
            self._window = self._read(
                position, size, min(max(size, self._window_bytes), limit - position)
            )
            self._start = position
            at = 0
        return memoryview(self._window)[at : at + size]

    def header_at(self, position: int, limit: int) -> BlockHeader | None:
        """The sound header there, of a block that ends by `limit`."""
        try:
            header = parse_block_header(
                self.view(position, BLOCK_HEADER_BYTES, limit), self._salt, position
            )
        except Unreadable:
            return None
        return header if header is not None and header.end_position <= limit else None

    def next_header(self, position: int, limit: int) -> BlockHeader | None:
        """The first sound header at `position` or after.

        Reading goes on there behind damage.
        """
        pattern = BLOCK_MAGIC + self._salt
        while position + BLOCK_HEADER_BYTES <= limit:
            chunk = self._read_with_zeros(position, min(_WINDOW_BYTES, limit - position))
            found = chunk.find(pattern)
            while found >= 0:
                header = self.header_at(position + found, limit)
                if header is not None:
                    return header
                found = chunk.find(pattern, found + 1)
            # A header may lie across the edge.
            position += max(len(chunk) - BLOCK_HEADER_BYTES + 1, 1)
        return None

    def block(self, header: BlockHeader) -> memoryview:
        """The whole block. Raises Unreadable."""
        return self.view(header.position, header.total_length, header.end_position)

    def _read(self, position: int, needed: int, wanted: int) -> bytes:
        try:
            return self._files.read(self._fd, wanted, position)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
        # The fault may lie behind what is needed, or have passed.
        try:
            return self._files.read(self._fd, needed, position)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise Unreadable from error

    def _read_with_zeros(self, position: int, size: int) -> bytes:
        """These bytes, with zeros for the pages that cannot be read."""
        try:
            return bytes(self.view(position, size, position + size)) or bytes(size)
        except Unreadable:
            pass
        parts = []
        for start in range(position, position + size, _PAGE_BYTES):
            length = min(_PAGE_BYTES, position + size - start)
            try:
                part = self._read(start, length, length)
            except Unreadable:
                part = b""
            parts.append(part.ljust(length, b"\0"))
        return b"".join(parts)
