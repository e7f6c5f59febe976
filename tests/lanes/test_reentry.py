"""A lane takes calls from finalisers and signal handlers of its own thread."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backpressure import BatchStateError, BufferConfig, BufferManager, WhenFull
from backpressure.testing import FakeClock
from tests.support.processes import run_python
from tests.support.threads import in_thread


@contextmanager
def held(buffer: BufferManager, lock: str) -> Iterator[None]:
    """As if a call of this thread was interrupted while it held that lock."""
    with getattr(buffer._lanes[2], lock):
        yield


@pytest.mark.parametrize("lock", ["_lock", "_taking"])
@pytest.mark.parametrize("when_full", [WhenFull.REJECT, WhenFull.DROP_OLDEST])
def test_what_comes_within_a_lanes_lock_waits_for_nothing(lock: str, when_full: WhenFull) -> None:
    clock = FakeClock()
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=when_full), clock=clock)
    buffer.add_events([b"first"])
    clock.advance(0.5)
    seen: list[Any] = []

    def use() -> None:
        with held(buffer, lock):
            assert buffer.add_events([b"inner"])
            assert not buffer.add_events([b"x" * 3000] * 2)
            assert buffer.get_batch() is None
            assert len(buffer) == 3
            seen.append(buffer.stats())

    in_thread(use, seconds=20)
    seen[0].check()
    stats = buffer.stats()
    stats.check()
    assert (stats.accepted, stats.rejected) == (3, {"full": 1})
    lane = stats.lanes[3]
    assert lane.oldest_age == pytest.approx(0.5)
    with buffer.get_batch() as batch:  # type: ignore[union-attr]
        assert batch.tolist()[:2] == [b"first", b"inner"]
    buffer.close()


@pytest.mark.parametrize("lock", ["_lock", "_taking"])
@pytest.mark.parametrize("ok", [True, False])
def test_what_is_settled_within_a_lanes_lock_is_settled_after_it(lock: str, ok: bool) -> None:
    buffer = BufferManager(BufferConfig(retry_backoff=0.0))
    buffer.add_events([b"one", b"two"])
    batch = buffer.get_batch(1)
    assert batch is not None

    def use() -> None:
        lane = buffer._lanes[2]
        with held(buffer, lock):
            batch.ack() if ok else batch.nack("no")
            lane.reject(1, "full")  # this is put off as well, and puts nothing on
            assert (lane.stats(1.0).in_flight, len(buffer)) == (1, 2), "half of it was done"

    in_thread(use, seconds=20)
    assert len(buffer) == (1 if ok else 2), "it was forgotten"
    again = buffer.get_batch()
    assert again is not None
    assert again.tolist() == ([b"two"] if ok else [b"one"])
    stats = buffer.stats()
    stats.check()
    assert (stats.batches_acked, stats.batches_nacked) == (int(ok), int(not ok))
    with pytest.raises(BatchStateError):
        batch.ack()
    again.ack()
    with held(buffer, lock), pytest.raises(BatchStateError):
        again.ack()
    buffer.close(timeout=0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.platform
@pytest.mark.parametrize("where", ["memory", "directory"])
def test_a_signal_handler_that_adds_while_its_thread_consumes_blocks_nothing(
    tmp_path: Path, where: str
) -> None:
    # In a process of its own, as a deadlock here could not be ended.
    done = run_python(
        """
        import signal, sys, time
        from backpressure import BufferConfig, BufferManager
        if sys.argv[1:]:
            config = BufferConfig(lane_bytes=65536, directory=sys.argv[1])
        else:
            config = BufferConfig(lane_bytes=4096, when_full="drop_oldest")
        buffer = BufferManager(config)
        rung = added = taken = got = 0
        kept = []
        def ring(number, frame):
            global rung, taken
            rung += 1
            buffer.add_events([b"ring" * 20] * 3, 3)
            if rung % 10 == 0:
                buffer.stats()
                kept.append(buffer.get_batch())
            elif rung % 10 == 5:  # others than those that the thread itself has
                for batch in filter(None, kept):
                    batch.ack()
                    taken += len(batch)
                kept.clear()
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        end = time.monotonic() + 3
        while time.monotonic() < end or rung < 500:
            added += 2
            buffer.add_events([b"x" * 20] * 2, 3)
            batch = buffer.get_batch()
            if batch is not None:
                batch.ack()
                got += len(batch)
            buffer.stats()
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        stats = buffer.stats()
        stats.check()
        assert stats.offered == added + 3 * rung, (stats, added, rung)
        assert stats.acked == taken + got, (stats, taken, got)
        buffer.close(timeout=0)
        """,
        *([tmp_path / "buffer"] if where == "directory" else []),
    )
    assert done.returncode == 0, done.stderr
