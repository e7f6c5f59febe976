"""`forebay inspect`: what a buffer's directory holds.

It reads headers, the oldest stored events of each lane and, where the directory has no
owner, the rings. Nothing is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from typing import Any, Final

from backpressure.cli.common import OK
from backpressure.cli.disk import Ticker, make_parser, owner_report, run_command
from backpressure.cli.disk.ring_view import look_at_ring, ring_events, salvage_ring
from backpressure.spill.offline.directory_view import (
    BufferView,
    LaneView,
    describe_owner,
    look_at_buffer,
    look_at_lane,
)
from backpressure.spill.offline.lane_reader import (
    end_seq_of,
    owed_on_disk,
    settled_of,
    stored_events,
)
from backpressure.spill.runs import Run
from backpressure.spill.segments import SEGMENT_HEADER_BYTES, Segment, SegmentFile

__all__ = ["main"]

# Of a block only the header is wanted; one read brings its neighbours along.
_HEADER_WINDOW_BYTES: Final = 4096
# A lane with more ranges than this is shown by their number.
_SHOWN_RANGES: Final = 3


def main(argv: Sequence[str]) -> int:
    """Run `forebay inspect` with these arguments; returns the exit code."""
    parser = make_parser(
        "inspect",
        "Show what a buffer's directory holds: owner, rings, segments, acks, dead letters. "
        "Changes nothing; works beside a running owner.",
        ok="shown, damaged or not: `forebay verify` judges",
        failed="the directory cannot be read, or a later release wrote it",
    )
    return run_command(_inspect, parser, argv)


def _inspect(options: argparse.Namespace) -> int:
    view = look_at_buffer(options.directory)
    with Ticker(options) as ticker:
        report = {
            "directory": view.path,
            "buffer_id": str(view.buffer_id),
            "manifest": view.manifest,
            "owner": owner_report(view),
            "lanes": [
                {
                    "priority": lane.number,
                    "ring": _describe_ring(view, lane),
                    "disk": _describe_disk(view, lane, ticker),
                }
                for lane in view.lanes
            ],
            "dead_letters": None
            if view.dead_letters is None
            else _describe_disk(view, view.dead_letters, ticker),
        }
    print(json.dumps(report, indent=2) if options.json else _text(report, view))
    return OK


def _describe_ring(view: BufferView, lane: LaneView) -> dict[str, Any] | None:
    look = look_at_ring(lane.ring_path)
    if look is None:
        return None
    if look.damage is not None:
        return {"state": "damaged", "damage": look.damage, "file_bytes": look.size}
    events = None
    missing: list[tuple[int, int]] = []
    if view.owner is None and look.from_before_reboot:
        debt = salvage_ring(look, end_seq_of(look_at_lane(view, lane)))[1]
        events, missing = debt.events, debt.missing
    elif view.owner is None:
        end_seq = end_seq_of(look_at_lane(view, lane))
        # What lies below end_seq is on disk as well: a crash came before its room in
        # the ring was freed.
        events = sum(
            min(len(part), max(part.first_seq + len(part) - end_seq, 0))
            for part in ring_events(look)
        )
    return {
        "state": "from before a reboot" if look.from_before_reboot else "whole",
        "capacity_bytes": look.capacity_bytes,
        "used_bytes": look.used_bytes,
        "next_seq": look.next_seq,
        "events": events,
        "lost": [
            {"first_seq": first, "last_seq": end - 1, "events": end - first}
            for first, end in missing
        ],
    }


def _describe_disk(view: BufferView, lane: LaneView, ticker: Ticker) -> dict[str, Any]:
    found = look_at_lane(view, lane)
    settled = settled_of(found)
    end_seq = end_seq_of(found)
    # Each file is durable before the next is made.
    durable = [segment.link.end for segment in found.segments[-1:]]
    if found.record is not None:
        durable.append(found.record.durable.end)
    first = next((item for item in stored_events(view, lane) if isinstance(item, Run)), None)
    return {
        "segments": len(found.segments),
        "blocks": sum(_count_blocks(view, lane, segment, ticker) for segment in found.segments),
        "bytes": sum(segment.size for segment in found.segments),
        "events": owed_on_disk(found),
        "first_seq": min(settled.next_open(0), end_seq),
        "end_seq": end_seq,
        "durable_seq": max(durable, default=0),
        "acked_below": settled.seq,
        "acked_ranges": [[start, end] for start, end, _ in settled.ranges()],
        "oldest_ns": None if first is None or not first.time_ns else first.time_ns,
        "torn_bytes": found.torn_bytes,
        "damaged_headers": found.damaged_headers,
        "quarantined": [{"name": name, "bytes": size} for name, size in found.quarantined],
    }


def _count_blocks(view: BufferView, lane: LaneView, segment: Segment, ticker: Ticker) -> int:
    """Blocks with a sound header."""
    try:
        file = SegmentFile(
            view.files, os.path.join(lane.path, segment.name), segment.salt, _HEADER_WINDOW_BYTES
        )
    except FileNotFoundError:
        return 0  # its owner has deleted it
    blocks = 0
    try:
        at = SEGMENT_HEADER_BYTES
        while at < segment.size:
            header = file.header_at(at, segment.size) or file.next_header(at + 8, segment.size)
            if header is None:
                break
            blocks += 1
            ticker.advance(header.end_position - at, lane.title)
            at = header.end_position
    finally:
        file.close()
    return blocks


# ---------------------------------------------------------------- as text


def _text(report: dict[str, Any], view: BufferView) -> str:
    owner = (
        "no process has it open"
        if view.owner is None
        else f"open in {describe_owner(view.owner)}, which changes it meanwhile"
    )
    lines = [f"{view.path}: buffer {report['buffer_id']}, {owner}"]
    if view.manifest != "sound":
        lines.append(
            f"  the manifest is {view.manifest}: "
            "the next start, or `forebay repair`, writes it anew"
        )
    for lane in report["lanes"]:
        lines += [
            f"priority {lane['priority']}",
            f"  ring   {_ring_text(lane['ring'])}",
            *_disk_lines(lane["disk"]),
        ]
    if report["dead_letters"] is not None:
        lines += ["dead letters", *_disk_lines(report["dead_letters"])]
    return "\n".join(lines)


def _ring_text(ring: dict[str, Any] | None) -> str:
    if ring is None:
        return "none"
    if ring["state"] == "damaged":
        return f"DAMAGED: {ring['damage']}"
    if ring["state"] != "whole":
        if ring["events"] is None:
            return f"{ring['state']}"
        lost = "".join(
            f", numbers {one['first_seq']} to {one['last_seq']} are lost" for one in ring["lost"]
        )
        return f"{ring['state']}: {ring['events']:,} events are whole and owed{lost}"
    events = (
        "events not counted while it is open"
        if ring["events"] is None
        else f"{ring['events']:,} events owed"
    )
    return (
        f"{events}, {ring['used_bytes']:,} of {ring['capacity_bytes']:,} bytes used, "
        f"next number {ring['next_seq']}"
    )


def _disk_lines(disk: dict[str, Any]) -> list[str]:
    if not (disk["segments"] or disk["end_seq"] or disk["quarantined"]):
        return ["  disk   nothing"]
    ranges = disk["acked_ranges"]
    acked = f"below {disk['acked_below']}"
    if ranges:
        shown = ", ".join(f"{start}-{end - 1}" for start, end in ranges[:_SHOWN_RANGES])
        acked += f", and {shown}" + (
            f" and {len(ranges) - _SHOWN_RANGES} more ranges" if len(ranges) > _SHOWN_RANGES else ""
        )
    oldest = ""
    if disk["oldest_ns"]:
        oldest = (
            f", the oldest written {max(time.time() - disk['oldest_ns'] / 1e9, 0.0):,.0f} s ago"
        )
    lines = [
        f"  disk   {disk['events']:,} events owed{oldest}; {disk['segments']} segments, "
        f"{disk['blocks']:,} blocks, {disk['bytes']:,} bytes",
        f"         numbers {disk['first_seq']} to {disk['end_seq']}, "
        f"durable at least below {disk['durable_seq']}; acked {acked}",
    ]
    if disk["torn_bytes"]:
        lines.append(
            f"         {disk['torn_bytes']:,} bytes behind the last sound block: "
            "of a write under way, or cut off"
        )
    if disk["damaged_headers"]:
        lines.append(f"         {disk['damaged_headers']} segments with a damaged header")
    if disk["quarantined"]:
        size = sum(one["bytes"] for one in disk["quarantined"])
        lines.append(
            f"         {len(disk['quarantined'])} damaged files kept aside, {size:,} bytes"
        )
    return lines
