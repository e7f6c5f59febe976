"""Recovery: what a lane's directory says about itself, read without changing anything.

A file of a later version, or of another buffer, is refused here, before anything is
changed.
"""

from __future__ import annotations

import os
from typing import NamedTuple
from uuid import UUID

from backpressure.base.errors import FormatError
from backpressure.spill.blocks import BlockHeader, Link, stored_is_sound
from backpressure.spill.files import READ, UNREADABLE, Files
from backpressure.spill.ledger import LEDGER_NAME, Record, read_record
from backpressure.spill.quarantine import QUARANTINE_SUFFIX
from backpressure.spill.runs import Lost
from backpressure.spill.segments import (
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentFile,
    Unreadable,
    parse_segment_header,
    parse_segment_name,
    segment_name,
)
from backpressure.spill.settled import Settled

__all__ = [
    "Recovered",
    "end_seq_of",
    "find_tail",
    "has_record_beyond_end",
    "missing_tail_of",
    "recover",
    "settled_of",
]

# Of a block only the header is wanted; one read brings its neighbours along.
_HEADER_WINDOW_BYTES = 4096
# No store writes a larger record.
_MOST_RECORD_BYTES = 256 << 20
# The next file would have no name.
_LAST_SERIAL = (1 << 64) - 1


class Recovered(NamedTuple):
    """What was found. Nothing was changed yet."""

    segments: tuple[Segment, ...]  #: ascending; of the last, `size` is where its sound blocks end
    link: Link  #: at the end of the last block
    record: Record | None
    torn_bytes: int  #: behind the last sound block
    leftovers: tuple[str, ...]  #: names of temporary files
    #: Name and size of damaged files kept aside, oldest first.
    quarantined: tuple[tuple[str, int], ...]
    damaged_headers: int  #: of segments


def recover(files: Files, directory: str, lane: int, buffer_id: UUID) -> Recovered:
    """Read the headers of all segments, and of the blocks in the newest.

    Raises FormatError, OSError.
    """
    segments: list[Segment] = []
    leftovers: list[str] = []
    quarantined: list[tuple[str, int]] = []
    record = None
    damaged_headers = 0
    for name in files.listdir(directory):
        path = os.path.join(directory, name)
        if parse_segment_name(name) is not None:
            segments.append(_read_segment(files, path, lane, buffer_id))
        elif name == LEDGER_NAME:
            record = _read_ledger(files, path, lane, buffer_id)
        elif name.endswith(".tmp"):
            leftovers.append(name)
        elif name.endswith(QUARANTINE_SUFFIX):
            quarantined.append((name, _size_of(files, path)))
    segments.sort(key=lambda segment: segment.serial)
    link = Link(0, 0, 0)
    torn_bytes = 0
    if segments:
        if segments[-1].serial == _LAST_SERIAL:
            raise FormatError(
                os.path.join(directory, segments[-1].name),
                "has the last number that a file can have, which no lane comes to: move it aside",
            )
        segments = _mark_contradicting(segments)
        damaged_headers = sum(not segment.sound for segment in segments)
        segments = _mend_links(files, directory, segments)
        tail = segments[-1]
        last, end = find_tail(files, os.path.join(directory, tail.name), tail)
        torn_bytes = tail.size - end
        segments[-1] = tail._replace(size=end)
        link = tail.link if last is None else last.end_link
        segments = _clamp_links(segments, link)
    return Recovered(
        tuple(segments),
        link,
        record,
        torn_bytes,
        tuple(leftovers),
        tuple(quarantined),
        damaged_headers,
    )


def find_tail(files: Files, path: str, segment: Segment) -> tuple[BlockHeader | None, int]:
    """The last sound block of a segment, and where it ends. The rest is torn."""
    reader = SegmentFile(files, path, segment.salt, _HEADER_WINDOW_BYTES)
    try:
        limit = reader.size()
        sound_headers: list[BlockHeader] = []
        at = SEGMENT_HEADER_BYTES
        while at < limit:
            header = reader.header_at(at, limit) or reader.next_header(at + 8, limit)
            if header is None:
                break
            sound_headers.append(header)
            at = header.end_position
        # Only what lies behind the last sound block is a tail. A block before it with a
        # damaged body is found when it is read, and reported then.
        while sound_headers:
            header = sound_headers.pop()
            try:
                if stored_is_sound(reader.block(header), header):
                    return header, header.end_position
            except Unreadable:
                pass
        return None, min(SEGMENT_HEADER_BYTES, limit)
    finally:
        reader.close()


def settled_of(found: Recovered) -> Settled:
    """What the record says is settled, of the numbers that are there."""
    start, rank = (
        (found.segments[0].base, found.segments[0].link.rank)
        if found.segments
        else (found.link.end, found.link.rank)
    )
    record = found.record
    if record is None:
        return Settled(start, rank)
    if record.prefix >= found.link.end:
        return Settled(record.prefix, found.link.rank)
    after, events = start, rank
    if record.prefix > start:
        after, events = record.prefix, record.rank
    # How many events of a range that reaches past the end are still there is unknown:
    # they are delivered again.
    settled = Settled(
        after, events, (one for one in record.ranges if after < one[0] and one[1] <= found.link.end)
    )
    # A record of more events than were ever stored is wrong, and it is only a hint.
    return settled if settled.events <= found.link.rank else Settled(start, rank)


