"""max_age: what is older is dropped and counted, and never delivered."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from backpressure import BufferConfig, BufferManager, ConfigError, EventType, WhenFull
from backpressure.base.events import EventsDropped
from backpressure.testing import FakeClock
from tests.support.buffers import EVENT, add_all, crash, drain, next_batch
from tests.support.durable import SMALL
from tests.support.threads import until

linux = pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux")


def make(
    clock: FakeClock, directory: Path | None = None, max_age: float | None = 10.0, **fields: Any
) -> BufferManager:
    if directory is not None:
        fields = {"spill": SMALL, **fields}
    config = BufferConfig(
        directory=directory, max_age=max_age, lane_bytes=1 << 14, retry_backoff=0.0, **fields
    )
    return BufferManager(config, clock=clock)


def dropped(buffer: BufferManager, priority: int = 3) -> int:
    """Events of a priority dropped for their age; the books balance."""
    stats = buffer.stats()
    stats.check()
    return stats.lanes[priority].dropped.get("age", 0)


@pytest.fixture(params=[False, pytest.param(True, marks=linux)], ids=["memory", "directory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "buffer" if request.param else None


def test_nothing_is_too_old_by_default(directory: Path | None) -> None:
    clock = FakeClock()
    with make(clock, directory, max_age=None) as buffer:
        buffer.add_events([b"a"])
        clock.advance(1e9)
        assert drain(buffer) == [b"a"]


def test_what_is_older_is_dropped_and_counted_by_priority(directory: Path | None) -> None:
    clock = FakeClock()
    with make(clock, directory) as buffer:
        buffer.add_events([b"a", b"b"], priority=1)
        buffer.add_events([b"c"])
        clock.advance(6.0)
        buffer.add_events([b"d"])
        clock.advance(4.0)
        # As old as they may be.
        batch = next_batch(buffer)
        assert batch.tolist() == [b"a", b"b"]
        batch.ack()
        clock.advance(0.5)
        assert drain(buffer) == [b"d"]
        assert [dropped(buffer, priority) for priority in (1, 3)] == [0, 1]
        clock.advance(20.0)
        buffer.stats().check()
        assert buffer.get_batch() is None


def test_what_a_consumer_has_is_its_own_and_what_it_gives_back_is_not(
    directory: Path | None,
) -> None:
    clock = FakeClock()
    with make(clock, directory) as buffer:
        buffer.add_events([b"a", b"b"])
        taken = next_batch(buffer)
        buffer.add_events([b"c"])
        given_back = next_batch(buffer)
        clock.advance(11.0)
        taken.ack()
        given_back.nack("no")
        clock.advance(1.0)
        assert buffer.get_batch() is None
        assert given_back.tolist() == [b"c"]
        assert (buffer.stats().acked, dropped(buffer)) == (2, 1)
        assert buffer.resident == 0


def test_of_a_batch_that_failed_the_younger_part_is_tried_again(directory: Path | None) -> None:
    clock = FakeClock()
    with make(clock, directory) as buffer:
        buffer.add_events([b"a", b"b"])
        clock.advance(5.0)
        buffer.add_events([b"c", b"d"])
        batch = next_batch(buffer)
        batch.nack("no")
        before = batch.id
        clock.advance(6.0)
        again = next_batch(buffer)
        assert (again.tolist(), again.attempt, again.first_seq) == ([b"c", b"d"], 2, 2)
        assert again.id != before
        assert batch.tolist() == [b"a", b"b", b"c", b"d"], "what was read stays readable"
        assert dropped(buffer) == 2
        again.ack()
        buffer.stats().check()


def test_one_that_pauses_behind_its_failure_holds_up_nothing_once_it_is_too_old() -> None:
    clock = FakeClock()
    config = BufferConfig(max_age=10.0, retry_backoff=100.0)
    with BufferManager(config, clock=clock) as buffer:
        buffer.add_events([b"a"])
        next_batch(buffer).nack("no")
        clock.advance(9.0)
        buffer.add_events([b"b"])
        assert buffer.get_batch() is None
        clock.advance(1.5)
        batch = next_batch(buffer)
        assert batch.tolist() == [b"b"]
        batch.ack()


def test_room_comes_back_without_a_consumer() -> None:
    clock = FakeClock()
    with make(clock) as buffer:
        while buffer.add_events([EVENT]):
            pass
        kept = buffer.resident
        clock.advance(9.0)
        assert buffer.add_events([EVENT]).reason == "full"
        clock.advance(2.0)
        assert buffer.add_events([EVENT])
        assert (dropped(buffer), buffer.resident) == (kept, 1)
        buffer.close(timeout=0)


def test_a_lane_that_is_full_of_what_is_too_old_takes_an_add_at_once() -> None:
    """Also between two looks at the lanes."""
    clock = FakeClock()
    with make(clock, max_age=0.001, when_full=WhenFull.DROP_OLDEST) as buffer:
        while not buffer.stats().dropped:
            buffer.add_events([EVENT])
        clock.advance(0.0111)
        resident = buffer.resident
        oldest = buffer.stats().dropped["oldest"]
        assert buffer.add_events([EVENT])
        assert (dropped(buffer), buffer.stats().dropped["oldest"]) == (resident, oldest)
        buffer.close(timeout=0)


def test_another_lane_is_not_overlooked(directory: Path | None) -> None:
    """One call finds what is there, however much before it is too old."""
    clock = FakeClock()
    with make(clock, directory, max_age=1.0) as buffer:
        buffer.add_events([b"a"] * 100, priority=1)
        clock.advance(1.0)
        buffer.add_events([b"b"], priority=5)
        clock.advance(0.005)
        batch = next_batch(buffer)
        assert batch.tolist() == [b"b"]
        assert dropped(buffer, 1) == 100
        batch.ack()


def test_handlers_hear_of_it_and_waiting_producers_go_on() -> None:
    clock = FakeClock()
    heard: list[EventsDropped] = []
    with make(clock) as buffer:
        buffer.on(EventType.EVENTS_DROPPED, heard.append)
        buffer.add_events([b"a", b"b"], priority=2)
        clock.advance(11.0)
        assert buffer.get_batch() is None
    assert [(one.priority, one.events, one.reason) for one in heard] == [(2, 2, "age")]


@linux
def test_what_was_spilled_is_dropped_too(tmp_path: Path) -> None:
    clock = FakeClock()
    with make(clock, tmp_path / "buffer") as buffer:
        add_all(buffer, [b"%04d" % number + EVENT for number in range(60)])
        until(lambda: buffer.stats().lanes[3].disk.waiting > 0)  # type: ignore[union-attr]
        clock.advance(5.0)
        add_all(buffer, [b"young"] * 3)
        clock.advance(5.5)
        assert drain(buffer) == [b"young"] * 3
        assert dropped(buffer) == 60


@linux
def test_the_disk_is_freed_without_a_consumer(tmp_path: Path) -> None:
    clock = FakeClock()
    with make(clock, tmp_path / "buffer") as buffer:
        add_all(buffer, [EVENT] * 60)
        until(lambda: buffer.stats().lanes[3].disk.waiting > 0)  # type: ignore[union-attr]
        clock.advance(10.5)
        until(lambda: dropped(buffer) == 60)
        assert buffer.resident == 0


class SystemClock:
    """What the system's clock says, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: self.now_ns)

    def advance(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@linux
@pytest.mark.parametrize("away", [3.0, 8.0])
def test_what_was_on_disk_is_as_old_as_it_was(
    away: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`close` writes what is owed, with the time at which it had arrived."""
    system, clock = SystemClock(monkeypatch), FakeClock(1000.0)
    buffer = make(clock, tmp_path / "buffer")
    buffer.add_events([b"a", b"b"])
    clock.advance(3.0)
    system.advance(3.0)
    buffer.close(timeout=0)
    system.advance(away)
    # Another life, with another clock.
    with make(FakeClock(1.0), tmp_path / "buffer") as buffer:
        assert drain(buffer) == ([b"a", b"b"] if away == 3.0 else [])
        assert dropped(buffer) == (0 if away == 3.0 else 2)


@linux
def test_of_several_blocks_those_are_dropped_that_are_surely_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, clock = SystemClock(monkeypatch), FakeClock(1000.0)
    # Of an owner that keeps them longer: its spiller would drop some before the end.
    buffer = make(clock, tmp_path / "buffer", max_age=1000.0)
    for events in ([b"a", b"b"], [b"c", b"d"], [b"e"]):
        buffer.add_events(events)
        buffer.flush()
        clock.advance(4.0)
        system.advance(4.0)
    buffer.close(timeout=0)
    with make(FakeClock(1.0), tmp_path / "buffer") as buffer:
        assert next_batch(buffer).tolist() == [b"c", b"d", b"e"]
        assert dropped(buffer) == 2
        buffer.close(timeout=0)


@linux
def test_what_was_in_memory_counts_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, clock = SystemClock(monkeypatch), FakeClock(1000.0)
    buffer = make(clock, tmp_path / "buffer")
    buffer.add_events([b"a"])
    crash(buffer)
    system.advance(1000.0)
    clock = FakeClock(1.0)
    with make(clock, tmp_path / "buffer") as buffer:
        clock.advance(9.0)
        batch = next_batch(buffer)
        assert batch.tolist() == [b"a"]
        batch.nack("no")
        clock.advance(1.5)
        assert buffer.get_batch() is None
        assert dropped(buffer) == 1


@linux
def test_a_directory_of_a_buffer_without_max_age_has_times_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those at which its blocks were written."""
    system = SystemClock(monkeypatch)
    buffer = make(FakeClock(), tmp_path / "buffer", max_age=None)
    buffer.add_events([b"a"])
    buffer.close(timeout=0)
    system.advance(10.5)
    with make(FakeClock(), tmp_path / "buffer") as buffer:
        assert drain(buffer) == []
        assert dropped(buffer) == 1


@pytest.mark.parametrize("max_age", [0, -1.0, float("nan"), float("inf"), "1h", True])
def test_an_age_that_makes_no_sense_is_refused(max_age: Any) -> None:
    with pytest.raises(ConfigError, match="max_age"):
        BufferConfig(max_age=max_age)
