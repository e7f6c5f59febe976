"""What a forked child may do with its parent's buffer: nothing, and it is told so."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from pathlib import Path

import pytest

from backpressure import BufferClosed, BufferConfig, BufferManager, EventType, WhenFull
from backpressure.testing import FakeClock
from tests.support.processes import ended_well, forked

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

# A server that takes longer hangs (seconds).
HUNG = 30


@pytest.fixture(params=["memory", "directory"])
def buffer(request: pytest.FixtureRequest, tmp_path: Path) -> BufferManager:
    directory = tmp_path / "buffer" if request.param == "directory" else None
    return BufferManager(BufferConfig(directory=directory, lane_bytes=1 << 16))


def test_a_child_neither_takes_nor_adds_and_its_stats_say_why(buffer: BufferManager) -> None:
    buffer.add_events([b"one", b"two"])
    out = buffer.get_batch(1)
    assert out is not None

    def child() -> None:
        for use in (
            lambda: buffer.get_batch(),
            lambda: buffer.get_batch(timeout=None),
            lambda: buffer.add_events([b"x"]),
            lambda: buffer.add_lines(b"x\n", timeout=None),
            lambda: buffer.adjust_flow_control_rate(1.0),
            lambda: buffer.adjust_batch_size(10_000),
            lambda: buffer.adjust_burst_size(10),
            lambda: buffer.reset_circuit_breaker(),
            out.ack,
            out.nack,
        ):
            with pytest.raises(BufferClosed, match="forked"):
                use()
        stats = buffer.stats()
        stats.check()
        assert (stats.closed, stats.closed_by, stats.offered) == (True, "fork", 0)
        assert (buffer.closing, len(buffer), buffer.positions()) == (True, 0, (0,) * 5)
        assert buffer.dead_letters is None
        assert not buffer.is_backpressure_active()
        assert "parent" in repr(buffer)
        buffer.flush()
        buffer.wake_waiters()
        assert buffer.batch_waiter().done()
        assert buffer.close(timeout=None).closed_by == "fork"

    assert ended_well(forked(child))
    out.ack()
    rest = buffer.get_batch()
    assert rest is not None
    assert rest.tolist() == [b"two"], "the child took it"
    rest.ack()
    stats = buffer.close()
    assert (stats.closed_by, stats.acked, stats.dropped) == ("close", 2, {})


def test_no_child_hangs_on_a_lock_that_a_thread_of_its_parent_held(
    buffer: BufferManager,
) -> None:
    stopping = threading.Event()

    def hammer() -> None:
        while not stopping.is_set():
            buffer.add_events([b"x"])
            if (batch := buffer.get_batch()) is not None:
                batch.ack()
            buffer.stats()

    def child() -> None:
        with pytest.raises(BufferClosed):
            buffer.add_events([b"y"])
        with pytest.raises(BufferClosed):
            buffer.get_batch()
        buffer.stats().check()
        buffer.wake_waiters()
        buffer.close()

    threads = [threading.Thread(target=hammer) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert all(ended_well(forked(child)) for _ in range(12))
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        buffer.close(timeout=0)


def test_a_child_of_a_child_finds_the_same(buffer: BufferManager) -> None:
    def child() -> None:
        def grandchild() -> None:
            assert buffer.stats().closed_by == "fork"
            with pytest.raises(BufferClosed):
                buffer.get_batch()

        assert ended_well(forked(grandchild))

    assert ended_well(forked(child))
    buffer.close(timeout=0)


def test_a_child_may_have_a_buffer_of_its_own(buffer: BufferManager) -> None:
    buffer.add_events([b"the parent's"])

    def child() -> None:
        with BufferManager() as own:
            assert own.add_events([b"the child's"])
            batch = own.get_batch()
            assert batch is not None
            assert batch.tolist() == [b"the child's"]
            batch.ack()

    assert ended_well(forked(child))
    assert len(buffer) == 1
    buffer.close(timeout=0)


def test_a_batch_that_the_child_forgets_stays_with_the_parent() -> None:
    buffer = BufferManager(clock=FakeClock(5.0))
    buffer.add_events([b"x"])
    batches = [buffer.get_batch()]

    def child() -> None:
        batches.clear()

    assert ended_well(forked(child))
    assert buffer.get_batch() is None
    out = batches[0]
    assert out is not None
    out.ack()
    assert buffer.close().acked == 1


def _work(_: int) -> tuple[int, str]:
    """In a process of a pool: a module's buffer, made where it is used first."""
    global _own
    if _own is None or _own.stats().closed_by == "fork":
        _own = BufferManager(BufferConfig(lane_bytes=1 << 16))
    admission = _own.add_events([b"x"] * 10)
    batch = _own.get_batch()
    assert batch is not None
    batch.ack()
    return admission.accepted, repr(_own)


