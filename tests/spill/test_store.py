"""SpillStore: gaps, limits, full disks, failed syncs, the order of its system calls, threads, and how little opening costs."""

from __future__ import annotations

import copy
import errno
import os
import random
import subprocess
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from backpressure.base.errors import BufferClosed, ConfigError, DiskFailed, DiskFull
from backpressure.spill import LocalFileSystem, Lost, Run, SpillConfig, SpillStore
from backpressure.spill.blocks import Link
from backpressure.spill.files import FileSystem
from backpressure.spill.ledger import LEDGER_NAME, Ledger, read_record
from backpressure.spill.segments import Segment, frame_segment_header
from backpressure.spill.settled import Settled
from backpressure.spill.writer import level_for
from backpressure.testing import Call, CrashingFileSystem, FaultyFileSystem, RecordingFileSystem
from tests.support.threads import run_threads
from tests.torture.journal import BUFFER_ID, LANE, SMALL, columns, disk_with_lane, opened


def put(store: SpillStore, first: int, *events: bytes, pressure: float = 0.0) -> None:
    store.append(first, *columns(list(events)), pressure)


def got(answer: Run | Lost | None) -> tuple[int, list[bytes]]:
    assert isinstance(answer, Run), answer
    return answer.first_seq, answer.messages().tolist()


def everything(store: SpillStore, from_seq: int = 0) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while (answer := store.read(from_seq, 1000, 1 << 20)) is not None:
        first, events = got(answer)
        found.update(enumerate(events, first))
        from_seq = first + len(events)
    return found


# ---------------------------------------------------------------- numbers


def test_what_goes_in_comes_out() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        assert store.read(0, 10, 100) is None
        put(store, 0, b"a", b"", b"ccc")
        put(store, 3, b"d" * 5000)
        assert got(store.read(0, 2, 100)) == (0, [b"a", b""])
        assert got(store.read(2, 10, 100)) == (2, [b"ccc"])
        assert got(store.read(3, 10, 1)) == (3, [b"d" * 5000]), (
            "one event alone may be larger than max_bytes"
        )
        assert got(store.read(0, 10, 1 << 20)) == (0, [b"a", b"", b"ccc", b"d" * 5000])
        assert (store.first_seq, store.end_seq, store.durable_seq, store.events_on_disk) == (
            0,
            4,
            0,
            4,
        )
        store.sync()
        assert store.durable_seq == 4


def test_gaps_are_no_losses() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 100, b"x")
        assert (store.first_seq, store.end_seq) == (100, 101)
        put(store, 200, b"y")
        put(store, 201, b"z")
        assert got(store.read(0, 10, 100)) == (100, [b"x"]), "a run ends at a gap"
        assert got(store.read(101, 10, 100)) == (200, [b"y", b"z"])
        store.ack(100, 1)
        assert store.first_seq == 200, "the reader has seen the gap"
        store.ack(201, 1)
        assert (store.first_seq, store.events_on_disk) == (200, 1)
        assert got(store.read(0, 10, 100)) == (200, [b"y"])
    with opened(disk) as store:
        assert everything(store) == {200: b"y"}
        store.ack(200, 1)
        assert (store.first_seq, store.events_on_disk, store.stats().lost_events) == (202, 0, 0)
        # Nothing waits: the next numbers may start anywhere, and nobody waits for those between.
        put(store, 1 << 40, b"far")
        assert store.first_seq == 1 << 40


@pytest.mark.parametrize("start", [(1 << 32) - 2, (1 << 63) - 2, (1 << 64) - 5])
def test_large_numbers(start: int) -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, start, b"a", b"b", b"c", b"d")
        store.ack(start + 1, 1)
    with opened(disk) as store:
        assert everything(store) == {start: b"a", start + 2: b"c", start + 3: b"d"}
        if start + 4 == (1 << 64) - 1:
            with pytest.raises(ValueError, match="first_seq"):
                put(store, start + 4, b"one too many")