def has_record_beyond_end(found: Recovered) -> bool:
    """Whether the record knows of numbers behind the end of the files.

    They were acked, or even durable, and a power loss took them.
    """
    record = found.record
    if record is None:
        return False
    beyond = record.prefix > found.link.end or any(
        end > found.link.end for _, end, _ in record.ranges
    )
    return beyond or max(record.rank, record.durable.rank) > found.link.rank


def end_seq_of(found: Recovered) -> int:
    """The lowest number that may be appended.

    One that was ever settled must not be given to another event, which would then count
    as settled.
    """
    ends = [found.link.end]
    if found.segments:
        ends.append(found.segments[-1].base)
    if found.record is not None:
        ends += [
            found.record.prefix,
            found.record.durable.end,
            *(end for _, end, _ in found.record.ranges),
        ]
    return max(ends)


def missing_tail_of(found: Recovered) -> Lost | None:
    """What is missing at the end of the files, though it was durable once.

    The record says so; what it says was settled is not missing.
    """
    record = found.record
    if record is None or record.durable.rank <= found.link.rank:
        return None
    settled = Settled(record.prefix, 0, record.ranges)
    missing = settled.open_in(found.link.end, record.durable.end)
    events = min(record.durable.rank - found.link.rank, sum(end - start for start, end in missing))
    if events == 0:
        return None
    return Lost(
        first_seq=missing[0][0],
        end_seq=missing[-1][1],
        events=events,
        reason="the end of the newest file is gone",
    )


def _read_segment(files: Files, path: str, lane: int, buffer_id: UUID) -> Segment:
    named = parse_segment_name(os.path.basename(path))
    assert named is not None
    fd = files.open(path, READ)
    try:
        size = files.size(fd)
        try:
            raw = files.read(fd, SEGMENT_HEADER_BYTES, 0)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raw = b""
    finally:
        files.close(fd)
    serial, base, salt = named
    found = parse_segment_header(raw, path, lane, buffer_id)
    if found is None:
        return Segment(serial, base, salt, Link(base, base, 0), size, False)
    if segment_name(found.serial, found.base, found.salt) != os.path.basename(path):
        raise FormatError(
            path,
            f"was {segment_name(found.serial, found.base, found.salt)} when it was written: "
            "rename it back",
        )
    return found._replace(size=size)


def _mark_contradicting(segments: list[Segment]) -> list[Segment]:
    """Mark as damaged the segments whose link contradicts a later file's.

    Numbers and ranks never go back.
    """
    kept: list[Segment] = []
    bound: Link | None = None
    for segment in reversed(segments):
        link = segment.link
        if segment.sound:
            if bound is None or (link.end <= bound.end and link.rank <= bound.rank):
                bound = link
            else:
                segment = segment._replace(link=Link(segment.base, segment.base, 0), sound=False)
        kept.append(segment)
    return kept[::-1]


def _clamp_links(segments: list[Segment], end: Link) -> list[Segment]:
    """Lower links that go beyond the next one, or the end of the lane.

    A mended link is a guess, and may be too high.
    """
    kept: list[Segment] = []
    bound = end
    for segment in reversed(segments):
        link = segment.link
        if link.end > bound.end or link.rank > bound.rank:
            at = min(link.end, bound.end)
            link = Link(at, at, min(link.rank, bound.rank, at))
            segment = segment._replace(link=link)
        bound = link
        kept.append(segment)
    return kept[::-1]


def _mend_links(files: Files, directory: str, segments: list[Segment]) -> list[Segment]:
    """The segments, with the links of damaged headers found out otherwise."""
    mended: list[Segment] = []
    for index, segment in enumerate(segments):
        if not segment.sound:
            following = (
                segments[index + 1].link
                if index + 1 < len(segments) and segments[index + 1].sound
                else None
            )
            segment = segment._replace(
                link=_mended_link(files, directory, segment, mended[-1:], following)
            )
        mended.append(segment)
    return mended


def _mended_link(
    files: Files, directory: str, segment: Segment, before: list[Segment], following: Link | None
) -> Link:
    reader = SegmentFile(
        files, os.path.join(directory, segment.name), segment.salt, _HEADER_WINDOW_BYTES
    )
    try:
        first = reader.header_at(SEGMENT_HEADER_BYTES, segment.size)
        if first is not None:
            return first.link
        later = reader.next_header(SEGMENT_HEADER_BYTES, segment.size)
    finally:
        reader.close()
    # The first block is damaged as well: the next sound link says how many events it
    # had, if it is the only one.
    bound = later.link if later is not None else following
    if bound is not None and bound.first == segment.base:
        return Link(segment.base, segment.base, bound.rank - (bound.end - bound.first))
    # Otherwise the link is the end of the file before; without one, every number up to
    # the next sound link counts as an event.
    for one in before:
        last, _ = find_tail(files, os.path.join(directory, one.name), one)
        end = one.link if last is None else last.end_link
        return end if bound is None or end.rank <= bound.rank else bound
    return Link(
        segment.base,
        segment.base,
        0 if bound is None else max(0, bound.rank - max(0, bound.end - segment.base)),
    )


def _read_ledger(files: Files, path: str, lane: int, buffer_id: UUID) -> Record | None:
    fd = files.open(path, READ)
    try:
        return read_record(
            files.read(fd, min(files.size(fd), _MOST_RECORD_BYTES), 0), path, lane, buffer_id
        )
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return None  # only a hint
    finally:
        files.close(fd)


def _size_of(files: Files, path: str) -> int:
    fd = files.open(path, READ)
    try:
        return files.size(fd)
    finally:
        files.close(fd)
