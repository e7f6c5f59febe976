"""What `forebay top DIR` shows: a buffer's directory from outside, beside its owner or
after it.

It is all read from the files, and nothing is written: positions of the rings, ends of
the segments, acks. Numbers tell what has happened: the next number of a lane less the
one of a second ago is what it accepted, and what is owed has grown by that less what
was acked, given up or dropped. What only the owner knows (delays, policies, refusals)
its HTTP server tells: `forebay top URL`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from backpressure.base.errors import BackpressureError
from backpressure.cli.disk.ring_view import RingFileView, look_at_ring
from backpressure.cli.top.cells import bar, make_table, number, seconds, short
from backpressure.spill.offline.directory_view import (
    BufferView,
    LaneView,
    NotABuffer,
    Owner,
    describe_owner,
    look_at_buffer,
    look_at_lane,
)
from backpressure.spill.offline.lane_reader import (
    end_seq_of,
    owed_on_disk,
    settled_of,
    stored_events,
)
from backpressure.spill.runs import Run

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["DirectoryReading", "DirectoryView", "LaneState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """One priority's files, or those of the dead letters, at one moment."""

    number: int  #: 1 to 5, or 0 for the dead letters
    ring: RingFileView | None  #: None: there is none
    segments: int
    disk_bytes: int  #: of the segments
    disk_events: int  #: on disk, and owed
    disk_end: int  #: the number after the last one on disk
    acked_below: int  #: as the disk knows: every event with a lower number is settled
    oldest_ns: int  #: when the oldest event on disk was written there, ns since 1970; 0: nothing is there, or it is not known
    damaged_headers: int
    quarantined: int  #: files
    quarantined_bytes: int

    @property
    def next_seq(self) -> int:
        """The number that the next event gets: how many there have been."""
        ring = None if self.ring is None else self.ring.next_seq
        return self.disk_end if ring is None else max(ring, self.disk_end)

    @property
    def ring_waiting(self) -> int:
        """Numbers in the ring that nobody has taken."""
        ring = self.ring
        return (
            0
            if ring is None or ring.next_seq is None
            else max(ring.next_seq - max(ring.read_seq, self.disk_end), 0)
        )

    @property
    def ring_out(self) -> int:
        """Numbers in the ring that are with a consumer, or on their way to disk."""
        ring = self.ring
        if ring is None or ring.next_seq is None:
            return 0
        return max(ring.read_seq - max(ring.acked_seq, self.disk_end), 0)

    @property
    def owed(self) -> int:
        """Events accepted and not settled; a number that a killed producer took and
        never used counts until it is passed.
        """
        return self.ring_waiting + self.ring_out + self.disk_events


class DirectoryReading:
    """The directory at one moment, and the rates since the reading before."""

    def __init__(self, view: BufferView, at: float, before: DirectoryReading | None = None) -> None:
        """Reads it. Raises FormatError, OSError."""
        self.view = view
        self.at = at  #: seconds, of a steady clock
        self.lanes = {lane.number: _look(view, lane) for lane in view.lanes}
        self.dead_letters = None if view.dead_letters is None else _look(view, view.dead_letters)
        self._before = (
            before
            if before is not None and before.view.buffer_id == view.buffer_id and at > before.at
            else None
        )

    def rate(self, count: Callable[[LaneState], int], priority: int | None = None) -> float | None:
        """How fast a count of a lane, or of all, has grown, 1/s; None: nobody knows
        yet.
        """
        if self._before is None:
            return None
        total = 0
        for lane in self.lanes.values():
            if priority in (None, lane.number):
                then = self._before.lanes.get(lane.number)
                if (
                    then is None or lane.next_seq < then.next_seq
                ):  # another directory in the same place
                    return None
                total += count(lane) - count(then)
        return total / (self.at - self._before.at)


def _look(view: BufferView, lane: LaneView) -> LaneState:
    # The ring first: what goes to disk between the two looks is then in both, and
    # counted once by its numbers.
    ring = look_at_ring(lane.ring_path) if lane.number else None
    found = look_at_lane(view, lane)
    owed = owed_on_disk(found)
    first = (
        next((item for item in stored_events(view, lane) if isinstance(item, Run)), None)
        if owed
        else None
    )
    end_seq = end_seq_of(found)
    return LaneState(
        number=lane.number,
        ring=ring,
        segments=len(found.segments),
        disk_bytes=sum(segment.size for segment in found.segments),
        disk_events=owed,
        disk_end=end_seq,
        acked_below=min(settled_of(found).next_open(0), end_seq),
        oldest_ns=0 if first is None else first.time_ns,
        damaged_headers=found.damaged_headers,
        quarantined=len(found.quarantined),
        quarantined_bytes=sum(size for _, size in found.quarantined),
    )


class DirectoryView:
    """The directory of a buffer at this path."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock

    def read(self, before: DirectoryReading | None) -> DirectoryReading:
        """What it is like now. OSError or ValueError, in words."""
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
            _owner(reading.view.owner),
            "",
            _events(reading),
            "",
            _files(reading),
            "",
            *_below(reading),
        )


def _owner(owner: Owner | None) -> RenderableType:
    from rich.text import Text

    if owner is None:
        return Text(" nobody has it open ", "black on yellow")
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


def _events(reading: DirectoryReading) -> RenderableType:
    """Flow, and where what is owed is."""
    table = make_table("priority", *(name for name, _ in (*_RATES, *_COUNTS)), "oldest")
    for priority, lane in reading.lanes.items():
        table.add_row(
            str(priority),
            *_numbers(reading, [lane], priority),
            _age(lane.oldest_ns),
            style=None if lane.owed else "dim",
        )
    lanes = list(reading.lanes.values())
    table.add_section()
    oldest = min((lane.oldest_ns for lane in lanes if lane.oldest_ns), default=0)
    table.add_row("all", *_numbers(reading, lanes, None), _age(oldest), style="bold")
    return table


def _files(reading: DirectoryReading) -> RenderableType:
    """Positions and files."""
    table = make_table("priority", "next number", "acked below", "segments", "disk bytes", "ring")
    for priority, lane in reading.lanes.items():
        ring = lane.ring
        # With nothing on disk the ring knows better.
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


def _numbers(reading: DirectoryReading, lanes: list[LaneState], priority: int | None) -> list[str]:
    rates = [reading.rate(count, priority) for _, count in _RATES]
    # Ring and disk are read one after the other, so a rate near nothing may come out
    # below it.
    return [
        *(short(None if rate is None else max(rate, 0.0)) for rate in rates),
        *(short(sum(count(lane) for lane in lanes)) for _, count in _COUNTS),
    ]


def _below(reading: DirectoryReading) -> list[RenderableType]:
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
            lines.append(
                Text(
                    f"{title}: the ring is from before a reboot: the next start drops what is only there",
                    "bold red",
                )
            )
        if lane.damaged_headers or lane.quarantined:
            text = f"{title}: {lane.damaged_headers} segments with a damaged header, {lane.quarantined} damaged files kept aside"
            lines.append(
                Text(
                    f"{text}, {lane.quarantined_bytes:,} bytes: forebay verify {reading.view.path}",
                    "bold red",
                )
            )
    return lines


def _age(time_ns: int) -> str:
    return seconds(max(time.time() - time_ns / 1e9, 0.0)) if time_ns else "-"
