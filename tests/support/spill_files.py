"""The disk tier's files as bytes: where their headers are, and how their checksums are
made right after a change.

The layout is documented at the heads of spill/blocks.py, segments.py, ledger.py and
directory.py.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

__all__ = ["BLOCK", "HEAD_BYTES", "MANIFEST", "RECORD", "SEGMENT", "heads_of", "seal"]

BLOCK: Final = b"PNSTKBLK"
SEGMENT: Final = b"PNSTKSEG"
RECORD: Final = b"PNSTKACK"
MANIFEST: Final = b"PNSTKBUF"
#: Of all but a manifest.
HEAD_BYTES: Final = 96
_BODY_CRC, _HEAD_CRC, _MANIFEST_CRC = 88, 92, 28
_STORED, _RANGES, _RANGE_BYTES = 80, 80, 24


def heads_of(data: bytes | bytearray, *magics: bytes) -> list[int]:
    """Where headers begin, of all kinds or of those with `magics`."""
    found = []
    for magic in magics or (BLOCK, SEGMENT, RECORD, MANIFEST):
        at = data.find(magic)
        while at >= 0:
            found.append(at)
            at = data.find(magic, at + 1)
    return sorted(found)


def seal(data: bytearray, at: int) -> None:
    """Make the checksums right of the header at `at` and of what belongs to it."""
    magic = bytes(data[at : at + 8])
    if magic == MANIFEST:
        struct.pack_into("<I", data, at + _MANIFEST_CRC, zlib.crc32(data[at : at + _MANIFEST_CRC]))
        return
    if magic in (BLOCK, RECORD):
        if magic == BLOCK:
            (stored,) = struct.unpack_from("<Q", data, at + _STORED)
            size = min(stored, len(data)) + 7 & ~7
        else:
            (ranges,) = struct.unpack_from("<I", data, at + _RANGES)
            size = _RANGE_BYTES * ranges
        head = zlib.crc32(data[at : at + _BODY_CRC])
        body = data[at + HEAD_BYTES : at + HEAD_BYTES + size]
        struct.pack_into("<I", data, at + _BODY_CRC, zlib.crc32(body, head))
    struct.pack_into("<I", data, at + _HEAD_CRC, zlib.crc32(data[at : at + _HEAD_CRC]))