def test_bad_calls_change_nothing() -> None:
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 5, b"a", b"b")
    data, offsets = columns([b"ab", b"c"])
    for error, arguments in [
        (ValueError, (6, data, offsets)),
        (ValueError, (7, data, offsets, 1.5)),
        (ValueError, (7, data, offsets, float("nan"))),
        (ValueError, (7, data, offsets, 0.0, -1)),
        (ValueError, (7, data, offsets[::-1])),
        (ValueError, (7, data[:1], offsets)),
        (ValueError, (7, data, offsets - 1)),
        (TypeError, (7, data.astype(np.int8), offsets)),
        (TypeError, (7, data[::2], offsets)),
        (TypeError, (7, data, offsets.astype(np.int32))),
        (TypeError, (7, data, offsets[:0])),
    ]:
        with pytest.raises(error):
            store.append(*arguments)
    for first, count in [(5, 3), (-1, 1), (7, 1), (5, -1)]:
        with pytest.raises(ValueError, match=r"stored|count"):
            store.ack(first, count)
    store.ack(5, 1)
    with pytest.raises(ValueError, match="acked already"):
        store.ack(5, 2)
    with pytest.raises(ValueError, match="max_events"):
        store.read(0, 0, 1)
    assert everything(store) == {6: b"b"}
    store.append(7, data, offsets[:1])
    assert store.end_seq == 7, "no events are no event"
    store.close()
    store.close()
    for call in (
        lambda: put(store, 7, b"x"),
        lambda: store.read(0, 1, 1),
        lambda: store.ack(6, 1),
        store.sync,
    ):
        with pytest.raises(BufferClosed):
            call()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("segment_bytes", 100),
        ("block_bytes", 0),
        ("max_disk_bytes", 100),
        ("slowest_level", 23),
        ("fastest_level", 4),
        ("reserve_bytes", -1),
        ("ack_record_bytes", 1000),
        ("max_quarantine_bytes", 1.5),
    ],
)
def test_config_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        SpillConfig(**{field: value})
    assert error.value.field == field


def test_the_level_follows_the_pressure_within_its_bounds() -> None:
    def levels(**bounds: int) -> list[int | None]:
        config = SpillConfig(**bounds)
        return [level_for(pressure, config) for pressure in (0.0, 0.5, 0.9, 1.0)]

    assert levels(slowest_level=3) == [3, 1, -5, None]
    assert levels() == [1, 1, -5, None]
    assert levels(slowest_level=1, fastest_level=1) == [1, 1, 1, 1]
    assert levels(slowest_level=3, fastest_level=-5) == [3, 1, -5, -5]


def test_pressure_trades_room_for_time() -> None:
    disk = disk_with_lane()
    with opened(disk, SpillConfig()) as store:
        event = b"the same words again and again " * 200
        sizes = []
        for number, pressure in enumerate((0.0, 1.0)):
            before = store.stats().stored_bytes
            put(store, number, event, pressure=pressure)
            sizes.append(store.stats().stored_bytes - before)
        assert sizes[0] < len(event) / 10
        assert sizes[1] > len(event)
        noise = random.Random(1).randbytes(5000)
        before = store.stats().stored_bytes
        put(store, 2, noise)
        assert store.stats().stored_bytes - before < 5150, (
            "what compression makes larger is stored as it is"
        )
        assert everything(store) == {0: event, 1: event, 2: noise}


# ---------------------------------------------------------------- acks and their record


def test_files_go_when_all_in_them_is_acked() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        for seq in range(40):
            put(store, seq, random.Random(seq).randbytes(900))
        before = store.stats()
        assert before.segments > 8
        for seq in range(39, 0, -1):  # the oldest last: nothing can go before
            store.ack(seq, 1)
        assert store.stats().segments == before.segments
        assert store.stats().acked_ranges == 1
        store.ack(0, 1)
        after = store.stats()
        assert (after.segments, after.events_on_disk) == (1, 0)
        assert after.bytes_on_disk < before.bytes_on_disk / 4
        assert len([name for name in disk.listdir(LANE) if name.endswith(".seg")]) == 1


def test_a_gap_that_nobody_read_keeps_no_file() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 0, bytes(3000), pressure=1.0)
        put(store, 10, bytes(3850), pressure=1.0)
        put(store, 20, b"in a file too small to begin another for")
        assert store.stats().segments == 3
        store.ack(20, 1)
        store.ack(10, 1)
        store.ack(0, 1)
        assert (store.stats().acked_ranges, store.stats().segments, store.first_seq) == (0, 1, 21)


