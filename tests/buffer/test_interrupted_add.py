"""An add that a signal or a cancellation ends: the books show what became of all of it,
and what is in is as durable as was promised.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest

from backpressure import BufferConfig, BufferManager, Durability
from backpressure.base.wakeup import Wakeup
from tests.support.processes import run_python
from tests.support.threads import until

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "pthread_kill"), reason="needs signals to threads"
)

EVENTS = [bytes(500)] * 100


class Interrupting(Wakeup):
    """What waits here is interrupted as by Ctrl-C."""

    def wait(self, done: object, timeout: float) -> None:
        raise KeyboardInterrupt


def wakeup(name: str) -> Wakeup:
    return Interrupting(name) if name == "room" else Wakeup(name)


def test_an_interrupted_add_counts_what_it_did_not_take() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096), wakeup=wakeup)
    with pytest.raises(KeyboardInterrupt):
        buffer.add_events(EVENTS, timeout=None)
    lane = buffer.stats().lanes[3]
    assert (lane.offered, lane.accepted, dict(lane.rejected)) == (100, 8, {"full": 92})


def test_a_signals_handler_that_raises_ends_an_add_that_waits() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:

        def interrupt_when_it_waits() -> None:
            until(lambda: buffer._room._waiting)
            signal.pthread_kill(main, signal.SIGUSR1)

        waiting = threading.Thread(target=interrupt_when_it_waits)
        waiting.start()
        with pytest.raises(KeyboardInterrupt):
            buffer.add_events(EVENTS, timeout=60.0)
        waiting.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    lane = buffer.stats().lanes[3]
    assert (lane.offered, lane.accepted, dict(lane.rejected)) == (100, 8, {"full": 92})


@pytest.mark.parametrize("kind", ["events", "lines"])
def test_an_add_that_is_interrupted_anywhere_counts_each_event_once(kind: str) -> None:
    # In a process of its own, for the timer that pytest uses as well.
    done = run_python(
        """
        import random, signal, sys
        from backpressure import BufferConfig, BufferManager
        armed = False
        def interrupt(*_):
            global armed
            if armed:
                armed = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        buffer = BufferManager(BufferConfig(lane_bytes=1 << 16))
        events = [bytes(random.randbytes(10).hex(), "ascii") for _ in range(2000)]
        chunk = b"\\n".join(events)
        add = {
            "events": lambda: buffer.add_events(events),
            "lines": lambda: buffer.add_lines(chunk),
        }[sys.argv[1]]
        def offered():
            return buffer.stats().offered
        interrupted = partly = out = 0
        while partly < 40:
            before, offered_before = buffer._lanes[2].ring.next_seq, offered()
            armed = True
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-6, 3e-4))
                add()
            except KeyboardInterrupt:
                interrupted += 1
                partly += buffer._lanes[2].ring.next_seq > before
            finally:
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert offered() - offered_before <= len(events), "some are counted twice"
            if random.random() < 0.7:
                while (batch := buffer.get_batch()) is not None:
                    out += len(batch)
                    batch.ack()
        while (batch := buffer.get_batch()) is not None:
            out += len(batch)
            batch.ack()
        stats = buffer.stats()
        stats.check()
        assert interrupted >= 40
        assert stats.accepted == stats.acked == out, (stats.accepted, stats.acked, out)
        """,
        kind,
    )
    assert done.returncode == 0, done.stderr


def test_what_a_handler_that_raises_left_untold_is_told() -> None:
    buffer = BufferManager()
    pending = buffer._intake.pending_events([b"one", b"two"], None)
    notified: list[int] = []
    with buffer._ready.listening(lambda: notified.append(1)):
        # As if it had been raised right after the push.
        pending._payload.push(buffer._lanes[2].ring, 2)
        admission = pending.admission()
    assert (admission.accepted, admission.rejected, admission.first_seq) == (2, 0, 0)
    assert notified, "its consumers sleep on"
    assert len(buffer) == 2


def test_what_an_interrupted_add_brought_in_is_durable(tmp_path: Path) -> None:
    config = BufferConfig(
        directory=tmp_path / "buffer", lane_bytes=4096, durability=Durability.COMMIT
    )
    with BufferManager(config, wakeup=wakeup) as buffer:
        waits: list[int] = []
        spiller = buffer._disk.spiller  # type: ignore[union-attr]
        real = spiller.wait_durable

        def wait_durable(lane: object, seq: int) -> bool:
            waits.append(seq)
            return real(lane, seq)  # type: ignore[arg-type]

        spiller.wait_durable = wait_durable  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            buffer.add_events([bytes(1000)] * 2000, timeout=None)
        accepted = buffer.stats().lanes[3].accepted
        assert waits == [accepted]
        buffer.close(timeout=0)


def test_what_a_cancelled_add_brought_in_is_durable(tmp_path: Path) -> None:
    config = BufferConfig(
        directory=tmp_path / "buffer",
        lane_bytes=4096,
        durability=Durability.COMMIT,
        sync_interval=0.2,
    )

    async def run(buffer: BufferManager) -> None:
        adding = asyncio.create_task(buffer.aio.add_events([b"x"] * 3))
        while not buffer.stats().accepted:
            await asyncio.sleep(0)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        stats = buffer.stats().lanes[3]
        assert stats.disk is not None
        assert stats.disk.durable_seq == 3, "it did not wait"

    with BufferManager(config) as buffer:
        asyncio.run(run(buffer))
        buffer.close(timeout=0)
