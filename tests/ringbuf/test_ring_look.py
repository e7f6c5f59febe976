"""A look at a ring's file from outside: it says what the ring says, changes nothing,
and believes nothing that makes no sense.
"""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from ringbuf import MessageRing, Messages, RingBuffer, RingLook, SharedFileError
from ringbuf._messages.file_positions import layout
from ringbuf._messages.look import next_seq_of, used_parts
from tests.support.processes import environment, python
from tests.support.threads import background, switching_often

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
]

PAGE = 4096


@pytest.mark.parametrize("capacity", [4096, 1 << 14, 1 << 21])
@pytest.mark.parametrize("first_seq", [0, (1 << 32) - 40, 1 << 63])
def test_it_says_what_the_ring_says(tmp_path: Path, capacity: int, first_seq: int) -> None:
    path = tmp_path / "ring"
    ring = MessageRing(capacity, path=path, first_seq=first_seq)
    assert not ring.pop_many()  # from here on it has a participant slot
    rng = random.Random(capacity + first_seq)
    out: list[Messages] = []
    # Of what was not released, ascending; what is out of turn stays until all before it
    # has gone.
    numbers: deque[int] = deque()
    released: set[int] = set()
    for _ in range(300):
        action = rng.random()
        if action < 0.5:
            first = ring.next_seq
            numbers.extend(
                range(
                    first,
                    first
                    + ring.push_many(
                        [rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(9))]
                    ),
                )
            )
        elif action < 0.75:
            messages = ring.take(rng.randrange(1, 12))
            if len(messages):
                out.append(messages)
        elif out:
            messages = out.pop(rng.randrange(len(out)))
            released.update(range(messages.first_seq, messages.first_seq + len(messages)))
            ring.release(messages)
        while numbers and numbers[0] in released:
            released.remove(numbers.popleft())
        look = MessageRing.look(path)
        assert look == RingLook(
            path=str(path),
            capacity_bytes=ring.capacity_bytes,
            used_bytes=ring.used_bytes,
            acked_seq=numbers[0] if numbers else ring.next_seq,
            read_seq=ring.next_seq - len(ring),
            next_seq=ring.next_seq,
            participants=1,
            survived_reboot=False,
        )
        assert next_seq_of(str(path)) == ring.next_seq
    ring._check()


