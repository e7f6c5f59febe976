"""`penstock top URL`: a running buffer, refreshed live, from the `/buffer/stats` of its HTTP server.

Rates are differences of two readings over the buffer's own clock, so a slow network does not bend them. A reading that is below
the one before comes from a new process: it starts a new difference. What the server does not tell is shown as "-".
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from backpressure.cli.arguments import FAILED, OK, USAGE
from backpressure.histogram import HistogramStats

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Reading", "main", "stats_url"]

# A reading takes microseconds on the server; a server that needs longer than this is not well (seconds).
_TIMEOUT = 3.0
# No sensible answer is larger.
_MOST_BYTES = 4 << 20
_RATED = ("offered", "accepted", "acked", "redelivered")
_BAR_WIDTH = 10


class Reading:
    """One answer of the server, and the rates since the one before."""

    def __init__(self, stats: Mapping[str, Any], before: Reading | None = None) -> None:
        self.stats = stats
        seconds = float(stats["at"]) - float(before.stats["at"]) if before is not None else 0.0
        if before is None or seconds <= 0 or stats["offered"] < before.stats["offered"]:
            before = None
        self._before = before
        self._seconds = seconds

    def lanes(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Priority and lane, the most urgent first."""
        return sorted(self.stats["lanes"].items(), key=lambda item: int(item[0]))

    def rate(self, name: str, priority: str | None = None) -> float | None:
        """A counter's increase a second, of a lane or the whole; a counter by reason is added up."""
        if self._before is None:
            return None
        now, then = (_count(_part(one.stats, priority).get(name)) for one in (self, self._before))
        return None if now is None or then is None else (now - then) / self._seconds


def main(argv: Sequence[str]) -> int:
    """Run `penstock top` with these arguments; returns the exit code."""
    parser = argparse.ArgumentParser(prog="penstock top", description="Watch a running buffer.")
    parser.add_argument("where", metavar="URL", help="its HTTP server, as http://127.0.0.1:8127")
    parser.add_argument("--interval", type=_interval, default=1.0, metavar="S", help="seconds between two looks (default: 1)")
    parser.add_argument("--once", action="store_true", help="show it once and end")
    options = parser.parse_args(argv)
    try:
        url = stats_url(options.where)
    except ValueError as error:
        print(f"penstock: {error}", file=sys.stderr)
        return USAGE
    try:
        from rich.console import Console
    except ImportError:
        print("penstock: top needs rich: pip install 'penstock[cli]'", file=sys.stderr)
        return FAILED
    console = Console()
    if options.once or not console.is_terminal:
        return _show_once(console, url)
    try:
        return _watch(console, url, options.interval)
    except KeyboardInterrupt:
        return OK


