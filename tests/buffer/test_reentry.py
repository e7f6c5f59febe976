"""A whole buffer takes calls from finalisers and signal handlers of a thread that is
within another call: none waits for it, and the books balance.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backpressure import (
    BatchRejected,
    BufferClosed,
    BufferConfig,
    BufferManager,
    BufferStats,
    Durability,
    NotNow,
    buffer_manager,
)
from backpressure.base.events import EventType, Tuned
from backpressure.base.latch import Latch
from backpressure.base.log_limiter import LogLimiter
from backpressure.base.reentry import interrupted
from backpressure.base.wakeup import Wakeup
from backpressure.buffer.event_dispatcher import EventDispatcher, Subscription
from backpressure.metrics.opentelemetry import _Cycle
from backpressure.policies.circuit_breaker import CircuitBreaker
from backpressure.spill import DeadLetter, DeadLetterStore
from backpressure.testing import FakeClock, MemorySink, make_batch
from tests.support.paths import ROOT
from tests.support.processes import environment
from tests.support.threads import background, in_thread, until

TUNED = EventType.TUNED


def tuned(setting: str) -> Tuned:
    return Tuned(at=0.0, setting=setting, old=1, new=2, by="test")


@pytest.mark.platform
@pytest.mark.parametrize("where", ["memory", "directory"])
@pytest.mark.parametrize("how", ["gc", "signal"])
def test_every_method_may_be_called_from_within_every_other(
    tmp_path: Path, how: str, where: str
) -> None:
    if how == "signal" and not hasattr(signal, "setitimer"):
        pytest.skip("this system has no timers")
    # In a process of its own, as a deadlock here could not be ended.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.buffer.reentry_driver", how),
            *([str(tmp_path / "buffer")] if where == "directory" else []),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------ what waits


@contextmanager
def directory_buffer(path: Path, **config: Any) -> Iterator[BufferManager]:
    buffer = BufferManager(BufferConfig(directory=path / "buffer", lane_bytes=4096, **config))
    try:
        yield buffer
    finally:
        buffer.close(timeout=0)


def locks_of(buffer: BufferManager) -> dict[str, Any]:
    """Of each kind one, that a call of the buffer holds for a while."""
    locks = {
        "lane": buffer._lanes[2]._lock,
        "taking": buffer._lanes[2]._taking,
        "flow control": buffer._control.flow._reentry.lock,
        "events": buffer._notifications._lock,
    }
    if buffer._disk is not None:
        store = buffer._disk.lanes[2].store
        locks |= {
            "writing": store._writing,
            "reading": store._reading,
            "settling": store._settling,
            "adding letters": buffer._disk.dead_letters._reentry.lock,  # type: ignore[union-attr]
        }
    return locks


KINDS = ["lane", "taking", "flow control", "events"]
KINDS_ON_DISK = [*KINDS, "writing", "reading", "settling", "adding letters"]


def within(lock: Any, work: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The result of a call that interrupts one which holds that lock."""

    def hold() -> Any:
        with lock:
            assert interrupted() is not None
            return work()

    return in_thread(hold, seconds)


@pytest.mark.parametrize("kind", KINDS_ON_DISK)
def test_nothing_is_waited_for_within_another_call(tmp_path: Path, kind: str) -> None:
    with directory_buffer(tmp_path, durability=Durability.COMMIT) as buffer:
        lock = locks_of(buffer)[kind]
        # Who would make room, make it durable or bring events may wait for the lock.
        full = within(lock, lambda: buffer.add_events([bytes(1000)] * 20, timeout=None))
        assert 0 < full.accepted < 20
        assert full.reason == "full"
        lane = buffer._lanes[2]
        lane.catch_up()
        while len(buffer):
            batch = buffer.get_batch(timeout=0.1)
            if batch is not None:
                batch.ack()
        assert within(lock, lambda: buffer.get_batch(timeout=None)) is None
        assert interrupted() is None
        assert buffer.add_events([b"x"], timeout=None)
        assert lane.durable_seq == full.accepted + 1  # type: ignore[attr-defined]


def test_what_was_interrupted_is_told_by_any_lock() -> None:
    breaker = CircuitBreaker()
    with breaker._reentry.lock:
        assert interrupted() is breaker._reentry
        in_thread(lambda: pytest.fail("not mine") if interrupted() else None)
    del breaker
    assert interrupted() is None


@pytest.mark.parametrize("kind", KINDS_ON_DISK)
def test_close_and_flush_within_another_call_are_made_after_it(tmp_path: Path, kind: str) -> None:
    with directory_buffer(tmp_path) as buffer:
        buffer.add_events([b"owed"])
        lock, disk = locks_of(buffer)[kind], buffer._disk
        assert disk is not None
        within(lock, buffer.flush)
        store = disk.lanes[2].store
        assert store.end_seq == 0, "it took what it may not"
        reentry = within(lock, interrupted)
        reentry.apply()
        assert (store.end_seq, store.durable_seq) == (1, 1)
        assert not within(lock, lambda: buffer.close(timeout=0)).closed
        with pytest.raises(BufferClosed):
            buffer.add_events([b"late"])
        reentry.apply()
        assert buffer.stats().closed


