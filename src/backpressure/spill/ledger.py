"""Ledger: the record of what was acked, in a file of two slots.

Invariants

 1. It is a hint: without it events are delivered again, and none is lost.
 2. A slot is valid where its checksum is right; of two, the one with the higher
    generation counts.
 3. The slot that was made durable last is not written to before the other one has been:
    power loss in the middle of a write leaves the older record.
 4. Files are deleted only below a prefix that is durable here.
 5. After an error in writing or in fsync the file is never used again: the record goes
    into a new file, which takes its name.

Layout of a slot, little-endian; the file is two slots of one size, a whole number of
sectors

     0  8  magic "PNSTKACK"
     8  2  version, 1
    10  2  zero
    12  4  lane
    16 16  UUID of the buffer
    32  8  generation
    40  8  prefix: every number below it is settled
    48  8  rank: events ever stored below it
    56 24  link at the durable end of the lane: what is missing up to there at recovery
           is lost, not merely unwritten
    80  4  number of ranges
    84  4  size of the slot
    88  4  CRC-32 of bytes 0 to 88 and of the ranges
    92  4  CRC-32 of bytes 0 to 92
    96 24  for each range beyond the prefix: start, end, events

Where there are more ranges than fit, the first ones are recorded.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from typing import Final, NamedTuple
from uuid import UUID

from backpressure.base.errors import FormatError
from backpressure.spill.blocks import Link
from backpressure.spill.files import WRITE, Files
from backpressure.spill.settled import Settled

__all__ = ["LEDGER_NAME", "Ledger", "Record", "read_record"]

LEDGER_NAME: Final = "acked"
MAGIC: Final = b"PNSTKACK"
VERSION: Final = 1
_HEAD: Final = struct.Struct("<8sHHI16sQQQQQQII")
_CRC: Final = struct.Struct("<I")
_HEADER_BYTES: Final = _HEAD.size + 2 * _CRC.size
assert _HEADER_BYTES == 96
_RANGE: Final = struct.Struct("<QQQ")
# Each write has one more: a larger one is damage, and would leave no room to go on.
_LAST_GENERATION: Final = 1 << 63


class Record(NamedTuple):
    """What a slot says."""

    generation: int
    prefix: int
    rank: int
    durable: Link
    ranges: tuple[tuple[int, int, int], ...]


class Ledger:
    """Writes the record of one lane. For one thread at a time."""

    def __init__(
        self,
        files: Files,
        directory: str,
        lane: int,
        buffer_id: UUID,
        slot_bytes: int,
        record: Record | None,
    ) -> None:
        self._files = files
        self._path = os.path.join(directory, LEDGER_NAME)
        self._lane = lane
        self._buffer_id = buffer_id
        self._slot_bytes = slot_bytes
        self._most_ranges = (slot_bytes - _HEADER_BYTES) // _RANGE.size
        self._fd: int | None = None
        self._slot = 0  # the one to write to: never the one that was made durable last
        self._generation = 0 if record is None else record.generation
        #: What the file holds, durable or not.
        self.written: Record | None = record
        #: What it holds for certain.
        self.durable: Record | None = None

    @property
    def nbytes(self) -> int:
        return 2 * self._slot_bytes

    def write(self, settled: Settled, durable: Link) -> None:
        """Write the present state. After OSError the next write begins a new file."""
        record = Record(
            self._generation + 1, settled.seq, settled.rank, durable,
            tuple(itertools.islice(settled.ranges(), self._most_ranges)),
        )  # fmt: skip
        if self.written is not None and record[1:] == self.written[1:]:
            return
        if self._fd is None:
            self._begin_file(record)
            return
        try:
            self._files.write(self._fd, self._frame_slot(record), self._slot * self._slot_bytes)
        except OSError:
            self._abandon_file()
            raise
        self.written = record
        self._generation = record.generation

    def sync(self) -> None:
        """Make durable what was written. Raises OSError."""
        if self.written is None or self.written is self.durable:
            return
        if self._fd is None:
            # From an earlier process, and perhaps in the page cache only: a new file,
            # since the errors of the old one are unknown.
            self._begin_file(self.written._replace(generation=self._generation + 1))
            return
        try:
            self._files.fdatasync(self._fd)
        except OSError:
            self._abandon_file()
            raise
        self.durable = self.written
        self._slot = 1 - self._slot

    def close(self) -> None:
        if self._fd is not None:
            self._files.close(self._fd)
            self._fd = None

    def _begin_file(self, record: Record) -> None:
        """A new file with that record in both slots, durable."""
        slot = self._frame_slot(record)
        self._files.write_new(self._path, [slot, slot])
        fd = self._files.open(self._path, WRITE)
        self.close()
        self._fd = fd
        self._slot = 0
        self.written = self.durable = record
        self._generation = record.generation

    def _abandon_file(self) -> None:
        """The next write begins a new one."""
        self.close()
        self.written = None

    def _frame_slot(self, record: Record) -> bytes:
        head = _HEAD.pack(
            MAGIC,
            VERSION,
            0,
            self._lane,
            self._buffer_id.bytes,
            record.generation,
            record.prefix,
            record.rank,
            *record.durable,
            len(record.ranges),
            self._slot_bytes,
        )
        ranges = b"".join(_RANGE.pack(*one) for one in record.ranges)
        head += _CRC.pack(zlib.crc32(ranges, zlib.crc32(head)))
        return (head + _CRC.pack(zlib.crc32(head)) + ranges).ljust(self._slot_bytes, b"\0")


def read_record(raw: bytes, path: str, lane: int, buffer_id: UUID) -> Record | None:
    """The newest sound record in a file's bytes, or None.

    Raises FormatError where one is of a later version or of another buffer.
    """
    best = None
    # Slot sizes are whole sectors, so the second one is found without the first. A
    # magic among the ranges has no right checksum.
    at = raw.find(MAGIC)
    while at >= 0:
        if at % 512 == 0:
            record = _parse(raw[at:], path, lane, buffer_id)
            if record is not None and (best is None or record.generation > best.generation):
                best = record
        at = raw.find(MAGIC, at + 1)
    return best


def _parse(raw: bytes, path: str, lane: int, buffer_id: UUID) -> Record | None:
    if len(raw) < _HEADER_BYTES or _CRC.unpack_from(raw, 92)[0] != zlib.crc32(raw[:92]):
        return None
    (
        _,
        version,
        _,
        its_lane,
        its_buffer,
        generation,
        prefix,
        rank,
        first,
        end,
        durable_rank,
        count,
        size,
    ) = _HEAD.unpack_from(raw)
    if version != VERSION:
        raise FormatError(
            path,
            f"has format version {version}, and this release reads version {VERSION}: "
            "use a later release",
        )
    if its_lane != lane or its_buffer != buffer_id.bytes:
        raise FormatError(
            path,
            f"belongs to lane {its_lane} of buffer {UUID(bytes=its_buffer)}: move it back there",
        )
    body = raw[_HEADER_BYTES : _HEADER_BYTES + count * _RANGE.size]
    if _HEADER_BYTES + count * _RANGE.size > size or len(body) != count * _RANGE.size:
        return None
    if _CRC.unpack_from(raw, 88)[0] != zlib.crc32(body, zlib.crc32(raw[:88])):
        return None
    ranges = tuple((a, b, n) for a, b, n in _RANGE.iter_unpack(body))
    record = Record(generation, prefix, rank, Link(first, end, durable_rank), ranges)
    return record if _is_plausible(record) else None


def _is_plausible(record: Record) -> bool:
    """Whether a store could have written it.

    A right checksum does not prove that the fields make sense, and a record is only a
    hint.
    """
    end = record.prefix
    for start, stop, events in record.ranges:
        # What touches the range before is part of it.
        if not end < start < stop or events > stop - start:
            return False
        end = stop
    return (
        record.generation < _LAST_GENERATION
        and record.rank <= record.prefix
        and record.durable.is_plausible
    )
