"""What `forebay top URL` shows: a running buffer, by its `/buffer/stats`.

Rates are differences of two readings over the buffer's own clock, so a slow network
does not change them. A reading below the one before comes from a new process, and has
no rates. What the answer lacks is shown as "-".
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from backpressure.base.histogram import HistogramStats
from backpressure.cli.top.cells import bar, make_table, number, seconds, short

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Reading", "ServerView", "stats_url"]

# A server answers within microseconds: after this (seconds) something is wrong with it.
_TIMEOUT = 3.0
# No answer is larger.
_MOST_BYTES = 4 << 20


class Reading:
    """One answer of the server, and the rates since the one before."""

    def __init__(self, stats: Mapping[str, Any], before: Reading | None = None) -> None:
        self.stats = stats
        elapsed = float(stats["at"]) - float(before.stats["at"]) if before is not None else 0.0
        if before is None or elapsed <= 0 or stats["offered"] < before.stats["offered"]:
            before = None
        self._before = before
        self._seconds = elapsed

    def lanes(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Priority and lane, the most urgent first."""
        return sorted(self.stats["lanes"].items(), key=lambda item: int(item[0]))

    def rate(self, name: str, priority: str | None = None) -> float | None:
        """A counter's increase a second, of a lane or of all.

        A counter by reason is added up.
        """
        if self._before is None:
            return None
        now, then = (_count(_part(one.stats, priority).get(name)) for one in (self, self._before))
        return None if now is None or then is None else (now - then) / self._seconds


class ServerView:
    """A buffer behind the HTTP server at this address; sink: whose, of several.

    Raises ValueError where it is no address of one.
    """

    def __init__(self, where: str, sink: str | None = None) -> None:
        self.url = stats_url(where) + ("" if sink is None else f"?{urlencode({'sink': sink})}")

    def read(self, before: Reading | None) -> Reading:
        """A reading. Raises OSError or ValueError, in words for people."""
        return Reading(_fetch_stats(self.url), before)

    def screen(self, reading: Reading, problem: str | None) -> RenderableType:
        """What to show; `problem`: why there is no newer reading."""
        return screen(reading, self.url, problem)


