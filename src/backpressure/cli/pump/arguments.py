"""The command line of `forebay pump`, and the exit codes that it promises."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from backpressure.sources.priority_rules import Rule, parse_rule

__all__ = ["BY_SIGNAL", "DRAIN_SECONDS", "FAILED", "OK", "USAGE", "parse"]

OK, FAILED, USAGE = 0, 1, 2
BY_SIGNAL = 128  # the shell's convention: 130 for SIGINT, 143 for SIGTERM

# After a signal: long enough to write out a full lane on a slow disk, short enough for someone in a hurry.
DRAIN_SECONDS = 2.0

_EXIT_CODES = f"""\
exit codes:
  {OK}    every event was delivered
  {FAILED}    a source or the sink failed, or events were not delivered
  {USAGE}    the command line is wrong; nothing was read or written
  130  ended by Ctrl-C (SIGINT), 143 by SIGTERM: reading stops at once, what is buffered is
       delivered for up to {DRAIN_SECONDS:g} s, and the rest is counted; a second signal ends it at once

Without --priority-by the output is byte for byte the input. With it, each priority keeps its order, and every
line is ended with a newline.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options in `argv`; exits with code 2 and a message where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="forebay pump",
        description="Carry lines from files or stdin through a buffer to a sink, at least once and in order.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a file, or - for stdin; several are joined as by cat",
    )
    add("--to", required=True, metavar="SINK", help="a file, which is overwritten, or - for stdout")
    add("--append", action="store_true", help="add to an existing SINK instead of overwriting it")
    add(
        "--priority-by",
        action="append",
        default=[],
        type=_rule,
        metavar="REGEX=N",
        help="lines that match get priority N, from 1 (most urgent) to 5, all others 3; "
        "repeatable, the first match wins",
    )
    add(
        "--lane-bytes",
        type=_size,
        metavar="SIZE",
        help="memory for each priority, as 512K, 64M (the default) or 1G",
    )
    add("--rate", type=_positive, metavar="N", help="carry at most N events a second")
    add(
        "--batch-size",
        type=_count,
        metavar="N",
        help="at most N events in a batch (default: adapts itself)",
    )
    add(
        "--reset-timeout",
        type=_positive,
        default=1.0,
        metavar="S",
        help="seconds until the circuit breaker tries a failed sink again (default: %(default)s)",
    )
    add(
        "--retry-for",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="give up when the sink has failed for S seconds on end; 0: at once (default: %(default)s)",
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
    return parser.parse_args(argv)


def _rule(text: str) -> Rule:
    try:
        return parse_rule(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _size(text: str) -> int:
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    unit = units.get(text[-1:].upper(), 1)
    digits = text if unit == 1 else text[:-1]
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write bytes, or 64K, 64M, 1G")
    return int(digits) * unit


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _seconds(text: str) -> float:
    number = _number(text)
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return number


def _share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return number


def _number(text: str) -> float:
    """A finite number; anything else becomes NaN, which is in no range."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan
