"""What `forebay top DIR` shows: a buffer's directory from outside.

Beside its owner or after it. Nothing is written. What only the owner knows (delays,
policies, refusals) its HTTP server reports: `forebay top URL`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from backpressure.base.errors import BackpressureError
from backpressure.cli.top.cells import bar, make_table, number, seconds, short
from backpressure.cli.top.directory_reading import DirectoryReading, LaneState
from backpressure.spill.offline.directory_view import (
    NotABuffer,
    Owner,
    describe_owner,
    look_at_buffer,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["DirectoryView"]


class DirectoryView:
    """The directory of a buffer at this path."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock

    def read(self, before: DirectoryReading | None) -> DirectoryReading:
        """A reading. Raises OSError or ValueError, in words for people."""
        try:
            return DirectoryReading(look_at_buffer(self.path), self._clock(), before)
        except (NotABuffer, BackpressureError) as error:
            raise ValueError(str(error)) from None

    def screen(self, reading: DirectoryReading, problem: str | None) -> RenderableType:
        """What to show; `problem`: why there is no newer reading."""
        from rich.console import Group
        from rich.text import Text

        head = Text.assemble(
            ("forebay top  ", "bold"), (f"{self.path}  buffer {reading.view.buffer_id}", "dim")
        )
        if problem is not None:
            head.append(f"\n{problem}; what follows is old", style="bold red")
        return Group(
            head,
            _owner_line(reading.view.owner),
            "",
            _flow_table(reading),
            "",
            _file_table(reading),
            "",
            *_remarks(reading),
        )


def _owner_line(owner: Owner | None) -> RenderableType:
    from rich.text import Text

    if owner is None:
        return Text(" no process has it open ", "black on yellow")
    return Text(f" open in {describe_owner(owner)} ", "black on green")


_Column: TypeAlias = tuple[str, Callable[[LaneState], int]]

_RATES: Final[tuple[_Column, ...]] = (
    ("accepted/s", lambda lane: lane.next_seq),
    # Acked, given up or dropped.
    ("settled/s", lambda lane: lane.next_seq - lane.owed),
    ("spilled/s", lambda lane: lane.disk_end),
)
_COUNTS: Final[tuple[_Column, ...]] = (
    ("owed", lambda lane: lane.owed),
    ("waiting", lambda lane: lane.ring_waiting),
    ("out", lambda lane: lane.ring_out),
    ("on disk", lambda lane: lane.disk_events),
)


def _flow_table(reading: DirectoryReading) -> RenderableType:
    """Rates, and where the owed events are."""
    table = make_table("priority", *(name for name, _ in (*_RATES, *_COUNTS)), "oldest")
    for priority, lane in reading.lanes.items():
        table.add_row(
            str(priority),
            *_counts_of(reading, [lane], priority),
            _age(lane.oldest_ns),
            style=None if lane.owed else "dim",
        )
    lanes = list(reading.lanes.values())
    table.add_section()
    oldest = min((lane.oldest_ns for lane in lanes if lane.oldest_ns), default=0)
    table.add_row("all", *_counts_of(reading, lanes, None), _age(oldest), style="bold")
    return table


def _file_table(reading: DirectoryReading) -> RenderableType:
    """Positions and files."""
    table = make_table("priority", "next number", "acked below", "segments", "disk bytes", "ring")
    for priority, lane in reading.lanes.items():
        ring = lane.ring
        # With nothing on disk, the ring's position is the newer one.
        acked = (
            lane.acked_below
            if ring is None or lane.disk_events
            else max(lane.acked_below, ring.acked_seq)
        )
        filled = (
            "-"
            if ring is None
            else "DAMAGED"
            if ring.damage is not None
            else bar(ring.used_bytes, ring.capacity_bytes)
        )
        style = "red" if filled == "DAMAGED" else None if lane.owed or lane.segments else "dim"
        counts = [number(count) for count in (lane.next_seq, acked, lane.segments, lane.disk_bytes)]
        table.add_row(str(priority), *counts, filled, style=style)
    return table


def _counts_of(
    reading: DirectoryReading, lanes: list[LaneState], priority: int | None
) -> list[str]:
    rates = [reading.rate(count, priority) for _, count in _RATES]
    # Ring and disk are read one after the other, so a rate near 0 may come out
    # negative.
    return [
        *(short(None if rate is None else max(rate, 0.0)) for rate in rates),
        *(short(sum(count(lane) for lane in lanes)) for _, count in _COUNTS),
    ]


def _remarks(reading: DirectoryReading) -> list[RenderableType]:
    """Dead letters, and what is damaged."""
    from rich.text import Text

    letters = reading.dead_letters
    lines: list[RenderableType] = []
    if letters is not None:
        text = f"dead letters {letters.disk_events:,}, {letters.disk_bytes:,} bytes"
        if letters.disk_events:
            text += (
                f", the oldest {_age(letters.oldest_ns)} ago: forebay dlq list {reading.view.path}"
            )
        lines.append(Text(text, "yellow" if letters.disk_events else ""))
    if reading.view.manifest != "sound":
        lines.append(Text(f"the manifest is {reading.view.manifest}", "bold red"))
    for lane in (*reading.lanes.values(), *([] if letters is None else [letters])):
        title = f"priority {lane.number}" if lane.number else "dead letters"
        if lane.ring is not None and lane.ring.damage is not None:
            lines.append(Text(f"{title}: {lane.ring.damage}", "bold red"))
        if lane.ring is not None and lane.ring.from_before_reboot:
            text = "the ring is from before a reboot: the next start salvages what is whole"
            lines.append(Text(f"{title}: {text}", "bold red"))
        if lane.damaged_headers or lane.quarantined:
            text = (
                f"{title}: {lane.damaged_headers} segments with a damaged header, "
                f"{lane.quarantined} damaged files kept aside, {lane.quarantined_bytes:,} bytes: "
                f"forebay verify {reading.view.path}"
            )
            lines.append(Text(text, "bold red"))
    return lines


def _age(time_ns: int) -> str:
    return seconds(max(time.time() - time_ns / 1e9, 0.0)) if time_ns else "-"
