"""`forebay bench`: the hot paths of this machine, each beside its yardstick.

It takes less than a minute.

Every figure is a ratio of two times measured in one run, turn by turn, because absolute
times on a shared machine mean little: the library's over that of a well-known yardstick
(a copy, a deque, `cat`). bench/micro measures the same figures in their long form.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from backpressure.cli.bench.hot_paths import PER_BATCH, PER_EVENT, figures
from backpressure.cli.bench.measurement import Figure, Measurement, measure
from backpressure.cli.bench.report import heading, line_of, machine, markdown
from backpressure.cli.common import FAILED, OK, USAGE, command_parser

__all__ = ["Figure", "Measurement", "figures", "main", "measure", "verdict"]

# What the library promises on one core, with all policies on (events a second).
_PROMISE = 10_000_000

_CODES = {
    OK: "every figure keeps its limit, and the buffer its promise",
    FAILED: "a figure is over its limit, or the buffer below its promise",
    USAGE: "the command line is wrong",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The sub-command; the exit code is 0 where every figure keeps its limit."""
    options = _parse(argv)
    print(machine())
    print(heading())
    measurements = []
    for make in figures(long=options.long):
        figure = make()
        try:
            measurements.append(measure(figure))
        finally:
            figure.close()
        print(line_of(measurements[-1]), flush=True)
    if options.record:
        Path(options.record).write_text(markdown(measurements))
    keeps_promise = _judge_promise(measurements)
    return OK if keeps_promise and all(one.within for one in measurements) else FAILED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(
        "bench",
        "Measure the hot paths of this machine, each beside its yardstick. "
        "Run it while nothing else runs.",
        _CODES,
    )
    parser.add_argument(
        "--long",
        action="store_true",
        help="2,000,000 lines instead of 400,000 (needs 2 GB of memory)",
    )
    parser.add_argument(
        "--record",
        metavar="FILE",
        help="also write the table to FILE as Markdown, with date and host",
    )
    return parser.parse_args(argv)


def _judge_promise(measurements: Sequence[Measurement]) -> bool:
    """Print whether this machine keeps the promise; whether it does per batch."""
    per_batch = next(one.rate for one in measurements if one.figure.name == PER_BATCH)
    per_event = next(one.rate for one in measurements if one.figure.name == PER_EVENT)
    print(f"\n{verdict(per_batch, per_event)}")
    return per_batch >= _PROMISE


def verdict(per_batch: float, per_event: float) -> str:
    """The promise and what became of it: README has the same line."""
    kept = ", ".join(
        f"{what} {'yes' if rate >= _PROMISE else 'no'} ({rate / 1e6:,.2f} million)"
        for what, rate in (("per batch", per_batch), ("per event", per_event))
    )
    return f"{_PROMISE // 1_000_000} million events a second: {kept}"
