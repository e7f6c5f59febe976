"""Waiting on a MessageRing: threads that sleep, signals that interrupt them, event loops that listen. With and without a file."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuf import MessageRing

# A wait that takes this long (seconds) has hung: far longer than any scheduling delay.
LONG = 30.0


@pytest.fixture(params=["memory", "file"])
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> MessageRing:
    if request.param == "memory":
        return MessageRing(4096)
    if sys.platform != "linux":
        pytest.skip("path= needs Linux")
    return MessageRing(4096, path=tmp_path / "ring")


def asleep(ring: MessageRing, work: Callable[[], object]) -> threading.Thread:
    """Start a thread that does something after the caller had time to fall asleep."""
    thread = threading.Timer(0.02, work)
    thread.start()
    return thread


def fill(ring: MessageRing) -> None:
    while ring.try_push(b"x" * 100):
        pass


def test_a_timeout_ends_with_nothing(ring: MessageRing) -> None:
    start = time.monotonic()
    assert len(ring.pop_many(timeout=0.03)) == 0
    assert 0.03 <= time.monotonic() - start < LONG
    fill(ring)
    start = time.monotonic()
    assert ring.push(b"y", timeout=0.03) is False
    assert ring.push_many([b"y"], timeout=0.03) == 0
    assert 0.06 <= time.monotonic() - start < LONG


def test_a_pop_is_woken_by_a_push(ring: MessageRing) -> None:
    for push in (lambda: ring.try_push(b"a"), lambda: ring.push_many([b"a"]), lambda: ring.push_lines(b"a\n")):
        thread = asleep(ring, push)
        assert ring.pop_many(timeout=LONG).tolist() == [b"a"]
        thread.join()


def test_a_push_is_woken_by_room(ring: MessageRing) -> None:
    fill(ring)
    thread = asleep(ring, lambda: ring.pop_many(3))
    assert ring.push(b"y") is True
    thread.join()
    fill(ring)
    held = ring.take(3)
    thread = asleep(ring, lambda: ring.release(held))
    assert ring.push_many([b"y" * 100] * 2, timeout=LONG) == 2
    thread.join()


def test_a_long_push_goes_through_a_small_ring(ring: MessageRing) -> None:
    messages = [b"%d" % i for i in range(2000)]
    got: list[bytes] = []

    def drain() -> None:
        while len(got) < len(messages):
            got.extend(ring.consumer().pop_many(100, timeout=LONG))

    thread = threading.Thread(target=drain)
    thread.start()
    assert ring.producer().push_many(messages, timeout=None) == len(messages)
    thread.join()
    assert got == messages


def test_many_sleepers_are_all_woken(ring: MessageRing) -> None:
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.extend(ring.pop_many(1, timeout=LONG))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for i in range(8):
        assert ring.push(b"%d" % i, timeout=LONG)
    for thread in threads:
        thread.join()
    assert sorted(got) == [b"%d" % i for i in range(8)]


def test_a_signal_interrupts_a_wait(ring: MessageRing) -> None:
    class AlarmError(Exception):
        pass

    def on_alarm(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(AlarmError):
            ring.pop_many(timeout=None)
        fill(ring)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(AlarmError):
            ring.push(b"y")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    ring._check()


def test_nonsense_is_refused(ring: MessageRing) -> None:
    fill(ring)
    for timeout in (-1, float("nan"), "1", True):
        with pytest.raises(ValueError, match="timeout"):
            ring.push(b"y", timeout=timeout)  # type: ignore[arg-type]
    ring.pop_many()
    with pytest.raises(ValueError, match="timeout"):
        ring.pop_many(timeout=-1)


def test_an_event_loop_listens_without_a_thread(ring: MessageRing) -> None:
    got: list[bytes] = []

    async def main() -> None:
        done = asyncio.Event()

        def ready() -> None:
            got.extend(ring.pop_many(2))
            if b"end" in got:
                done.set()

        ring.push_many([b"before", b"it"])
        loop = asyncio.get_running_loop()
        loop.add_reader(ring, ready)
        for delay, messages in ((0.01, [b"a", b"b", b"c"]), (0.02, [b"d"]), (0.03, [b"end"])):
            loop.call_later(delay, ring.push_many, messages)
        await asyncio.wait_for(done.wait(), LONG)
        loop.remove_reader(ring)

    asyncio.run(main())
    assert got == [b"before", b"it", b"a", b"b", b"c", b"d", b"end"]


def test_the_descriptor_is_quiet_while_there_is_nothing(ring: MessageRing) -> None:
    async def main() -> int:
        calls = 0

        def ready() -> None:
            nonlocal calls
            calls += 1
            ring.pop_many()

        loop = asyncio.get_running_loop()
        loop.add_reader(ring, ready)
        ring.try_push(b"x")
        await asyncio.sleep(0.03)
        loop.remove_reader(ring)
        return calls

    assert asyncio.run(main()) <= 2


@pytest.mark.platform
@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
def test_a_push_of_another_process_wakes_threads_and_event_loops(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring = MessageRing(4096, path=path)

    def in_child(after: float, message: bytes) -> int:
        pid = os.fork()
        if pid == 0:
            other = MessageRing.attach(path)
            time.sleep(after)
            other.try_push(message)
            os._exit(0)
        return pid

    pid = in_child(0.03, b"to a thread")
    assert ring.pop_many(timeout=LONG).tolist() == [b"to a thread"]
    os.waitpid(pid, 0)

    async def main() -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def ready() -> None:
            messages = ring.pop_many()
            if len(messages) and not future.done():
                future.set_result(messages[0])

        asyncio.get_running_loop().add_reader(ring, ready)
        return await asyncio.wait_for(future, LONG)

    pid = in_child(0.03, b"to a loop")
    assert asyncio.run(main()) == b"to a loop"
    os.waitpid(pid, 0)
