"""`forebay export`: the events in a buffer's directory, to a file or to stdout.

Lane by lane and in order. Nothing is changed.

What is written is what the next start would deliver; with --all, also what was acked
and is still there, and what can be read of damaged files that were kept aside.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.cli.common import FAILED, OK, USAGE, say
from backpressure.cli.disk import Ticker, loss_report, make_parser, owner_report, run_command
from backpressure.cli.disk.framing import FORMATS, framed, with_newlines
from backpressure.cli.disk.ring_view import (
    RingFileView,
    look_at_ring,
    lost_in_ring,
    ring_events,
    salvage_ring,
)
from backpressure.spill.offline.directory_view import (
    BufferView,
    LaneView,
    describe_owner,
    look_at_buffer,
    look_at_lane,
)
from backpressure.spill.offline.lane_reader import end_seq_of, stored_events, with_quarantined
from backpressure.spill.runs import Lost
from ringbuf import Messages

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `forebay export` with these arguments; returns the exit code."""
    parser = make_parser(
        "export",
        "Write the events that a buffer's directory still owes, the most urgent lane first, each "
        "lane in order. Changes nothing. Beside a running owner it writes what is on disk, and "
        "leaves out what is only in the owner's rings.",
        ok="all was written, but for the rings of a running owner",
        failed="something was lost to damage, or could not be read, written, or told apart as "
        "lines;\nthe rest was written",
    )
    add = parser.add_argument
    add(
        "--to",
        default="-",
        metavar="FILE",
        help="a file, which is overwritten, or - for stdout (the default)",
    )
    add(
        "--priority",
        type=int,
        choices=range(1, PRIORITY_LEVELS + 1),
        action="append",
        metavar="N",
        help=f"only this lane, from 1 to {PRIORITY_LEVELS}; repeatable",
    )
    add(
        "--all",
        action="store_true",
        help="also what was acked and is still there, and what is readable of damaged files",
    )
    add(
        "--format",
        choices=FORMATS,
        default="lines",
        help="lines: each event and a newline (the default); records: 4 bytes of length, "
        "little-endian, then the event",
    )
    return run_command(_export, parser, argv)


def _export(options: argparse.Namespace) -> int:
    view = look_at_buffer(options.directory)
    with ExitStack() as stack:
        if options.to == "-":
            out: BinaryIO = sys.stdout.buffer
        elif _lies_in(options.to, view.path):
            say(f"{options.to} lies in the buffer's own directory: choose another place")
            return USAGE
        else:
            out = stack.enter_context(open(options.to, "wb"))
        export = _Export(view, out, options.format, stack.enter_context(Ticker(options)))
        for lane in view.lanes:
            if options.priority is None or lane.number in options.priority:
                export.write_lane(lane, everything=options.all)
        out.flush()
    return _conclude(options, view, export)


class _Export:
    """Writes lanes, and counts."""

    def __init__(self, view: BufferView, out: BinaryIO, form: str, ticker: Ticker) -> None:
        self._view = view
        self._out = out
        self._form = form
        self._ticker = ticker
        self.events: Counter[int] = Counter()
        self.nbytes = 0
        self.with_newlines = 0
        self.lost: list[dict[str, Any]] = []
        self.notes: list[str] = []
        #: A ring was left out, perhaps with events that no running owner delivers.
        self.unread = False

    def write_lane(self, lane: LaneView, *, everything: bool) -> None:
        for item in (
            with_quarantined(self._view, lane) if everything else stored_events(self._view, lane)
        ):
            if isinstance(item, Lost):
                self.lost.append({"priority": lane.number, **loss_report(item)})
            else:
                self._write(item.messages(), lane)
        look = look_at_ring(lane.ring_path)
        if look is None or not (look.used_bytes or look.damage or look.from_before_reboot):
            return
        if look.damage is not None:
            self._leave_out(f"{look.damage}: left out")
        elif self._view.owner is not None:
            # Its owner delivers what is in it.
            self.notes.append(
                f"{lane.title}: {look.used_bytes:,} bytes in the ring of "
                f"{describe_owner(self._view.owner)} are left out"
            )
        elif look.from_before_reboot:
            self._write_salvaged(look, lane)
        else:
            self._write_ring(look, lane)

    def _write_salvaged(self, look: RingFileView, lane: LaneView) -> None:
        found, debt = salvage_ring(look, end_seq_of(look_at_lane(self._view, lane)))
        if self._view.had_owner_since():
            self._leave_out(
                f"{look.path} was opened by another process meanwhile: left out; export again"
            )
            return
        for first, end in debt.whole:
            for messages in found.messages(first, end):
                self._write(messages, lane)
        if debt.events:
            self.notes.append(
                f"{lane.title}: {debt.events:,} events of a ring from before a reboot are whole"
            )
        for one in lost_in_ring(debt):
            self.lost.append({"priority": lane.number, **loss_report(one)})

    def _write_ring(self, look: RingFileView, lane: LaneView) -> None:
        end_seq = end_seq_of(look_at_lane(self._view, lane))
        pieces = ring_events(look)
        first = next(pieces, None)  # which copies the ring
        if self._view.had_owner_since():
            self._leave_out(
                f"{look.path} was opened by another process meanwhile: left out; export again"
            )
            return
        while first is not None:
            # What is on disk as well was written by an owner that died before it freed
            # the room in the ring.
            rest = first[max(end_seq - first.first_seq, 0) :]
            if len(rest):
                self._write(rest, lane)
            first = next(pieces, None)

    def _write(self, messages: Messages, lane: LaneView) -> None:
        self._out.write(framed(messages, self._form))
        self.events[lane.number] += len(messages)
        self.nbytes += messages.nbytes
        if self._form == "lines":
            self.with_newlines += with_newlines(messages)
        self._ticker.advance(messages.nbytes, lane.title)

    def _leave_out(self, note: str) -> None:
        self.notes.append(note)
        self.unread = True


def _lies_in(path: str, directory: str) -> bool:
    inside, above = os.path.realpath(path), os.path.realpath(directory)
    return os.path.commonpath([inside, above]) == above


def _conclude(options: argparse.Namespace, view: BufferView, tally: _Export) -> int:
    report = {
        "directory": view.path,
        "owner": owner_report(view),
        "events": sum(tally.events.values()),
        "bytes": tally.nbytes,
        "priorities": {str(priority): events for priority, events in sorted(tally.events.items())},
        "with_newlines": tally.with_newlines,
        "lost": tally.lost,
        "notes": tally.notes,
    }
    if options.json:
        # stdout carries the events and nothing else.
        print(json.dumps(report, indent=2), file=sys.stderr if options.to == "-" else sys.stdout)
    else:
        if view.owner is not None and not options.quiet:
            say(f"{view.path} is open in {describe_owner(view.owner)}")
        for note in tally.notes:
            say(note)
        for one in tally.lost:
            say(
                f"priority {one['priority']}: {one['events']:,} events, "
                f"numbers {one['first_seq']} to {one['last_seq']}, are lost: {one['reason']}"
            )
        if tally.with_newlines:
            say(
                f"{tally.with_newlines:,} events hold newlines, so lines do not show where they "
                "end: use --format records"
            )
        if not options.quiet:
            say(f"{report['events']:,} events written, {tally.nbytes:,} bytes")
    return FAILED if tally.lost or tally.with_newlines or tally.unread else OK