_own: BufferManager | None = None


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_of_every_start_method(method: str) -> None:
    global _own
    _own = BufferManager(BufferConfig(lane_bytes=1 << 16))
    _own.add_events([b"the parent's"])
    try:
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            answers = pool.map_async(_work, range(8)).get(120)
        assert answers == [(10, "<BufferManager open, 0 events resident>")] * 8
        assert len(_own) == 1
    finally:
        _own.close(timeout=0)
        _own = None


def test_a_pre_fork_server(tmp_path: Path) -> None:
    """As gunicorn does it: the application is loaded once, then forked into workers.
    Each makes its buffer when it serves its first request.
    """
    loaded = BufferManager(BufferConfig(when_full=WhenFull.REJECT))
    loaded.add_events([b"at load time"])
    listener = socket.create_server(("127.0.0.1", 0))

    def worker() -> None:
        buffer: BufferManager = loaded
        for _ in range(3):
            connection, _ = listener.accept()
            with connection:
                if buffer.stats().closed_by == "fork":
                    buffer = BufferManager()
                admission = buffer.add_events([connection.recv(100)])
                batch = buffer.get_batch()
                assert batch is not None
                connection.sendall(b"%d " % admission.accepted + batch.join())
                batch.ack()
        buffer.close()

    pids = [forked(worker) for _ in range(2)]
    for number in range(6):
        with socket.create_connection(listener.getsockname(), timeout=HUNG) as client:
            client.sendall(b"request %d" % number)
            assert client.recv(100) == b"1 request %d" % number
    listener.close()
    for pid in pids:
        os.waitpid(pid, 0)
    assert len(loaded) == 1
    loaded.close(timeout=0)


def test_what_a_child_has_of_its_parents_handlers_hangs_on_no_lock_and_calls_none(
    buffer: BufferManager,
) -> None:
    told: list[object] = []
    off = buffer.on(EventType.RATE_CHANGED, told.append)
    feed = buffer.aio.events()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with buffer._notifications._lock:
            held.set()
            release.wait()

    def child() -> None:
        # What a handler of the parent's policies says in the child as well.
        buffer._reporter.flow_changed("rate_changed", 1.0, 2.0)
        buffer.on(EventType.RATE_CHANGED, told.append)()
        off()
        assert feed.ended
        feed.close()
        assert not told
        assert threading.active_count() == 1

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        assert ended_well(forked(child))
    finally:
        release.set()
        holder.join()
    assert not feed.ended
    buffer.adjust_flow_control_rate(1e6)
    assert len(told) == 1


def test_a_child_of_a_child_makes_its_own_stand_in(buffer: BufferManager) -> None:
    def child() -> None:
        first = buffer.stats()
        assert buffer._empty is buffer._empty

        def grandchild() -> None:
            assert "_empty" not in vars(buffer)
            assert buffer.stats().closed_by == "fork"
            assert not buffer._empty._forked

        assert first.closed_by == "fork"
        assert ended_well(forked(grandchild))

    assert ended_well(forked(child))
