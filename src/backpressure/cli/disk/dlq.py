"""`forebay dlq`: the dead letters of a buffer.

These are events that were given up after their last attempt.

`list` reads beside a running owner. `replay` and `purge` change the store, and need a
directory that no other process has open. What is replayed is durable in its new place
before it is purged: after a crash in between it comes twice, and is never lost.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, Final

import numpy as np

from backpressure.base.priority import PRIORITY_LEVELS
from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.cli.common import FAILED, OK, USAGE, say, whole_number
from backpressure.cli.disk import Ticker, make_parser, refuse_owner, run_command
from backpressure.cli.disk.framing import FORMATS, framed
from backpressure.cli.disk.ring_view import look_at_ring
from backpressure.policies.flow_control_manager import FlowControlConfig
from backpressure.spill import BufferDirectory, DeadLetter, DeadLetterStore
from backpressure.spill.dead_letters import unpack_letter
from backpressure.spill.offline.directory_view import BufferView, look_at_buffer
from backpressure.spill.offline.lane_reader import stored_events
from backpressure.spill.runs import Lost
from ringbuf import MessageRing, Messages

__all__ = ["main"]

# This many letters at a time are added, made durable and then purged.
_CHUNK: Final = 1000
# How long (seconds) an event may wait for room in its lane, while the spiller moves
# others to disk.
_PATIENCE: Final = 10.0
# Characters of an event or an error: about a line of a terminal.
_SHOWN: Final = 100


def main(argv: Sequence[str]) -> int:
    """Run `forebay dlq` with these arguments; returns the exit code."""
    actions = {"list": _main_list, "replay": _main_replay, "purge": _main_purge}
    if argv[:1] and argv[0] in actions:
        return actions[argv[0]](argv[1:])
    usage = (
        "usage: forebay dlq list|replay|purge DIR ...\n\n`forebay dlq list --help` explains each."
    )
    asked = list(argv[:1]) in (["-h"], ["--help"])
    print(usage, file=sys.stdout if asked else sys.stderr)
    return OK if asked else USAGE


def _main_list(argv: Sequence[str]) -> int:
    parser = make_parser(
        "dlq list",
        "List dead letters, the oldest first. Changes nothing; works beside a running owner.",
        ok="listed, be they any or none",
        failed="some are lost to damage, or the directory cannot be read",
    )
    _add_filters(parser)
    return run_command(_list, parser, argv)


def _main_replay(argv: Sequence[str]) -> int:
    parser = make_parser(
        "dlq replay",
        "Put dead letters back into the lane that they come from, or write their events to the end "
        "of a file; each one is purged when it is durable there.",
        ok="all that were chosen are back, be they any or none",
        failed="some stayed dead letters, for a reason that is printed",
        changes=True,
    )
    _add_filters(parser)
    parser.add_argument("--to", metavar="FILE", help="add the events to this file instead")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="lines",
        help="of FILE; lines: each event and a newline (the default; events that hold a newline "
        "stay); records: 4 bytes of length, little-endian, then the event",
    )
    return run_command(_replay, parser, argv)


def _main_purge(argv: Sequence[str]) -> int:
    parser = make_parser(
        "dlq purge",
        "Delete dead letters for ever. Without --yes it only says how many it would purge.",
        ok="purged, or none is chosen",
        failed="without --yes: some would be purged",
        changes=True,
    )
    _add_filters(parser)
    parser.add_argument(
        "--all", action="store_true", help="all of them; else ids, --priority or --error choose"
    )
    parser.add_argument("--yes", action="store_true", help="do it")
    return run_command(_purge, parser, argv)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "ids",
        nargs="*",
        type=int,
        metavar="ID",
        help="only these letters, by the ids that list shows",
    )
    add(
        "--priority",
        type=int,
        choices=range(1, PRIORITY_LEVELS + 1),
        metavar="N",
        help=f"only of this priority, 1 to {PRIORITY_LEVELS}",
    )
    add("--error", metavar="TEXT", help="only where the error holds this text")
    add("--limit", type=whole_number(0), metavar="N", help="at most the N oldest")


def _choose(options: argparse.Namespace, letters: Iterator[DeadLetter]) -> Iterator[DeadLetter]:
    ids = frozenset(options.ids)
    found = (
        letter
        for letter in letters
        if (not ids or letter.id in ids)
        and (options.priority is None or letter.priority == options.priority)
        and (options.error is None or options.error in letter.error)
    )
    return islice(found, options.limit)


# ---------------------------------------------------------------- list


def _list(options: argparse.Namespace) -> int:
    view = look_at_buffer(options.directory)
    lost: list[Lost] = []
    letters = list(_choose(options, _read_letters(view, lost)))
    if options.json:
        report = {
            "directory": view.path,
            "letters": [_described(letter) for letter in letters],
            "lost": [
                {"first_id": one.first_seq, "last_id": one.end_seq - 1, "events": one.events}
                for one in lost
            ],
        }
        print(json.dumps(report, indent=2))
    else:
        for letter in letters:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(letter.time_ns / 1e9))
            print(
                f"{letter.id}  {when} UTC  priority {letter.priority}, number {letter.seq}, "
                f"{letter.attempts} attempts"
            )
            print(f"    error  {_shown(letter.error)}")
            event = letter.event.decode("utf-8", "backslashreplace")
            print(f"    event  {len(letter.event):,} bytes: {_shown(event)}")
        if not letters and not options.quiet:
            print(
                "no dead letters"
                + (" of these" if options.ids or options.priority or options.error else "")
            )
        for one in lost:
            say(
                f"{one.events:,} letters, ids {one.first_seq} to {one.end_seq - 1}, "
                f"are lost: {one.reason}"
            )
    return FAILED if lost else OK


def _read_letters(view: BufferView, lost: list[Lost]) -> Iterator[DeadLetter]:
    """All letters, read without the store, and so beside its owner."""
    if view.dead_letters is None:
        return
    for item in stored_events(view, view.dead_letters):
        if isinstance(item, Lost):
            lost.append(item)
            continue
        for number, raw in enumerate(item.messages(), item.first_seq):
            yield unpack_letter(raw, number)


def _described(letter: DeadLetter) -> dict[str, Any]:
    described: dict[str, Any] = {
        "id": letter.id,
        "priority": letter.priority,
        "seq": letter.seq,
        "attempts": letter.attempts,
        "time_ns": letter.time_ns,
        "error": letter.error,
    }
    try:
        described["event"] = letter.event.decode("utf-8")
    except UnicodeDecodeError:
        described["event_base64"] = base64.b64encode(letter.event).decode("ascii")
    return described


def _shown(text: str) -> str:
    """The text as one line, with what a terminal could act on escaped."""
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text[: _SHOWN + 1]
    )
    return line if len(text) <= _SHOWN else line[:_SHOWN] + "…"


# ---------------------------------------------------------------- replay


def _replay(options: argparse.Namespace) -> int:
    view = look_at_buffer(options.directory)
    refuse_owner(view, "dlq replay")
    with Ticker(options) as ticker:
        replayed, stayed = (
            _to_file(view, options, ticker)
            if options.to is not None
            else _to_buffer(view, options, ticker)
        )
    if options.json:
        print(
            json.dumps({"directory": view.path, "replayed": replayed, "stayed": stayed}, indent=2)
        )
    else:
        if not options.quiet:
            print(f"{replayed:,} letters replayed")
        for why, count in stayed.items():
            say(f"{count:,} letters stay: {why}")
    return FAILED if stayed else OK


def _to_buffer(
    view: BufferView, options: argparse.Namespace, ticker: Ticker
) -> tuple[int, dict[str, int]]:
    looks = [look_at_ring(lane.ring_path) for lane in view.lanes]
    # Rings of the size that they have: another size would make the next start move what
    # is in them.
    lane_bytes = max(
        (look.capacity_bytes for look in looks if look is not None and look.damage is None),
        default=0,
    )
    # As many lanes as there are: no other is made for a letter.
    levels = max((lane.number for lane in view.lanes), default=PRIORITY_LEVELS)
    config = BufferConfig(
        directory=view.path, flow_control=FlowControlConfig(priority_levels=levels)
    )
    if lane_bytes:
        config = replace(config, lane_bytes=lane_bytes)
    largest = MessageRing(config.lane_bytes).max_message_bytes
    replayed = 0
    stayed: dict[str, int] = {}
    buffer = BufferManager(config)
    try:
        store = buffer.dead_letters
        assert store is not None
        letters = _choose(options, store.letters())
        while chunk := list(islice(letters, _CHUNK)):
            fits = [letter for letter in chunk if len(letter.event) <= largest]
            if len(fits) < len(chunk):
                why = f"larger than a lane can hold ({largest:,} bytes)"
                stayed[why] = stayed.get(why, 0) + len(chunk) - len(fits)
            added = _add_events(buffer, fits)
            buffer.flush()
            replayed += store.purge(fits[:added])
            ticker.advance(sum(len(letter.event) for letter in fits[:added]), "replayed")
            if added < len(fits):
                why = f"their lane had no room for {_PATIENCE:g} s"
                stayed[why] = len(fits) - added + sum(1 for _ in letters)
                break
    finally:
        buffer.close(timeout=0)
    return replayed, stayed


def _add_events(buffer: BufferManager, letters: Sequence[DeadLetter]) -> int:
    """Add the events of letters, each priority's in order. One whose lane is not there
    (a malformed letter tells none) goes to the least urgent that is.

    Returns how many of the letters, from the front, were accepted.
    """
    added = 0
    levels = buffer.config.flow_control.priority_levels
    for priority, group in groupby(letters, key=lambda letter: min(letter.priority, levels)):
        events = [letter.event for letter in group]
        accepted = buffer.add_events(events, priority=priority, timeout=_PATIENCE).accepted
        added += accepted
        if accepted < len(events):
            break
    return added


def _to_file(
    view: BufferView, options: argparse.Namespace, ticker: Ticker
) -> tuple[int, dict[str, int]]:
    replayed = 0
    stayed: dict[str, int] = {}
    with _owned_letters(view) as store, open(options.to, "ab") as out:
        letters = _choose(options, store.letters())
        while chunk := list(islice(letters, _CHUNK)):
            clear = [
                letter for letter in chunk if options.format != "lines" or b"\n" not in letter.event
            ]
            if len(clear) < len(chunk):
                why = (
                    "their events hold newlines, so lines would not show where they end: "
                    "use --format records"
                )
                stayed[why] = stayed.get(why, 0) + len(chunk) - len(clear)
            for letter in clear:
                out.write(framed(_one(letter.event), options.format))
            out.flush()
            os.fsync(out.fileno())
            replayed += store.purge(clear)
            ticker.advance(sum(len(letter.event) for letter in clear), "replayed")
    return replayed, stayed


@contextmanager
def _owned_letters(view: BufferView) -> Iterator[DeadLetterStore]:
    """The dead letters of a directory that this process owns meanwhile.

    Raises DirectoryInUse.
    """
    with BufferDirectory(view.path) as directory:
        store = DeadLetterStore(directory.lane("dead-letters"), directory.buffer_id)
        with closing(store):
            yield store


def _one(event: bytes) -> Messages:
    return Messages.from_columns(np.frombuffer(event, np.uint8), np.array([0, len(event)]))


# ---------------------------------------------------------------- purge


def _purge(options: argparse.Namespace) -> int:
    if not (
        options.all or options.ids or options.priority is not None or options.error is not None
    ):
        say("choose which letters to purge, by their ids, --priority or --error, or --all")
        return USAGE
    view = look_at_buffer(options.directory)
    refuse_owner(view, "dlq purge")
    if not options.yes:
        count = sum(1 for _ in _choose(options, _read_letters(view, [])))
    elif view.dead_letters is None:
        count = 0
    else:
        with _owned_letters(view) as store:
            count = store.purge(list(_choose(options, store.letters())))
    if options.json:
        print(json.dumps({"directory": view.path, "done": options.yes, "letters": count}, indent=2))
    elif options.yes:
        if not options.quiet:
            print(f"{count:,} letters purged")
    elif count:
        print(f"would purge {count:,} letters. Nothing was done: `--yes` does it.")
    elif not options.quiet:
        print("no such letters")
    return OK if options.yes or not count else FAILED
