"""The table of a run: lines for the terminal, or Markdown for a file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from backpressure.cli.bench.measurement import Measurement

__all__ = ["heading", "line_of", "machine", "markdown"]

_ROW = "{:<42} {:>12} {:>10} {:>7} {:>7}  {}"


def heading() -> str:
    """The names of the columns."""
    return _ROW.format("", "M events/s", "time", "ratio", "limit", "yardstick")


def line_of(measured: Measurement) -> str:
    """One figure."""
    figure = measured.figure
    return _ROW.format(
        figure.name,
        f"{measured.rate / 1e6:.2f}" if figure.events else "",
        _duration(measured.ours / max(figure.events, 1)),
        f"{measured.ratio:.2f}",
        "" if figure.limit is None else f"{figure.limit:.1f}",
        figure.yardstick + ("" if measured.within else "   OVER ITS LIMIT"),
    )


def machine() -> str:
    """What runs the bench, in a line."""
    return (
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"{os.cpu_count()} cores, {platform.machine()}"
    )


def markdown(measurements: Sequence[Measurement]) -> str:
    """The table of a run, for a file."""
    lines = [
        f"{date.today()}, {platform.python_implementation()} {platform.python_version()}, "
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "",
        "| what | each | million a second | yardstick | ratio | limit |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for one in measurements:
        figure = one.figure
        lines.append(
            f"| {figure.name} | {_duration(one.ours / figure.events)} | {one.rate / 1e6:.1f} "
            f"| {figure.yardstick} | {one.ratio:.2f} "
            f"| {'' if figure.limit is None else figure.limit} |"
        )
    return "\n".join(lines) + "\n"


def _processor() -> str:
    """The processor's name, or its kind where the system has no name for it."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    names = [
        line.split(":", 1)[1].strip()
        for line in cpuinfo.splitlines()
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()


def _duration(seconds: float) -> str:
    return f"{seconds * 1e9:.1f} ns" if seconds < 1e-6 else f"{seconds * 1e6:.2f} us"
