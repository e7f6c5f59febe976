"""The state of a lane's files without opening its store, and a repair.

`inspect_lane` and `export_lane` only read, and need no lock: what a running process
writes meanwhile looks like a torn tail. `repair_lane` writes, so its caller holds the
BufferDirectory. A store needs no repair: it passes over damage by itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final
from uuid import UUID

import numpy as np

from backpressure.spill.blocks import (
    BLOCK_HEADER_BYTES,
    BlockHeader,
    Body,
    Decoder,
    Link,
    frame_block,
    stored_is_sound,
)
from backpressure.spill.files import READ, Files, FileSystem, LocalFileSystem
from backpressure.spill.quarantine import QUARANTINE_SUFFIX
from backpressure.spill.recovery import recover
from backpressure.spill.runs import Run, decoded_run
from backpressure.spill.segments import (
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentFile,
    Unreadable,
    frame_segment_header,
)

__all__ = [
    "BlockReport",
    "BlockState",
    "SegmentReport",
    "export_lane",
    "inspect_lane",
    "repair_lane",
]

_CHUNK_BYTES: Final = 1 << 20


class BlockState(Enum):
    """The state of a stretch of a file."""

    GOOD = "good"
    #: The header is sound and says what is lost; the rest is not as it was written.
    DAMAGED = "damaged"
    #: No sound header: the next one says what was here.
    GARBAGE = "garbage"
    #: Behind the last sound block of the newest file: a write that was cut off.
    TORN = "torn"
    #: Written again in the next file, after an fsync that failed.
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """One stretch of a file.

    The numbers and sizes of events are those of the header, and 0 where there is none.
    """

    position: int
    nbytes: int
    state: BlockState
    first_seq: int = 0
    end_seq: int = 0
    raw_bytes: int = 0
    time_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """One file."""

    path: str
    base: int
    nbytes: int
    header_is_sound: bool
    newest: bool
    blocks: tuple[BlockReport, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing in it is damaged; a torn tail is no damage."""
        return self.header_is_sound and not any(
            block.state in (BlockState.DAMAGED, BlockState.GARBAGE) for block in self.blocks
        )


def inspect_lane(
    directory: str | os.PathLike[str], lane: int, buffer_id: UUID, fs: FileSystem | None = None
) -> Iterator[SegmentReport]:
    """A report of each segment, oldest first.

    One segment's blocks are in memory at a time. Raises FormatError, OSError.
    """
    files = Files(fs or LocalFileSystem())
    for segment, bound, newest in _segments(files, os.fspath(directory), lane, buffer_id):
        path = os.path.join(directory, segment.name)
        reader = SegmentFile(files, path, segment.salt)
        try:
            size = reader.size()
            blocks = tuple(
                report for report, _ in _walk_blocks(reader, size, segment, bound, newest)
            )
        finally:
            reader.close()
        yield SegmentReport(
            path=path,
            base=segment.base,
            nbytes=size,
            header_is_sound=segment.sound,
            newest=newest,
            blocks=blocks,
        )


def export_lane(
    directory: str | os.PathLike[str], lane: int, buffer_id: UUID, fs: FileSystem | None = None
) -> Iterator[Run]:
    """The events of every good block, acked or not, in order, a block at a time.

    Raises FormatError, OSError.
    """
    files = Files(fs or LocalFileSystem())
    decoder = Decoder()
    for segment, bound, newest in _segments(files, os.fspath(directory), lane, buffer_id):
        reader = SegmentFile(files, os.path.join(directory, segment.name), segment.salt)
        try:
            for report, header in _walk_blocks(reader, reader.size(), segment, bound, newest):
                if report.state is BlockState.GOOD and header is not None:
                    data = np.empty(header.payload_length, np.uint8)
                    run = decoded_run(decoder, header, reader.block(header), data)
                    if run is not None:
                        yield run
        finally:
            reader.close()