def test_close_within_close_returns_what_there_is() -> None:
    seen: list[bool] = []
    held: list[Any] = []

    class Interrupted(Wakeup):
        def wait(self, done: object, timeout: float) -> None:
            seen.append(buffer.close(timeout=0).closed)
            held[0].ack()

    buffer = BufferManager(wakeup=lambda name: Interrupted() if name == "room" else Wakeup())
    buffer.add_events([b"owed"])
    held.append(buffer.get_batch())
    assert in_thread(lambda: buffer.close(timeout=None), seconds=20).closed
    assert seen == [False]
    assert buffer.stats().dropped == {}


# ------------------------------------------------------------ the disk


@pytest.mark.parametrize("kind", ["writing", "reading", "settling"])
def test_a_store_puts_off_acks_and_refuses_the_rest_within_its_own_calls(
    tmp_path: Path, kind: str
) -> None:
    with directory_buffer(tmp_path) as buffer:
        buffer.add_events([b"one", b"two"])
        buffer.flush()
        store = buffer._disk.lanes[2].store  # type: ignore[union-attr]
        lock = locks_of(buffer)[kind]
        batch = buffer.get_batch(1)
        assert batch is not None

        def use() -> None:
            batch.ack()
            assert store.events_on_disk == 2
            for refused in (store.sync, lambda: store.read(0, 1, 1)):
                with pytest.raises(NotNow, match="try again"):
                    refused()
            store.ack(1, 1)
            assert not store.sync_acks()
            assert store.stats().events_on_disk == 2

        within(lock, use)
        buffer.stats()
        store.sync()
        assert store.events_on_disk == 0


def test_a_dead_letter_within_the_adding_of_another_is_tried_again(tmp_path: Path) -> None:
    with directory_buffer(tmp_path, max_attempts=1, retry_backoff=0.0) as buffer:
        buffer.add_events([b"bad"])
        letters = buffer.dead_letters
        batch = buffer.get_batch()
        assert batch is not None
        assert isinstance(letters, DeadLetterStore)
        letter = DeadLetter(event=b"x", error="", attempts=1, priority=3, seq=0, time_ns=0)

        def use() -> None:
            batch.nack(BatchRejected("no"))
            with pytest.raises(NotNow, match="try again"):
                letters.add([letter])

        within(letters._reentry.lock, use)
        assert len(letters) == 0
        again = buffer.get_batch()
        assert again is not None
        again.nack(BatchRejected("no"))
        assert [one.event for one in letters.letters()] == [b"bad"]
        buffer.stats().check()


# ------------------------------------------------------------ events


def settings_of(feed: Subscription) -> list[str]:
    return [one.setting for one in iter(feed.take, None) if isinstance(one, Tuned)]


def test_what_is_done_to_a_dispatcher_within_its_lock_is_done_after_it() -> None:
    dispatcher = EventDispatcher()
    told: list[str] = []
    before = dispatcher.subscribe(TUNED)
    gone = dispatcher.subscribe(TUNED)
    woken: list[str] = []
    later: list[Any] = []

    def use() -> None:
        off = dispatcher.on(TUNED, lambda event: told.append(event.setting))
        passing = dispatcher.on(TUNED, lambda event: told.append("never"))
        passing()
        feed = dispatcher.subscribe(TUNED)
        feed.wake = lambda: woken.append("feed")
        assert dispatcher.emit(tuned("inner")).seq == 0
        assert feed.take() is None
        gone.close()
        dispatcher.end()
        later.extend((off, feed))

    within(dispatcher._lock, use)
    assert not told
    assert dispatcher.emit(tuned("outer")).seq == 1
    assert told == ["inner"], "only what came after the handler"
    assert dispatcher.emit(tuned("last")).seq == 3
    off, feed = later
    off()
    assert settings_of(feed) == ["inner", "last"]
    assert woken
    assert settings_of(before) == ["outer", "inner", "last"]
    assert settings_of(gone) == ["outer", "inner"]
    assert feed.ended


def test_a_handler_that_emits_while_the_thread_starts_starts_one_thread() -> None:
    dispatcher = EventDispatcher()
    told: list[str] = []
    dispatcher.on(TUNED, lambda event: told.append(event.setting))
    enqueue = dispatcher._enqueue

    def interrupted_enqueue(*arguments: Any) -> Any:
        dispatcher._enqueue = enqueue  # type: ignore[method-assign]
        dispatcher.emit(tuned("inner"))
        return enqueue(*arguments)

    dispatcher._enqueue = interrupted_enqueue  # type: ignore[assignment, method-assign]
    in_thread(lambda: dispatcher.emit(tuned("outer")), seconds=20)
    deadline = time.monotonic() + 20
    while len(told) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert told == ["outer", "inner"]


