"""The store against a model.

Append, read, ack in any order, kill, power loss and reopen; nothing is damaged.
"""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backpressure.base.errors import DiskFull
from backpressure.spill import Run, SpillConfig, SpillStore
from backpressure.testing import CrashingFileSystem
from tests.support.models import share_and_proof
from tests.torture.journal import columns, disk_with_lane, opened

CONFIG = SpillConfig(segment_bytes=4096, block_bytes=256, reserve_bytes=512, ack_record_bytes=512)
STARTS = [0, 1, (1 << 32) - 30, (1 << 63) - 30, (1 << 64) - 100_000]


class StoreModel(RuleBasedStateMachine):
    """The model: a dict of what is owed, and up to where it is durable."""

    disk: CrashingFileSystem
    store: SpillStore

    def __init__(self) -> None:
        super().__init__()
        self.owed: dict[int, bytes] = {}
        self.out: list[tuple[int, int]] = []  # delivered, neither acked nor given back
        self.acked: set[int] = set()
        self.end = 0
        self.durable = 0
        self.read_to = 0

    @initialize(start=st.sampled_from(STARTS), capacity=st.sampled_from([None, None, 12_000]))
    def begin(self, start: int, capacity: int | None) -> None:
        self.disk = disk_with_lane(capacity)
        self.store = opened(self.disk, CONFIG)
        self.end = self.durable = start

    @rule(
        sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12),
        gap=st.sampled_from([0, 0, 0, 1, 7, 100]),
        pressure=st.floats(0, 1),
        before=st.integers(0, 3),
    )
    def append(self, sizes: list[int], gap: int, pressure: float, before: int) -> None:
        first = self.end + gap
        events = [(b"%d;" % (first + index)).ljust(size, b"-") for index, size in enumerate(sizes)]
        data, offsets = columns([bytes(before), *events])
        try:
            # The first column entry is left out: offsets need not begin at 0.
            self.store.append(first, data, offsets[1:], pressure)
        except DiskFull:
            assert self.disk.capacity is not None
        came = max(self.store.end_seq - first, 0)
        assert came == len(events) or self.disk.capacity is not None
        self.owed.update(zip(range(first, first + came), events, strict=False))
        if came:
            self.end = first + came

    @rule(events=st.integers(1, 40), size=st.sampled_from([0, 1, 300, 5000, 1 << 20]))
    def read(self, events: int, size: int) -> None:
        run = self.store.read(self.read_to, events, size)
        expected = sorted(seq for seq in self.owed if seq >= self.read_to and not self.is_out(seq))
        if run is None:
            assert not expected
            return
        assert isinstance(run, Run), run
        got = dict(enumerate(run.messages(), run.first_seq))
        assert got == {seq: self.owed[seq] for seq in got}
        assert run.first_seq == expected[0]
        assert 1 <= len(run) <= events
        assert run.nbytes <= size or len(run) == 1
        # As much as there is, was asked for and fits.
        if run.end_seq in self.owed and not self.is_out(run.end_seq):
            assert (
                len(run) == events
                or run.nbytes + len(self.owed[run.end_seq]) > size
                or run.nbytes >= size
            )
        self.out.append((run.first_seq, len(run)))
        self.read_to = run.end_seq

    def is_out(self, seq: int) -> bool:
        return any(first <= seq < first + count for first, count in self.out)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 1000), part=st.floats(0, 1))
    def ack(self, which: int, part: float) -> None:
        first, count = self.out.pop(which % len(self.out))
        some = round(count * part)
        self.store.ack(first, some)
        self.acked.update(range(first, first + some))
        for seq in range(first, first + some):
            del self.owed[seq]
        # What was not acked is given back: it is read again from there.
        if some < count:
            self.out = [one for one in self.out if one[0] < first]
            self.read_to = first + some

    @precondition(lambda self: self.out)
    @rule()
    def ack_twice_is_refused(self) -> None:
        if self.acked:
            seq = max(self.acked)
            try:
                self.store.ack(seq, 1)
            except ValueError:
                return
            raise AssertionError(f"{seq} was acked twice")

    @rule()
    def give_all_back(self) -> None:
        self.out.clear()
        self.read_to = 0

    @rule()
    def sync(self) -> None:
        try:
            self.store.sync()
        except DiskFull:
            assert self.disk.capacity is not None
            return
        assert self.store.durable_seq == self.store.end_seq
        self.durable = self.end

    @rule(closing=st.booleans())
    def restart(self, closing: bool) -> None:
        """A clean end, or the death of the process.

        Nothing is lost, and the acks that the record has room for are known.
        """
        ranges = self.store.stats().acked_ranges
        if closing:
            self.store.close()
            assert self.disk.open_descriptors == 0
        self.disk.kill()
        self.reopen()
        if (
            ranges > 17 or self.disk.capacity is not None
        ):  # what a slot of 512 bytes holds; a full disk may have no record
            self.adopt_redelivered()

    @rule(seed=st.integers(0, 1 << 32))
    def power_loss(self, seed: int) -> None:
        self.durable = max(self.durable, min(self.store.durable_seq, self.end))
        self.disk = self.disk.image(random.Random(seed))
        self.reopen()
        self.adopt_redelivered()

    def reopen(self) -> None:
        self.store = opened(self.disk, CONFIG)
        self.out.clear()
        self.read_to = 0

    def adopt_redelivered(self) -> None:
        """After a crash everything durable and owed is there.

        What else is there becomes owed.
        """
        there: dict[int, bytes] = {}
        seq = 0
        while (found := self.store.read(seq, 1000, 1 << 20)) is not None:
            if isinstance(found, Run):
                there.update(enumerate(found.messages(), found.first_seq))
                seq = found.end_seq
        assert {one for one in self.owed if one < self.durable} <= there.keys()
        assert there.keys() <= self.owed.keys() | self.acked
        both = self.owed.keys() & there.keys()
        assert {one: there[one] for one in both} == {one: self.owed[one] for one in both}
        self.owed = there
        self.acked -= there.keys()
        self.acked = {one for one in self.acked if one < self.store.end_seq}
        self.end = (
            max(self.store.end_seq, min(self.end, self.durable))
            if there or self.store.end_seq
            else self.end
        )
        self.durable = min(self.durable, self.end)

    @invariant()
    def books(self) -> None:
        if not hasattr(self, "store"):
            return
        store = self.store
        store._check()
        stats = store.stats()
        assert stats.events_on_disk == len(self.owed)
        assert stats.first_seq <= min(self.owed, default=stats.first_seq)
        assert (
            stats.bytes_on_disk
            <= self.disk.used_bytes + 2 * CONFIG.ack_record_bytes + CONFIG.reserve_bytes
        )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            assert self.disk.open_descriptors == 0


TestStoreModel, TestStoreModelInFull = share_and_proof(StoreModel, examples=150, steps=40)
