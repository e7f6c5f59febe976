"""`forebay repair`: put damage aside, so that a buffer opens the directory.

It also spares the buffer a search behind damage. Nothing is deleted.

A damaged segment is written anew from its good blocks, and the old one kept beside it.
A ring file that cannot be opened is moved aside. An empty one that goes on with the
numbers takes its place: a number is part of a batch's id, and must not be given out
again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, Final

from backpressure.cli.common import FAILED, OK, say
from backpressure.cli.disk import Ticker, make_parser, refuse_owner, run_command
from backpressure.cli.disk.ring_view import RingFileView, look_at_ring, next_seq_in
from backpressure.cli.disk.verify import check_lane
from backpressure.lanes.ring_debt import MOST_SEQ, NUMBERS_JUMP, check_numbers
from backpressure.spill import BufferDirectory
from backpressure.spill.ledger import LEDGER_NAME
from backpressure.spill.offline.directory_view import (
    BufferView,
    LaneView,
    look_at_buffer,
    look_at_lane,
)
from backpressure.spill.offline.inspect import repair_lane
from backpressure.spill.offline.lane_reader import end_seq_of
from backpressure.spill.quarantine import QUARANTINE_SUFFIX
from ringbuf import MessageRing

__all__ = ["main"]

# When the buffer opens, it makes one of its own size.
_SMALL_RING_BYTES: Final = 4096


def main(argv: Sequence[str]) -> int:
    """Run `forebay repair` with these arguments; returns the exit code."""
    parser = make_parser(
        "repair",
        "Put what is damaged in a buffer's directory aside, so that a buffer opens it. Without "
        "--yes it only says what it would do. Nothing is deleted: what was damaged is kept as "
        "*.damaged, for `forebay export --all`.",
        ok="nothing is damaged, or all of it was put aside",
        failed="without --yes: something is damaged. With it: something could not be put aside",
        changes=True,
    )
    parser.add_argument("--yes", action="store_true", help="do it")
    return run_command(_repair, parser, argv)


def _repair(options: argparse.Namespace) -> int:
    view = look_at_buffer(options.directory)
    refuse_owner(view, "repair")
    with Ticker(options) as ticker:
        if not options.yes:
            return _conclude(options, view, _plan(view, ticker), done=False)
        # This writes a damaged manifest anew.
        with BufferDirectory(options.directory) as directory:
            view = dataclasses.replace(view, buffer_id=directory.buffer_id)
            steps = _plan(view, ticker)
            for lane in view.everything():
                _mend_lane(view, lane, steps)
            left = [
                step
                for step in _plan(look_at_buffer(options.directory), ticker)
                if step["action"] != "manifest"
            ]
    for step in left:
        say(f"still damaged: {step['path']}: {step['what']}")
    return _conclude(options, view, steps, done=True) or (FAILED if left else OK)


def _plan(view: BufferView, ticker: Ticker) -> list[dict[str, Any]]:
    """What is to be done, a step for each file."""
    steps: list[dict[str, Any]] = []
    if view.manifest != "sound":
        what = "at least one copy is damaged" if view.manifest == "damaged" else "it is missing"
        steps.append(
            {
                "action": "manifest",
                "path": os.path.join(view.path, "manifest"),
                "what": what,
                "lane": None,
            }
        )
    for lane in view.everything():
        checked = check_lane(view, lane, ticker)
        ring = lane.ring_path
        for path in dict.fromkeys(one["path"] for one in checked["damage"]):
            mine = [one for one in checked["damage"] if one["path"] == path]
            action = "rewrite"
            if path == ring:
                action = "leave" if mine[0]["later_release"] else "move aside"
            elif os.path.basename(path) == LEDGER_NAME:
                action = "move aside"  # only a hint, and written anew by the next ack
            steps.append(
                {
                    "action": action,
                    "path": path,
                    "what": "; ".join(one["what"] for one in mine),
                    "lane": lane.number,
                }
            )
    return steps


def _mend_lane(view: BufferView, lane: LaneView, steps: list[dict[str, Any]]) -> None:
    """Take the steps of one lane."""
    mine = [step for step in steps if step["lane"] == lane.number]
    if any(step["action"] == "rewrite" for step in mine):
        repair_lane(lane.path, lane.number, view.buffer_id)
    for path in (step["path"] for step in mine if step["action"] == "move aside"):
        look = look_at_ring(path) if path == lane.ring_path else None
        if look is not None:
            _replace_ring(view, lane, look)
        else:
            view.files.rename(path, _name_aside(path))
            view.files.sync_directory(lane.path)


def _replace_ring(view: BufferView, lane: LaneView, look: RingFileView) -> None:
    """Move the ring aside; an empty one that goes on with the numbers follows.

    Power loss leaves one or the other.
    """
    end_seq = end_seq_of(look_at_lane(view, lane))
    check_numbers(lane.path, end_seq)
    next_seq = next_seq_in(look)
    building = look.path + ".new"
    view.files.unlink(building)
    first_seq = end_seq + NUMBERS_JUMP
    # A file from before a reboot may not know the last numbers that were given out.
    if next_seq is not None and not look.from_before_reboot and end_seq <= next_seq <= MOST_SEQ:
        first_seq = next_seq
    MessageRing(_SMALL_RING_BYTES, path=building, first_seq=first_seq).close()
    os.link(look.path, _name_aside(look.path))
    view.files.rename(building, look.path)
    view.files.sync_directory(lane.path)


def _name_aside(path: str) -> str:
    """A name that is free: what was put aside before stays."""
    aside, number = path + QUARANTINE_SUFFIX, 1
    while os.path.exists(aside):
        number += 1
        aside = f"{path}-{number}{QUARANTINE_SUFFIX}"
    return aside


def _conclude(
    options: argparse.Namespace, view: BufferView, steps: list[dict[str, Any]], *, done: bool
) -> int:
    to_do = [step for step in steps if step["action"] != "leave"]
    by_hand = len(steps) > len(to_do)
    if options.json:
        print(json.dumps({"directory": view.path, "done": done, "steps": steps}, indent=2))
    elif not steps:
        if not options.quiet:
            print(f"{view.path}: nothing is damaged")
    else:
        for step in steps:
            print(f"{_wording_of(step['action'], done)} {step['path']}: {step['what']}")
        if to_do and not done:
            print("Nothing was done: `--yes` does it.")
    return FAILED if by_hand or (to_do and not done) else OK


def _wording_of(action: str, done: bool) -> str:
    if action == "leave":
        return (
            "left as it is, since a later release may have written it (if none has, move it away):"
        )
    would, has = {
        "manifest": ("would write anew", "written anew"),
        "rewrite": (
            "would write without its damage, and keep the old one aside",
            "written without it, the old one kept aside",
        ),
        "move aside": ("would move aside", "moved aside"),
    }[action]
    return (has if done else would) + ":"
