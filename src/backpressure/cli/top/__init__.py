"""`forebay top URL|DIR`: a buffer, live.

A running one by its HTTP server, or any by its directory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from backpressure.cli.common import FAILED, OK, USAGE, command_parser, number, say
from backpressure.cli.top.directory import DirectoryView
from backpressure.cli.top.server import ServerView

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["main"]

_CODES = {
    OK: "shown; Ctrl-C ends it",
    FAILED: "it cannot be read, or rich is not installed",
    USAGE: "the command line is wrong, or it names neither a directory nor the URL of an\n"
    "HTTP server",
}
_interval = number("a number of seconds from 0.1 to 3600", lambda value: 0.1 <= value <= 3600)


class _View(Protocol):
    """What is watched. Each reading gets the one before it, for the rates."""

    def read(self, before: Any) -> Any: ...

    def screen(self, reading: Any, problem: str | None) -> RenderableType: ...


def main(argv: Sequence[str]) -> int:
    """Run `forebay top` with these arguments; returns the exit code."""
    parser = command_parser(
        "top",
        "Watch a buffer: a running one by its HTTP server, or any by its directory, "
        "which is only read.",
        _CODES,
    )
    parser.add_argument(
        "where",
        metavar="URL|DIR",
        help="its HTTP server, as http://127.0.0.1:8127, or its directory",
    )
    parser.add_argument(
        "--sink", metavar="NAME", help="which of several sinks of a server, whose buffer to show"
    )
    parser.add_argument(
        "--interval",
        type=_interval,
        default=1.0,
        metavar="S",
        help="seconds between two looks (default: 1)",
    )
    parser.add_argument("--once", action="store_true", help="show it once and end")
    options = parser.parse_args(argv)
    try:
        view = (
            DirectoryView(options.where)
            if os.path.isdir(options.where)
            else ServerView(options.where, options.sink)
        )
    except ValueError as error:
        say(str(error))
        return USAGE
    try:
        from rich.console import Console
    except ImportError:
        say("top needs rich: pip install 'forebay[cli]'")
        return FAILED
    console = Console()
    if options.once or not console.is_terminal:
        return _show_once(console, view)
    try:
        return _watch(console, view, options.interval)
    except KeyboardInterrupt:
        return OK


def _show_once(console: Any, view: _View) -> int:
    """Two readings, for the rates, and their table."""
    try:
        before = view.read(None)
        time.sleep(0.5)
        console.print(view.screen(view.read(before), None))
    except (OSError, ValueError) as error:
        say(str(error))
        return FAILED
    return OK


def _watch(console: Any, view: _View, interval: float) -> int:
    from rich.live import Live
    from rich.text import Text

    reading = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            problem = None
            try:
                reading = view.read(reading)
            except (OSError, ValueError) as error:
                problem = str(error)
            nothing = Text(problem or "", style="bold red")
            live.update(nothing if reading is None else view.screen(reading, problem), refresh=True)
            time.sleep(max(0.0, interval - (time.monotonic() - begun)))
