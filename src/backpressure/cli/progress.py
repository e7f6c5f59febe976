"""What a long command shows while it runs and when it ends, all of it on stderr.

On a terminal, and where rich is installed, a live line and a table; anywhere else plain
lines, one every few seconds. rich is imported only where it is used: it takes longer to
import than a small file takes to pump.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from backpressure.cli.common import say

if TYPE_CHECKING:
    from backpressure.cli.pump.transfer import Progress

__all__ = ["Display", "Row", "make_display", "megabytes"]

Row: TypeAlias = tuple[str, str]

# Often enough to see that it runs, seldom enough for a log file.
_PLAIN_SECONDS = 5.0
# No eye reads numbers that change faster.
_LIVE_SECONDS = 0.1


class Display(Protocol):
    """Shows a run."""

    #: At most this many seconds pass from one `update` to the next.
    interval: float

    def update(self, progress: Progress, state: str) -> None:
        """Show how far a transfer is; `state` says what holds it up, or nothing."""
        ...

    def show(self, text: str, nbytes: int) -> None:
        """Show how far something else is, in words and in bytes done."""
        ...

    def note(self, text: str) -> None:
        """Show a remark."""
        ...

    def finish(self, rows: Sequence[Row]) -> None:
        """Show the closing table, if it has rows. Nothing is shown after that."""
        ...


def make_display(*, quiet: bool, total_bytes: int | None) -> Display:
    """What suits stderr. total_bytes: how much there is to carry, if known."""
    if quiet:
        return _Silent()
    if sys.stderr.isatty():
        try:
            return _Live(total_bytes)
        except ImportError:
            pass  # rich is an extra
    return _Plain()


def describe(progress: Progress, state: str) -> str:
    """One line of numbers, and what holds the run up."""
    seconds = max(progress.seconds, 1e-9)  # 0 within the clock's first tick
    return (
        f"{progress.events:,} events, {megabytes(progress.nbytes)}, "
        f"{progress.events / seconds:,.0f} events/s, {megabytes(progress.nbytes / seconds)}/s, "
        f"{progress.undelivered:,} buffered{state and ', '}{state}"
    )


def megabytes(nbytes: float) -> str:
    """Bytes for people: 10^6 bytes are 1 MB."""
    return f"{nbytes / 1e6:,.1f} MB"


class _Silent:
    interval = _PLAIN_SECONDS

    def update(self, progress: Progress, state: str) -> None:
        pass

    def show(self, text: str, nbytes: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def finish(self, rows: Sequence[Row]) -> None:
        pass


class _Plain:
    interval = _PLAIN_SECONDS

    def update(self, progress: Progress, state: str) -> None:
        self.note(describe(progress, state))

    def show(self, text: str, nbytes: int) -> None:
        self.note(text)

    def note(self, text: str) -> None:
        say(text)

    def finish(self, rows: Sequence[Row]) -> None:
        if not rows:
            return
        width = max(len(name) for name, _ in rows)
        print(
            "\n".join(f"{name:<{width}}  {value}" for name, value in rows),
            file=sys.stderr,
            flush=True,
        )


class _Live:
    interval = _LIVE_SECONDS

    def __init__(self, total_bytes: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
        if total_bytes:
            columns[1:1] = [BarColumn(bar_width=20), TaskProgressColumn()]
        self._console = Console(stderr=True)
        # Its own refresh thread is not used: the main thread has nothing else to do.
        self._progress = RichProgress(
            *columns, console=self._console, auto_refresh=False, transient=True
        )
        self._task = self._progress.add_task("starting", total=total_bytes or None)
        self._progress.start()

    def update(self, progress: Progress, state: str) -> None:
        self.show(describe(progress, state), progress.nbytes)

    def show(self, text: str, nbytes: int) -> None:
        self._progress.update(self._task, completed=nbytes, description=text, refresh=True)

    def note(self, text: str) -> None:
        self._console.print(f"forebay: {text}", markup=False, highlight=False)

    def finish(self, rows: Sequence[Row]) -> None:
        from rich.box import SIMPLE_HEAVY
        from rich.table import Table

        self._progress.stop()
        if not rows:
            return
        table = Table("forebay pump", "", box=SIMPLE_HEAVY)
        table.columns[1].justify = "right"
        for name, value in rows:
            table.add_row(name, value)
        self._console.print(table)
