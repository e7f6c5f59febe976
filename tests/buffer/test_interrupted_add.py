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