def test_deleted_files_are_not_kept_open() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        for seq in range(40):
            put(store, seq, random.Random(seq).randbytes(900))
        for seq in range(40):
            assert got(store.read(seq, 1, 1))[0] == seq
            store.ack(seq, 1)
            names = {f"{LANE}/{name}" for name in disk.listdir(LANE)}
            assert {opened.file.path for opened in store._reader._opened.values()} <= names
        assert disk.open_descriptors <= 3


def test_an_ack_while_an_append_is_under_way_settles_nothing_else() -> None:
    """The appended event is read and acked before append() has come back, while an older one is still with a consumer."""
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 0, b"older")
    assert got(store.read(0, 9, 100)) == (0, [b"older"])
    append = store._writer.append

    def append_read_ack(*arguments: object) -> None:
        append(*arguments)  # type: ignore[arg-type]
        assert got(store.read(1, 9, 100)) == (10, [b"newer"])
        store.ack(10, 1)

    store._writer.append = append_read_ack  # type: ignore[method-assign]
    put(store, 10, b"newer")
    assert store.events_on_disk == 1
    assert everything(store) == {0: b"older"}


def test_an_empty_store_remembers_its_numbers_without_the_record() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 0, random.Random(1).randbytes(3000))
        store.ack(0, 1)
        assert store.stats().segments == 1
        assert store.bytes_on_disk < 6000
    disk.unlink(f"{LANE}/{LEDGER_NAME}")
    with opened(disk) as store:
        assert (store.first_seq, store.end_seq, store.events_on_disk) == (1, 1, 0)


def test_numbers_that_were_acked_are_not_given_out_again_after_power_loss() -> None:
    """Events read and acked before they were durable: the record may be all that is left of them."""
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 0, b"a", b"b", b"c")
    store.ack(1, 2)
    assert store.sync_acks()
    lost = next(
        image for image in (disk.image(random.Random(seed)) for seed in range(50)) if empty(image)
    )
    # Killed twice: what the old record says of events that are gone must not be counted again when others are there.
    killed = copy.deepcopy(lost)
    put(opened(killed), 3, b"new", b"newer")
    killed.kill()
    for _ in range(2):
        with opened(killed) as store:
            assert everything(store) == {3: b"new", 4: b"newer"}
            assert (store.first_seq, store.events_on_disk) == (3, 2)
        killed.kill()
    with opened(lost) as store:
        assert store.end_seq == 3
        with pytest.raises(ValueError, match="first_seq"):
            put(store, 2, b"would be taken for acked")
        put(store, 3, b"new")
        assert everything(store) == {3: b"new"}
        assert store.events_on_disk == 1
    with opened(lost) as store:
        assert everything(store) == {3: b"new"}
        assert store.events_on_disk == 1


def test_a_range_acked_before_it_was_durable_counts_no_other_events() -> None:
    """Of two events acked out of turn the second is gone with the power; its number stays taken, and the count stays right."""
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 0, b"a", b"b")
    store.sync()
    put(store, 2, b"c")
    store.ack(1, 2)
    assert store.sync_acks()
    images = (disk.image(random.Random(seed)) for seed in range(50))
    lost = next(image for image in images if opened(image).stats().events_on_disk == 2)
    lost.kill()
    put(opened(lost), 3, b"d")
    lost.kill()
    with opened(lost) as store:
        assert everything(store) == {0: b"a", 1: b"b", 3: b"d"}
        assert store.events_on_disk == 3
        store.ack(0, 1)
        assert store.first_seq == 1


def empty(image: CrashingFileSystem) -> bool:
    return all(
        len(image.read_file(f"{LANE}/{name}")) <= 96
        for name in image.listdir(LANE)
        if name.endswith(".seg")
    )


def test_the_record_holds_so_many_ranges_and_the_rest_is_delivered_again() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 0, *[b"%d" % seq for seq in range(100)])
        for seq in range(1, 100, 2):
            store.ack(seq, 1)
    with opened(disk) as store:
        # (512 - 96) // 24 ranges of one event
        assert sorted(everything(store)) == [seq for seq in range(100) if seq % 2 == 0 or seq >= 35]
        assert store.events_on_disk == 100 - 17


def test_power_loss_leaves_the_last_durable_record() -> None:
    """A slot of several sectors, all of which matter: a torn write must hit the other one."""
    disk = disk_with_lane()
    with opened(disk, SpillConfig(ack_record_bytes=2048)) as store:
        put(store, 0, *[b"%d" % seq for seq in range(160)])
        store.sync()
        durable = 0
        for number, seq in enumerate(range(159, 0, -2), 1):
            store.ack(seq, 1)
            if number % 3 == 0:
                assert store.sync_acks()
                durable = number
            for seed in range(6):
                with opened(disk.image(random.Random(1000 * seq + seed))) as after:
                    assert after.events_on_disk <= 160 - durable, (
                        "a durable record was written over"
                    )


