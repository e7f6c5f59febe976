"""A buffer with a directory: what was accepted outlives it, in order, once; the disk below the rings; the ways to close."""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backpressure import (
    Batch,
    BufferClosed,
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    ConfigError,
    DirectoryInUse,
    DiskFull,
    Durability,
    EventType,
    FormatError,
    WhenFull,
)
from backpressure.spill import LocalFileSystem, SpillConfig, SpillStore
from backpressure.testing import FakeClock, FaultyFileSystem
from tests.torture.kill_buffer import torture

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

SMALL = SpillConfig(segment_bytes=1 << 16, block_bytes=1 << 12, reserve_bytes=1 << 13)


def open_buffer(path: Path, **changes: Any) -> BufferManager:
    # Enough of a sample that no test trips the breaker.
    breaker = CircuitBreakerConfig(min_requests=100_000)
    config = {
        "lane_bytes": 1 << 14,
        "spill": SMALL,
        "retry_backoff": 0.0,
        "circuit_breaker": breaker,
        **changes,
    }
    return BufferManager(BufferConfig(directory=path / "buffer", **config), rng=random.Random(1))


def crash(buffer: BufferManager) -> None:
    """Leave it as the death of the process would: nothing is written, nothing is told, and all its locks are gone."""
    disk = buffer._disk
    assert disk is not None
    buffer._closing = buffer._closed = True
    disk.spiller.stop()
    for lane in disk.lanes:
        lane.ring.close()
        lane.store._closed = (
            True  # what it has written is in the page cache, where a dead process's is as well
        )
    disk.directory.close()


def drain(buffer: BufferManager, most: int | None = None) -> list[bytes]:
    got: list[bytes] = []
    while (batch := buffer.get_batch(most)) is not None:
        got += batch.tolist()
        batch.ack()
    buffer.stats().check()
    return got


def numbered(count: int, size: int = 20) -> list[bytes]:
    return [b"%06d" % i + b"x" * size for i in range(count)]


def add_all(buffer: BufferManager, events: list[bytes], priority: int = 3) -> None:
    """Also more than the ring holds."""
    while events:
        events = events[buffer.add_events(events, priority=priority, timeout=10.0).accepted :]


# ---------------------------------------------------------------- what outlives what


@pytest.mark.parametrize(
    "end", [crash, lambda buffer: buffer.close(timeout=0)], ids=["killed", "closed"]
)
@pytest.mark.parametrize("durability", list(Durability))
def test_what_was_accepted_is_there_at_the_next_start(
    tmp_path: Path, end: Any, durability: Durability
) -> None:
    buffer = open_buffer(tmp_path, durability=durability)
    events = numbered(3000)
    add_all(buffer, events)
    buffer.add_events([b"urgent"], priority=1)
    assert drain_some(buffer, 2) == [b"urgent", *events[:2]]
    held = buffer.get_batch(2)
    end(buffer)
    again = open_buffer(tmp_path, durability=durability)
    assert again.id == buffer.id
    stats = again.stats()
    stats.check()
    assert stats.disk is not None
    assert (stats.disk.recovered, stats.resident, stats.accepted) == (2998, 2998, 2998)
    assert drain(again) == events[2:]
    assert again.close().resident == 0
    assert held is not None


def drain_some(buffer: BufferManager, count: int) -> list[bytes]:
    """The urgent one, then so many of the others."""
    got: list[bytes] = []
    for most in (1, count):
        batch = buffer.get_batch(most)
        assert batch is not None
        got += batch.tolist()
        batch.ack()
    return got


def test_numbers_and_ids_go_on_where_they_were(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    assert buffer.add_events([b"a", b"b"]).first_seq == 0
    batch = buffer.get_batch(1)
    assert batch is not None
    first_id = batch.id
    buffer.close(timeout=0)
    with pytest.raises(BufferClosed):
        batch.ack()
    again = open_buffer(tmp_path)
    assert again.add_events([b"c"]).first_seq == 2
    redelivered = again.get_batch(1)
    assert redelivered is not None
    assert redelivered.id == first_id, "an idempotence key is the same after a restart"
    redelivered.ack()
    assert drain(again) == [b"b", b"c"]
    again.close()


def test_acks_outlive_the_process_in_any_order(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    events = numbered(2000)
    add_all(buffer, events)
    batches: list[Batch] = []
    while (batch := buffer.get_batch(100)) is not None:
        batches.append(batch)
    kept: list[bytes] = []
    for i, batch in enumerate(batches):
        if i % 3:
            batch.ack()
        else:
            kept += batch.tolist()
    crash(buffer)
    again = open_buffer(tmp_path)
    assert drain(again, 70) == kept
    again.close()


def test_another_lane_size_loses_nothing(tmp_path: Path) -> None:
    events = numbered(2000)
    rest = list(events)
    for lane_bytes in (1 << 14, 1 << 16, 1 << 13, 1 << 14):
        buffer = open_buffer(tmp_path, lane_bytes=lane_bytes)
        if lane_bytes == 1 << 14 and len(rest) == 2000:
            add_all(buffer, events)
        batch = buffer.get_batch(100)
        assert batch is not None
        assert batch.tolist() == rest[:100]
        batch.ack()
        rest = rest[100:]
        held = buffer.get_batch(50)
        assert held is not None
        crash(buffer)
    again = open_buffer(tmp_path, lane_bytes=1 << 15)
    assert drain(again) == rest
    assert again.add_events([b"new"]).first_seq == 2000
    again.close()


def test_a_ring_file_that_was_removed_costs_what_it_held_and_no_more(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    events = numbered(2000)
    add_all(buffer, events)
    buffer.flush()
    buffer.add_events([b"in the ring"])
    crash(buffer)
    (tmp_path / "buffer" / "lane-3" / "ring").unlink()
    again = open_buffer(tmp_path)
    assert drain(again) == events
    again.close()


def test_a_damaged_ring_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    buffer.add_events([b"a"])
    crash(buffer)
    ring = tmp_path / "buffer" / "lane-3" / "ring"
    whole = ring.read_bytes()
    ring.write_bytes(b"X" + whole[1:])
    with pytest.raises(FormatError, match="not a file of ringbuf"):
        open_buffer(tmp_path)
    assert ring.read_bytes()[1:] == whole[1:]
    ring.write_bytes(whole)
    again = open_buffer(tmp_path)  # and nothing is locked by the attempt
    assert drain(again) == [b"a"]
    again.close()


# ---------------------------------------------------------------- a ring under another boot id


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After each call what was there before is from another run of the kernel."""
    boots = itertools.count(1)

    def reboot() -> None:
        boot = b"boot id %8d" % next(boots)
        monkeypatch.setattr("ringbuf._shared.shared_file.boot_id", lambda: boot)

    return reboot


def test_a_ring_that_comes_back_whole_after_a_reboot(
    tmp_path: Path, reboot: Any, caplog: Any
) -> None:
    buffer = open_buffer(tmp_path, ring_checksums=True)
    add_all(buffer, numbered(10))
    buffer.flush()
    buffer.add_events([b"only in memory"])
    batch = buffer.get_batch(3)
    assert batch is not None
    crash(buffer)
    reboot()
    again = open_buffer(tmp_path, ring_checksums=True)
    assert drain(again) == [*numbered(10), b"only in memory"]
    assert "priority 3: 1 events in memory when the machine went down are whole" in caplog.text
    assert "are lost" not in caplog.text
    first_seq = again.add_events([b"new"]).first_seq
    assert first_seq is not None
    assert first_seq >= 1 << 40, (
        "no number is given twice, whatever was given out and never reached the disk"
    )
    crash(again)
    once_more = open_buffer(tmp_path, ring_checksums=True)
    assert drain(once_more) == [b"new"], "and then it is a ring as any other"
    once_more.close()


def test_without_checksums_a_ring_from_before_a_reboot_is_lost(
    tmp_path: Path, reboot: Any, caplog: Any
) -> None:
    buffer = open_buffer(tmp_path, ring_checksums=False)
    add_all(buffer, numbered(10))
    buffer.flush()
    buffer.add_events([b"only in memory"])
    crash(buffer)
    reboot()
    again = open_buffer(tmp_path, ring_checksums=False)
    assert drain(again) == numbered(10)
    assert "the numbers from 10 to 10" in caplog.text
    again.close()


def test_what_was_acked_from_memory_is_no_loss(tmp_path: Path, reboot: Any, caplog: Any) -> None:
    for checksums in (True, False):
        buffer = open_buffer(tmp_path / str(checksums), ring_checksums=checksums)
        add_all(buffer, numbered(100))
        assert drain(buffer) == numbered(100)
        crash(buffer)
        reboot()
        again = open_buffer(tmp_path / str(checksums), ring_checksums=checksums)
        assert drain(again) == []
        again.close()
    assert "are lost" not in caplog.text


def test_what_the_disk_lost_is_taken_from_the_ring_again(
    tmp_path: Path, reboot: Any, caplog: Any
) -> None:
    """Spilled, released, never synced: power loss takes the file, and the ring still has the frames."""
    buffer = open_buffer(tmp_path, ring_checksums=True)
    events = numbered(300)
    add_all(buffer, events)
    lane = buffer._lanes[2]
    assert lane.spill(0.0)
    while lane.spill(0.0):
        pass
    batch = buffer.get_batch(100)
    assert batch is not None
    batch.ack()
    crash(buffer)
    for name in (tmp_path / "buffer" / "lane-3").iterdir():
        if name.name != "ring":
            name.unlink()
    reboot()
    again = open_buffer(tmp_path, ring_checksums=True)
    assert drain(again) == events, "acked ones too: the record of that was lost as well"
    assert "are lost" not in caplog.text
    again.close()


def test_torn_pages_cost_what_lies_in_them(tmp_path: Path, reboot: Any, caplog: Any) -> None:
    buffer = open_buffer(tmp_path, ring_checksums=True, lane_bytes=1 << 16)
    first = numbered(100)
    add_all(buffer, first)
    assert drain(buffer) == first
    events = [b"%06d" % i + b"y" * 90 for i in range(200)]
    for event in events:
        buffer.add_events([event])
    crash(buffer)
    ring = tmp_path / "buffer" / "lane-3" / "ring"
    raw = bytearray(ring.read_bytes())
    start = len(raw) - (1 << 16)
    at = raw.index(b"000070yyy", start) // 4096 * 4096
    raw[at : at + 4096] = bytes(4096)
    ring.write_bytes(raw)
    reboot()
    again = open_buffer(tmp_path, ring_checksums=True, lane_bytes=1 << 16)
    got = drain(again)
    lost = [i for i, event in enumerate(events) if event not in set(got)]
    assert lost == list(range(lost[0], lost[-1] + 1))
    assert 70 in lost
    assert 20 <= len(lost) <= 23, "192 bytes each, and a page is torn"
    assert got == events[: lost[0]] + events[lost[-1] + 1 :]
    assert f"the numbers from {100 + lost[0]} to {100 + lost[-1]} were in memory" in caplog.text
    again.close()


def test_a_salvage_that_is_cut_off_goes_on(
    tmp_path: Path, reboot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = open_buffer(tmp_path, ring_checksums=True, lane_bytes=1 << 20)
    events = [os.urandom(3000) for _ in range(100)]
    for event in events:
        buffer.add_events([event])
    crash(buffer)
    reboot()
    true_append = SpillStore.append
    monkeypatch.setattr("ringbuf._messages.salvage.PIECE_BYTES", 50_000)
    left = [2]

    def append(self: SpillStore, *arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise DiskFull("no room", retry_after=1.0)
        true_append(self, *arguments)

    monkeypatch.setattr(SpillStore, "append", append)
    with pytest.raises(DiskFull):
        open_buffer(tmp_path, ring_checksums=True, lane_bytes=1 << 20)
    monkeypatch.setattr(SpillStore, "append", true_append)
    again = open_buffer(tmp_path, ring_checksums=True, lane_bytes=1 << 20)
    assert drain(again) == events
    again.close()


def test_checksums_can_be_turned_on_and_off(tmp_path: Path) -> None:
    for step, checksums in enumerate((False, True, False)):
        buffer = open_buffer(tmp_path, ring_checksums=checksums)
        assert buffer._lanes[2].ring.checksums == checksums
        assert drain(buffer) == ([b"%d" % (step - 1)] if step else [])
        buffer.add_events([b"%d" % step])
        crash(buffer)
    with pytest.raises(ConfigError, match="ring_checksums"):
        BufferConfig(directory=tmp_path, ring_checksums="yes")  # type: ignore[arg-type]


# ---------------------------------------------------------------- the disk below the ring


def test_a_ring_that_fills_goes_to_disk_in_order(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    events = numbered(20_000)
    add_all(buffer, events)
    disk = buffer.stats().disk
    assert disk is not None
    assert disk.waiting > 15_000
    assert drain(buffer, 777) == events
    disk = buffer.stats().disk
    assert disk is not None
    assert disk.waiting == disk.events == 0
    buffer.close()


def test_what_consumers_hold_goes_to_disk_before_what_waits(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    events = numbered(5000)
    buffer.add_events(events[:200])
    held = [buffer.get_batch(50) for _ in range(3)]
    add_all(buffer, events[200:])
    assert all(batch is not None for batch in held)
    first, second, third = held
    assert first is not None
    assert second is not None
    assert third is not None
    second.ack()
    first.nack("no")
    redelivered = buffer.get_batch()
    assert redelivered is not None
    assert redelivered.tolist() == events[:50], "a nacked batch comes in its place"
    assert redelivered.attempt == 2
    crash(buffer)
    again = open_buffer(tmp_path)
    assert drain(again) == events[:50] + events[100:]
    again.close()


def test_flush_makes_durable(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    buffer.add_events(numbered(100))
    disk = buffer.stats().lanes[3].disk
    assert disk is not None
    assert (disk.durable_seq, disk.unsynced) == (0, 100)
    buffer.flush()
    disk = buffer.stats().lanes[3].disk
    assert disk is not None
    assert (disk.durable_seq, disk.unsynced) == (100, 0)
    assert drain(buffer) == numbered(100)
    buffer.close()


def test_commit_returns_when_it_is_durable(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, durability=Durability.COMMIT, sync_interval=0.001)
    for i in range(20):
        admission = buffer.add_events([b"%d" % i])
        disk = buffer.stats().lanes[3].disk
        assert disk is not None
        assert admission.first_seq is not None
        assert disk.durable_seq > admission.first_seq
    buffer.close()


def test_interval_makes_durable_by_itself(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, durability=Durability.INTERVAL, sync_interval=0.001)
    buffer.add_events(numbered(10))
    deadline = time.monotonic() + 30
    while (disk := buffer.stats().lanes[3].disk) is not None and disk.durable_seq < 10:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    buffer.close()


def test_max_disk_bytes_is_backpressure_and_resumes(tmp_path: Path) -> None:
    spill = SpillConfig(reserve_bytes=0, segment_bytes=1 << 16, block_bytes=1 << 12)
    buffer = open_buffer(tmp_path, max_disk_bytes=1 << 20, spill=spill)
    seen: list[Any] = []
    buffer.on(EventType.DISK_STATE_CHANGED, seen.append)
    events = [os.urandom(200) for _ in range(20_000)]
    accepted = 0
    while (admission := buffer.add_events(events[accepted:], timeout=0.5)).accepted:
        accepted += admission.accepted
    assert admission.reason == "full"
    assert 0 < accepted < len(events)
    assert seen[0].error is not None
    got = drain(buffer)
    assert got == events[:accepted]
    assert buffer.add_events(events[accepted:], timeout=10.0).accepted > 0
    deadline = time.monotonic() + 30
    while seen[-1].error is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
        drain(buffer)
    buffer.close()


def test_drop_lowest_priority_makes_room_for_the_urgent(tmp_path: Path) -> None:
    buffer = open_buffer(
        tmp_path,
        max_disk_bytes=1 << 20,
        when_full=WhenFull.DROP_LOWEST_PRIORITY,
        spill=SpillConfig(reserve_bytes=0, segment_bytes=1 << 16, block_bytes=1 << 12),
    )
    low = [os.urandom(200) for _ in range(10_000)]
    accepted = 0
    while (admission := buffer.add_events(low[accepted:], priority=5, timeout=0.5)).accepted:
        accepted += admission.accepted
    high = [os.urandom(200) for _ in range(2000)]
    add_all(buffer, high, priority=1)
    stats = buffer.stats()
    stats.check()
    assert stats.lanes[1].dropped == {}
    assert stats.lanes[5].dropped["priority"] > 0
    got = drain(buffer)
    assert got[: len(high)] == high
    assert got[len(high) :] == low[accepted - (len(got) - len(high)) : accepted], (
        "the oldest were dropped"
    )
    buffer.close()


def test_drop_oldest_reaches_what_is_on_disk(tmp_path: Path) -> None:
    spill = SpillConfig(reserve_bytes=0, segment_bytes=1 << 16, block_bytes=1 << 12)
    buffer = open_buffer(
        tmp_path, max_disk_bytes=1 << 20, when_full=WhenFull.DROP_OLDEST, spill=spill
    )
    events = [os.urandom(200) for _ in range(10_000)]
    add_all(buffer, events)
    stats = buffer.stats()
    stats.check()
    dropped = stats.dropped["oldest"]
    assert dropped > 1000
    assert drain(buffer) == events[dropped:]
    buffer.close()


def test_damage_is_passed_over_and_counted(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    events = [os.urandom(100) for _ in range(2000)]
    add_all(buffer, events)
    buffer.flush()
    buffer.close(timeout=0)
    segment = max(
        (tmp_path / "buffer" / "lane-3").glob("*.seg*"),
        key=lambda path: path.stat().st_size,
        default=None,
    )
    if segment is None:
        files = [
            path
            for path in (tmp_path / "buffer" / "lane-3").iterdir()
            if path.name not in ("ring", "acked", "reserve")
        ]
        segment = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    again = open_buffer(tmp_path)
    got = drain(again)
    stats = again.stats()
    assert stats.disk is not None
    assert stats.disk.lost_ranges == 1
    assert stats.dropped["damaged"] == len(events) - len(got)
    assert 0 < stats.dropped["damaged"] < 100
    assert got == [event for event in events if event in set(got)]
    again.close()


# ---------------------------------------------------------------- events that no sink takes


def test_a_poisonous_event_is_found_and_kept_aside(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, max_attempts=3)
    events = numbered(100)
    poison = events[37]
    buffer.add_events(events)
    letters: list[Any] = []
    buffer.on(EventType.BATCH_DEAD_LETTERED, letters.append)
    got: list[bytes] = []
    for _ in range(200):
        batch = buffer.get_batch()
        if batch is None:
            break
        if poison in batch.tolist():
            batch.nack("can not parse it")
        else:
            got += batch.tolist()
            batch.ack()
        buffer.stats().check()
    assert got == [event for event in events if event != poison]
    assert [(one.first_seq, one.events, one.error) for one in letters] == [
        (37, 1, "can not parse it")
    ]
    stats = buffer.stats()
    assert (stats.dead_lettered, stats.resident) == (1, 0)
    buffer.close()
    again = open_buffer(tmp_path, max_attempts=3)
    assert again.dead_letters is not None
    (letter,) = again.dead_letters.letters()
    assert (letter.event, letter.seq, letter.priority, letter.error) == (
        poison,
        37,
        3,
        "can not parse it",
    )
    again.close()


def test_max_attempts_counts_deliveries(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, max_attempts=3)
    buffer.add_events([b"poison"])
    attempts = []
    while (batch := buffer.get_batch()) is not None:
        attempts.append(batch.attempt)
        batch.nack("no")
    assert attempts == [1, 2, 3]
    assert buffer.stats().dead_lettered == 1
    buffer.close()


def test_a_failing_sink_costs_nothing_while_the_disk_has_room(tmp_path: Path) -> None:
    """Shedding would refuse what the disk is there to keep."""
    clock = FakeClock(100.0)
    config = BufferConfig(
        directory=tmp_path / "buffer", lane_bytes=1 << 16, spill=SMALL, retry_backoff=0.0
    )
    buffer = BufferManager(config, clock=clock, rng=random.Random(1))
    for i in range(300):
        clock.advance(0.05)
        assert buffer.add_events(numbered(10), priority=5, timeout=10.0).rejected == 0, i
        batch = buffer.get_batch(10)
        if batch is not None:
            batch.nack("down")
    buffer.close(timeout=0)


# ---------------------------------------------------------------- who may open what


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    with pytest.raises(DirectoryInUse):
        open_buffer(tmp_path)
    program = (
        "import sys\n"
        "from backpressure import *\n"
        "try: BufferManager(BufferConfig(directory=sys.argv[1]))\n"
        "except DirectoryInUse as error: print('refused:', error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "buffer")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert out.stdout.startswith("refused:")
    buffer.close()
    open_buffer(tmp_path).close()


def test_a_directory_that_can_not_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    from backpressure import BackpressureError

    with pytest.raises((BackpressureError, OSError)):
        BufferManager(BufferConfig(directory=tmp_path / "file"))
    with pytest.raises((BackpressureError, OSError)):
        BufferManager(BufferConfig(directory="/proc/no/such/place"))
    with pytest.raises(ConfigError, match="directory"):
        BufferConfig(directory=7)  # type: ignore[arg-type]


def test_a_forked_child_has_no_part_in_it(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    buffer.add_events([b"a"])
    out = tmp_path / "out"
    pid = os.fork()
    if pid == 0:
        try:
            buffer.add_events([b"from the child"])
        except BufferClosed:
            out.write_text("closed")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert out.read_text() == "closed"
    assert drain(buffer) == [b"a"]
    buffer.close()
    open_buffer(tmp_path).close()


def test_an_open_is_quick_whatever_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it reads, not by the clock: of a backlog a header for each file, and of the newest file the blocks' headers."""
    spill = SpillConfig(segment_bytes=1 << 20)
    buffer = open_buffer(tmp_path, lane_bytes=1 << 20, spill=spill)
    noise = random.Random(7)
    add_all(buffer, [noise.randbytes(1000) for _ in range(8000)])
    buffer.close(timeout=0)
    read: list[int] = []
    pread = LocalFileSystem.pread
    monkeypatch.setattr(
        LocalFileSystem,
        "pread",
        lambda fs, fd, size, at: read.append(size) or pread(fs, fd, size, at),
    )
    again = open_buffer(tmp_path, lane_bytes=1 << 20, spill=spill)
    assert sum(read) < 1 << 20
    stats = again.stats()
    assert stats.disk is not None
    assert stats.disk.recovered == 8000
    assert stats.disk.used_bytes > 7 << 20
    assert again.add_events([b"at once"]).accepted == 1
    again.close(timeout=0)


def test_a_batch_that_is_held_keeps_files_and_gives_them_back(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, max_disk_bytes=1 << 20)
    assert buffer._disk is not None
    lane, spiller = buffer._disk.lanes[2], buffer._disk.spiller
    noise = random.Random(8)
    add_all(buffer, [b"held"])
    held = buffer.get_batch()
    assert held is not None
    refused = 0
    for _ in range(120):
        events = [noise.randbytes(1000) for _ in range(10)]
        assert buffer.add_events(events).accepted == 10
        try:
            spiller._check_budget(lane)
            while lane.spill(0.0):
                pass
        except DiskFull:
            refused += 1
        assert drain(buffer) == events
    # What is kept for nothing shows, is bounded, and hinders nobody who is served from the ring.
    stats = buffer.stats().disk
    assert stats is not None
    assert stats.events == 1
    assert 1 << 20 <= stats.used_bytes < (1 << 20) + 2 * SMALL.segment_bytes
    assert refused > 0
    held.ack()
    assert lane.store.bytes_on_disk < 3 * SMALL.segment_bytes
    buffer.close()


def test_nothing_is_overlooked_while_it_moves_to_disk(tmp_path: Path) -> None:
    """Consumers look without a lock: at every line of a move, and of a take, what is owed has to be in some tier."""
    buffer = open_buffer(tmp_path)
    add_all(buffer, numbered(50))
    lane = buffer._disk.lanes[2]  # type: ignore[union-attr]
    lines: set[str] = set()

    def at_each_line(frame: Any, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith("durable_lane.py"):
            return None
        lines.add(frame.f_code.co_name)
        assert lane._has_waiting()
        return at_each_line

    batch = buffer.get_batch(10)
    sys.settrace(at_each_line)
    try:
        while lane.spill(0.0):
            pass
    finally:
        sys.settrace(None)
    assert {"spill", "_store_claims", "_store_front"} <= lines
    assert batch is not None
    batch.ack()
    assert drain(buffer) == numbered(50)[10:]
    assert not lane._has_waiting()
    buffer.close()


def test_a_part_of_what_a_killed_consumer_held_is_acked_by_itself(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path)
    events = numbered(10)
    add_all(buffer, events)
    held = [buffer.get_batch(6), buffer.get_batch(4)]
    crash(buffer)
    for first in (0, 3, 6):  # less than was taken at once, then across two takes
        buffer = open_buffer(tmp_path)
        batch = buffer.get_batch(3)
        assert batch is not None
        assert batch.tolist() == events[first : first + 3]
        batch.ack()
        crash(buffer)
    buffer = open_buffer(tmp_path)
    assert drain(buffer) == events[9:]
    buffer.close()
    assert None not in held


def test_the_good_half_of_a_bad_batch_is_acked_by_itself(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, max_attempts=1)
    events = numbered(8)
    add_all(buffer, events)
    batch = buffer.get_batch()
    assert batch is not None
    batch.nack("one of them is bad")
    good, bad = buffer.get_batch(), buffer.get_batch()
    assert good is not None
    assert bad is not None
    assert (good.tolist(), bad.tolist()) == (events[:4], events[4:])
    good.ack()
    crash(buffer)
    again = open_buffer(tmp_path, max_attempts=1)
    assert drain(again) == events[4:]
    again.close()


def test_what_the_disk_took_of_a_batch_leaves_the_ring(tmp_path: Path) -> None:
    """A disk that fills in the midst of a piece: the part that it took is there once, the rest is in the ring, and acks hold."""
    buffer = open_buffer(tmp_path, lane_bytes=1 << 16, max_disk_bytes=1 << 30)
    events = numbered(400, 100)
    add_all(buffer, events)
    disk = buffer._disk
    assert disk is not None
    disk.spiller.stop()
    lane = disk.lanes[2]
    files = lane.store._files
    files.fs = FaultyFileSystem(
        files.fs, fail_at=4, error=errno.ENOSPC, sticky=True, only=("pwrite",)
    )
    with pytest.raises(DiskFull):
        lane.spill(0.0)
    files.fs = files.fs.inner
    stored = lane.store.events_on_disk
    assert 0 < stored < 390
    acked: list[bytes] = []
    while len(acked) < stored + 10:
        batch = buffer.get_batch(20)
        assert batch is not None
        batch.ack()
        acked += batch.tolist()
    crash(buffer)
    again = open_buffer(tmp_path, lane_bytes=1 << 16)
    assert acked + drain(again) == events
    again.close()


# ---------------------------------------------------------------- killed again and again


def test_kills_lose_nothing() -> None:
    oracle = torture(200, seed=20261124)
    assert sum(oracle.accepted.values()) > 1000


# ---------------------------------------------------------------- against a model


class DurableMachine(RuleBasedStateMachine):
    """Every call against a dict of deques, with crashes and restarts in between; both conservation lines after every step."""

    @initialize(
        when_full=st.sampled_from([WhenFull.REJECT, WhenFull.DROP_OLDEST]),
        max_attempts=st.sampled_from([None, 2]),
        durability=st.sampled_from(list(Durability)),
    )
    def make(self, when_full: WhenFull, max_attempts: int | None, durability: Durability) -> None:
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.settings = {
            "when_full": when_full,
            "max_attempts": max_attempts,
            "durability": durability,
        }
        self.lane_bytes = 1 << 13
        self.owed: dict[int, deque[bytes]] = {p: deque() for p in (1, 3, 5)}
        self.out: list[tuple[Batch, list[bytes]]] = []
        self.number = 0
        self.open()

    def open(self) -> None:
        self.clock = FakeClock(100.0)
        self.buffer = BufferManager(
            BufferConfig(
                directory=Path(self.place.name) / "buffer",
                lane_bytes=self.lane_bytes,
                spill=SMALL,
                retry_backoff=0.0,
                sync_interval=0.001,
                **self.settings,
            ),
            clock=self.clock,
            rng=random.Random(1),
        )
        self.gone = 0  # dropped or dead-lettered since it was opened

    @rule(
        priority=st.sampled_from([1, 3, 5]),
        sizes=st.lists(st.sampled_from([0, 10, 500, 1500]), max_size=30),
    )
    def add(self, priority: int, sizes: list[int]) -> None:
        events = []
        for size in sizes:
            events.append(b"%06d" % self.number + b"." * size)
            self.number += 1
        admission = self.buffer.add_events(events, priority=priority)
        self.owed[priority].extend(events[: admission.accepted])
        self.forget_dropped()

    def forget_dropped(self) -> None:
        """What DROP_OLDEST gave up is the oldest that nobody holds."""
        stats = self.buffer.stats()
        for priority, owed in self.owed.items():
            held = {
                event
                for batch, events in self.out
                if batch.priority == priority
                for event in events
            }
            while len(owed) > stats.lanes[priority].resident:
                owed.remove(next(event for event in owed if event not in held))

    @rule(most=st.one_of(st.none(), st.integers(1, 40)))
    def get(self, most: int | None) -> None:
        batch = self.buffer.get_batch(most)
        if batch is not None:
            self.out.append((batch, batch.tolist()))

    @rule(most=st.integers(1, 10))
    def get_and_ack(self, most: int) -> None:
        batch = self.buffer.get_batch(most)
        if batch is not None:
            batch.ack()
            for event in batch.tolist():
                self.owed[batch.priority].remove(event)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), ok=st.booleans())
    def settle(self, data: st.DataObject, ok: bool) -> None:
        batch, events = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        assert batch.tolist() == events, "a batch must not change while it is out"
        if ok:
            batch.ack()
            for event in events:
                self.owed[batch.priority].remove(event)
        else:
            before = self.buffer.stats().dead_lettered
            batch.nack("refused")
            if self.buffer.stats().dead_lettered > before:
                (event,) = events
                self.owed[batch.priority].remove(event)

    @rule(
        how=st.sampled_from(["crash", "close"]),
        lane_bytes=st.sampled_from([1 << 13, 1 << 13, 1 << 14, 1 << 12]),
    )
    def restart(self, how: str, lane_bytes: int) -> None:
        self.lane_bytes = lane_bytes
        self.out.clear()
        if how == "crash":
            crash(self.buffer)
        else:
            self.buffer.close(timeout=0)
        self.open()
        stats = self.buffer.stats()
        assert {p: stats.lanes[p].resident for p in self.owed} == {
            p: len(owed) for p, owed in self.owed.items()
        }

    @rule()
    def flush(self) -> None:
        self.buffer.flush()
        for lane in self.buffer.stats().lanes.values():
            assert lane.disk is not None
            assert lane.disk.unsynced == 0

    @rule()
    def drain_all(self) -> None:
        for batch, events in self.out:
            batch.ack()
            for event in events:
                self.owed[batch.priority].remove(event)
        self.out.clear()
        while (batch_or_none := self.buffer.get_batch()) is not None:
            for event in batch_or_none.tolist():
                assert event == self.owed[batch_or_none.priority].popleft(), "out of order"
            batch_or_none.ack()
        assert not any(self.owed.values())

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "buffer"):
            stats = self.buffer.stats()
            stats.check()
            assert stats.resident == sum(map(len, self.owed.values()))

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.out.clear()
            self.buffer.close(timeout=0)
            self.place.cleanup()


TestDurableModel = DurableMachine.TestCase
TestDurableModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
