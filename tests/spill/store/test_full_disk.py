"""SpillStore on a disk that is full: a bounded one, a simulated one, and a real one."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpressure.base.errors import DiskFailed, DiskFull
from backpressure.spill import SpillConfig, SpillStore
from backpressure.spill.settled import Settled
from backpressure.testing import FaultyFileSystem
from tests.support.spill_store import everything, put
from tests.torture.journal import BUFFER_ID, LANE, SMALL, disk_with_lane, opened


def test_max_disk_bytes_holds_and_room_comes_back() -> None:
    disk = disk_with_lane()
    config = SpillConfig(
        segment_bytes=1 << 20, block_bytes=256, max_disk_bytes=64 * 1024, ack_record_bytes=512
    )
    rng = random.Random(2)
    with opened(disk, config) as store:
        for _ in range(3):
            with pytest.raises(DiskFull, match="max_disk_bytes") as full:
                fill(store, rng, 700)
            assert full.value.retry_after > 0
            seq = store.end_seq
            assert disk.used_bytes <= store.bytes_on_disk <= 64 * 1024
            assert disk.used_bytes > 50 * 1024
            waiting = sorted(everything(store))
            assert waiting == list(range(waiting[0], seq))
            for one in waiting[: len(waiting) // 2]:
                store.ack(one, 1)
        assert store.stats().refused_full == 3


def fill(store: SpillStore, rng: random.Random, most: int) -> None:
    for _ in range(10_000):
        put(
            store,
            store.end_seq,
            *[rng.randbytes(rng.randint(1, most)) for _ in range(rng.randint(1, 3))],
        )
    raise AssertionError("never full")


def test_a_full_disk_is_emptied_by_acks_and_resumes() -> None:
    disk = disk_with_lane(capacity=40_000)
    config = SpillConfig(
        segment_bytes=8192, block_bytes=1024, reserve_bytes=4096, ack_record_bytes=512
    )
    rng = random.Random(3)
    with opened(disk, config) as store:
        for _ in range(5):
            with pytest.raises(DiskFull):
                fill(store, rng, 900)
            store._check()
            for seq in everything(store):
                store.ack(seq, 1)
            assert store.events_on_disk == 0
            assert store.stats().segments == 1, "a full disk can still be told what was acked"
            assert "reserve" in disk.listdir(LANE), "there for the next time"
    with opened(disk, config) as store:
        assert store.events_on_disk == 0


def test_acks_that_could_not_be_recorded_are_when_there_is_room() -> None:
    disk = disk_with_lane(capacity=40_000)
    config = SpillConfig(
        segment_bytes=8192, block_bytes=1024, reserve_bytes=0, ack_record_bytes=512
    )
    rng = random.Random(3)
    with opened(disk, config) as store:
        with pytest.raises(DiskFull):
            fill(store, rng, 900)
        disk.capacity = disk.used_bytes
        for seq in everything(store):
            store.ack(seq, 1)
        assert store.stats().segments > 3, "without a reserve there is no room for the record"
        assert store.stats().failed_acks > 0
        # Another process makes room, for the record and no more. No further ack is
        # needed.
        disk.capacity += 1100
        with pytest.raises(DiskFull):
            put(store, store.end_seq, rng.randbytes(5000))
        put(store, store.end_seq, rng.randbytes(5000))
        assert store.stats().segments <= 2


def test_a_full_disk_leaves_the_block_out_and_nothing_else() -> None:
    for fail_at in range(1, 12):
        disk = disk_with_lane()
        faulty = FaultyFileSystem(
            disk, fail_at=1 << 30, error=errno.EDQUOT, only={"pwrite", "open", "rename"}
        )
        with opened(faulty, SMALL) as store:
            put(store, 0, b"before")
            faulty.fail_at = faulty._count + fail_at
            events = [b"%d" % number + bytes(200) for number in range(30)]
            with pytest.raises(DiskFull):
                put(store, 1, *events, pressure=1.0)
            came = store.end_seq - 1
            assert 0 <= came < 30
            assert store.stats().refused_full == 1
            put(store, store.end_seq, *events[came:])
            assert list(everything(store).values()) == [b"before", *events]


def test_after_a_new_file_was_given_up_nothing_more_goes_into_the_one_before() -> None:
    """Power loss may bring its name back.

    It would be the newest, and hide what came into the old one since.
    """
    disk = disk_with_lane()
    faulty = FaultyFileSystem(disk, fail_at=1 << 30, only={"sync_directory"})
    with opened(faulty, SMALL) as store:
        put(store, 0, b"first")
        faulty.fail_at = faulty._count + 1
        with pytest.raises(DiskFailed):
            put(
                store, 1, random.Random(1).randbytes(SMALL.segment_bytes)
            )  # has to go into a file of its own
        before = store.stats().segments
        put(store, store.end_seq, b"small enough for the old one")
        store.sync()
        assert store.stats().segments == before + 1
        stored = everything(store)
    for seed in range(50):
        with opened(disk.image(random.Random(seed)), SMALL) as after:
            assert everything(after) == stored


def test_numbers_that_carried_no_event_are_told_from_those_that_did() -> None:
    settled = Settled(5, 5)
    settled.settle(10, 15, 0)
    settled.settle(20, 24, 4)
    assert settled.empty_in(0, 30) == settled.empty_in(10, 15) == 5
    assert settled.empty_in(11, 30) == settled.empty_in(20, 24) == 0


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system of 2 MiB cannot be mounted here: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.platform
@pytest.mark.skipif(os.name != "posix", reason="tmpfs is Linux's")
def test_a_real_disk_that_fills_frees_and_resumes(tiny_tmpfs: Path) -> None:
    lane = tiny_tmpfs / "lane"
    lane.mkdir()
    config = SpillConfig(segment_bytes=256 * 1024, block_bytes=16 * 1024, reserve_bytes=64 * 1024)
    rng = random.Random(4)
    with SpillStore(lane, 1, BUFFER_ID, config) as store:
        for _ in range(3):
            with pytest.raises(DiskFull):
                fill(store, rng, 30_000)
            payload = everything(store)
            assert max(payload) == store.end_seq - 1
            store.sync()
            assert everything(store) == payload
            for seq in sorted(payload)[: len(payload) * 3 // 4]:
                store.ack(seq, 1)
                del payload[seq]
    with SpillStore(lane, 1, BUFFER_ID, config) as store:
        assert everything(store) == payload