def test_the_ledger_survives_errors_in_a_new_file() -> None:
    disk = disk_with_lane()
    for fail_at in range(1, 30):
        fs = FaultyFileSystem(disk, fail_at=fail_at)
        ledger = Ledger(opened_files(fs), LANE, 3, BUFFER_ID, 512, None)
        for seq in range(1, 6):
            try:
                ledger.write(Settled(seq, seq), Link(0, 0, 0))
                ledger.sync()
            except OSError:
                ledger.write(Settled(seq, seq), Link(0, 0, 0))
                ledger.sync()
            assert ledger.durable is not None
            assert ledger.durable.prefix == seq
            for seed in range(4):
                image = disk.image(random.Random(seed))
                record = read_record(image.read_file(f"{LANE}/{LEDGER_NAME}"), "", 3, BUFFER_ID)
                assert record is not None
                assert record.prefix == seq
        ledger.close()
        assert disk.open_descriptors == 0


def opened_files(fs: FileSystem):  # type: ignore[no-untyped-def]
    from backpressure.spill.files import Files

    return Files(fs)


# ---------------------------------------------------------------- full disks


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
        # Somebody else makes room, for the record and no more. Nobody acks any more, and nobody has to.
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
    """Power loss may bring its name back; it would be the newest, and hide what came into the old one since."""
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
        pytest.skip(f"a file system of 2 MiB can not be mounted here: {mounted.stderr.strip()}")
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


# ---------------------------------------------------------------- failed syncs


def test_a_failed_sync_writes_anew_and_never_syncs_that_file_again() -> None:
    disk = disk_with_lane()
    faulty = FaultyFileSystem(disk, fail_at=2, only={"fdatasync"})
    store = opened(faulty)
    put(store, 0, b"durable")
    store.sync()
    put(store, 1, b"not", b"yet")
    put(store, 5, b"after a gap")
    store.sync()
    assert faulty.failures == 1
    assert (store.durable_seq, store.stats().failed_syncs) == (6, 1)
    failed = next(call for call in reversed(faulty.calls) if call.name == "fdatasync").path
    put(store, 6, b"later")
    store.sync()
    assert [call.name for call in faulty.calls if call.path == failed].count("fdatasync") == 2
    expected = {0: b"durable", 1: b"not", 2: b"yet", 5: b"after a gap", 6: b"later"}
    assert everything(store) == expected
    for seed in range(30):
        with opened(disk.image(random.Random(seed))) as after:
            assert everything(after) == expected
            assert after.stats().lost_events == 0


def test_what_a_failed_sync_has_ruined_is_reported_and_not_written_anew() -> None:
    """After the failure the kernel may have read the old pages again: what is copied from there is checked."""
    disk = disk_with_lane()
    faulty = FaultyFileSystem(disk, fail_at=1, only={"fdatasync"})
    store = opened(faulty)
    places = []
    for seq, event in enumerate([b"one", b"two", b"three"]):
        put(store, seq, event, pressure=1.0)
        places.append(store._writer.view.size)
    (name,) = (name for name in disk.listdir(LANE) if name.endswith(".seg"))
    fd = disk.open(f"{LANE}/{name}", os.O_RDWR)
    disk.pwrite(fd, b"?", places[1] - 6)  # in what is stored of "two"
    store.sync()
    assert faulty.failures == 1
    assert got(store.read(0, 9, 100)) == (0, [b"one"])
    lost = store.read(1, 9, 100)
    assert isinstance(lost, Lost)
    assert (lost.first_seq, lost.end_seq, lost.events) == (1, 2, 1)
    assert got(store.read(1, 9, 100)) == (2, [b"three"])