def repair_lane(
    directory: str | os.PathLike[str], lane: int, buffer_id: UUID, fs: FileSystem | None = None
) -> list[SegmentReport]:
    """Write every damaged segment anew from its good blocks; returns the damage.

    The old files are kept beside the new ones, until the store deletes them
    (max_quarantine_bytes). The lost numbers stay lost, and the store reports them, but
    it need not search for the next sound block any more. A crash in the middle leaves
    either file.
    """
    files = Files(fs or LocalFileSystem())
    directory = os.fspath(directory)
    damaged = [
        report for report in inspect_lane(directory, lane, buffer_id, fs) if not report.is_good
    ]
    paths = {report.path for report in damaged}
    for segment, bound, newest in list(_segments(files, directory, lane, buffer_id)):
        path = os.path.join(directory, segment.name)
        if path not in paths:
            continue
        reader = SegmentFile(files, path, segment.salt)
        try:
            good = [frame_segment_header(lane, buffer_id, segment)]
            at = SEGMENT_HEADER_BYTES
            for report, header in _walk_blocks(reader, reader.size(), segment, bound, newest):
                if report.state is BlockState.GOOD and header is not None:
                    stored = reader.block(header)[
                        BLOCK_HEADER_BYTES : BLOCK_HEADER_BYTES + header.stored_length
                    ]
                    body = Body(
                        header.codec, header.width, header.events, header.raw_length, (stored,)
                    )
                    good.append(
                        frame_block(
                            body, segment.salt, at, header.first_seq, header.link, header.time_ns
                        )
                    )
                    at += len(good[-1])
        finally:
            reader.close()
        files.write_new(path + QUARANTINE_SUFFIX, _read_parts(files, path))
        files.write_new(path, good)
    return damaged


def _segments(
    files: Files, directory: str, lane: int, buffer_id: UUID
) -> Iterator[tuple[Segment, Link, bool]]:
    """Each segment, the link at its end, and whether it is the newest."""
    found = recover(files, directory, lane, buffer_id)
    for index, segment in enumerate(found.segments):
        newest = index + 1 == len(found.segments)
        yield segment, found.link if newest else found.segments[index + 1].link, newest


def _walk_blocks(
    reader: SegmentFile, size: int, segment: Segment, bound: Link, newest: bool
) -> Iterator[tuple[BlockReport, BlockHeader | None]]:
    """Every stretch of a file, and its header where it has a sound one."""
    at = SEGMENT_HEADER_BYTES
    torn_from = segment.size if newest else size
    while at < size:
        if at >= torn_from:
            yield BlockReport(position=at, nbytes=size - at, state=BlockState.TORN), None
            return
        header = reader.header_at(at, torn_from) or reader.next_header(at + 8, torn_from)
        if header is None or header.position > at:
            stop = torn_from if header is None else header.position
            yield BlockReport(position=at, nbytes=stop - at, state=BlockState.GARBAGE), None
            at = stop
            if header is None:
                continue
        state = BlockState.GOOD
        if header.link.rank >= bound.rank:
            state = BlockState.SUPERSEDED
        elif not _is_sound(reader, header):
            state = BlockState.DAMAGED
        report = BlockReport(
            position=at,
            nbytes=header.total_length,
            state=state,
            first_seq=header.first_seq,
            end_seq=header.end_seq,
            raw_bytes=header.payload_length,
            time_ns=header.time_ns,
        )
        yield report, header
        at = header.end_position


def _is_sound(reader: SegmentFile, header: BlockHeader) -> bool:
    try:
        return stored_is_sound(reader.block(header), header)
    except Unreadable:
        return False


def _read_parts(files: Files, path: str) -> list[bytes]:
    """The content of a file in parts, with zeros for what cannot be read."""
    fd = files.open(path, READ)
    try:
        parts = []
        for at in range(0, files.size(fd), _CHUNK_BYTES):
            try:
                parts.append(files.read(fd, _CHUNK_BYTES, at))
            except OSError:
                parts.append(bytes(min(_CHUNK_BYTES, files.size(fd) - at)))
        return parts
    finally:
        files.close(fd)