def test_it_holds_in_every_lap_of_the_positions(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring = MessageRing(4096, path=path)
    ring._start_at((1 << 32) - 64, (1 << 40) - 3)  # both low halves go round within the next pushes
    for number in range((1 << 40) - 3, (1 << 40) + 200):
        assert ring.try_push(b"x" * 100)
        look = MessageRing.look(path)
        assert (look.acked_seq, look.read_seq, look.next_seq, look.used_bytes) == (
            number,
            number,
            number + 1,
            128,
        )
        ring.pop_many()


def test_nobody_notices(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        MessageRing.look(path)
    assert not path.exists(), "looking makes nothing"
    ring = MessageRing(1 << 14, path=path)
    ring.push_many([b"x" * 50] * 40)
    held = ring.take(3)
    ring.close()
    path.chmod(0o400)
    before, times = path.read_bytes(), (path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    first = MessageRing.look(path)
    assert (first.acked_seq, first.read_seq, first.next_seq, first.participants) == (0, 3, 40, 0)
    assert MessageRing.look(str(path)) == first
    assert (
        sum(end - start for start, end in used_parts(str(path)))
        == len(before) - first.capacity_bytes + first.used_bytes
    )
    assert (path.read_bytes(), (path.stat().st_mtime_ns, path.stat().st_ctime_ns)) == (
        before,
        times,
    )
    assert os.listdir(tmp_path) == ["ring"]
    assert len(held) == 3


def test_participants_are_those_who_live(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring = MessageRing(4096, path=path)
    assert MessageRing.look(path).participants == 0, "it has done nothing yet"
    ring.try_push(b"x")
    assert MessageRing.look(path).participants == 1
    source = (
        f"from ringbuf import MessageRing; r = MessageRing.attach({str(path)!r}); "
        "r.take(); print(flush=True); input()"
    )
    with subprocess.Popen(
        python(source), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert MessageRing.look(path).participants == 2
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert MessageRing.look(path).participants == 1
    ring.close()
    assert MessageRing.look(path).participants == 0


def test_beside_threads_that_work_it_never_sees_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring = MessageRing(1 << 14, path=path)
    stop = threading.Event()

    def push() -> None:
        while not stop.is_set():
            ring.push_many([b"x" * 30] * 7)

    def pop() -> None:
        while not stop.is_set():
            ring.release(ring.take(5))

    # Each look gives the GIL away several times, and would wait for it through every
    # other thread's 5 ms.
    with switching_often(), background(push, pop, pop, stop=stop):
        before = MessageRing.look(path)
        for _ in range(300):
            look = MessageRing.look(path)
            assert look.acked_seq <= look.read_seq <= look.next_seq
            assert look.used_bytes <= look.capacity_bytes
            assert look.next_seq - look.acked_seq <= look.capacity_bytes // 30
            assert before.next_seq <= look.next_seq
            assert before.acked_seq <= look.acked_seq
            before = look
    assert before.next_seq > 0


# ---------------------------------------------------------- what is not as it should be


@pytest.fixture
def a_ring(tmp_path: Path) -> Path:
    path = tmp_path / "ring"
    ring = MessageRing(4096, path=path, first_seq=5)
    ring.push_many([b"x" * 20] * 30)
    ring.pop_many(7)
    ring.close()
    return path


def change(path: Path, at: int, content: bytes, *, with_crc: bool = False) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    if with_crc:
        length = struct.unpack_from("<I", data, 56)[0]
        struct.pack_into("<I", data, 60 + length, zlib.crc32(data[: 60 + length]))
    path.write_bytes(data)


def test_another_boot(a_ring: Path) -> None:
    change(a_ring, 40, bytes(16), with_crc=True)
    look = MessageRing.look(a_ring)
    assert (look.survived_reboot, look.next_seq) == (True, 35)


@pytest.mark.parametrize(
    ("at", "content", "with_crc", "says"),
    [
        (0, b"X", False, "is not a file of ringbuf"),
        (70, b"X", False, "the checksum of its header"),
        (60, b'{"granules": 65}', True, "has 65 granules"),
        (60, b'{"granules":128}', True, "too small for 128 granules"),
        (60, b'{"granules":"a"}', True, "has 'a' granules"),
        (PAGE + layout(64)[0] + 4, b"\xff\xff", False, "its positions make no sense"),
        (PAGE + layout(64)[0] + 64 + 4, b"\xff", False, "its positions make no sense"),
        (PAGE + layout(64)[0] + 128, bytes(8), False, "its positions make no sense"),
    ],
)
def test_damage_is_named(a_ring: Path, at: int, content: bytes, with_crc: bool, says: str) -> None:
    change(a_ring, at, content, with_crc=with_crc)
    with pytest.raises(SharedFileError, match=says):
        MessageRing.look(a_ring)


def test_a_damaged_secret_is_named_as_attach_names_it(tmp_path: Path) -> None:
    path = tmp_path / "sealed"
    MessageRing(4096, path=path, checksums=True).close()
    at = path.read_bytes().index(b'"secret": "') + 11
    change(path, at, b"g", with_crc=True)
    for use in (MessageRing.look, MessageRing.attach):
        with pytest.raises(SharedFileError, match="its secret is not"):
            use(path)


def test_another_size_and_another_kind(a_ring: Path, tmp_path: Path) -> None:
    with open(a_ring, "ab") as file:
        file.write(b"x")
    with pytest.raises(SharedFileError, match="bytes and was made with"):
        MessageRing.look(a_ring)
    assert next_seq_of(str(a_ring)) is None
    RingBuffer(8, np.int64, path=tmp_path / "records")
    with pytest.raises(SharedFileError, match="holds a RingBuffer, not a MessageRing"):
        MessageRing.look(tmp_path / "records")
    (tmp_path / "empty").touch()
    with pytest.raises(SharedFileError, match="is not a file of ringbuf"):
        MessageRing.look(tmp_path / "empty")
    assert next_seq_of(str(tmp_path / "empty")) is None


def test_the_next_number_is_found_where_the_header_is_damaged(a_ring: Path) -> None:
    change(a_ring, 0, bytes(PAGE))
    assert next_seq_of(str(a_ring)) == 35
    change(a_ring, PAGE + layout(64)[0] + 128, bytes(8))
    assert next_seq_of(str(a_ring)) is None


def test_garbage_is_no_crash(a_ring: Path) -> None:
    """Whatever lies in positions, index and data: a look ends, with an answer or with
    SharedFileError.
    """
    sound = a_ring.read_bytes()
    rng = random.Random(1)
    positions = PAGE + layout(64)[0]
    refused = 0
    for _ in range(200):
        data = bytearray(sound)
        for _ in range(rng.randrange(1, 20)):
            start = rng.choice(
                (
                    positions,
                    positions + 64,
                    positions + 128,
                    rng.randrange(positions, len(data) - 8),
                )
            )
            data[start : start + 8] = rng.choice(
                (rng.randbytes(8), b"\xff" * 8, bytes(8), struct.pack("<Q", rng.randrange(1 << 20)))
            )
        a_ring.write_bytes(data)
        try:
            look = MessageRing.look(a_ring)
        except SharedFileError:
            refused += 1
        else:
            assert look.used_bytes <= look.capacity_bytes == 4096
    assert 0 < refused < 200
