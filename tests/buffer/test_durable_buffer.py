"""A buffer with a directory: when events are durable, what a full disk does, which
process may open it, and what kills leave.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backpressure import (
    Batch,
    BatchRejected,
    BufferClosed,
    BufferConfig,
    BufferManager,
    ConfigError,
    DirectoryInUse,
    Durability,
    EventType,
    WhenFull,
)
from backpressure.spill import LocalFileSystem, SpillConfig
from backpressure.testing import FakeClock
from tests.support.buffers import add_all, crash, drain, numbered
from tests.support.durable import SMALL, open_buffer
from tests.support.models import share_and_proof
from tests.support.threads import run_threads, until
from tests.torture.kill_buffer import torture

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


# ---------------------------------------------------------------- durable when


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


def test_a_flush_ends_although_events_go_on_coming_in(tmp_path: Path) -> None:
    """What came in after its call is not its business."""
    buffer = open_buffer(tmp_path)
    events, more = numbered(100), numbered(60)
    buffer.add_events(events[:40])
    held = buffer.get_batch(10)
    assert held is not None
    buffer.add_events(events[40:])
    assert buffer._disk is not None
    store = buffer._disk.lanes[2].store
    append, calls = store.append, 0

    def append_beside(*given: Any) -> None:
        nonlocal calls
        calls += 1
        assert calls < 50, "it goes on for as long as events come in"
        buffer.add_events(more[calls : calls + 1])
        append(*given)

    store.append = append_beside  # type: ignore[assignment, method-assign]
    buffer.flush()
    disk = buffer.stats().lanes[3].disk
    assert disk is not None
    assert disk.durable_seq >= 100
    held.ack()
    assert drain(buffer) == events[10:] + more[1 : calls + 1]
    buffer.close()


def test_commit_returns_when_it_is_durable(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, durability=Durability.COMMIT, sync_interval=0.001)
    for i in range(20):
        admission = buffer.add_events([b"%d" % i])
        disk = buffer.stats().lanes[3].disk
        assert disk is not None
        assert admission.first_seq is not None
        assert disk.durable_seq > admission.first_seq
    buffer.close(timeout=0)


def test_interval_makes_durable_by_itself(tmp_path: Path) -> None:
    buffer = open_buffer(tmp_path, durability=Durability.INTERVAL, sync_interval=0.001)
    buffer.add_events(numbered(10))

    def durable_seq() -> int:
        disk = buffer.stats().lanes[3].disk
        assert disk is not None
        return disk.durable_seq

    until(lambda: durable_seq() == 10)
    buffer.close(timeout=0)


# ---------------------------------------------------------------- a disk that is full


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
    assert buffer.add_events(events[accepted : accepted + 1], timeout=10.0).accepted == 1

    def disk_takes_events() -> bool:
        drain(buffer)
        return seen[-1].error is None

    until(disk_takes_events)
    buffer.close(timeout=0)


def bytes_of_tier(path: Path) -> int:
    """All files but the rings and the lock."""
    return sum(
        one.stat().st_size
        for one in path.rglob("*")
        if one.is_file() and "ring" not in one.name and one.parent != path
    )


@pytest.mark.parametrize("most", [1 << 20, 4 << 20])
def test_an_empty_tier_leaves_most_of_max_disk_bytes_to_events(tmp_path: Path, most: int) -> None:
    """Of five lanes and the dead letters, whatever the config of one store says."""
    with open_buffer(tmp_path, max_disk_bytes=most, spill=SpillConfig()) as buffer:
        disk = buffer.stats().disk
        assert disk is not None
        assert disk.used_bytes <= most // 4
        assert bytes_of_tier(tmp_path / "buffer") <= most // 2


def test_max_disk_bytes_holds_for_all_lanes_and_dead_letters_together(tmp_path: Path) -> None:
    most = 1 << 20
    buffer = open_buffer(tmp_path, max_disk_bytes=most, spill=SpillConfig())
    rng, held, given = random.Random(3), [], 0
    seen = 0
    for step in range(150):
        events = [rng.randbytes(500) for _ in range(30)]
        priority = step % 5 + 1
        given += buffer.add_events(events, priority, timeout=0.02).accepted
        if step % 7 == 0 and (batch := buffer.get_batch(30)) is not None:
            held.append(batch)
        if step % 31 == 0 and held:
            held.pop(0).settle(reject=[0])
        seen = max(seen, bytes_of_tier(tmp_path / "buffer"))
        assert seen <= most
    assert seen > most * 0.8, "it is used"
    assert buffer.stats().dead_letters > 0
    buffer.stats().check()
    buffer.close(timeout=0)


def test_a_tier_that_could_not_take_what_it_owes_is_refused(tmp_path: Path) -> None:
    config = BufferConfig(
        directory=tmp_path / "b",
        lane_bytes=1 << 20,
        max_disk_bytes=1 << 20,
        durability=Durability.COMMIT,
    )
    with pytest.raises(ConfigError, match="max_disk_bytes: must be twice lane_bytes"):
        BufferManager(config)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("limit", "kept"),
    [({"max_dead_letters": 10}, range(30, 40)), ({"max_dead_letter_bytes": 1 << 18}, None)],
    ids=["letters", "bytes"],
)
def test_dead_letters_have_a_limit_and_the_oldest_go(
    tmp_path: Path, limit: dict[str, int], kept: range | None, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = open_buffer(tmp_path, lane_bytes=1 << 17, max_attempts=1, **limit)
    events = [b"%04d" % n + os.urandom(20_000) for n in range(40)]
    for event in events:
        buffer.add_events([event, b"taken"])
        batch = buffer.get_batch()
        assert batch is not None
        batch.settle(reject=[0])
    letters = buffer.dead_letters
    assert letters is not None
    found = [letter.event for letter in letters.letters()]
    if kept is None:
        assert 2 <= len(found) <= 12
        assert sum(map(len, found)) < 1 << 18
    else:
        assert len(found) == len(kept)
    assert found == events[-len(found) :]
    stats = buffer.stats()
    assert (stats.dead_letters, stats.dead_letters_lost) == (len(found), 40 - len(found))
    assert stats.dead_lettered == 40
    assert "max_dead_letters" in caplog.text
    buffer.close(timeout=0)
    again = open_buffer(tmp_path, lane_bytes=1 << 17, **limit)
    assert again.dead_letters is not None
    assert [letter.event for letter in again.dead_letters.letters()] == found
    again.close()


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


# ------------------------------------------------------------ events that no sink takes


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
            batch.nack(BatchRejected("cannot parse it"))
        else:
            got += batch.tolist()
            batch.ack()
        buffer.stats().check()
    assert got == [event for event in events if event != poison]
    assert [(one.first_seq, one.events, one.error) for one in letters] == [
        (37, 1, "cannot parse it")
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
        "cannot parse it",
    )
    again.close()


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


# ---------------------------------------------------------------- what may open what


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
    """By what it reads, not by the clock: of a backlog a header for each file, and of
    the newest file the blocks' headers.
    """
    spill = SpillConfig(segment_bytes=1 << 20)
    buffer = open_buffer(tmp_path, lane_bytes=1 << 20, spill=spill)
    noise = random.Random(7)
    add_all(buffer, [noise.randbytes(1000) for _ in range(8000)])
    buffer.close(timeout=0)
    read: list[int] = []
    pread = LocalFileSystem.pread

    def counted(fs: LocalFileSystem, fd: int, size: int, at: int) -> bytes:
        read.append(size)
        return pread(fs, fd, size, at)

    monkeypatch.setattr(LocalFileSystem, "pread", counted)
    again = open_buffer(tmp_path, lane_bytes=1 << 20, spill=spill)
    assert sum(read) < 1 << 20
    stats = again.stats()
    assert stats.disk is not None
    assert stats.disk.recovered == 8000
    assert stats.disk.used_bytes > 7 << 20
    assert again.add_events([b"at once"]).accepted == 1
    again.close(timeout=0)


# --------------------------------------------------------------- killed again and again


def test_kills_lose_nothing(in_full: bool) -> None:
    oracle = torture(200 if in_full else 20, seed=20261124)
    assert sum(oracle.accepted.values()) > (1000 if in_full else 100)


# ---------------------------------------------------------------- against a model


class DurableMachine(RuleBasedStateMachine):
    """Every call against a dict of deques, with crashes and restarts in between; both
    conservation lines after every step.
    """

    @initialize(
        when_full=st.sampled_from([WhenFull.REJECT, WhenFull.DROP_OLDEST]),
        max_attempts=st.sampled_from([None, 2]),
        durability=st.sampled_from(list(Durability)),
    )
    def make(self, when_full: WhenFull, max_attempts: int | None, durability: Durability) -> None:
        import tempfile

        self.place = tempfile.TemporaryDirectory()
        self.settings: dict[str, Any] = {
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
        """What DROP_OLDEST gave up is the oldest that is not out."""
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


TestDurableModel, TestDurableModelInFull = share_and_proof(DurableMachine, examples=60, steps=30)


def test_a_consumer_and_a_producer_beside_close_hear_that_it_is_closed(tmp_path: Path) -> None:
    """Whatever they were doing when the rings were closed."""
    for round_number in range(8):
        buffer = BufferManager(BufferConfig(directory=tmp_path / str(round_number)))
        started = threading.Barrier(3)

        def consume(buffer: BufferManager = buffer, started: Any = started) -> None:
            def take() -> None:
                while True:
                    buffer.get_batch(10)

            started.wait()
            with pytest.raises(BufferClosed):
                take()

        def produce(buffer: BufferManager = buffer, started: Any = started) -> None:
            def add() -> None:
                while True:
                    buffer.add_events([b"x"] * 10)

            started.wait()
            with pytest.raises(BufferClosed):
                add()

        def close(buffer: BufferManager = buffer, started: Any = started) -> None:
            started.wait()
            until(lambda: buffer.stats().accepted)
            buffer.close(timeout=0)

        run_threads([consume, produce, close])


def test_a_flush_and_a_drop_beside_close_find_nothing_to_do(tmp_path: Path) -> None:
    def closing_first(call: Callable[..., Any]) -> Callable[..., Any]:
        def closed_meanwhile(*args: Any) -> Any:
            buffer.close(timeout=0)
            return call(*args)

        return closed_meanwhile

    for name in ("flush", "drop"):
        buffer = open_buffer(tmp_path / name, lane_bytes=1 << 16, when_full=WhenFull.DROP_OLDEST)
        assert buffer._disk is not None
        buffer._disk.flush = closing_first(buffer._disk.flush)  # type: ignore[method-assign]
        buffer._intake.make_room = closing_first(  # type: ignore[method-assign]
            buffer._intake.make_room
        )
        if name == "flush":
            buffer.flush()
        else:
            offered = [b"x" * 1000] * 200
            buffer._disk.spiller.stop()
            admission = buffer.add_events(offered)
            assert 0 < admission.accepted < 200
        assert buffer.stats().closed