def stats_url(where: str) -> str:
    """The address of the statistics of the server at `where`.

    Raises ValueError where it is no address of one.
    """
    parts = urlsplit(where if "://" in where else f"http://{where}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ValueError(
            f"{where!r} is neither a directory nor the URL of an HTTP server, "
            "as http://127.0.0.1:8127"
        )
    path = parts.path.rstrip("/")
    if not path.endswith("/buffer/stats"):
        path = path.removesuffix("/buffer") + "/buffer/stats"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _fetch_stats(url: str) -> Mapping[str, Any]:
    """The statistics. Raises OSError or ValueError, in words for people."""
    request = urllib.request.Request(
        url, headers={"Accept": "application/json", "User-Agent": "forebay-top"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            text = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        # 404 of a server with several sinks: it lists their names.
        raise OSError(f"{url}: {error.code} {_detail(error) or error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{url}: {error.reason}") from None
    try:
        stats = json.loads(text)
        if not isinstance(stats["lanes"], dict) or not {"at", "offered"} <= stats.keys():
            raise KeyError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{url}: the answer is no statistics of a buffer") from None
    return dict(stats)


def _detail(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong, where it says so as this library does."""
    try:
        detail = json.loads(error.read(_MOST_BYTES))["detail"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return " ".join(detail.split())[:500] if isinstance(detail, str) else ""


def screen(reading: Reading, url: str, problem: str | None) -> RenderableType:
    """What to show of a reading."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(("forebay top  ", "bold"), (url, "dim"))
    if problem is not None:
        head.append(f"\n{problem}; what follows is old", style="bold red")
    return Group(
        head, _signal_line(reading.stats), *_lane_tables(reading), "", _policy_lines(reading)
    )


def _signal_line(stats: Mapping[str, Any]) -> RenderableType:
    """Pressure, circuit and emergency."""
    from rich.text import Text

    line = Text()
    pressure = _part(stats, "pressure", table="") or {}
    active = stats.get("backpressure_active")
    signal = f" by {pressure.get('signal')}" if active and pressure.get("signal") else ""
    line.append(
        f" pressure {number(pressure.get('pressure'), '.0%')}{signal} ",
        "white on red" if active else "black on green",
    )
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


_RATES = ("offered", "accepted", "acked", "rejected")
_COUNTS = ("dropped", "waiting", "in_flight", "retrying")
_TAILS = ("queue_delay", "batch_latency")


def _lane_tables(reading: Reading) -> Iterator[RenderableType]:
    """Flow and counts; times and memory."""
    counts = make_table(
        "priority",
        "offered/s",
        "accepted/s",
        "acked/s",
        "refused/s",
        "dropped",
        "waiting",
        "out",
        "retrying",
    )
    times = make_table("priority", "oldest", "delay p95", "latency p95", "memory")
    rows: list[tuple[str | None, Mapping[str, Any]]] = [*reading.lanes(), (None, reading.stats)]
    for priority, part in rows:
        style = "bold" if priority is None else None if part.get("offered") else "dim"
        if priority is None:
            counts.add_section()
            times.add_section()
        title = "all" if priority is None else priority
        rates = (short(reading.rate(name, priority)) for name in _RATES)
        counts.add_row(
            title, *rates, *(short(_count(part.get(name))) for name in _COUNTS), style=style
        )
        lanes = [lane for _, lane in reading.lanes()] if priority is None else [part]
        tails = (seconds(_quantile([lane.get(name) for lane in lanes], 0.95)) for name in _TAILS)
        filled = bar(part.get("used_bytes"), part.get("capacity_bytes"))
        times.add_row(title, seconds(part.get("oldest_age")), *tails, filled, style=style)
    yield from ("", counts, "", times)


def _policy_lines(reading: Reading) -> RenderableType:
    from rich.text import Text

    stats = reading.stats
    flow, batching = _part(stats, "flow_control", table=""), _part(stats, "batching", table="")
    breaker = _part(stats, "circuit_breaker", table="")
    rows = [
        f"rate limit {number(flow.get('rate_limit'))}/s, "
        f"in force {number(flow.get('rate_in_force'))}/s, "
        f"tokens {number(flow.get('tokens'))}, "
        f"sink failures {number(flow.get('failure_rate'), '.1%')}",
        f"batch size {number(batching.get('batch_size'))}, "
        f"score {number(batching.get('score'), '.2f')}, "
        f"acked {number(stats.get('batches_acked'))}, "
        f"nacked {number(stats.get('batches_nacked'))}, "
        f"redelivered events {number(stats.get('redelivered'))}",
        f"circuit trips {number(stats.get('circuit_trips'))}, "
        f"failure rate {number(breaker.get('failure_rate'), '.0%')}, "
        f"tries again in {seconds(breaker.get('retry_after'))}; "
        f"under backpressure {seconds(stats.get('backpressure_seconds'))}",
    ]
    if delivery := _part(stats, "delivery", table=""):
        rows.append(_delivery_line(delivery))
    refused = ", ".join(
        f"{reason} {count:,}"
        for reason, count in dict(stats.get("rejected") or {}).items()
        if count
    )
    lost = ", ".join(
        f"{reason} {count:,}" for reason, count in dict(stats.get("dropped") or {}).items() if count
    )
    rows.append(f"refused so far: {refused or 'none'}; dropped so far: {lost or 'none'}")
    if stats.get("dead_letters") is not None:
        line = f"dead letters kept: {number(stats['dead_letters'])}"
        if lost_letters := stats.get("dead_letters_lost"):
            line += f", forgotten: {number(lost_letters)}"
        if stats.get("recovery_seconds") is not None:
            line += f"; the start took {seconds(stats['recovery_seconds'])}"
        rows.append(line)
    return Text("\n".join(rows))


def _delivery_line(delivery: Mapping[str, Any]) -> str:
    line = (
        f"sink {delivery.get('sink')}: {number(delivery.get('in_flight'))} of "
        f"{number(delivery.get('limit'))} batches in flight, "
        f"taken {number(delivery.get('batches_taken'))}, "
        f"failures {number(delivery.get('failures'))}"
    )
    if delivery.get("error") is not None:
        return f"{line}; ended: {delivery['error']}"
    if delivery.get("failing_for"):
        return f"{line}; fails for {seconds(delivery['failing_for'])}: {delivery.get('last_error')}"
    return line if delivery.get("running") else f"{line}; ended"


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
    """The quantile of several histograms with the same bounds together.

    None where they hold nothing.
    """
    try:
        bounds = tuple(histograms[0]["bounds"])
        counts = tuple(map(sum, zip(*(one["counts"] for one in histograms), strict=True)))
        stats = HistogramStats(bounds=bounds, counts=counts, sum=0.0)
    except (KeyError, TypeError, ValueError):
        return None  # an older server has none
    return stats.quantile(q) if stats.count else None
