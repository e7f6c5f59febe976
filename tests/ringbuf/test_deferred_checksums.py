"""Checksums that pushes leave to `write_checksums`."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuf import MessageRing, Messages, salvage
from tests.support.threads import run_threads
from tests.torture.step_kill import Stepped, is_allowed, steps_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="rings in files need Linux"),
    pytest.mark.platform,
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ring"


def deferring(path: Path, capacity: int = 1 << 16) -> MessageRing:
    ring = MessageRing(capacity, path=path, checksums=True)
    ring.defer_checksums()
    return ring


def proved(path: Path) -> dict[int, bytes]:
    """What salvage finds, by number."""
    found: dict[int, bytes] = {}
    for messages in salvage(path).messages():
        found.update(enumerate(messages.tolist(), messages.first_seq))
    return found


def test_a_push_proves_nothing_before_its_checksum_is_written(path: Path) -> None:
    ring = deferring(path)
    sent = [b"one", b"", b"three" * 50]
    ring.push_many(sent)
    ring.push_lines(b"four\nfive\n")
    ring.try_push(b"six")
    assert proved(path) == {}
    assert salvage(path).next_seq == 6, "it is owed, and not whole"
    assert not ring.write_checksums()
    assert proved(path) == dict(enumerate([*sent, b"four", b"five", b"six"]))
    before = path.read_bytes()
    assert not ring.write_checksums()
    assert path.read_bytes() == before
    assert ring.pop_many().tolist() == [*sent, b"four", b"five", b"six"]


def test_what_came_since_the_last_call_waits_for_the_next(path: Path) -> None:
    ring = deferring(path)
    assert not ring.write_checksums(recent=False)
    ring.push_many([b"a", b"b"])
    assert ring.write_checksums(recent=False)
    ring.try_push(b"c")
    assert ring.write_checksums(recent=False)
    assert proved(path) == {0: b"a", 1: b"b"}
    assert not ring.write_checksums(recent=False)
    assert proved(path) == {0: b"a", 1: b"b", 2: b"c"}
    # What comes and goes between two calls is never hashed.
    ring.try_push(b"d")
    ring.write_checksums(recent=False)
    assert ring.pop_many().tolist() == [b"a", b"b", b"c", b"d"]
    assert not ring.write_checksums(recent=False)
    assert 3 not in proved(path)


def test_large_frames_and_ones_that_run_over_the_end(path: Path) -> None:
    ring = deferring(path, 2048 * 64)
    rng = random.Random(4)
    for sizes in ([200] * 300, [70_000], [0] * 4096, [200] * 300, [40], [24], [25]):
        first = ring.next_seq
        messages = [rng.randbytes(size) for size in sizes]
        assert ring.push_many(messages) == len(messages)
        assert not ring.write_checksums()
        assert {seq: one for seq, one in proved(path).items() if seq >= first} == dict(
            enumerate(messages, first)
        )
        assert ring.pop_many().tolist() == messages


def test_what_is_taken_gets_its_checksum_too(path: Path) -> None:
    """Parts of it may have been released, in any order: marks count for nothing."""
    ring = deferring(path)
    sent = [b"%d" % i * 20 for i in range(400)]
    for start in range(0, 400, 100):
        ring.push_many(sent[start : start + 100])
    parts = [ring.take(30) for _ in range(12)]
    for part in parts[1::3]:
        ring.release(part)
    ring.write_checksums()
    ring.release(parts[3])
    assert proved(path) == dict(enumerate(sent))
    assert salvage(path).settled_seq == 0
    ring.release(parts[0])
    assert salvage(path).settled_seq == 60


def test_others_write_theirs_as_they_push(path: Path) -> None:
    ring = deferring(path)
    ring.try_push(b"later")
    other = MessageRing.attach(path)
    other.try_push(b"at once")
    handle = ring.producer()
    handle.try_push(b"later, too")
    assert proved(path) == {1: b"at once"}
    ring.defer_checksums(False)
    handle.try_push(b"at once again")
    assert proved(path) == {1: b"at once", 3: b"at once again"}
    other.write_checksums()
    assert len(proved(path)) == 4, "also of another's pushes"


def test_rings_without_checksums_have_nothing_to_write(tmp_path: Path) -> None:
    for ring in (MessageRing(4096), MessageRing(4096, path=tmp_path / "ring")):
        ring.defer_checksums()
        ring.try_push(b"x")
        assert not ring.write_checksums()
        assert ring.try_pop() == b"x"


@pytest.mark.threads
def test_writing_them_beside_producers_and_consumers(path: Path) -> None:
    """In a ring so small that what is hashed is being released and written over."""
    ring = deferring(path, 1 << 14)
    count, stop = 20_000, threading.Event()
    received: list[bytes] = []

    def produce() -> None:
        rng, i = random.Random(1), 0
        while i < count:
            many = min(rng.choice((1, 5, 40)), count - i)
            i += ring.push_many(
                [b"%d:" % n + b"x" * (n % 150) for n in range(i, i + many)], timeout=5.0
            )

    def consume() -> None:
        held: list[Messages] = []
        rng = random.Random(2)
        try:
            while len(received) < count:
                taken = ring.take(rng.choice((1, 7, 60)))
                received.extend(taken.tolist())
                held.append(taken)
                if len(held) > 2 or not len(taken):
                    rng.shuffle(held)
                    while held:
                        ring.release(held.pop())
        finally:
            stop.set()

    def write() -> None:
        rng = random.Random(3)
        while not stop.is_set():
            ring.write_checksums(rng.random() < 0.7)

    run_threads([produce, consume, write])
    assert received == [b"%d:" % n + b"x" * (n % 150) for n in range(count)]
    ring._check()
    for seq, message in proved(path).items():
        assert message == received[seq]


@pytest.mark.single_thread
@pytest.mark.skipif(not is_allowed(), reason="ptrace is not allowed here")
def test_one_that_is_stopped_while_it_hashes(path: Path, in_full: bool) -> None:
    """It stands still after its k-th instruction; the frame is released meanwhile, and
    what is written over it holds the old header and trailer at their places.
    """
    sent: dict[int, bytes] = {}

    at = 192  # where the frame lies, behind a smaller one

    def anew() -> MessageRing:
        """A ring with a frame that waits for its checksum."""
        path.unlink(missing_ok=True)
        ring = deferring(path, 4096)
        sent.clear()
        for message in (b"p" * 100, b"a" * 856):
            sent[ring.next_seq] = message
            assert ring.try_push(message)
        assert ring.try_pop() == b"p" * 100
        return ring

    def setup() -> Callable[[], object]:
        for number in range(2):
            warm = path.with_name(f"warm-{number}-{os.getpid()}")
            first = deferring(warm, 4096)
            first.try_push(b"a" * 856)
            MessageRing.attach(warm).write_checksums()
            warm.unlink()
        return MessageRing.attach(path).write_checksums

    ring = anew()
    checksum = slice(at + 24 + 856 + 8, at + 896)
    pending = ring._memory_view()[checksum].tobytes()
    written = steps_until(setup, lambda: ring._memory_view()[checksum].tobytes() != pending)
    assert proved(path) == {1: b"a" * 856}, "at once, and for good"
    met = 0
    for steps in range(max(written - 700, 0), written + 20, 3 if in_full else 35):
        ring = anew()
        stopped = Stepped(setup, steps)
        met += stopped.within
        frame = ring._memory_view()[at : at + 896].tobytes()
        assert ring.try_pop() == b"a" * 856
        # Up to the end, and the first message of the next lap from before the frame on.
        assert ring.try_push(b"q" * (4096 - at - 896 - 40))
        assert ring.try_pop() is not None
        old = frame[-16:] if steps % 2 else frame[-16:-8] + b"another."
        forged = b"r" * (at - 24) + frame[:24] + b"x" * 856 + old + b"r" * 100
        sent.update({2: b"q" * (4096 - at - 896 - 40), 3: forged})
        assert ring.try_push(forged)
        assert ring._memory_view()[at : at + 24].tobytes() == frame[:24], "it lies there again"
        stopped.finish()
        stopped.kill()
        for seq, message in proved(path).items():
            assert message == sent[seq], (steps, seq)
        got, place = ring.try_pop(), at - 24 + 896 - 8
        assert got is not None
        if steps % 2:  # as the head of deferred_checksums.pxd says
            got = got[:place] + forged[place : place + 8] + got[place + 8 :]
        assert got == forged, steps
        ring.close()
    assert met > 0