def test_a_thread_that_was_not_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = EventDispatcher()
    told: list[str] = []
    dispatcher.on(TUNED, lambda event: told.append(event.setting))

    def interrupt(thread: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", interrupt)
        with pytest.raises(KeyboardInterrupt):
            dispatcher.emit(tuned("lost"))
    assert dispatcher.overflows == 1
    dispatcher.emit(tuned("told"))
    assert told == ["told"]


# ------------------------------------------------------------ what is below


def test_a_notification_between_the_look_and_the_sleep_is_not_missed() -> None:
    wakeup = Wakeup()
    heard: list[int] = []

    def look() -> bool:
        wakeup.notify()  # as from a signal's handler
        return False

    with wakeup.listening(lambda: heard.append(1)):
        in_thread(lambda: wakeup.wait(look, 60.0), seconds=20)
    assert heard == [1]
    assert not wakeup._waiting


@pytest.mark.parametrize("make", [FakeClock, MemorySink, lambda: _Cycle(BufferManager())])
def test_a_helper_may_be_used_within_itself(make: Callable[[], Any]) -> None:
    helper = make()
    uses: list[Callable[[], object]] = [
        lambda: helper.advance(1.0),
        lambda: helper.send(make_batch([b"x"])),
        lambda: helper.stats("x"),
    ]

    def use() -> None:
        with helper._lock:
            uses[[FakeClock, MemorySink, _Cycle].index(type(helper))]()

    in_thread(use, seconds=20)


def test_a_latch_that_is_set_ends_one_wait() -> None:
    latch = Latch()
    latch.set()
    latch.set()
    assert latch.wait(60.0)
    assert not latch.wait(0.0)


def test_what_is_counted_within_a_count_is_not_lost() -> None:
    limiter = LogLimiter(interval=10.0)
    assert limiter.add("drop", 1, 0.0) == 1

    class Sums(dict[Any, int]):
        armed = True

        def get(self, key: object, default: Any = None) -> Any:
            found = super().get(key, default)
            if self.armed:
                self.armed = False
                limiter.add("drop", 5, 1.0)  # as from a signal's handler
            return found

    limiter._sums = Sums()
    limiter.add("drop", 2, 1.0)
    assert limiter.rest() == {"drop": 7}


@pytest.mark.platform
def test_a_close_in_the_spiller_waits_for_no_close_that_waits_for_the_spiller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BufferConfig(directory=tmp_path / "buffer", durability=Durability.INTERVAL)
    buffer = BufferManager(config)
    disk = buffer._disk
    assert disk is not None
    lane = disk.lanes[0]
    sync, closed = lane.sync, list[BufferStats]()

    def close_within() -> None:
        # As a finaliser does that comes in where the spiller is at work.
        if disk.spiller.is_this_thread() and not closed:
            until(lambda: disk.spiller._stop)
            closed.append(buffer.close(timeout=0))
        sync()

    monkeypatch.setattr(lane, "sync", close_within)
    buffer.add_events([b"event"], 1)
    until(lambda: lane.store.end_seq)
    assert in_thread(lambda: buffer.close(timeout=0), seconds=20).closed
    assert len(closed) == 1


def test_a_close_that_was_put_off_keeps_its_thread_from_no_ack() -> None:
    buffer = BufferManager()
    buffer.add_events([b"one", b"two"])
    first, second = buffer.get_batch(1), buffer.get_batch(1)
    assert first is not None
    assert second is not None

    def consume() -> None:
        with buffer._lanes[2]._lock:
            # As a finaliser does that comes in there.
            buffer.close(timeout=None)
        first.ack()
        second.ack()

    with background(lambda: buffer.close(timeout=None)):
        until(lambda: buffer._room._waiting)
        in_thread(consume, seconds=20)
    stats = buffer.stats()
    assert (stats.closed, stats.acked) == (True, 2)


def test_a_close_waits_for_that_of_another_thread_within_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = BufferManager()
    buffer.add_events([b"event"])
    batch = buffer.get_batch()
    assert batch is not None
    with background(lambda: buffer.close(timeout=None)):
        until(lambda: buffer._room._waiting)
        with monkeypatch.context() as patched:
            patched.setattr(buffer_manager, "_CLOSE_PATIENCE", 0.0)
            assert not in_thread(lambda: buffer.close(timeout=0.01), seconds=20).closed
        batch.ack()
        assert buffer.close(timeout=0).closed
