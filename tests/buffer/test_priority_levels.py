"""`priority_levels`: that many lanes, whatever number a directory was made with."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from backpressure import (
    BatchRejected,
    BufferConfig,
    BufferManager,
    Durability,
    FlowControlConfig,
    InvalidEvents,
    Priority,
    WhenFull,
)
from tests.support.buffers import add_all, crash, drain, drain_lanes, numbered
from tests.support.durable import open_buffer
from tests.support.threads import until

LEVELS = (1, 2, 3, 4, 5)

on_disk = pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux")


def flow(levels: int) -> FlowControlConfig:
    return FlowControlConfig(priority_levels=levels)


def in_memory(levels: int) -> BufferManager:
    return BufferManager(
        BufferConfig(lane_bytes=1 << 14, retry_backoff=0.0, flow_control=flow(levels))
    )


def on(path: Path, levels: int, **fields: object) -> BufferManager:
    return open_buffer(path, flow_control=flow(levels), **fields)


# ---------------------------------------------------------------- any number


@pytest.mark.parametrize("levels", LEVELS)
def test_a_lane_for_each_level_and_memory_for_no_more(levels: int) -> None:
    with in_memory(levels) as buffer:
        stats = buffer.stats()
        assert list(stats.lanes) == list(range(1, levels + 1))
        assert stats.capacity_bytes == levels * (1 << 14)
        assert len(stats.flow_control.admitted) == len(stats.flow_control.rates) == levels
        assert buffer.positions() == (0,) * levels


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_is_kept_in_order_and_the_most_urgent_goes_first(levels: int) -> None:
    with in_memory(levels) as buffer:
        events = {priority: numbered(20, priority) for priority in range(levels, 0, -1)}
        for priority, some in events.items():
            assert buffer.add_events(some, priority=priority).accepted == 20
            buffer.stats().check()
        first = buffer.get_batch(3)
        assert first is not None
        assert (first.priority, first.tolist()) == (1, events[1][:3])
        first.nack("not now")
        buffer.stats().check()
        got: dict[int, list[bytes]] = {}
        while buffer.resident:
            if (batch := buffer.get_batch(timeout=5.0)) is not None:
                got.setdefault(batch.priority, []).extend(batch.tolist())
                batch.ack()
        assert list(got) == list(range(1, levels + 1))
        assert got == events
        buffer.stats().check()


@pytest.mark.parametrize("levels", LEVELS)
def test_a_priority_beyond_is_refused_and_changes_nothing(levels: int) -> None:
    with in_memory(levels) as buffer:
        for beyond in range(levels + 1, 8):
            adds: tuple[Callable[[int], object], ...] = (
                lambda p: buffer.add_events([b"a"], priority=p),
                lambda p: buffer.add_lines(b"a\n", priority=p),
                lambda p: asyncio.run(buffer.aio.add_events([b"a"], priority=p)),
                lambda p: asyncio.run(buffer.aio.add_lines(b"a\n", priority=p)),
            )
            for add in adds:
                with pytest.raises(InvalidEvents, match=f"^priority must be .*, not {beyond}$"):
                    add(beyond)
        assert buffer.stats().offered == 0


def test_a_refusal_says_how_many_there_are() -> None:
    with in_memory(2) as buffer, pytest.raises(InvalidEvents) as refused:
        buffer.add_events([b"a"], Priority.NORMAL)
    assert str(refused.value) == (
        "priority must be an int from 1 (most urgent) to 2 (priority_levels is 2), "
        "not <Priority.NORMAL: 3>"
    )
    with in_memory(1) as buffer, pytest.raises(InvalidEvents, match=r"^priority must be 1 \("):
        buffer.add_events([b"a"], 2)


@pytest.mark.parametrize("levels", LEVELS)
def test_without_a_priority_it_is_normal_or_the_least_urgent(levels: int) -> None:
    with in_memory(levels) as buffer:
        buffer.add_events([b"a"])
        buffer.add_events([b"b"], None)
        buffer.add_lines(b"c\n")
        asyncio.run(buffer.aio.add_events([b"d"], priority=None))
        asyncio.run(buffer.aio.add_lines(b"e\n"))
        assert drain_lanes(buffer) == {min(3, levels): [b"a", b"b", b"c", b"d", b"e"]}


@pytest.mark.parametrize("levels", LEVELS)
def test_the_least_urgent_is_not_passed_over_for_ever(levels: int) -> None:
    with in_memory(levels) as buffer:
        for priority in range(1, levels + 1):
            add_all(buffer, [b"x"] * 100, priority)
        seen = set()
        for _ in range(32 * levels):
            batch = buffer.get_batch(1)
            assert batch is not None
            seen.add(batch.priority)
            buffer.add_events([b"x"], batch.priority)
            batch.ack()
        assert seen == set(range(1, levels + 1))
        buffer.close(timeout=0)


# ---------------------------------------------------------------- a directory


@on_disk
@pytest.mark.parametrize("levels", LEVELS)
def test_lanes_spill_and_come_back_in_order(tmp_path: Path, levels: int) -> None:
    events = {priority: numbered(1000, 40) for priority in range(1, levels + 1)}
    buffer = on(tmp_path, levels)
    made = sorted(one.name for one in (tmp_path / "buffer").glob("lane-*"))
    assert made == [f"lane-{priority}" for priority in range(1, levels + 1)]
    for priority, some in events.items():
        add_all(buffer, some, priority)
    stats = buffer.stats()
    stats.check()
    assert stats.disk is not None
    assert stats.disk.spilled > 0, "more than the rings hold"
    crash(buffer)
    with on(tmp_path, levels) as buffer:
        assert drain_lanes(buffer) == events


@on_disk
@pytest.mark.parametrize(("made", "opened"), list(product(LEVELS, LEVELS)))
@pytest.mark.parametrize("killed", [False, True])
def test_another_number_loses_nothing(tmp_path: Path, made: int, opened: int, killed: bool) -> None:
    events = {priority: numbered(30, priority) for priority in range(1, made + 1)}
    buffer = on(tmp_path, made)
    for priority, some in events.items():
        buffer.add_events(some, priority)
    crash(buffer) if killed else buffer.close(timeout=0)

    buffer = on(tmp_path, opened)
    stats = buffer.stats()
    stats.check()
    assert list(stats.lanes) == list(range(1, max(made, opened) + 1))
    assert stats.resident == stats.waiting == 30 * made
    for beyond in range(opened + 1, 6):
        with pytest.raises(InvalidEvents, match=f"priority_levels is {opened}"):
            buffer.add_events([b"new"], beyond)
    for priority in range(1, opened + 1):
        assert buffer.add_events([b"new"], priority).first_seq == (30 if priority <= made else 0)
        events.setdefault(priority, []).append(b"new")
    assert drain_lanes(buffer) == events
    assert list(buffer.stats().lanes) == list(stats.lanes), "no count goes back while it is open"
    assert buffer.close().resident == 0

    # The empty ones are not opened again, and keep their numbers for when they are.
    with on(tmp_path, opened) as buffer:
        assert list(buffer.stats().lanes) == list(range(1, opened + 1))
        assert drain(buffer) == []
    with on(tmp_path, made) as buffer:
        for priority in range(1, made + 1):
            first = buffer.add_events([b"again"], priority).first_seq
            assert first == (31 if priority <= opened else 30)
        buffer.close(timeout=0)


@on_disk
@pytest.mark.parametrize("lane_bytes", [1 << 13, 1 << 14])
def test_a_surplus_lane_is_drained_from_both_tiers_across_restarts(
    tmp_path: Path, lane_bytes: int
) -> None:
    events = numbered(1500, 40)
    buffer = on(tmp_path, 5)
    add_all(buffer, events, 5)
    crash(buffer)
    got: list[bytes] = []
    while len(got) < len(events):
        buffer = on(tmp_path, 1, lane_bytes=lane_bytes)
        assert list(buffer.stats().lanes) == [1, 5]
        buffer.add_events([b"urgent"])
        for _ in range(3):
            batch = buffer.get_batch(200)
            if batch is None:
                break
            if batch.priority == 5:
                got += batch.tolist()
            batch.ack()
        buffer.stats().check()
        held = buffer.get_batch(10)  # comes again
        crash(buffer) if len(got) % 400 else buffer.close(timeout=0)
        assert held is None or held.priority == 5
    assert got == events


@on_disk
def test_a_gap_in_the_lanes_is_no_obstacle(tmp_path: Path) -> None:
    with on(tmp_path, 5) as buffer:
        buffer.add_events([b"low"], 4)
        batch = buffer.get_batch()
        assert batch is not None
        batch.nack("not now")
        buffer.close(timeout=0)
    (tmp_path / "elsewhere").mkdir()
    for priority in (2, 3, 5):
        lane = tmp_path / "buffer" / f"lane-{priority}"
        lane.rename(tmp_path / "elsewhere" / lane.name)
    with on(tmp_path, 1) as buffer:
        assert list(buffer.stats().lanes) == [1, 4]
        buffer.add_events([b"high"])
        assert buffer.is_backpressure_active() is False
        assert drain(buffer) == [b"high", b"low"]
    assert not (tmp_path / "buffer" / "lane-2").exists()


@on_disk
def test_a_surplus_batch_can_be_given_back_and_given_up(tmp_path: Path) -> None:
    with on(tmp_path, 3) as buffer:
        buffer.add_events([b"poison", b"good"], 3)
        buffer.close(timeout=0)
    with on(tmp_path, 2, max_attempts=2) as buffer:
        for attempt, error in enumerate([OSError("away"), BatchRejected("refused")], 1):
            batch = buffer.get_batch(1, timeout=5.0)
            assert batch is not None
            assert (batch.attempt, batch.priority, batch.tolist()) == (attempt, 3, [b"poison"])
            batch.nack(error)
        letters = buffer.dead_letters
        assert letters is not None
        assert [(one.event, one.priority) for one in letters.letters()] == [(b"poison", 3)]
        assert drain(buffer) == [b"good"]
        stats = buffer.stats()
        assert (stats.lanes[3].dead_lettered, stats.lanes[3].acked) == (1, 1)


@on_disk
def test_a_full_disk_drops_what_is_beyond_first(tmp_path: Path) -> None:
    options = {"max_disk_bytes": 1 << 20, "when_full": WhenFull.DROP_LOWEST_PRIORITY}
    rng = random.Random(1)
    noisy = [rng.randbytes(2000) for _ in range(400)]
    buffer = on(tmp_path, 3, **options)
    add_all(buffer, noisy, 3)
    buffer.flush()
    buffer.close(timeout=0)
    with on(tmp_path, 2, **options) as buffer:
        add_all(buffer, noisy, 1)
        until(lambda: buffer.stats().lanes[3].dropped.get("priority", 0) > 0)
        buffer.stats().check()
        assert not buffer.stats().lanes[1].dropped
        buffer.close(timeout=0)


@on_disk
def test_commit_with_fewer_levels(tmp_path: Path) -> None:
    with on(tmp_path, 4) as buffer:
        buffer.add_events([b"old"], 4)
        buffer.close(timeout=0)
    buffer = on(tmp_path, 2, durability=Durability.COMMIT)
    buffer.add_events([b"new"])
    assert buffer.stats().lanes[2].disk.durable_seq == 1  # type: ignore[union-attr]
    crash(buffer)
    with on(tmp_path, 2) as buffer:
        assert drain_lanes(buffer) == {2: [b"new"], 4: [b"old"]}


@on_disk
def test_the_depth_that_the_monitor_sees_holds_surplus_events(tmp_path: Path) -> None:
    with on(tmp_path, 5) as buffer:
        buffer.add_events([b"x"] * 40, 5)
        buffer.close(timeout=0)
    with on(tmp_path, 2) as buffer:
        buffer.add_events([b"y"] * 2)
        reading = buffer._watch.read(0.0)
        assert (list(reading.waiting), list(reading.taken)) == ([0, 2], [0, 0])
        assert reading.surplus == 40
        drain(buffer)
