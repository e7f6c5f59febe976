"""What a SpillStore has promised, kept beside it, and random work that makes it promise
things.

Shared by the proofs that kill a store in some way and then ask whether the promises
hold: power_loss.py, io_errors.py.
"""

from __future__ import annotations

import random
from uuid import UUID

import numpy as np
import numpy.typing as npt

from backpressure.base.errors import NotNow
from backpressure.spill import FileSystem, Lost, Run, SpillConfig, SpillStore
from backpressure.testing import CrashingFileSystem

LANE = "/lane"
BUFFER_ID = UUID("6f1c7f0a-5d0c-4b6e-9a53-0c4c5c1f2f11")
# Small limits make every few appends a new segment, and every few events a block.
SMALL = SpillConfig(segment_bytes=4096, block_bytes=256, reserve_bytes=4096, ack_record_bytes=512)
STARTS = (0, 0, (1 << 32) - 40, (1 << 63) - 40, (1 << 64) - 200_000)


def columns(events: list[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    offsets = np.zeros(len(events) + 1, np.int64)
    np.cumsum([len(event) for event in events], out=offsets[1:])
    return np.frombuffer(b"".join(events), np.uint8), offsets


def disk_with_lane(capacity: int | None = None, seed: int = 0) -> CrashingFileSystem:
    disk = CrashingFileSystem(capacity=capacity, seed=seed)
    disk.mkdir(LANE)
    disk.sync_directory("/")
    return disk


def opened(fs: FileSystem, config: SpillConfig = SMALL) -> SpillStore:
    return SpillStore(LANE, 3, BUFFER_ID, config, fs)


class Journal:
    """Promises: which events were stored, which acked, up to where they are durable;
    and what may be there besides.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        #: Appended, and the call came back.
        self.stored: dict[int, bytes] = {}
        #: Given to an append that did not come back, or only in part.
        self.tried: dict[int, bytes] = {}
        #: An ack was begun.
        self.acked: set[int] = set()
        self.durable = start
        #: Reported as lost, where the disk is made to be unreadable for good.
        self.lost: set[int] = set()
        self.may_lose = False
        #: Counts what was read, so that a proof can show that it proved something.
        self.delivered = 0

    def restarted(self, store: SpillStore, found: dict[int, bytes]) -> None:
        """After a recovery that kept the promises: what it has not found is gone, and
        numbers from end_seq on are free again.

        What is gone may be reported as lost once more, if the record of that is lost
        with the power.
        """
        known = self.stored | self.tried
        self.tried = {
            seq: event for seq, event in known.items() if seq not in found and seq < store.end_seq
        }
        self.stored = dict(found)
        self.acked = {seq for seq in self.acked if seq < store.end_seq}
        self.durable = min(self.durable, store.end_seq)

    # ------------------------------------------------------------ work

    def work(
        self, store: SpillStore, rng: random.Random, steps: int, disk: CrashingFileSystem
    ) -> None:
        """Random calls. Where the file system refuses, the store says so by NotNow, and
        work goes on.
        """
        unacked: list[tuple[int, int]] = []
        read_to = 0
        for _ in range(steps):
            action = rng.random()
            try:
                if action < 0.45:
                    self.append(store, rng, disk)
                elif action < 0.6:
                    store.sync()
                elif action < 0.8:
                    found = store.read(read_to, rng.randint(1, 12), rng.choice((1, 100, 5000)))
                    if isinstance(found, Run):
                        self.check_run(found)
                        unacked.append((found.first_seq, len(found)))
                        read_to = found.end_seq
                    elif isinstance(found, Lost):
                        assert self.may_lose, f"{found} without any damage"
                        self.lost.update(range(found.first_seq, found.end_seq))
                elif unacked:
                    first, count = unacked.pop(
                        rng.randrange(len(unacked)) if rng.random() < 0.5 else 0
                    )
                    self.acked.update(range(first, first + count))
                    store.ack(first, count)
            except NotNow:
                pass
            self.durable = max(self.durable, store.durable_seq)
            store._check()

    def append(self, store: SpillStore, rng: random.Random, disk: CrashingFileSystem) -> None:
        first = max(store.end_seq, self.start) + (rng.randint(1, 9) if rng.random() < 0.2 else 0)
        events = [self.event(first + index, rng, disk) for index in range(rng.randint(1, 9))]
        given = dict(zip(range(first, first + len(events)), events, strict=True))
        self.tried |= given
        try:
            store.append(first, *columns(events), rng.random(), rng.randrange(1 << 60))
        finally:
            came = {seq: event for seq, event in given.items() if seq < store.end_seq}
            self.stored |= came

    def event(self, seq: int, rng: random.Random, disk: CrashingFileSystem) -> bytes:
        """Tells its number; some pretend to be the disk format, by bytes that really
        lie on the disk.
        """
        text = b"%d:" % seq
        kind = rng.random()
        if kind < 0.6:
            return text + rng.choice(
                (b"", b"x" * rng.randint(1, 60), rng.randbytes(rng.randint(1, 60)))
            )
        if kind < 0.9 or not (
            names := [name for name in disk.listdir(LANE) if name.endswith(".seg")]
        ):
            return text + rng.randbytes(rng.randint(100, 700))
        content = disk.read_file(f"{LANE}/{rng.choice(names)}")
        at = 8 * rng.randrange(max(len(content) // 8, 1))
        return text + bytes(-len(text) % 8) + content[at : at + rng.randint(1, 400)]

    # ------------------------------------------------------------ checks

    def check_run(self, run: Run) -> None:
        for seq, event in enumerate(run.messages(), run.first_seq):
            expected = self.stored.get(seq, self.tried.get(seq))
            assert event == expected, f"event {seq} is {event!r}, and was {expected!r}"

    def check_recovered(self, store: SpillStore, survivors: int) -> dict[int, bytes]:
        """Everything below `survivors` that was not acked is there, nothing is that was
        not appended, and the books are right.
        """
        found: dict[int, bytes] = {}
        seq = 0
        on_disk = store.events_on_disk
        while (answer := store.read(seq, 1000, 3000)) is not None:
            if isinstance(answer, Lost):
                there = [
                    number
                    for number in self.stored | self.tried
                    if answer.first_seq <= number < answer.end_seq
                ]
                assert 0 < answer.events <= len(there), f"{answer}, where {len(there)} were"
                if not self.acked.intersection(there):
                    assert answer.events == len(there), f"{answer}, where {len(there)} were"
                # What an earlier power loss took is not among `stored`, and may be
                # reported once more.
                damaged = [
                    number for number in there if number < survivors and number in self.stored
                ]
                assert not damaged, f"{answer}, of which {damaged} were durable"
                continue
            assert answer.first_seq >= seq
            self.check_run(answer)
            found.update(enumerate(answer.messages(), answer.first_seq))
            seq = answer.end_seq
        owed = self.stored.keys() - self.acked - self.lost
        missing = sorted(number for number in owed if number < survivors and number not in found)
        assert not missing, f"{missing} are lost"
        assert store.events_on_disk == len(found) <= on_disk
        assert not found or max(found) < store.end_seq
        store._check()
        self.delivered += len(found)
        return found