def test_a_sync_that_fails_for_good_says_so_and_loses_nothing() -> None:
    disk = disk_with_lane()
    faulty = FaultyFileSystem(disk, fail_at=2, sticky=True, only={"fdatasync", "fsync"})
    store = opened(faulty)
    put(store, 0, b"a")
    for _ in range(3):
        with pytest.raises(DiskFailed) as failed:
            store.sync()
        assert failed.value.errno == errno.EIO
        with pytest.raises(DiskFailed):
            put(store, 1, b"b")
    assert (store.durable_seq, store.end_seq) == (0, 1)
    assert everything(store) == {0: b"a"}
    faulty.fail_at = 1 << 30
    put(store, 1, b"b")
    store.sync()
    assert everything(store) == {0: b"a", 1: b"b"}
    with opened(disk.image(random.Random(0))) as after:
        assert everything(after) == {0: b"a", 1: b"b"}


def test_a_torn_tail_is_cut_and_counted() -> None:
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 0, b"whole")
    put(store, 1, b"torn")
    disk.kill()
    name = next(name for name in disk.listdir(LANE) if name.endswith(".seg"))
    content = disk.read_file(f"{LANE}/{name}")
    for cut in (
        content[:-1],
        content[:-9],
        content[:-7] + b"?" + content[-6:],
        content + b"rubbish",
    ):
        disk.write_file(f"{LANE}/{name}", cut)
        with opened(disk_copy(disk)) as after:
            assert after.stats().torn_bytes > 0
            assert after.stats().lost_events == 0
            assert everything(after) == (
                {0: b"whole", 1: b"torn"} if cut.endswith(b"rubbish") else {0: b"whole"}
            )
            put(after, after.end_seq, b"next")
            after.sync()
            assert list(everything(after).values())[-1] == b"next"


def disk_copy(disk: CrashingFileSystem) -> CrashingFileSystem:
    copy = disk_with_lane()
    for name in disk.listdir(LANE):
        copy.write_file(f"{LANE}/{name}", disk.read_file(f"{LANE}/{name}"))
    return copy


# ---------------------------------------------------------------- order of system calls


def test_the_order_of_system_calls() -> None:
    disk = disk_with_lane()
    recording = RecordingFileSystem(disk)
    rng = random.Random(5)
    store = opened(recording)
    for seq in range(60):
        put(store, seq, rng.randbytes(500))
        if seq % 5 == 4:
            for one in range(seq - 4, seq + 1):
                store.ack(one, 1)
    store.close()
    check_order(recording.calls)
    assert sum(call.name == "unlink" and call.path.endswith(".seg") for call in recording.calls) > 4


def check_order(calls: list[Call]) -> None:
    dirty: set[str] = set()  # written since it was synced
    names_dirty = False
    ack_is_durable = False
    newest = ""
    for call in calls:
        name, path = call.name, call.path
        if name == "open" and call.arguments[0] & os.O_CREAT:
            names_dirty = names_dirty or path.endswith(".tmp")
        elif name in ("pwrite", "truncate"):
            if path.endswith(".seg"):
                assert not names_dirty, f"{path} is used before its name is durable"
                assert path >= newest, f"{path} is written after its successor {newest} was made"
            dirty.add(path)
            if path.endswith(LEDGER_NAME):
                ack_is_durable = False
        elif name in ("fsync", "fdatasync"):
            dirty.discard(path)
            ack_is_durable = ack_is_durable or LEDGER_NAME in path
        elif name == "rename":
            assert call.arguments[0] not in dirty, (
                f"{path} gets its name before its content is durable"
            )
            if path.endswith(".seg"):
                assert newest not in dirty or ack_is_durable, (
                    f"{path} is made before {newest} is durable"
                )
                newest = path
            names_dirty = True
        elif name == "sync_directory":
            names_dirty = False
        elif name == "unlink" and path.endswith(".seg"):
            assert ack_is_durable, (
                f"{path} is deleted before it is durable that all in it was acked"
            )
            assert not names_dirty


def test_check_order_can_fail() -> None:
    def of(*steps: tuple[str, str]) -> list[Call]:
        return [
            Call(name, path, (os.O_CREAT,) if name == "open" else ("1.seg.tmp",))
            for name, path in steps
        ]

    for steps in (
        of(("pwrite", "1.seg.tmp"), ("rename", "1.seg")),
        of(("rename", "1.seg"), ("pwrite", "1.seg")),
        of(("unlink", "1.seg")),
        of(("fsync", "acked"), ("pwrite", "acked"), ("unlink", "1.seg")),
        of(("rename", "1.seg"), ("sync_directory", "/"), ("pwrite", "1.seg"), ("rename", "2.seg")),
    ):
        with pytest.raises(AssertionError):
            check_order(steps)


