"""Checksums of frames, and what salvage finds by them in an old file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backpressure.lanes.ring_debt import debt_of
from ringbuf import MessageRing, Salvage, SharedFileError, salvage
from ringbuf._messages.file import read_meta
from ringbuf._messages.file_positions import layout
from ringbuf._messages.salvage import hash_of
from ringbuf._shared.shared_file import FORMAT
from tests.torture.ring_images import one_life

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="rings in files need Linux"),
    pytest.mark.platform,
]

MASK = (1 << 64) - 1
KEY = hashlib.shake_256(b"a key").digest(282 * 8)


# ------------------------------------------------------- the hash, once more and slowly


def slow_hash(data: bytes, expanded: bytes) -> int:
    """As the head of _messages/frame_checksum.pxd says."""
    key = struct.unpack("<282Q", expanded)
    lanes = list(key[264:272])
    stripes = [struct.unpack_from("<8Q", data, at) for at in range(0, len(data), 64)]
    blocks = [stripes[at : at + 32] for at in range(0, len(stripes), 32)] or [[]]
    for number, block in enumerate(blocks):
        if number > 0:
            lanes = [
                ((lane ^ lane >> 47 ^ key[256 + i]) * 0x9E3779B1) & MASK
                for i, lane in enumerate(lanes)
            ]
        sums = [0] * 8
        for s, stripe in enumerate(block):
            for i, word in enumerate(stripe):
                keyed = word ^ key[8 * s + i]
                lanes[i] = (lanes[i] + (keyed & 0xFFFFFFFF) * (keyed >> 32)) & MASK
                sums[i] += word
        lanes = [(lane + sums[i ^ 1]) & MASK for i, lane in enumerate(lanes)]
    total = sum(fold(lanes[i] ^ key[272 + i], lanes[i + 1] ^ key[273 + i]) for i in range(0, 8, 2))
    return avalanche(total & MASK)


def fold(a: int, b: int) -> int:
    return (a * b & MASK) ^ (a * b >> 64)


def avalanche(h: int) -> int:
    h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & MASK
    h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & MASK
    return h ^ h >> 33


@pytest.mark.parametrize("stripes", [0, 1, 2, 31, 32, 33, 64, 65, 100])
def test_all_ways_of_hashing_give_what_python_gives(stripes: int) -> None:
    data = random.Random(stripes).randbytes(stripes * 64)
    expected = slow_hash(data, KEY)
    ways = 0
    for way in (-1, 0, 1, 2):
        try:
            found = hash_of(data, KEY, way)
        except NotImplementedError:
            continue
        assert found == expected
        ways += 1
    assert ways >= 2


def test_extreme_words() -> None:
    for word in (b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\xff\0\0\0\0"):
        assert hash_of(word * 8 * 40, KEY, -1) == slow_hash(word * 8 * 40, KEY)
    # A word equal to its key makes a factor of zero: the neighbour's sum still sees
    # what changes in it.
    data = bytearray(KEY[:64])
    before = hash_of(data, KEY, -1)
    for bit in range(512):
        data[bit // 8] ^= 1 << bit % 8
        assert hash_of(data, KEY, -1) != before
        data[bit // 8] ^= 1 << bit % 8


def test_every_bit_and_every_swap_of_stripes_changes_the_hash() -> None:
    data = bytearray(random.Random(3).randbytes(40 * 64))
    seen = {hash_of(data, KEY, -1)}
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        seen.add(hash_of(data, KEY, -1))
        data[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 1 + len(data) * 8
    for first in range(40):
        for second in range(first):
            other = bytearray(data)
            other[first * 64 :][:64], other[second * 64 :][:64]
            other[first * 64 : first * 64 + 64] = data[second * 64 : second * 64 + 64]
            other[second * 64 : second * 64 + 64] = data[first * 64 : first * 64 + 64]
            seen.add(hash_of(other, KEY, -1))
    assert len(seen) == 1 + len(data) * 8 + 40 * 39 // 2


# ---------------------------------------------------------------- rings and their files


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ring"


def contents(found: Salvage, start: int = 0, end: int | None = None) -> dict[int, bytes]:
    return {
        messages.first_seq + i: messages[i]
        for messages in found.messages(start, end)
        for i in range(len(messages))
    }


def data_of(path: Path, granules: int) -> int:
    return 4096 + layout(granules)[2]


def test_what_a_push_leaves_in_the_file(path: Path) -> None:
    ring = MessageRing(4096, path=path, checksums=True, first_seq=7)
    assert ring.checksums
    assert ring.push_many([b"one", b"", b"three"]) == 3
    raw = path.read_bytes()
    length = struct.unpack_from("<I", raw, 56)[0]
    meta = json.loads(raw[60 : 60 + length])
    granules, key = read_meta("", meta, len(raw) - 4096)
    assert granules == 64
    assert key is not None
    frame = bytearray(raw[data_of(path, 64) :][:64])
    first_seq, count, payload, mark, check = struct.unpack_from("<QIIII", frame)
    assert (first_seq, count, payload, mark) == (7, 3, 8, 0)
    assert frame[24:36] == struct.pack("<3I", 3, 3, 8)
    assert frame[36:48] == b"onethree" + bytes(4)
    position, checksum = struct.unpack_from("<QQ", frame, 48)
    assert position == 64, "the first lap is number 1"
    words = struct.unpack("<282Q", bytes(key))
    assert check == avalanche(fold(7 ^ words[280], (3 << 32 | 8) ^ words[281]) + 0) & 0xFFFFFFFF
    frame[56:] = bytes(8)
    assert checksum == slow_hash(bytes(frame), bytes(key))


def test_checksums_of_large_frames_are_what_python_says(path: Path) -> None:
    """Of one in one piece, and of one that runs over the end of the memory."""
    granules = 2048
    ring = MessageRing(granules * 64, path=path, checksums=True)
    rng = random.Random(4)
    ran_over = []
    for sizes in ([200] * 300, [70_000], [0] * 4096, [200] * 300):
        first = ring.next_seq
        assert ring.used_bytes == 0
        messages = [rng.randbytes(size) for size in sizes]
        assert ring.push_many(messages) == len(messages)
        raw = path.read_bytes()
        length = struct.unpack_from("<I", raw, 56)[0]
        _, key = read_meta("", json.loads(raw[60 : 60 + length]), len(raw) - 4096)
        assert key is not None
        memory = raw[data_of(path, granules) :]
        (write,) = struct.unpack_from("<Q", raw, 4096 + layout(64)[0])
        size = ring.used_bytes
        at = write % granules * 64 - size
        span = bytearray(memory[at:] + memory[: at + size] if at < 0 else memory[at : at + size])
        ran_over.append(at < 0)
        assert struct.unpack_from("<QI", span) == (first, len(messages))
        (checksum,) = struct.unpack_from("<Q", span, size - 8)
        span[-8:] = bytes(8)
        assert checksum == slow_hash(bytes(span), bytes(key))
        assert contents(salvage(path), first) == dict(enumerate(messages, first))
        assert ring.pop_many().tolist() == messages
    assert ran_over == [False, True, False, False]


def test_a_ring_with_checksums_is_a_ring(path: Path) -> None:
    ring = MessageRing(4096, path=path, checksums=True)
    rng = random.Random(5)
    largest = ring.max_message_bytes
    assert largest == 4096 - 24 - 16
    for _ in range(500):
        messages = [
            rng.randbytes(rng.choice((0, 1, 20, 24, 25, 40, 300))) for _ in range(rng.randint(1, 9))
        ]
        pushed = ring.push_many(messages)
        ring._check()
        assert ring.pop_many(1000).tolist() == messages[:pushed]
    assert ring.try_push(b"x" * largest)
    assert contents(salvage(path)) == {ring.next_seq - 1: b"x" * largest}
    assert ring.pop_many()[0] == b"x" * largest
    with pytest.raises(ValueError, match=r"4,056|4056"):
        ring.try_push(b"x" * (largest + 1))


def test_salvage_finds_what_is_there_and_changes_nothing(path: Path) -> None:
    ring = MessageRing(1 << 16, path=path, checksums=True, first_seq=100)
    sent = [b"%d" % i * (i % 50) for i in range(500)]
    assert ring.push_many(sent[:200]) == 200
    assert ring.push_lines(b"\n".join(sent[200:]) + b"\n") == (300, len(b"\n".join(sent[200:])) + 1)
    held = ring.take(30)
    other = ring.take(30)
    ring.release(other)
    ring.close()
    before = path.read_bytes()
    found = salvage(path)
    assert (found.path, found.capacity_bytes, found.checksums) == (str(path), 1 << 16, True)
    assert (found.settled_seq, found.stored_seq, found.next_seq) == (100, 0, 600)
    assert found.ranges == [(100, 600)]
    assert contents(found) == dict(enumerate(sent, 100))
    assert contents(found, 130, 333) == dict(list(enumerate(sent, 100))[30:233])
    assert path.read_bytes() == before
    assert len(held) == 30
    with pytest.raises(TypeError):
        Salvage()


def test_the_words_say_what_is_settled_and_stored(path: Path) -> None:
    ring = MessageRing(1 << 16, path=path, checksums=True)
    ring.push_many([b"x"] * 100)
    first, second = ring.take(30), ring.take(30)
    ring.release(first)
    assert salvage(path).settled_seq == 30, "also in the midst of a frame"
    ring.note_stored(60)
    ring.release(second)
    found = salvage(path)
    assert (found.settled_seq, found.stored_seq) == (60, 60)
    assert debt_of(found, 60) == ([(60, 100)], [])
    assert debt_of(found, 40) == ([(40, 60), (60, 100)], []), (
        "what the disk lost is still in the ring"
    )
    assert debt_of(found, 200) == ([], [])
    assert debt_of(found, 60).events == 40
    # A bit of a word that has turned.
    at = 4096 + layout(64)[0]
    raw = bytearray(path.read_bytes())
    for word in (144, 152):
        for bit in range(64):
            raw[at + word + bit // 8] ^= 1 << bit % 8
            path.write_bytes(raw)
            found = salvage(path)
            assert found.settled_seq <= 60
            raw[at + word + bit // 8] ^= 1 << bit % 8
    for word in (160, 168):
        raw[at + word] ^= 1
        path.write_bytes(raw)
        assert salvage(path).stored_seq >= 60
        raw[at + word] ^= 1


def test_without_checksums_nothing_is_proved(path: Path) -> None:
    ring = MessageRing(4096, path=path)
    ring.push_many([b"a"] * 10)
    ring.release(ring.take(4))
    found = salvage(path)
    assert (found.checksums, found.ranges, found.settled_seq, found.next_seq) == (False, [], 4, 10)
    assert debt_of(found, 0) == ([], [(4, 10)])
    with pytest.raises(ValueError, match="give it a path"):
        MessageRing(4096, checksums=True)


def test_a_file_of_another_format_is_refused_and_left_as_it_is(path: Path) -> None:
    ring = MessageRing(4096, path=path)
    ring.push_many([b"a"] * 10)
    ring.close()
    raw = bytearray(path.read_bytes())
    for version in (0, 1, FORMAT - 1, FORMAT + 1):
        rewrite_header(raw, version=version)
        path.write_bytes(raw)
        for use in (MessageRing.attach, MessageRing.needs_salvage, salvage):
            with pytest.raises(SharedFileError, match=f"has format {version}"):
                use(path)
        assert path.read_bytes() == raw


def rewrite_header(
    raw: bytearray, version: int | None = None, boot: bytes | None = None, meta: bytes | None = None
) -> None:
    length = struct.unpack_from("<I", raw, 56)[0]
    if version is not None:
        struct.pack_into("<I", raw, 8, version)
    if boot is not None:
        raw[40:56] = boot
    if meta is not None:
        struct.pack_into("<I", raw, 56, len(meta))
        raw[60 : 60 + len(meta)] = meta
        length = len(meta)
    struct.pack_into("<I", raw, 60 + length, zlib.crc32(raw[: 60 + length]))


@pytest.mark.parametrize("secret", ['"00"', '"%s"' % ("x" * 64), "7", "null"])
def test_a_secret_that_is_none(path: Path, secret: str) -> None:
    MessageRing(4096, path=path, checksums=True).close()
    raw = bytearray(path.read_bytes())
    rewrite_header(raw, meta=b'{"granules": 64, "secret": %s}' % secret.encode())
    path.write_bytes(raw)
    if secret == "null":
        assert not MessageRing.attach(path).checksums
        return
    for use in (MessageRing.attach, salvage):
        with pytest.raises(SharedFileError, match="its secret is not 32 bytes"):
            use(path)


# ---------------------------------------------------------------- damage


def flips(
    path: Path, first: int, end: int, bits: Iterator[int] | None = None
) -> Iterator[tuple[int, int]]:
    """Turns one bit of each byte in the file, one after the other, for the caller."""
    rng = random.Random(1)
    with open(path, "r+b", buffering=0) as file:
        for at in range(first, end):
            byte = os.pread(file.fileno(), 1, at)[0]
            bit = rng.randrange(8)
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)
            yield at, bit
            os.pwrite(file.fileno(), bytes([byte]), at)


def test_every_bit_of_a_frame_counts(path: Path) -> None:
    ring = MessageRing(4096, path=path, checksums=True)
    ring.push_many([b"some", b"messages" * 10, b""])
    ring.push_many([b"and more"])
    start = data_of(path, 64)
    size = 192
    raw = bytearray(path.read_bytes())
    for bit in range(size * 8):
        at = start + bit // 8
        raw[at] ^= 1 << bit % 8
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), raw[at : at + 1], at)
        ranges = salvage(path).ranges
        is_mark = 16 * 8 <= bit < 20 * 8 or (24 * 8 <= bit < 36 * 8 and bit % 32 >= 19)
        assert ranges == ([(0, 4)] if is_mark else [(3, 4)]), bit
        raw[at] ^= 1 << bit % 8
        with open(path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), raw[at : at + 1], at)


def test_every_byte_of_a_file(path: Path) -> None:
    ring = MessageRing(4096, path=path, checksums=True)
    rng = random.Random(2)
    sent: dict[int, bytes] = {}
    for _ in range(30):
        messages = [rng.randbytes(rng.choice((0, 5, 100))) for _ in range(rng.randint(1, 6))]
        first = ring.next_seq
        sent.update(enumerate(messages[: ring.push_many(messages)], first))
        ring.pop_many(rng.randint(0, 6) or None)
    everything = salvage(path).ranges
    assert everything
    at = 4096 + layout(64)[0]
    for first, end in ((0, 300), (at, at + 300), (data_of(path, 64), data_of(path, 64) + 4096)):
        for position, _ in flips(path, first, end):
            try:
                found = salvage(path)
            except SharedFileError:
                assert position < 4096
                continue
            got = contents(found)
            assert got.items() <= sent.items()
            debt = debt_of(found, 0)
            assert all(0 <= a < b for a, b in (*debt.whole, *debt.missing))


def test_a_true_frame_in_a_payload_is_not_taken_for_one(path: Path) -> None:
    """The whole memory of the ring, pushed into itself at the same places: frames of
    the lap before, with right checksums.
    """
    ring = MessageRing(8192, path=path, checksums=True)
    old = [b"old %d" % i for i in range(100)]
    for message in old:
        ring.try_push(message)
    assert ring.pop_many().tolist() == old
    memory = ring._memory_view().tobytes()
    write = 100
    assert memory[write * 64 :] == bytes(28 * 64)
    ring.push_many([b"x" * (28 * 64 - 40)])  # up to the end of the memory
    ring.pop_many()
    hostile = bytes(64 - 24) + memory[64 : 90 * 64]
    assert ring.try_push(hostile)
    found = salvage(path)
    assert contents(found)[101] == hostile
    assert all(seq > 89 for first, end in found.ranges for seq in range(first, end)), (
        "none of those in the payload"
    )
    # When the frame around them is torn they come out, as what they are: old, and
    # settled.
    start = data_of(path, 128)
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(64))
    found = salvage(path)
    assert 5 in contents(found)
    assert debt_of(found, 0) == ([], [(101, 102)])


def test_frames_of_another_ring_are_none(path: Path, tmp_path: Path) -> None:
    ring, other = (
        MessageRing(4096, path=path, checksums=True),
        MessageRing(4096, path=tmp_path / "other", checksums=True),
    )
    for one in (ring, other):
        one.push_many([b"a", b"b"])
    start = data_of(path, 64)
    raw = (tmp_path / "other").read_bytes()
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(raw[start:])
    assert salvage(path).ranges == []


def test_a_frame_that_is_moved_is_none(path: Path) -> None:
    ring = MessageRing(4096, path=path, checksums=True)
    ring.push_many([b"a", b"b"])
    start = data_of(path, 64)
    with open(path, "r+b") as file:
        file.seek(start)
        frame = file.read(64)
        file.seek(start)
        file.write(bytes(64) + frame)
    assert salvage(path).ranges == []


def test_many_lives(tmp_path: Path) -> None:
    found = sum(one_life(seed, tmp_path, images=6) for seed in range(60))
    assert found > 1000


def test_what_can_not_be_read_is_taken_for_zeros(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = MessageRing(16384, path=path, checksums=True)
    for i in range(100):
        ring.try_push(b"%d" % i)
    start = data_of(path, 256)
    bad = start + 4096
    true_read = os.preadv

    def preadv(fd: int, buffers: Any, at: int) -> int:
        if at <= bad < at + sum(len(buffer) for buffer in buffers):
            raise OSError(5, "a bad sector")
        return true_read(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", preadv)
    found = salvage(path)
    assert found.ranges == [(0, 64)]
    assert debt_of(found, 0) == ([(0, 64)], [(64, 100)])


@pytest.mark.parametrize("number", [1.5, "1", True, [1]])
def test_what_is_no_number_is_refused_by_name(path: Path, number: Any) -> None:
    MessageRing(4096, path=path, checksums=True).push_many([b"a", b"b"])
    encoded: Any = os.fsencode(path)
    found = salvage(encoded)
    assert found.path == str(path)
    with pytest.raises(TypeError, match=r"^start must be an int"):
        found.messages(number)
    with pytest.raises(TypeError, match=r"^end must be an int"):
        found.messages(0, number)
    for bad in (-1, 1 << 64):
        with pytest.raises(ValueError, match=r"^start must be from 0 to"):
            found.messages(bad)
        with pytest.raises(ValueError, match=r"^end must be from 0 to"):
            found.messages(0, bad)
    assert [m.tolist() for m in found.messages(1, (1 << 64) - 1)] == [[b"b"]]
