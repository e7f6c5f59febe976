"""The file of a shared ring, damaged anywhere but in its header: it is refused with a
clear error, or serves; no hang, no crash.

A hang ends by pytest's timeout, and a crash ends pytest.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringbuf import MessageRing, Messages, RingBuffer, SharedFileError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
]

PAGE = 4096
#: The control block: 32 participants with 64 op slots each, in cache lines.
CONTROL = -(-64 * (1 + 32 + 32 * 64) // PAGE) * PAGE
#: Where control, positions, index and data lie; and the words of the positions alone,
#: so that they are met often.
REGIONS = [
    (PAGE, PAGE + CONTROL),
    (PAGE + CONTROL, PAGE + CONTROL + 200),
    (PAGE + CONTROL + PAGE, PAGE + CONTROL + PAGE + 64 * 8),
    (PAGE + CONTROL + 2 * PAGE, PAGE + CONTROL + 2 * PAGE + 4096),
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
    """A ring of 64 records: some taken and released, some taken by a process that dies,
    some left, with a hole among them.
    """
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
    ("make", "leave", "use"),
    [(records, leave_records, use_records), (messages, leave_messages, use_messages)],
)
def test_damage_anywhere_is_refused_or_does_no_harm(
    tmp_path: Path,
    make: Callable[[Path], object],
    leave: Callable[..., None],
    use: Callable[[Path], None],
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
    # Or the op slots of every participant make no sense.
    assert all(
        "is damaged" in message or "participant slots are taken" in message for message in refused
    )


def work_on_records(path: Path, rng: random.Random) -> None:
    """All that can be done with a ring, until killed."""
    ring, held = RingBuffer.attach(path), []
    while True:
        count, way = rng.choice((1, 3, 9)), rng.randrange(5)
        if way == 0:
            ring.push_many(range(count))
        elif way == 1:
            ring.pop_many(count)
        elif way < 4:
            try:
                with ring.peek(count) if way == 2 else ring.reserve(count):
                    if rng.random() < 0.3:
                        raise KeyError
            except KeyError:
                pass
        else:
            held.append(ring.peek(count))
            held[-1].__enter__()
            if len(held) > 4:
                held.pop(rng.randrange(5)).__exit__(None, None, None)


def work_on_messages(path: Path, rng: random.Random) -> None:
    ring = MessageRing.attach(path)
    held: list[Messages] = []
    while True:
        count, way = rng.choice((1, 3, 9)), rng.randrange(4)
        if way == 0:
            ring.push_many([bytes(rng.randrange(50))] * count)
        elif way == 1:
            ring.push_lines(b"a\nbb\n" * count)
        elif way == 2:
            ring.try_pop()
            ring.pop_many(count)
        else:
            messages = ring.take(count)
            held += (
                ring.split(messages, 1) if len(messages) > 1 and rng.random() < 0.5 else [messages]
            )
            while len(held) > 4:
                ring.release(held.pop(rng.randrange(len(held))))


@pytest.mark.parametrize(("kind", "make", "work"), [
    (RingBuffer, records, work_on_records), (MessageRing, messages, work_on_messages)
])  # fmt: skip
def test_what_all_left_who_were_killed_at_once_is_never_called_damaged(
    tmp_path: Path,
    kind: Any,
    make: Callable[[Path], object],
    work: Callable[[Path, random.Random], None],
) -> None:
    path, rng = tmp_path / "ring", random.Random(20261125)
    make(path)
    for _ in range(15):
        seeds = [rng.getrandbits(32) for _ in range(3)]
        pids = []
        for seed in seeds:
            pids.append(os.fork())
            if pids[-1] == 0:
                try:
                    work(path, random.Random(seed))
                finally:
                    os._exit(1)
        time.sleep(rng.uniform(0.005, 0.03))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        assert all(os.WIFSIGNALED(status) for status in statuses), "one failed before it was killed"
        kind.attach(path)._check()


@pytest.mark.parametrize("text", [b"[" * 3000, b'{"a":' * 700, b"\xff", b"null", b""])
def test_a_header_that_remembers_nonsense_is_refused(tmp_path: Path, text: bytes) -> None:
    messages(tmp_path / "ring").close()
    data = bytearray((tmp_path / "ring").read_bytes())
    # Of format, kind, size, UUID and boot id nothing is changed; the length of the text
    # and the text are, and the checksum fits.
    data[56:60] = len(text).to_bytes(4, "little")
    data[60 : 60 + len(text)] = text
    end = 60 + len(text)
    data[end : end + 4] = zlib.crc32(data[:end]).to_bytes(4, "little")
    (tmp_path / "ring").write_bytes(data)
    with pytest.raises(SharedFileError, match="no JSON object"):
        MessageRing.attach(tmp_path / "ring")
    with pytest.raises(SharedFileError, match="no JSON object"):
        MessageRing.look(tmp_path / "ring")


def test_numbers_near_their_end_are_damage(tmp_path: Path) -> None:
    """They are compared as if they had no end, and no ring comes there."""
    path = tmp_path / "ring"
    with MessageRing(4096, path=path, first_seq=2**63) as ring:
        assert ring.push_many([b"a", b"b", b"c", b"d"]) == 4
    whole = path.read_bytes()
    at = PAGE + CONTROL + 8  # beside the write position
    assert whole[at : at + 8] == (2**63 + 4).to_bytes(8, "little")
    first = whole.index((2**63).to_bytes(8, "little"), PAGE + CONTROL + 2 * PAGE)
    for next_seq, first_seq, match in (
        (2**64 - 2, 2**64 - 6, "its numbers make no sense|its positions make no sense"),
        (2, 2**64 - 2, "its frames do not follow each other|its positions make no sense"),
    ):
        data = bytearray(whole)
        data[at : at + 8] = next_seq.to_bytes(8, "little")
        data[first : first + 8] = first_seq.to_bytes(8, "little")
        path.write_bytes(data)
        with pytest.raises(SharedFileError, match=match):
            MessageRing.attach(path)
        with pytest.raises(SharedFileError, match=match):
            MessageRing.look(path)


def test_a_ring_whose_file_was_refused_is_none(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    MessageRing(4096, path=path).close()
    whole = bytearray(path.read_bytes())
    whole[PAGE + CONTROL : PAGE + CONTROL + 8] = (1 << 60).to_bytes(8, "little")
    path.write_bytes(whole)
    ring = MessageRing.__new__(MessageRing)
    with pytest.raises(SharedFileError, match="its positions make no sense"):
        ring.__init__(4096, path=path)
    for use in (
        lambda: ring.try_push(b"x"),
        ring.try_pop,
        ring.pop_many,
        lambda: ring.push_lines(b"x\n"),
        ring.count,
    ):
        with pytest.raises(TypeError, match="never made"):
            use()
    assert path.read_bytes() == whole
    ring.__init__(4096)
    assert ring.push_many([b"a", b"b"]) == 2
    assert ring.pop_many().tolist() == [b"a", b"b"]
    ring._check()