# ---------------------------------------------------------------- opening a large backlog


def test_opening_reads_headers_only_and_remembers_little(tmp_path: Path) -> None:
    """100 GB in sparse files: three calls and 96 bytes for each but the newest, and an index of a few hundred bytes each."""
    lane = tmp_path / "lane"
    lane.mkdir()
    count = 100_000_000_000 // SpillConfig().segment_bytes
    per_segment = 1000
    for serial in range(count):
        base = serial * per_segment
        link = Link(max(base - 1, 0), base, base)
        segment = Segment(serial, base, serial.to_bytes(8, "little"), link, 0)
        path = lane / segment.name
        path.write_bytes(frame_segment_header(1, BUFFER_ID, segment))
        os.truncate(path, SpillConfig().segment_bytes)
    os.truncate(path, 96)
    recording = RecordingFileSystem(LocalFileSystem())
    tracemalloc.start()
    store = SpillStore(lane, 1, BUFFER_ID, None, recording)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    read = sum(call.arguments[1] for call in recording.calls if call.name == "pread")
    assert store.stats().segments == count
    assert store.events_on_disk == per_segment * (count - 1)
    assert store.bytes_on_disk > 99_000_000_000
    assert read < 100 * count + 10_000
    # open, size, pread, close for each
    assert (
        sum(call.name in ("open", "pread", "size", "close") for call in recording.calls)
        < 4 * count + 20
    )
    assert used - len(recording.calls) * 300 < 1000 * count
    store.close()


def test_reading_holds_two_segments_at_most(tmp_path: Path) -> None:
    lane = tmp_path / "lane"
    lane.mkdir()
    config = SpillConfig(segment_bytes=1 << 20, block_bytes=64 * 1024)
    event = np.frombuffer(random.Random(6).randbytes(1000), np.uint8)
    data, offsets = np.tile(event, 1000), np.arange(0, 1_000_001, 1000)
    with SpillStore(lane, 1, BUFFER_ID, config) as store:
        for first in range(0, 30_000, 1000):
            store.append(first, data, offsets, 1.0)
        tracemalloc.start()
        seq = 0
        while isinstance(run := store.read(seq, 100, 1 << 20), Run):
            seq = run.end_seq
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seq == 30_000
        assert peak < 2 * (config.segment_bytes + (1 << 20))


# ---------------------------------------------------------------- threads


def test_one_appends_while_others_read_and_ack(tmp_path: Path) -> None:
    lane = tmp_path / "lane"
    lane.mkdir()
    config = SpillConfig(segment_bytes=64 * 1024, block_bytes=4096, reserve_bytes=4096)
    total = 20_000
    errors: list[BaseException] = []
    unacked: list[tuple[int, int]] = []
    lock = threading.Lock()
    reading_done = threading.Event()

    with SpillStore(lane, 1, BUFFER_ID, config) as store:

        def append() -> None:
            rng = random.Random(7)
            seq = 0
            while seq < total:
                events = [
                    b"%d" % (seq + index) for index in range(min(rng.randint(1, 200), total - seq))
                ]
                put(store, seq, *events, pressure=rng.random())
                seq += len(events)
                if rng.random() < 0.05:
                    store.sync()

        def read() -> None:
            seq = 0
            while seq < total and not errors:
                run = store.read(seq, 300, 1 << 20)
                if run is None:
                    continue
                first, events = got(run)
                assert first == seq
                assert events == [b"%d" % number for number in range(first, first + len(events))]
                seq += len(events)
                with lock:
                    unacked.append((first, len(events)))
            reading_done.set()

        def ack(seed: int) -> None:
            rng = random.Random(seed)
            while not errors:
                done = reading_done.is_set()
                with lock:
                    one = unacked.pop(rng.randrange(len(unacked))) if unacked else None
                if one is not None:
                    store.ack(*one)
                elif done:
                    return

        run_threads((append, read, lambda: ack(1), lambda: ack(2)), errors)
        assert (store.events_on_disk, store.first_seq, store.end_seq) == (0, total, total)
        store._check()


def test_another_buffer_id_is_another_store() -> None:
    disk = disk_with_lane()
    opened(disk).close()
    with SpillStore(LANE, 4, UUID(int=1), SMALL, disk) as store:
        assert store.end_seq == 0, "an empty directory belongs to whoever comes"
