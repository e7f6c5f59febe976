"""SpillStore: acks, their record, and the files that they let go."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from backpressure.spill import SpillConfig
from backpressure.spill.blocks import Link
from backpressure.spill.files import FileSystem
from backpressure.spill.ledger import LEDGER_NAME, Ledger, read_record
from backpressure.spill.settled import Settled
from backpressure.testing import CrashingFileSystem, FaultyFileSystem
from tests.support.spill_store import everything, got, put
from tests.support.threads import in_thread
from tests.torture.journal import BUFFER_ID, LANE, disk_with_lane, opened


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


def test_a_gap_that_was_never_read_keeps_no_file() -> None:
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
    """The appended event is read and acked before append() has returned.

    An older one is with a consumer all the while.
    """
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 0, b"older")
    assert got(store.read(0, 9, 100)) == (0, [b"older"])
    append = store._writer.append

    def read_and_ack() -> None:
        assert got(store.read(1, 9, 100)) == (10, [b"newer"])
        store.ack(10, 1)

    def append_read_ack(*arguments: Any) -> None:
        append(*arguments)
        in_thread(read_and_ack)

    store._writer.append = append_read_ack  # type: ignore[assignment, method-assign]
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
    """Events are read and acked before they are durable.

    The record may be all that is left of them.
    """
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 0, b"a", b"b", b"c")
    store.ack(1, 2)
    assert store.sync_acks()
    lost = next(
        image for image in (disk.image(random.Random(seed)) for seed in range(50)) if empty(image)
    )
    # Killed twice: what the old record says of events that are gone must not be counted
    # again when others are there.
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
    """Of two events acked out of turn, power loss takes the second.

    Its number stays taken, and the count stays right.
    """
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
    """A slot of several sectors, all of which matter.

    A torn write must hit the other slot.
    """
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