def stats_url(where: str) -> str:
    """The address of the statistics of the server at `where`. ValueError where it is no address of one."""
    if os.path.isdir(where):
        raise ValueError(
            f"{where} is a directory: rates and delays are known only to the process that has it open; "
            "give the URL of its HTTP server, as http://127.0.0.1:8127"
        )
    parts = urlsplit(where if "://" in where else f"http://{where}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ValueError(f"{where!r} is no URL of an HTTP server: write http://127.0.0.1:8127")
    path = parts.path.rstrip("/")
    if not path.endswith("/buffer/stats"):
        path = path.removesuffix("/buffer") + "/buffer/stats"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def fetch(url: str) -> Mapping[str, Any]:
    """What the server says. OSError or ValueError, in words."""
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "penstock-top"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            text = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        raise OSError(f"{url}: {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{url}: {error.reason}") from None
    try:
        stats = json.loads(text)
        if not isinstance(stats["lanes"], dict) or not {"at", "offered"} <= stats.keys():
            raise KeyError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{url}: the answer is no statistics of a buffer") from None
    return dict(stats)


def _show_once(console: Any, url: str) -> int:
    """Two readings, for the rates, and their table."""
    try:
        before = Reading(fetch(url))
        time.sleep(0.5)
        console.print(_screen(Reading(fetch(url), before), url, None))
    except (OSError, ValueError) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return FAILED
    return OK


def _watch(console: Any, url: str, interval: float) -> int:
    from rich.live import Live
    from rich.text import Text

    reading: Reading | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            problem = None
            try:
                reading = Reading(fetch(url), reading)
            except (OSError, ValueError) as error:
                problem = str(error)
            nothing = Text(problem or "", style="bold red")
            live.update(nothing if reading is None else _screen(reading, url, problem), refresh=True)
            time.sleep(max(0.0, interval - (time.monotonic() - begun)))


def _screen(reading: Reading, url: str, problem: str | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(("penstock top  ", "bold"), (url, "dim"))
    if problem is not None:
        head.append(f"\n{problem}; what follows is old", style="bold red")
    return Group(head, _states(reading.stats), _lane_table(reading), _policies(reading))


def _states(stats: Mapping[str, Any]) -> RenderableType:
    """What is not as it should be, first."""
    from rich.text import Text

    line = Text()
    pressure = _part(stats, "pressure", table="") or {}
    active = stats.get("backpressure_active")
    signal = f" by {pressure.get('signal')}" if active and pressure.get("signal") else ""
    line.append(f" pressure {_number(pressure.get('pressure'), '.0%')}{signal} ", "white on red" if active else "black on green")
    state = _part(stats, "circuit_breaker", table="").get("state", "-")
    line.append("  ")
    line.append(f" circuit {state} ", "black on green" if state == "closed" else "white on red")
    if _part(stats, "flow_control", table="").get("emergency"):
        line.append("  ")
        line.append(" EMERGENCY: shedding ", "white on red")
    if stats.get("closed"):
        line.append("  ")
        line.append(" closed ", "white on red")
    return line


def _lane_table(reading: Reading) -> RenderableType:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("priority", "offered/s", "accepted/s", "acked/s", "refused/s", "dropped", "waiting", "in flight", "retrying"):
        table.add_column(name, justify="right")
    for name in ("oldest", "delay p95", "latency p95", "memory"):
        table.add_column(name, justify="right")
    for priority, lane in reading.lanes():
        table.add_row(priority, *_cells(reading, lane, priority), style="dim" if not lane.get("offered") else None)
    table.add_section()
    table.add_row("all", *_cells(reading, reading.stats, None), style="bold")
    return table


def _cells(reading: Reading, part: Mapping[str, Any], priority: str | None) -> list[str]:
    rates = [_number(reading.rate(name, priority), ",.0f") for name in ("offered", "accepted", "acked", "rejected")]
    counts = [_number(_count(part.get(name)), ",.0f") for name in ("dropped", "waiting", "in_flight", "retrying")]
    used, capacity = part.get("used_bytes"), part.get("capacity_bytes")
    share = used / capacity if used is not None and capacity else None
    bar = "-" if share is None else f"{'█' * round(share * _BAR_WIDTH):<{_BAR_WIDTH}} {share:4.0%}"
    parts = [part] if priority is not None else [lane for _, lane in reading.lanes()]
    tails = [_seconds(_quantile([one.get(name) for one in parts], 0.95)) for name in ("queue_delay", "batch_latency")]
    return [*rates, *counts, _seconds(part.get("oldest_age")), *tails, bar]


def _policies(reading: Reading) -> RenderableType:
    from rich.text import Text

    stats = reading.stats
    flow, batching = _part(stats, "flow_control", table=""), _part(stats, "batching", table="")
    breaker = _part(stats, "circuit_breaker", table="")
    rows = [
        f"rate limit {_number(flow.get('rate_limit'), ',.0f')}/s, in force {_number(flow.get('rate_in_force'), ',.0f')}/s, "
        f"tokens {_number(flow.get('tokens'), ',.0f')}, sink failures {_number(flow.get('failure_rate'), '.1%')}",
        f"batch size {_number(batching.get('batch_size'), ',.0f')}, score {_number(batching.get('score'), '.2f')}, "
        f"acked {_number(stats.get('batches_acked'), ',.0f')}, nacked {_number(stats.get('batches_nacked'), ',.0f')}, "
        f"redelivered events {_number(stats.get('redelivered'), ',.0f')}",
        f"circuit trips {_number(stats.get('circuit_trips'), ',.0f')}, "
        f"failure rate {_number(breaker.get('failure_rate'), '.0%')}, tries again in {_seconds(breaker.get('retry_after'))}; "
        f"under backpressure {_seconds(stats.get('backpressure_seconds'))}",
    ]
    refused = ", ".join(f"{reason} {count:,}" for reason, count in dict(stats.get("rejected") or {}).items() if count)
    lost = ", ".join(f"{reason} {count:,}" for reason, count in dict(stats.get("dropped") or {}).items() if count)
    rows.append(f"refused so far: {refused or 'none'}; dropped so far: {lost or 'none'}")
    return Text("\n".join(rows))


def _part(stats: Mapping[str, Any], name: str | None, table: str = "lanes") -> Mapping[str, Any]:
    """A table within the statistics; empty where it is not there."""
    if name is None:
        return stats
    found = (stats.get(table) or {}).get(name) if table else stats.get(name)
    return found if isinstance(found, Mapping) else {}


def _count(value: Any) -> float | None:
    """A counter; one by reason is added up."""
    if isinstance(value, Mapping):
        return float(sum(value.values()))
    return None if value is None else float(value)


def _quantile(histograms: Sequence[Any], q: float) -> float | None:
    """Of several histograms with the same bounds together; None where they hold nothing."""
    try:
        bounds = tuple(histograms[0]["bounds"])
        counts = tuple(map(sum, zip(*(one["counts"] for one in histograms), strict=True)))
        stats = HistogramStats(bounds=bounds, counts=counts, sum=0.0)
    except (KeyError, TypeError, ValueError):
        return None  # an older server has none
    return stats.quantile(q) if stats.count else None


def _number(value: Any, pattern: str) -> str:
    """A number as text. JSON has no infinity, so the server writes null where there is no limit; what is missing is null too."""
    return "-" if value is None else format(value, pattern)


def _seconds(value: Any) -> str:
    if value is None:
        return "-"
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return f"{value:,.2f} s" if value >= 1 else f"{value * 1e3:,.0f} ms"


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds
