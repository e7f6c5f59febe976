"""A durable lane: what was accepted outlives it, in order, once; the disk tier.

Also a restart of the machine.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backpressure import (
    Batch,
    BatchRejected,
    BufferClosed,
    BufferConfig,
    BufferManager,
    ConfigError,
    DiskFull,
    Durability,
    FlowControlConfig,
    FormatError,
)
from backpressure.lanes.durable_lane import DurableLane
from backpressure.lanes.spiller import Spiller
from backpressure.spill import SpillStore
from backpressure.testing import FaultyFileSystem
from tests.support.buffers import add_all, crash, drain, numbered, until_proved
from tests.support.durable import SMALL, open_buffer

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


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
    """The urgent one, then `count` of the others."""
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
    again.close(timeout=0)


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
    batch.nack(BatchRejected("one of them is bad"))
    good, bad = buffer.get_batch(), buffer.get_batch()
    assert good is not None
    assert bad is not None
    assert (good.tolist(), bad.tolist()) == (events[:4], events[4:])
    good.ack()
    crash(buffer)
    again = open_buffer(tmp_path, max_attempts=1)
    assert drain(again) == events[4:]
    again.close()


# ---------------------------------------------------------------- another boot id


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
    until_proved(buffer)
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


def test_what_has_no_checksum_yet_is_not_trusted_after_a_reboot(
    tmp_path: Path, reboot: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(Spiller, "_write_checksums", lambda self: None)
    buffer = open_buffer(tmp_path / "one", ring_checksums=True)
    add_all(buffer, numbered(10))
    crash(buffer)
    for name in ("two", "three"):
        shutil.copytree(tmp_path / "one", tmp_path / name)
    again = open_buffer(tmp_path / "one", ring_checksums=True)
    assert drain(again) == numbered(10), "in the same run of the kernel all of it counts"
    again.close()
    crash(open_buffer(tmp_path / "two", ring_checksums=True))
    reboot()
    later = open_buffer(tmp_path / "two", ring_checksums=True)
    assert drain(later) == numbered(10), "whoever opens it writes them"
    later.close()
    assert "were in memory" not in caplog.text
    after = open_buffer(tmp_path / "three", ring_checksums=True)
    assert drain(after) == []
    assert "the numbers from 0 to 9 were in memory" in caplog.text
    after.close()


def test_a_lane_that_closes_leaves_no_checksum_out(
    tmp_path: Path, reboot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk refused stays in the ring, and the machine may go down next."""
    monkeypatch.setattr(Spiller, "_write_checksums", lambda self: None)
    buffer = open_buffer(tmp_path, ring_checksums=True)
    add_all(buffer, numbered(10))
    for lane in buffer._lanes:
        assert isinstance(lane, DurableLane)
        lane.close()
    crash(buffer)
    reboot()
    again = open_buffer(tmp_path, ring_checksums=True)
    assert drain(again) == numbered(10)
    again.close()


def test_what_stays_while_the_disk_refuses_gets_its_checksums(
    tmp_path: Path, reboot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SpillStore, *arguments: Any) -> None:
        raise DiskFull("no room", retry_after=1.0)

    with monkeypatch.context() as full:
        full.setattr(SpillStore, "append", refuse)
        buffer = open_buffer(
            tmp_path, ring_checksums=True, durability=Durability.INTERVAL, sync_interval=0.01
        )
        add_all(buffer, numbered(10))
        held = buffer.get_batch(4)
        assert held is not None
        until_proved(buffer)
        crash(buffer)
    reboot()
    again = open_buffer(tmp_path, ring_checksums=True)
    assert drain(again) == numbered(10)
    again.close()


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


def test_what_a_reboot_took_of_a_priority_that_is_no_more_is_told(
    tmp_path: Path, reboot: Any, caplog: Any
) -> None:
    buffer = open_buffer(tmp_path, ring_checksums=False)
    buffer.add_events([b"only in memory"], priority=5)
    crash(buffer)
    reboot()
    fewer = FlowControlConfig(priority_levels=2)
    open_buffer(tmp_path, ring_checksums=False, flow_control=fewer).close()
    assert "priority 5: the numbers from 0 to 0" in caplog.text
    caplog.clear()
    again = open_buffer(tmp_path, ring_checksums=False, flow_control=fewer)
    assert not caplog.text
    assert len(again.stats().lanes) == 2, "it holds nothing and is told of once"
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
    """Spilled, released, never synced.

    Power loss takes the file, and the ring still has the frames.
    """
    buffer = open_buffer(tmp_path, ring_checksums=True)
    events = numbered(300)
    add_all(buffer, events)
    lane = buffer._lanes[2]
    assert isinstance(lane, DurableLane)
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
    buffer = open_buffer(tmp_path, ring_checksums=True, lane_bytes=1 << 17)
    first = numbered(100)
    add_all(buffer, first)
    assert drain(buffer) == first
    events = [b"%06d" % i + b"y" * 90 for i in range(200)]
    for event in events:
        buffer.add_events([event])
    until_proved(buffer)
    crash(buffer)
    ring = tmp_path / "buffer" / "lane-3" / "ring"
    raw = bytearray(ring.read_bytes())
    start = len(raw) - (1 << 17)
    at = raw.index(b"000070yyy", start) // 4096 * 4096
    raw[at : at + 4096] = bytes(4096)
    ring.write_bytes(raw)
    reboot()
    again = open_buffer(tmp_path, ring_checksums=True, lane_bytes=1 << 17)
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
    until_proved(buffer)
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


# ---------------------------------------------------------------- the disk tier


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


def test_nothing_is_overlooked_while_it_moves_to_disk(tmp_path: Path) -> None:
    """Consumers look without a lock.

    At every line of a move, and of a take, what is owed has to be counted in some tier.
    """
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
    assert {"spill", "_store_handed_out", "_store_front"} <= lines
    assert batch is not None
    batch.ack()
    assert drain(buffer) == numbered(50)[10:]
    assert not lane._has_waiting()
    buffer.close()


def test_what_the_disk_took_of_a_batch_leaves_the_ring(tmp_path: Path) -> None:
    """A disk fills in the middle of a piece.

    The part that it took is there once, the rest is in the ring, and acks hold.
    """
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


def test_a_batch_that_is_held_keeps_files_and_gives_them_back(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, max_disk_bytes=1 << 20)
    assert buffer._disk is not None
    lane = buffer._disk.lanes[2]
    noise = random.Random(8)
    add_all(buffer, [b"held"])
    held = buffer.get_batch()
    assert held is not None
    refused = 0
    for _ in range(120):
        events = [noise.randbytes(1000) for _ in range(10)]
        assert buffer.add_events(events).accepted == 10
        try:
            while lane.spill(0.0):
                pass
        except DiskFull:
            refused += 1
        assert drain(buffer) == events
    # What is kept for nothing shows, is bounded, and delays no consumer that is served
    # from the ring.
    stats = buffer.stats().disk
    assert stats is not None
    assert stats.events == 1
    assert (1 << 20) - 2 * SMALL.segment_bytes < stats.used_bytes <= 1 << 20
    assert refused > 0
    held.ack()
    assert lane.store.bytes_on_disk < 3 * SMALL.segment_bytes
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
