"""`forebay verify`: whether a buffer's directory is as it was written.

It reads every byte of the segments and changes nothing.

In a segment every byte has a checksum. In a ring file the header has one, and so has,
with ring_checksums, what was pushed; its positions are checked for whether they make
sense. What was pushed is checked only in a ring from before a reboot.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from backpressure.cli.common import FAILED, OK
from backpressure.cli.disk import Ticker, loss_report, make_parser, owner_report, run_command
from backpressure.cli.disk.ring_view import look_at_ring, lost_in_ring, salvage_ring
from backpressure.lanes.ring_debt import implausible
from backpressure.spill.ledger import LEDGER_NAME
from backpressure.spill.offline.directory_view import (
    BufferView,
    LaneView,
    describe_owner,
    look_at_buffer,
    look_at_lane,
)
from backpressure.spill.offline.inspect import BlockState, SegmentReport, inspect_lane
from backpressure.spill.offline.lane_reader import end_seq_of, stored_events
from backpressure.spill.runs import Lost

__all__ = ["check_lane", "check_ring", "main"]


def main(argv: Sequence[str]) -> int:
    """Run `forebay verify` with these arguments; returns the exit code."""
    parser = make_parser(
        "verify",
        "Check every block's checksums in a buffer's directory, and say which numbers are lost. "
        "Changes nothing; works beside a running owner.",
        ok="all is as it was written; a write that was cut off at the end of the newest file\n"
        "is no damage",
        failed="something is damaged, or cannot be read, or a later release wrote it",
    )
    return run_command(_verify, parser, argv)


def _verify(options: argparse.Namespace) -> int:
    view = look_at_buffer(options.directory)
    with Ticker(options, _total_bytes(view)) as ticker:
        lanes = [check_lane(view, lane, ticker) for lane in view.everything()]
    report = {
        "directory": view.path,
        "owner": owner_report(view),
        "manifest": view.manifest,
        "lanes": lanes,
        "damaged": view.manifest == "damaged"
        or any(lane["damage"] or lane["lost"] for lane in lanes),
    }
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, view, quiet=options.quiet)
    return FAILED if report["damaged"] else OK


def _total_bytes(view: BufferView) -> int:
    return sum(
        segment.size for lane in view.everything() for segment in look_at_lane(view, lane).segments
    )


def check_lane(view: BufferView, lane: LaneView, ticker: Ticker) -> dict[str, Any]:
    """What is damaged in a lane, and which owed numbers are lost by that."""
    blocks = nbytes = torn = 0
    damage: list[dict[str, Any]] = []
    for report in _reports(view, lane):
        ticker.advance(report.nbytes, lane.title)
        nbytes += report.nbytes
        blocks += sum(one.state is BlockState.GOOD for one in report.blocks)
        torn += sum(one.nbytes for one in report.blocks if one.state is BlockState.TORN)
        damage += _damage_of(report)
    found = look_at_lane(view, lane)
    ledger = os.path.join(lane.path, LEDGER_NAME)
    if found.record is None and view.files.exists(ledger):
        damage.append(
            {
                "path": ledger,
                "what": "no sound record of what was acked: events will be delivered again",
            }
        )
    # Something is lost only where something is damaged, or where the end of the newest
    # file is missing, which the record shows.
    missing_tail = found.record is not None and found.record.durable.rank > found.link.rank
    lost = []
    if damage or missing_tail:
        lost = [item for item in stored_events(view, lane) if isinstance(item, Lost)]
    ring_damage = check_ring(lane)
    look = look_at_ring(lane.ring_path)
    if look is not None and look.damage is None and look.from_before_reboot and view.owner is None:
        salvaged, debt = salvage_ring(look, end_seq_of(found))
        if wrong := implausible(salvaged.next_seq):
            ring_damage.append(
                {"path": look.path, "what": f"is damaged: {wrong}", "later_release": False}
            )
        else:
            lost += lost_in_ring(debt)
    return {
        "lane": lane.number,
        "blocks": blocks,
        "bytes": nbytes,
        "torn_bytes": torn,
        "damage": ring_damage + damage,
        "lost": [loss_report(one) for one in lost],
    }


def check_ring(lane: LaneView) -> list[dict[str, Any]]:
    """What is wrong with a lane's ring file."""
    look = look_at_ring(lane.ring_path)
    if look is None or look.damage is None:
        return []
    return [
        {
            "path": look.path,
            "what": look.damage.removeprefix(f"{look.path} "),
            "later_release": look.other_format,
        }
    ]


def _reports(view: BufferView, lane: LaneView) -> Iterator[SegmentReport]:
    """A report of each segment.

    A running owner may delete some meanwhile; then the rest is listed again.
    """
    seen: set[str] = set()
    while True:
        try:
            for report in inspect_lane(lane.path, lane.number, view.buffer_id):
                if report.path not in seen:
                    seen.add(report.path)
                    yield report
            return
        except FileNotFoundError:
            if view.owner is None:
                raise


def _damage_of(report: SegmentReport) -> list[dict[str, Any]]:
    damage: list[dict[str, Any]] = []
    if not report.header_is_sound:
        damage.append(
            {"path": report.path, "what": "its header is damaged", "position": 0, "bytes": 96}
        )
    for one in report.blocks:
        if one.state is BlockState.DAMAGED:
            what = f"the block of numbers {one.first_seq} to {one.end_seq - 1} is damaged"
        elif one.state is BlockState.GARBAGE:
            what = "no sound block"
        else:
            continue
        damage.append(
            {"path": report.path, "what": what, "position": one.position, "bytes": one.nbytes}
        )
    return damage


def _print(report: dict[str, Any], view: BufferView, *, quiet: bool) -> None:
    if view.owner is not None and not quiet:
        print(
            f"{view.path} is open in {describe_owner(view.owner)}: "
            "what that writes meanwhile is not judged"
        )
    if view.manifest == "damaged":
        print(
            f"{os.path.join(view.path, 'manifest')}: at least one copy is damaged; "
            "the next start writes it anew"
        )
    for lane, checked in zip(view.everything(), report["lanes"], strict=True):
        if not quiet:
            torn = (
                f", of which {checked['torn_bytes']:,} of a write that was cut off"
                if checked["torn_bytes"]
                else ""
            )
            print(
                f"{lane.title}: {checked['blocks']:,} sound blocks "
                f"in {checked['bytes']:,} bytes{torn}"
            )
        for one in checked["damage"]:
            where = f" at {one['position']:,}, {one['bytes']:,} bytes" if "position" in one else ""
            print(f"  DAMAGED {one['path']}{where}: {one['what']}")
        for one in checked["lost"]:
            print(
                f"  LOST {one['events']:,} events, "
                f"numbers {one['first_seq']} to {one['last_seq']}: {one['reason']}"
            )
