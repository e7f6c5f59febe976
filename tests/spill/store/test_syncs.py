"""SpillStore: syncs that fail, and the order of its system calls."""

from __future__ import annotations

import errno
import os
import random

import pytest

from backpressure.base.errors import DiskFailed
from backpressure.spill import Lost
from backpressure.spill.ledger import LEDGER_NAME
from backpressure.testing import Call, CrashingFileSystem, FaultyFileSystem, RecordingFileSystem
from tests.support.spill_store import everything, got, put
from tests.torture.journal import LANE, disk_with_lane, opened

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
    """After the failure the kernel may have read the old pages again.

    What is copied from there is checked.
    """
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
