"""Reader: events of a lane's segments, from any number on, past whatever is damaged.

Memory: two open segments with a window of one megabyte and every sixteenth block's
place each, one decoded block, and what was asked for. Not safe for threads: the store's
lock is held around each call.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from backpressure.spill.blocks import BlockHeader, Decoder, Link, stored_is_sound
from backpressure.spill.files import UNREADABLE, Files
from backpressure.spill.runs import Lost, Run, decoded_run, part_of
from backpressure.spill.segments import SEGMENT_HEADER_BYTES, Segment, SegmentFile, Unreadable

__all__ = ["Gap", "Missing", "Reader", "View"]

_OPEN_SEGMENTS: Final = 2  # one for what is new, one for what is delivered again
_NONE: Final = 1 << 64  # larger than any serial
_MARK_EVERY: Final = 16  # blocks: a jump back reads that many headers at most


class View(NamedTuple):
    """What there is to read.

    The writer replaces it as a whole, so that a reader sees one moment.
    """

    segments: tuple[Segment, ...]
    size: int  #: of the newest segment
    end: Link  #: at its end


class _Located(NamedTuple):
    """A sound block. The numbers from `gap_start` to its first are a gap."""

    header: BlockHeader
    block: memoryview
    gap_start: int
    segment: Segment


class Gap(NamedTuple):
    """Numbers that never carried an event."""

    start: int
    end: int


class Missing(NamedTuple):
    """Damage. The numbers from `gap_start` to the first lost one are a gap."""

    serial: int  #: of the file
    lost: Lost
    gap_start: int


class _Point(NamedTuple):
    """A place between two blocks, and what lies before it."""

    position: int  #: where the next block starts
    seq: int  #: the number after the last event before
    rank: int  #: events stored before


def _start_of(segment: Segment) -> _Point:
    """The place of its first block."""
    return _Point(SEGMENT_HEADER_BYTES, segment.link.end, segment.link.rank)


class _Opened:
    """A segment that is being read, and the places in it that are known."""

    def __init__(self, file: SegmentFile, segment: Segment) -> None:
        self.file = file
        self.points = [_start_of(segment)]
        self.latest = self.points[0]
        self._furthest = 0
        self._since_mark = 0

    def point_for(self, seq: int) -> _Point:
        """The best known place from which going forward finds the block of `seq`."""
        mark = self.points[max(bisect_right(self.points, seq, key=lambda point: point.seq) - 1, 0)]
        return self.latest if mark.seq <= self.latest.seq <= seq else mark

    def advance_to(self, point: _Point) -> None:
        """Reading has come to this place."""
        self.latest = point
        if point.position > self._furthest:
            self._furthest = point.position
            self._since_mark += 1
            if self._since_mark == _MARK_EVERY:
                self._since_mark = 0
                self.points.append(point)


class Reader:
    """Finds and decodes blocks."""

    def __init__(self, files: Files, directory: str) -> None:
        self._files = files
        self._directory = directory
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        # Up to where segments were read that are closed, and not yet settled.
        self._come_to: dict[int, _Point] = {}
        self._oldest = _NONE  # the lowest serial among those that are open
        self._decoder = Decoder()
        # The block that was decoded last: a part of it may still be asked for.
        self._cached: Run | None = None

    def close(self) -> None:
        """Close all files."""
        for opened in self._opened.values():
            opened.file.close()
        self._opened.clear()
        self._oldest = _NONE
        self._cached = None

    def has_before(self, serial: int) -> bool:
        """Whether a segment older than that is open; safe for any thread."""
        return self._oldest < serial

    def close_before(self, serial: int) -> None:
        """Close segments older than that."""
        for one in tuple(self._opened):
            if one < serial:
                self._opened.pop(one).file.close()
        self._oldest = min(self._opened, default=_NONE)
        for one in [one for one in self._come_to if one < serial]:
            del self._come_to[one]

    def read(
        self, seq: int, stop: int, max_events: int, max_bytes: int, view: View
    ) -> Run | Missing | Gap | None:
        """Events from `seq` on, before `stop`, within the limits.

        max_bytes does not limit a single event. Missing or Gap where `seq` lies before
        damage or in a gap; None where nothing comes after. Raises OSError.
        """
        pieces: list[_Located | Run] = []
        events = used = 0
        at = seq
        while at < stop and events < max_events and (used < max_bytes or not pieces):
            run = self._cached
            if run is None or not run.first_seq <= at < run.end_seq:
                found = self._locate_block(at, view)
                if not isinstance(found, _Located) or found.header.first_seq > at:
                    if pieces:
                        break
                    return (
                        Gap(found.gap_start, found.header.first_seq)
                        if isinstance(found, _Located)
                        else found
                    )
                header = found.header
                if (
                    header.first_seq == at
                    and header.end_seq <= stop
                    and events + header.events <= max_events
                    and used + header.payload_length <= max_bytes
                ):
                    pieces.append(found)
                    at, events, used = (
                        header.end_seq,
                        events + header.events,
                        used + header.payload_length,
                    )
                    continue
                # Not all of this block is wanted: the rest is, most likely next.
                run = self._decode_block(found, np.empty(header.payload_length, np.uint8))
                if run is None:
                    if pieces:
                        break
                    return self._malformed_block(found)
                self._cached = run
            part = part_of(
                run, at, min(stop, at + max_events - events), max_bytes - used, alone=not pieces
            )
            if len(part) == 0:
                break
            pieces.append(part)
            at, events, used = part.end_seq, events + len(part), used + part.nbytes
        return self._join_pieces(pieces, used) if pieces else None

    def _join_pieces(self, pieces: list[_Located | Run], size: int) -> Run | Missing:
        """One Run of them all; not copied where it is a part of one block."""
        first = pieces[0]
        if len(pieces) == 1 and isinstance(first, Run):
            return first
        data = np.empty(size, np.uint8)
        columns: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
        at = 0
        runs: list[Run] = []
        for piece in pieces:
            if isinstance(piece, Run):
                low = int(piece.offsets[0])
                data[at : at + piece.nbytes] = piece.data[low : low + piece.nbytes]
                run = piece
            else:
                decoded = self._decode_block(piece, data[at : at + piece.header.payload_length])
                if decoded is None:
                    if not runs:
                        return self._malformed_block(piece)
                    break
                run = decoded
            runs.append(run)
            columns.append(run.offsets[1:] + (at - run.offsets[0]))
            at += run.nbytes
        return Run(
            data=data[:at],
            offsets=np.concatenate(columns),
            first_seq=runs[0].first_seq,
            time_ns=runs[0].time_ns,
            written=tuple(block for run in runs for block in run.written),
        )

    def _decode_block(self, located: _Located, target: npt.NDArray[np.uint8]) -> Run | None:
        return decoded_run(self._decoder, located.header, located.block, target)

    def _malformed_block(self, located: _Located) -> Missing:
        header, segment = located.header, located.segment
        reason = f"block at {header.position} makes no sense, though its checksum is right"
        return self._missing_of(
            segment, located.gap_start, header.first_seq, header.end_seq, header.events, reason
        )

    def _locate_block(self, seq: int, view: View) -> _Located | Missing | None:
        """The block that holds `seq`, or the first one after."""
        segments = view.segments
        index = max(bisect_right(segments, seq, key=lambda segment: segment.base) - 1, 0)
        while index < len(segments):
            segment = segments[index]
            newest = index + 1 == len(segments)
            size, bound = (
                (view.size, view.end) if newest else (segment.size, segments[index + 1].link)
            )
            found = self._locate_in(segment, seq, size, bound)
            if found is not None:
                return found
            index += 1
        return None

    # ------------------------------------------------------------ inside one segment

    def _locate_in(
        self, segment: Segment, seq: int, size: int, bound: Link
    ) -> _Located | Missing | None:
        # The next file's link says how many events lie before it: once that many have
        # passed, the rest of this file is superseded.
        if segment.link.rank >= bound.rank:
            return None
        try:
            opened = self._open_segment(segment)
        except OSError as error:
            if error.errno not in UNREADABLE and not isinstance(error, FileNotFoundError):
                raise
            # What was read before it was closed may be with a consumer: it is not lost.
            known = self._come_to.get(segment.serial)
            start = known if known is not None and known.seq <= seq else _start_of(segment)
            return self._lose_rest(
                segment, seq, start, bound, f"cannot be opened: {error.strerror}"
            )
        point = opened.point_for(seq)
        while point.rank < bound.rank:
            header = opened.file.header_at(point.position, size)
            damaged = header is None
            if header is None:
                header = opened.file.next_header(point.position + 8, size)
            if header is not None and (
                header.link.rank < point.rank
                or header.first_seq < point.seq
                or header.end_seq > bound.end
            ):
                # An older block again, or numbers that the lane never came to: nothing
                # that follows can be trusted.
                header = None
            if header is None or header.link.rank >= bound.rank:
                return self._lose_rest(
                    segment, seq, point, bound, f"no sound block at {point.position}"
                )
            if header.link.rank > point.rank:
                lost = self._loss_before(
                    segment, point, header.link, f"no sound block at {point.position}"
                )
                if lost.lost.end_seq > seq:
                    return lost
                point = _Point(header.position, header.link.end, header.link.rank)
            elif damaged:
                point = point._replace(position=header.position)
            after = _Point(header.end_position, header.end_seq, header.link.rank + header.events)
            if header.end_seq <= seq:
                opened.advance_to(after)
                point = after
                continue
            try:
                block = opened.file.block(header)
            except Unreadable:
                block = memoryview(b"")
            opened.advance_to(after)
            if not stored_is_sound(block, header):
                reason = f"block at {header.position} is damaged"
                return self._missing_of(
                    segment, point.seq, header.first_seq, header.end_seq, header.events, reason
                )
            return _Located(header, block, point.seq, segment)
        return None

    def _open_segment(self, segment: Segment) -> _Opened:
        opened = self._opened.get(segment.serial)
        if opened is None:
            file = SegmentFile(
                self._files, os.path.join(self._directory, segment.name), segment.salt
            )
            opened = self._opened[segment.serial] = _Opened(file, segment)
            while len(self._opened) > _OPEN_SEGMENTS:
                closed, before = self._opened.popitem(last=False)
                before.file.close()
                self._come_to[closed] = before.latest
            self._oldest = min(self._opened)
        self._opened.move_to_end(segment.serial)
        return opened

    def _lose_rest(
        self, segment: Segment, seq: int, point: _Point, bound: Link, reason: str
    ) -> Missing | None:
        """The loss from `point` to the end of the segment, unless all before `seq`."""
        lost = self._loss_before(segment, point, bound, reason)
        return lost if lost.lost.end_seq > seq else None

    def _loss_before(self, segment: Segment, point: _Point, link: Link, reason: str) -> Missing:
        """The loss between a known place and the next sound link."""
        events = link.rank - point.rank
        # If only the block before the link is missing, the link says where it began;
        # otherwise a gap may be among the numbers.
        start = link.first if link.end - link.first == events else point.seq
        start = max(start, point.seq, segment.base)
        return self._missing_of(segment, point.seq, start, max(link.end, start), events, reason)

    def _missing_of(
        self, segment: Segment, gap_start: int, start: int, end: int, events: int, reason: str
    ) -> Missing:
        lost = Lost(first_seq=start, end_seq=end, events=events, reason=f"{segment.name}: {reason}")
        return Missing(segment.serial, lost, gap_start)
