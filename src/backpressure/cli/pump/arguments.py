"""The command line of `forebay pump`, and its exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from backpressure.buffer.config import Durability
from backpressure.buffer.from_mapping import parse_size
from backpressure.cli.common import (
    BY_CTRL_C,
    FAILED,
    OK,
    USAGE,
    checked,
    command_parser,
    number,
    whole_number,
)
from backpressure.sources.line_patterns import refuse_endless
from backpressure.sources.priority_rules import parse_rule

__all__ = ["DRAIN_SECONDS", "parse"]

# After a signal (seconds): long enough to write a full lane to a slow disk, short
# enough for a person who waits.
DRAIN_SECONDS = 2.0

_CODES = {
    OK: "every event was delivered",
    FAILED: "a source or the sink failed, or events were not delivered",
    USAGE: "the command line is wrong; nothing was read or written",
    BY_CTRL_C: "ended by Ctrl-C (SIGINT), 143 by SIGTERM: reading stops at once, what is\n"
    f"buffered is delivered for up to {DRAIN_SECONDS:g} s, and the rest is counted; a second\n"
    "signal ends it at once",
}
_ORDER = """
Without --priority-by the output is byte for byte the input. With it, each priority
keeps its order, and every line ends with a newline.

With --directory a run that is killed loses nothing that it had accepted: the next run
with that DIR delivers it first. It adds to SINK, so a line may come twice. Sources
are read from their beginning again, as pump keeps no positions: give a file's rest as
stdin (tail -c +N), or have `forebay serve` follow it.
"""


_positive = number("a number above 0", lambda value: value > 0)
_seconds = number("a number of seconds, 0 or more", lambda value: value >= 0)
_share = number("a share from 0 to 1", lambda value: 0 <= value <= 1)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options in `argv`; exits with code 2 and a message where they are wrong."""
    parser = command_parser(
        "pump",
        "Carry lines from files or stdin through a buffer to a sink, at least once and in order.",
        _CODES,
        behind=_ORDER,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a file, or - for stdin; several are joined as by cat",
    )
    add("--to", required=True, metavar="SINK", help="a file, which is overwritten, or - for stdout")
    add(
        "--append",
        action="store_true",
        help="add to an existing SINK instead of overwriting it; with --directory that is so",
    )
    add(
        "--directory",
        metavar="DIR",
        help="keep what was accepted in DIR until it is delivered, also what memory has no room "
        "for; what an earlier run has left there is delivered first",
    )
    add(
        "--durability",
        choices=[one.value for one in Durability],
        default=Durability.PROCESS.value,
        help="what it survives in DIR: the death of the process, a power loss but for the last "
        "milliseconds, or a power loss (default: %(default)s)",
    )
    add(
        "--priority-by",
        action="append",
        default=[],
        type=checked(parse_rule),
        metavar="REGEX=N",
        help="lines that match get priority N, from 1 (most urgent) to 5, all others 3; "
        "repeatable, the first match wins",
    )
    add(
        "--lane-bytes",
        type=checked(parse_size),
        metavar="SIZE",
        help="memory for each priority: bytes, or K, M, G or T of 1024 (64K, 64KB and 64KiB are "
        "the same; default: 64M; with --directory by the room there is)",
    )
    add("--rate", type=_positive, metavar="N", help="carry at most N events a second")
    add(
        "--batch-size",
        type=whole_number(1),
        metavar="N",
        help="at most N events in a batch (default: adapts itself)",
    )
    add(
        "--reset-timeout",
        type=_positive,
        default=1.0,
        metavar="S",
        help="the longest time for which the circuit breaker leaves a failed sink alone "
        "(default: %(default)s)",
    )
    add(
        "--retry-for",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="give up when the sink has failed for S seconds on end; 0: at once "
        "(default: %(default)s)",
    )
    add(
        "--inject-failures",
        type=_share,
        default=0.0,
        metavar="RATE",
        help="drill: let this share of the writes (0 to 1) fail, before or half-way",
    )
    add("--seed", type=int, default=0, help="seed of the injected failures (default: %(default)s)")
    add("--quiet", action="store_true", help="show only what went wrong")
    options = parser.parse_args(argv)
    try:
        refuse_endless(pattern for pattern, _ in options.priority_by)
    except ValueError as error:
        parser.error(f"argument --priority-by: {error}")
    return options
