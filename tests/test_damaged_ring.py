"""The file of a shared ring, damaged anywhere but in its header: it is refused with a clear error, or serves; no hang, no crash.

A hang ends by pytest's timeout and a crash ends pytest: both are what is feared here.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ringbuf import MessageRing, RingBuffer, SharedFileError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
]

PAGE = 4096
#: Seats and slots: 32 seats with 64 slots each, in cache lines.
DESK = -(-64 * (1 + 32 + 32 * 64) // PAGE) * PAGE
#: Where desk, positions, index and data lie; and the words of the positions alone, so that they are met often.
REGIONS = [
    (PAGE, PAGE + DESK),
    (PAGE + DESK, PAGE + DESK + 200),
    (PAGE + DESK + PAGE, PAGE + DESK + PAGE + 64 * 8),
    (PAGE + DESK + 2 * PAGE, PAGE + DESK + 2 * PAGE + 4096),
]


def damage(data: bytearray, rng: random.Random) -> None:
    low, high = rng.choice(REGIONS)
    high = min(high, len(data))
    way = rng.randrange(4)
    if way == 0:
        data[low:high] = rng.randbytes(high - low)
    elif way == 1:
        data[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    else:
        for _ in range(rng.choice((1, 3, 20))):
            at = rng.randrange(low, high) & ~7
            special = (0, 1, 1 << 32, 1 << 63, (1 << 64) - 1, rng.randrange(1 << 16))
            word = rng.getrandbits(64) if way == 2 else rng.choice(special)
            data[at : at + 8] = word.to_bytes(8, "little")


def records(path: Path) -> RingBuffer:
    """One of 64 records: some taken and released, some taken by one who dies, some left, with a hole among them."""
    ring = RingBuffer(64, "i8", path=path)
    ring.push_many(range(40))
    ring.pop_many(20)
    return ring


def leave_records(ring: RingBuffer) -> None:
    blocks = [ring.peek(5), ring.reserve(3)]
    for block in blocks:
        block.__enter__()
    ring.push_many([1, 2])
    os._exit(0)


def use_records(path: Path) -> None:
    ring = RingBuffer.attach(path)
    for _ in range(3):
        len(ring)
        ring.pop_many(3)
        ring.try_push(1)
        ring.push_many([1, 2, 3])
        ring.try_pop()
    with ring.peek(3) as span:
        list(span)
    with ring.reserve(3):
        pass
    ring.pop_many()


def messages(path: Path) -> MessageRing:
    ring = MessageRing(4096, path=path)
    ring.push_many([b"abc"] * 20)
    ring.pop_many(10)
    return ring


def leave_messages(ring: MessageRing) -> None:
    ring.take(2)
    ring.push_many([b"x" * 100] * 3)
    os._exit(0)


def use_messages(path: Path) -> None:
    ring = MessageRing.attach(path)
    for _ in range(3):
        repr(ring), ring.count(), ring.used_bytes, ring.next_seq
        ring.release(ring.take(3))
        ring.try_push(b"x" * 50)
        ring.push_many([b"a", b"b"])
        ring.pop_many(3, 100)
    ring.take_orphaned()
    ring.pop_many()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "leave", "use"), [(records, leave_records, use_records), (messages, leave_messages, use_messages)]
)
def test_damage_anywhere_is_refused_or_does_no_harm(
    tmp_path: Path, make: Callable[[Path], object], leave: Callable[..., None], use: Callable[[Path], None]
) -> None:
    ring = make(tmp_path / "ring")
    pid = os.fork()
    if pid == 0:
        leave(ring)
    os.waitpid(pid, 0)
    whole = (tmp_path / "ring").read_bytes()
    # What was copied is as it was left, and sound.
    (tmp_path / "copy").write_bytes(whole)
    use(tmp_path / "copy")
    rng = random.Random(20261125)
    refused: list[str] = []
    for number in range(400):
        data = bytearray(whole)
        damage(data, rng)
        path = tmp_path / f"damaged-{number}"
        path.write_bytes(data)
        try:
            use(path)
        except (SharedFileError, RuntimeError) as error:
            refused.append(str(error))
        path.unlink()
    assert len(refused) > 100
    # Or slots say nothing of sense in every seat there is.
    assert all("is damaged" in message or "seats are taken" in message for message in refused)
