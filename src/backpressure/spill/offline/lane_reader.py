"""The events in a lane's files, read without its store: nothing is changed or settled.

What is yielded is what the store itself would deliver, by the same reader, and what it
would report as lost.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from typing import Final

import numpy as np

from backpressure.spill.blocks import Decoder, stored_is_sound
from backpressure.spill.offline.directory_view import BufferView, LaneView, look_at_lane
from backpressure.spill.quarantine import QUARANTINE_SUFFIX
from backpressure.spill.reader import Gap, Missing, Reader, View
from backpressure.spill.recovery import (
    Recovered,
    end_seq_of,
    missing_tail_of,
    settled_of,
)
from backpressure.spill.runs import Lost, Run, decoded_run
from backpressure.spill.segments import (
    SEGMENT_HEADER_BYTES,
    SegmentFile,
    Unreadable,
    parse_segment_name,
)
from backpressure.spill.settled import Settled

__all__ = ["end_seq_of", "owed_on_disk", "settled_of", "stored_events", "with_quarantined"]

_MOST_EVENTS: Final = 1 << 20
_MOST_BYTES: Final = 1 << 20
_LAST_SEQ: Final = (1 << 64) - 1


def owed_on_disk(found: Recovered) -> int:
    """Events that are stored and neither acked nor, as far as is known, lost."""
    return max(found.link.rank - settled_of(found).events, 0)


def stored_events(view: BufferView, lane: LaneView, *, acked: bool = False) -> Iterator[Run | Lost]:
    """Ascending runs of what is owed, and what of it is lost.

    With `acked`, of everything that the segments hold.
    """
    reader = Reader(view.files, lane.path)
    position = 0
    try:
        while True:
            found = look_at_lane(view, lane)
            settled = settled_of(found)
            if not acked and position == 0:
                tail = missing_tail_of(found)
                if tail is not None:
                    yield tail
            if acked and found.segments:
                settled = Settled(found.segments[0].base, found.segments[0].link.rank)
            for item in _read_all(reader, found, settled, position):
                if isinstance(item, Missing):
                    name = _name_of(found, item.serial)
                    if not view.files.exists(os.path.join(lane.path, name)):
                        # A running owner deleted it just now, as all in it was acked:
                        # list the lane again.
                        break
                    yield item.lost
                    position = item.lost.end_seq
                else:
                    yield item
                    position = item.end_seq
            else:
                return
    finally:
        reader.close()


def _read_all(
    reader: Reader, found: Recovered, settled: Settled, seq: int
) -> Iterator[Run | Missing]:
    if not found.segments:
        return
    view = View(found.segments, found.segments[-1].size, found.link)
    while True:
        seq = settled.next_open(seq)
        stop = settled.next_settled(seq)
        item = reader.read(
            seq, _LAST_SEQ if stop is None else stop, _MOST_EVENTS, _MOST_BYTES, view
        )
        if item is None:
            return
        if isinstance(item, Gap):
            settled.settle(min(seq, item.start), item.end, 0)
        elif isinstance(item, Missing):
            lost = item.lost
            settled.settle(min(seq, item.gap_start), lost.first_seq, 0)
            inside = settled.events_in(lost.first_seq, lost.end_seq)
            events = settled.settle(lost.first_seq, lost.end_seq, max(lost.events - inside, 0))
            if events:
                lost = Lost(
                    first_seq=lost.first_seq,
                    end_seq=lost.end_seq,
                    events=events,
                    reason=lost.reason,
                )
                yield item._replace(lost=lost)
        else:
            yield item
            seq = item.end_seq


def _name_of(found: Recovered, serial: int) -> str:
    return next(segment.name for segment in found.segments if segment.serial == serial)


def with_quarantined(view: BufferView, lane: LaneView) -> Iterator[Run | Lost]:
    """All that can be read of segments and files kept aside, each number once.

    Whether it was acked does not matter.
    """
    names = [name for name, _ in look_at_lane(view, lane).quarantined]
    parts = [
        _numbered(stored_events(view, lane, acked=True)),
        *(_numbered(_quarantined(view, lane, name)) for name in names),
    ]
    position = 0
    losses: list[Lost] = []
    for _, _, item in heapq.merge(*parts, key=lambda part: part[:2]):
        if isinstance(item, Lost):
            losses.append(item)
            continue
        if item.end_seq <= position:
            continue
        skip = max(position - item.first_seq, 0)
        position = item.end_seq
        yield (
            Run(
                data=item.data,
                offsets=item.offsets[skip:],
                first_seq=item.first_seq + skip,
                time_ns=item.time_ns,
            )
            if skip
            else item
        )
    yield from losses


def _numbered(items: Iterator[Run | Lost]) -> Iterator[tuple[int, int, Run | Lost]]:
    for item in items:
        yield item.first_seq, item.end_seq, item


def _quarantined(view: BufferView, lane: LaneView, name: str) -> Iterator[Run]:
    """The good blocks of a file kept aside."""
    named = parse_segment_name(name.removesuffix(QUARANTINE_SUFFIX))
    if named is None:
        return
    try:
        file = SegmentFile(view.files, os.path.join(lane.path, name), named[2])
    except FileNotFoundError:
        return  # its owner has deleted it for its room
    decoder = Decoder()
    try:
        at, size = SEGMENT_HEADER_BYTES, file.size()
        while at < size:
            header = file.header_at(at, size) or file.next_header(at + 8, size)
            if header is None:
                return
            at = header.end_position
            try:
                block = file.block(header)
            except Unreadable:
                continue
            if stored_is_sound(block, header):
                data = np.empty(header.payload_length, np.uint8)
                run = decoded_run(decoder, header, block, data)
                if run is not None:
                    yield run
    finally:
        file.close()
