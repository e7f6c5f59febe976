"""A directory that is opened again and again with another number of priorities, against
a dict of lists.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backpressure import Batch, FlowControlConfig, InvalidEvents
from tests.support.buffers import crash
from tests.support.durable import open_buffer
from tests.support.models import share_and_proof

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux")

SIZES = st.lists(st.sampled_from([0, 10, 700, 3000]), min_size=1, max_size=12)
LEVELS = st.integers(1, 5)


class LevelsMachine(RuleBasedStateMachine):
    """Nothing accepted is lost, and each priority keeps its order, whatever number of
    priorities each life of the buffer has.
    """

    @initialize(levels=LEVELS)
    def begin(self, levels: int) -> None:
        self.path = Path(tempfile.mkdtemp())
        # What is owed, by priority, in order; and those of them that no consumer has.
        self.owed: dict[int, list[bytes]] = {priority: [] for priority in range(1, 6)}
        self.acked: set[bytes] = set()
        self.out: list[tuple[Batch, list[bytes]]] = []
        self.number = 0
        self.crashed = False
        self.open(levels)

    def open(self, levels: int) -> None:
        self.levels = levels
        self.buffer = open_buffer(self.path, flow_control=FlowControlConfig(priority_levels=levels))
        self.out.clear()
        # What is owed and was not yet delivered in this life.
        self.waiting = {priority: list(events) for priority, events in self.owed.items()}
        lanes = set(self.buffer.stats().lanes)
        needed = set(range(1, levels + 1)) | {p for p, events in self.owed.items() if events}
        assert needed <= lanes
        # After a crash, what was acked on disk may come again.
        assert self.crashed or needed == lanes

    @rule(priority=LEVELS, sizes=SIZES)
    def add(self, priority: int, sizes: list[int]) -> None:
        events = []
        for size in sizes:
            events.append(b"%06d" % self.number + b"." * size)
            self.number += 1
        if priority > self.levels:
            offered = self.buffer.stats().offered
            with pytest.raises(InvalidEvents):
                self.buffer.add_events(events, priority)
            assert self.buffer.stats().offered == offered
            return
        accepted = events[: self.buffer.add_events(events, priority).accepted]
        self.owed[priority] += accepted
        self.waiting[priority] += accepted

    @rule(most=st.one_of(st.none(), st.integers(1, 20)))
    def get(self, most: int | None) -> None:
        batch = self.buffer.get_batch(most)
        if batch is None:
            return
        events = batch.tolist()
        if batch.attempt == 1:
            fresh = [event for event in events if event not in self.acked]
            assert self.crashed or fresh == events
            waiting = self.waiting[batch.priority]
            assert fresh == waiting[: len(fresh)], "in order, and each once"
            del waiting[: len(fresh)]
        self.out.append((batch, events))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), ok=st.booleans())
    def settle(self, data: st.DataObject, ok: bool) -> None:
        batch, events = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if not ok:
            batch.nack("refused")
            return
        batch.ack()
        self.acked.update(events)
        owed = self.owed[batch.priority]
        owed[:] = [event for event in owed if event not in self.acked]

    @rule(levels=LEVELS)
    def reopen(self, levels: int) -> None:
        self.buffer.close(timeout=0)
        self.open(levels)

    @rule(levels=LEVELS)
    def die(self, levels: int) -> None:
        crash(self.buffer)
        self.crashed = True
        self.open(levels)

    @invariant()
    def books(self) -> None:
        if not hasattr(self, "buffer"):
            return
        stats = self.buffer.stats()
        stats.check()
        owed = sum(map(len, self.owed.values()))
        assert stats.resident >= owed if self.crashed else stats.resident == owed

    def teardown(self) -> None:
        if not hasattr(self, "buffer"):
            return
        try:
            for out, _ in self.out:
                out.nack("the end")
            left: dict[int, list[bytes]] = {priority: [] for priority in self.owed}
            while self.buffer.resident:
                batch = self.buffer.get_batch(timeout=5.0)
                assert batch is not None
                left[batch.priority] += [one for one in batch.tolist() if one not in self.acked]
                batch.ack()
            assert left == self.owed
            self.buffer.stats().check()
        finally:
            self.buffer.close(timeout=0)
            shutil.rmtree(self.path)


TestLevels, TestLevelsAll = share_and_proof(LevelsMachine, examples=180, steps=30)
