"""Damaged and crafted files of every kind that this library reads: each is refused with
a documented error, or serves.

    python -m tests.torture.fuzz_files --kind ring --seed 1 --seconds 60

What must hold of every file: nothing hangs, with the GIL or without; nothing crashes;
no error comes but those documented; and no wrong byte comes out. Where a checksum
promises it, an event that comes out is one that went in, under its number. Where none
does, it lies in the file: it is no other's memory.

A mutation is plain damage, or it is sealed: the checksums over it are right, as an
attacker or a writer with an error would leave them. From sealed files wrong events may
come, but no hang, no crash and no huge allocation.

Files are used in forked children, many by each; a file that takes too long ends its
child by a signal. Prints the seed of each file that broke a promise;
`--seed N --files 1` repeats it, and names the place of a hang.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import numpy as np

from backpressure.base.errors import FormatError, NotNow
from backpressure.spill import (
    DeadLetter,
    DeadLetterStore,
    LocalFileSystem,
    Lost,
    SpillConfig,
    SpillStore,
)
from backpressure.spill.offline.directory_view import look_at_buffer
from backpressure.spill.offline.inspect import export_lane, inspect_lane, repair_lane
from backpressure.spill.offline.lane_reader import owed_on_disk, stored_events, with_quarantined
from backpressure.spill.recovery import recover
from ringbuf import MessageRing, Messages, RingBuffer, SharedFileError, TokenBucket, salvage
from ringbuf._messages.file_positions import layout
from tests.support.spill_files import BLOCK, HEAD_BYTES, MANIFEST, RECORD, SEGMENT, heads_of, seal
from tests.torture.journal import columns

__all__ = ["KINDS", "Finding", "Report", "check", "fuzz"]

#: Files that come of one base: seed // this is the base's own seed, so a seed alone
#: repeats its file.
FILES_PER_BASE: Final = 50
#: Of CPU time, in one file: they take milliseconds, and with sanitizers ten times as
#: long.
MOST_CPU_SECONDS: Final = 3.0
#: Of waiting: nothing here waits for anything but the CPU.
MOST_SECONDS: Final = 120.0
#: Beyond what the process has, for one file. What a file claims is not to be believed
#: and allocated.
MOST_BYTES: Final = 512 << 20

PAGE: Final = 4096
WORD: Final = struct.Struct("<Q")
#: Of a shared file's header: magic, format, kind, size, UUID, boot id, length of the
#: JSON text behind it, and then a CRC-32.
SHARED_HEADER: Final = struct.Struct("<8s I 4s Q 16s 16s I")
BOOT_ID: Final = slice(40, 56)
VALUES: Final = (
    *range(10), 63, 64, 255, 256, 511, 512, 1023, 1024, 4095, 4096, 65535, 1 << 20, 1 << 30,
    (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, 1 << 40, 1 << 48, (1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1,
)  # fmt: skip
DELTAS: Final = (
    1,
    -1,
    2,
    8,
    -8,
    64,
    -64,
    1 << 12,
    -(1 << 12),
    1 << 20,
    -(1 << 20),
    1 << 32,
    -(1 << 32),
    1 << 63,
)

Contents = dict[str, bytearray]


class Kind(NamedTuple):
    """A kind of file, or of a directory of them."""

    #: Put sound ones into a directory. Runs in a child that may kill itself.
    make: Callable[[Path, random.Random], None]
    #: Change one or several.
    mutate: Callable[[Contents, random.Random], bool]
    #: Do with them all that can be done; AssertionError where a promise is broken.
    #: `sealed` as `mutate` returned.
    use: Callable[[Path, random.Random, bool], None]


# ------------------------------------------------------------ damage


def change_word(data: bytearray, at: int, rng: random.Random) -> None:
    """Another value in the eight bytes at `at`, or in half of them."""
    way = rng.random()
    if at + 8 > len(data):
        at = max(len(data) - 8, 0)
    if len(data) < 8:
        data += rng.randbytes(8 - len(data))
    (word,) = WORD.unpack_from(data, at)
    if way < 0.3:
        data[at + rng.randrange(8)] ^= 1 << rng.randrange(8)
        return
    if way < 0.5:
        word = rng.choice(VALUES)
    elif way < 0.65:
        half = rng.choice((0, 32))
        word = word & ~(0xFFFFFFFF << half) | (rng.choice(VALUES) & 0xFFFFFFFF) << half
    elif way < 0.9:
        word += rng.choice(DELTAS)
    else:
        word = rng.getrandbits(64)
    WORD.pack_into(data, at, word & (1 << 64) - 1)


def used_lines(data: bytes | bytearray, start: int, end: int) -> list[int]:
    """Where the cache lines are that are not zero: what is in use, whatever the layout
    of it.
    """
    zeros = bytes(64)
    return [at for at in range(start, end, 64) if data[at : at + 64] != zeros[: end - at]]


def damage_shared(
    regions: Callable[[bytearray], list[tuple[float, list[int]]]],
) -> Callable[[Contents, random.Random], bool]:
    """For a file that is mapped: words in regions, each with a weight and the lines
    that it may be in.
    """

    def mutate(files: Contents, rng: random.Random) -> bool:
        (data,) = files.values()
        chosen = [one for one in regions(data) if one[1]]
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            (_, lines) = rng.choices(chosen, [weight for weight, _ in chosen])[0]
            line = rng.choice(lines)
            at = line + 8 * rng.randrange(8)
            if rng.random() < 0.1:
                source = rng.choice(lines)
                width = rng.choice((8, 16, 64))
                at = line if width > 8 else at
                data[at : at + width] = data[source : source + width]
            else:
                change_word(data, at, rng)
        if rng.random() < 0.04:
            change_shared_header(data, rng)
        return False

    return mutate


def change_shared_header(data: bytearray, rng: random.Random) -> None:
    """Of a shared file: a number in its JSON, its size or its boot id, under a checksum
    that is right.
    """
    *_, length = SHARED_HEADER.unpack_from(data)
    text = bytes(data[SHARED_HEADER.size : SHARED_HEADER.size + length])
    way = rng.random()
    meta = json.loads(text)
    if way < 0.4 and meta:
        name = rng.choice(sorted(meta))
        meta[name] = rng.choice(
            (*VALUES, -1, 0.5, None, True, "", "x", [], {}, "[('a', 'i8')]", 1 << 70)
        )
        text = json.dumps(meta).encode()
    elif way < 0.5:
        text = rng.choice(
            (b"", b"[", b"[" * 3000, b"1e999", b"null", b"\xff", b'{"granules": NaN}')
        )
    elif way < 0.8:
        data[BOOT_ID] = rng.randbytes(16)
    else:
        change_word(data, rng.choice((8, 16)), rng)
    length = len(text)
    struct.pack_into("<I", data, SHARED_HEADER.size - 4, length)
    data[SHARED_HEADER.size : SHARED_HEADER.size + length] = text
    end = SHARED_HEADER.size + length
    struct.pack_into("<I", data, end, zlib.crc32(data[:end]))


# ------------------------------------------------------------ rings of messages

GRANULES: Final = 256


def event(seq: int) -> bytes:
    """What has that number in every kind of file: of many lengths, no two alike."""
    rng = random.Random(seq)
    size = rng.choice((0, 3, 20, 20, 60, 60, 200, 700))
    return (b"%d|" % seq + rng.randbytes(size // 2) + b"." * (size - size // 2))[: size or 0]


def make_ring(checksums: bool) -> Callable[[Path, random.Random], None]:
    """Messages that wait, that were released, and that were taken by one that dies,
    with a split and a hole among them.
    """

    def make(directory: Path, rng: random.Random) -> None:
        ring = MessageRing(GRANULES * 64, path=directory / "ring", checksums=checksums)

        def push(count: int) -> None:
            first = ring.next_seq
            ring.push_many([event(first + i) for i in range(count)])

        for _ in range(rng.randrange(2, 9)):
            push(rng.randrange(1, 30))
            ring.release(ring.take(rng.randrange(1, 40)))
        for _ in range(6):
            push(rng.randrange(1, 20))
        held = [ring.take(rng.randrange(1, 9)) for _ in range(4)]
        ring.release(held[1])
        if len(held[2]) > 1:
            first, second = ring.split(held[2], 1)
            ring.release(rng.choice((first, second)))
        if rng.random() < 0.5:
            ring.note_stored(ring.next_seq)
        os.kill(os.getpid(), signal.SIGKILL)

    return make


def ring_regions(data: bytearray) -> list[tuple[float, list[int]]]:
    cursors, index, start, end = (PAGE + at for at in layout(GRANULES))
    return [
        (0.35, used_lines(data, PAGE, cursors)),  # which take part, and what each is about
        (0.25, used_lines(data, cursors, index) or [cursors]),
        (0.15, list(range(index, index + GRANULES * 8, 64))),
        (0.23, list(range(start, end, 64))),
        (0.02, list(range(PAGE, cursors, 64))),
    ]


def use_ring(checksums: bool) -> Callable[[Path, random.Random, bool], None]:
    def use(directory: Path, rng: random.Random, sealed: bool) -> None:
        path = directory / "ring"
        with contextlib.suppress(SharedFileError):
            MessageRing.look(path)
        if checksums:
            with contextlib.suppress(SharedFileError):
                for messages in salvage(path).messages():
                    for i in range(len(messages)):
                        seq = messages.first_seq + i
                        assert messages[i] == event(seq), (
                            f"salvage: number {seq} is not what was pushed"
                        )
        ring = MessageRing.attach(path)
        try:
            work_on_ring(ring, path, rng)
        finally:
            ring.close()

    return use


def work_on_ring(ring: MessageRing, path: Path, rng: random.Random) -> None:
    """All that can be done with it. Raises SharedFileError or RuntimeError where it
    says that it is damaged.
    """

    def check(memory: bytes, messages: Messages) -> None:
        offsets = messages.offsets
        assert (np.diff(offsets) >= 0).all(), "offsets do not ascend"
        assert offsets[0] >= 0, "offsets lie before the data"
        assert offsets[-1] <= len(messages.data), "offsets lie behind the data"
        for one in messages.tolist():
            assert one in memory, "bytes that were never in the file"

    def memory() -> bytes:
        # Over the edge as well, where a message may lie in two parts.
        whole = path.read_bytes()[PAGE + layout(ring.capacity_bytes // 64)[2] :]
        return whole + whole

    len(ring), ring.count(), ring.used_bytes, repr(ring), ring.next_seq
    held: list[Messages] = []
    for turn in range(12):
        before = memory()
        messages = (ring.take_orphaned if rng.random() < 0.3 else ring.take)(rng.randrange(1, 60))
        check(before, messages)
        if len(messages) > 2 and rng.random() < 0.3:
            held += ring.split(messages, rng.randrange(1, len(messages)))
        else:
            held.append(messages)
        if turn % 3 == 0:
            ring.push_many([b"n" * rng.randrange(200)] * rng.randrange(1, 60))
        rng.shuffle(held)
        while len(held) > 3:
            ring.release(held.pop())
    for messages in held:
        ring.release(messages)
    for take in (ring.take_orphaned, ring.pop_many):
        for _ in range(GRANULES):
            before = memory()
            messages = take()
            if not len(messages):
                break
            check(before, messages)
            if take == ring.take_orphaned:
                ring.release(messages)
    ring.count(), len(ring), ring.used_bytes
    ring.push_many([b"x" * 100] * 1000)
    ring.push_lines(b"line\n" * 100)
    ring.try_pop()
    ring.pop_many()
    ring.warm_ahead(1 << 20)
    ring.write_checksums()


def close(thing: Any) -> None:
    """Also where that has no call for it."""
    getattr(thing, "close", int)()


# ------------------------------------------------------------ rings of records

RECORDS: Final = 1024


def make_records(directory: Path, rng: random.Random) -> None:
    ring = RingBuffer(RECORDS, "i8", path=directory / "ring")
    for _ in range(rng.randrange(1, 4)):
        ring.push_many(np.arange(900) + (7 << 40))
        ring.pop_many(rng.randrange(600, 900))
    ring.push_many(np.arange(rng.randrange(300)) + (8 << 40))
    blocks: list[Any] = [ring.peek(rng.randrange(1, 50)) for _ in range(2)]
    for block in blocks:
        block.__enter__()
    if rng.random() < 0.5:
        blocks[1].__exit__(None, None, None)
    with contextlib.suppress(KeyError), ring.peek(20):
        raise KeyError
    blocks.append(ring.reserve(5))
    blocks[-1].__enter__()
    ring.push_many(np.arange(10))
    os.kill(os.getpid(), signal.SIGKILL)


def records_regions(data: bytearray) -> list[tuple[float, list[int]]]:
    # The control block is the messages'; then a page of positions, the index, the
    # records.
    positions = PAGE + layout(GRANULES)[0]
    index = positions + PAGE
    start = index + RECORDS * 8
    return [
        (0.4, used_lines(data, PAGE, positions)),
        (0.3, used_lines(data, positions, index) or [positions]),
        (0.2, list(range(index, start, 64))),
        (0.05, list(range(start, len(data), 64))),
        (0.05, list(range(PAGE, positions, 64))),
    ]


def use_records(directory: Path, rng: random.Random, sealed: bool) -> None:
    path = directory / "ring"
    ring = RingBuffer.attach(path)

    def values() -> set[int]:
        # Also what a view that does not begin at a record would give: only foreign
        # memory is wrong.
        whole = path.read_bytes()
        return set(np.frombuffer(whole[: len(whole) & ~7], "i8").tolist())

    def check(before: set[int], got: Any) -> None:
        assert before.issuperset(int(one) for one in got), "a record that was never in the file"

    plain = ring.dtype == np.dtype("i8")
    try:
        len(ring), repr(ring)
        for _ in range(8):
            before = values() if plain else set()
            got = ring.pop_many(rng.randrange(1, 200))
            if plain:
                check(before, got)
            ring.push_many(np.zeros(rng.randrange(1, 200), ring.dtype))
            with ring.peek(9) as view:
                list(view)
            ring.try_pop()
            ring.try_push(np.zeros(1, ring.dtype)[0])
            with contextlib.suppress(KeyError), ring.peek(20) as view:
                raise KeyError
            with ring.reserve(5) as view:
                view[:] = np.zeros(len(view), ring.dtype)
        for _ in range(RECORDS):
            if not len(ring.pop_many()):
                break
        len(ring)
    finally:
        close(ring)


# ------------------------------------------------------------ token buckets


def make_bucket(directory: Path, rng: random.Random) -> None:
    bucket = TokenBucket(
        rng.choice((0.5, 10.0, 1e6)), rng.choice((1, 100, 5000)), path=directory / "bucket"
    )
    bucket.try_acquire(1)
    os.kill(os.getpid(), signal.SIGKILL)


def bucket_regions(data: bytearray) -> list[tuple[float, list[int]]]:
    return [(1.0, list(range(PAGE, min(PAGE + 512, len(data)), 64)))]


def use_bucket(directory: Path, rng: random.Random, sealed: bool) -> None:
    bucket = TokenBucket.attach(directory / "bucket")
    now = rng.choice((0, 1, 10**18, -(2**63), 2**63 - 1))
    burst = bucket.burst
    for count in (1, 3, 5000):
        bucket.try_acquire(count)
        bucket.try_acquire_at(now, count)
        bucket.retry_after(count)
        bucket.retry_after_at(now, count)
        bucket.acquire_up_to(count)
        bucket.give_back(1)
        bucket.reserve(count).cancel()
        assert bucket.tokens <= burst or bucket.rate == float("inf"), "more tokens than it holds"
        bucket.tokens_at(2**63 - 1), bucket.rate, repr(bucket)
    bucket.set_rate(5)
    bucket.set_burst(3)
    bucket.try_acquire()
    close(bucket)


# ------------------------------------------------------------ the disk tier

LANE: Final = 3
BUFFER_ID: Final = UUID("6f1c7f0a-5d0c-4b6e-9a53-0c4c5c1f2f11")
SMALL: Final = SpillConfig(
    segment_bytes=8192, block_bytes=512, reserve_bytes=0, ack_record_bytes=512
)


#: Where fields lie in a header of each kind; those of four bytes, and the others of
#: eight or one.
FIELDS: Final = {
    BLOCK: (24, 32, 40, 48, 56, 64, 68, 69, 72, 80),
    SEGMENT: (8, 16, 32, 40, 48, 56, 64, 72),
    RECORD: (32, 40, 48, 56, 64, 72, 80, 84, 96, 104, 112, 120),
    MANIFEST: (8, 12, 20),
}
HALF_WORDS: Final = {BLOCK: (64,), SEGMENT: (), RECORD: (80, 84), MANIFEST: ()}


class SaltedFiles(LocalFileSystem):
    """Salts that a seed repeats."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def random_bytes(self, size: int) -> bytes:
        return self._rng.randbytes(size)


def fill_store(store: SpillStore, rng: random.Random, start: int) -> None:
    """Blocks of many sizes, gaps, and acks in and out of order."""
    seq = start
    for _ in range(rng.randrange(4, 30)):
        count = rng.randrange(1, 30)
        if rng.random() < 0.1:
            seq += rng.randrange(1, 50)  # a gap
        store.append(
            seq, *columns([event(seq + i) for i in range(count)]), rng.choice((0.0, 1.0)), 7
        )
        seq += count
        if rng.random() < 0.2:
            store.sync()
        found = store.read(rng.choice((0, seq - 40)), rng.randrange(1, 40), 1 << 20)
        if found is not None and not isinstance(found, Lost) and rng.random() < 0.6:
            store.ack(found.first_seq, len(found))


def make_segments(directory: Path, rng: random.Random) -> None:
    store = SpillStore(directory, LANE, BUFFER_ID, SMALL, SaltedFiles(rng))
    fill_store(store, rng, rng.choice((0, 0, 1000, (1 << 32) - 40)))
    if rng.random() < 0.5:
        store.close()
    os._exit(0)


def damage_spill(files: Contents, rng: random.Random) -> bool:
    """Plain damage to some files of a directory, or sealed changes. Returns whether
    they are sealed.
    """
    sealed = rng.random() < 0.5
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = rng.choice(sorted(files))
        data = files[name]
        if sealed and change_sealed(data, rng):
            continue
        way = rng.random()
        if way < 0.04:
            del files[name]
            if not files:
                return sealed
        elif way < 0.14:
            del data[rng.randrange(len(data) + 1) :]
        elif way < 0.2:
            data += rng.choice(
                (bytes(100), rng.randbytes(300), data[: rng.randrange(len(data) + 1)])
            )
        elif way < 0.26:
            other = files[rng.choice(sorted(files))]
            data[:] = other  # another file's content under this name
        elif way < 0.3:
            files[
                rng.choice(
                    (
                        name + ".damaged",
                        name + ".tmp",
                        "acked",
                        f"{rng.getrandbits(64):016x}" + name[16:],
                    )
                )
            ] = bytearray(data)
        elif way < 0.5 and data:
            low = rng.randrange(len(data))
            high = min(len(data), low + rng.choice((1, 8, 96, 512, 4096)))
            data[low:high] = rng.choice((bytes, rng.randbytes))(high - low)
        elif way < 0.6 and len(data) > 8:
            start, target = rng.randrange(len(data)), rng.randrange(len(data))
            piece = data[start : start + rng.choice((96, 200, 4096))]
            data[target : target + len(piece)] = piece
        elif data:
            heads = heads_of(data)
            at = (
                rng.choice(heads) + rng.randrange(HEAD_BYTES)
                if heads and way < 0.85
                else rng.randrange(len(data))
            )
            change_word(data, at & ~3 if rng.random() < 0.5 else at, rng)
    return sealed


def change_sealed(data: bytearray, rng: random.Random) -> bool:
    """Change one header's fields, or the body of a block, and make its checksums right;
    False where there is no header.
    """
    heads = [at for at in heads_of(data) if at + HEAD_BYTES <= len(data)]
    if not heads:
        return False
    at = rng.choice(heads)
    magic = bytes(data[at : at + 8])
    if magic == BLOCK and rng.random() < 0.3:
        craft_body(data, at, rng)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            size = rng.choice(FIELDS[magic])
            if size in HALF_WORDS[magic]:
                struct.pack_into("<I", data, at + size, rng.choice(VALUES) & 0xFFFFFFFF)
            elif magic == BLOCK and size in (68, 69):
                data[at + size] = rng.choice((0, 1, 2, 4, 8, 255))
            else:
                change_word(data, at + size, rng)
        if magic == RECORD and rng.random() < 0.3:
            struct.pack_into("<I", data, at + 80, rng.randrange(1, 5))
    seal(data, at)
    return True


def craft_body(data: bytearray, at: int, rng: random.Random) -> None:
    """A block whose body claims much: frames of zstd that promise a huge content, and
    give little or what they promise.
    """
    claimed = rng.choice((*VALUES, 3, 30, 100_000, 1 << 26, 1 << 33))
    count = rng.choice((1, 1, 2, 100, 1 << 20, (1 << 32) - 1))
    width = rng.choice((1, 2, 4))
    lengths = zstd_frame(
        count * width if rng.random() < 0.8 else claimed, rng.choice((0, 1, 4, 200))
    )
    body = lengths + zstd_frame(claimed, rng.choice((0, 1, 8, 200)))
    room = WORD.unpack_from(data, at + 80)[0]
    room = min(room, max(len(data) - at - HEAD_BYTES, 0))
    body = body[:room]
    data[at + HEAD_BYTES : at + HEAD_BYTES + len(body)] = body
    struct.pack_into("<IBB", data, at + 64, count, 1, width)
    raw = rng.choice(
        (claimed, count * width + claimed, count * width, WORD.unpack_from(data, at + 72)[0])
    )
    WORD.pack_into(data, at + 72, raw & (1 << 64) - 1)


def zstd_frame(claimed: int, blocks: int) -> bytes:
    """One frame that says that it unpacks to so much, of blocks that repeat one byte
    128 KiB times each.
    """
    head = b"\x28\xb5\x2f\xfd\xe0" + WORD.pack(claimed & (1 << 64) - 1)
    if blocks == 0 and 0 < claimed <= 1 << 17:
        return head + struct.pack("<I", (claimed << 3 | 2 | 1) | 7 << 24)[:4]
    repeat = [(((1 << 17) << 3) | 2).to_bytes(3, "little") + b"\0"] * max(blocks - 1, 0)
    last = (((1 << 17) << 3) | 2 | 1).to_bytes(3, "little") + b"\0"
    return head + b"".join(repeat) + last


def use_segments(directory: Path, rng: random.Random, sealed: bool) -> None:
    fs = SaltedFiles(rng)
    files_before = {path.name for path in directory.iterdir()}
    for _ in inspect_lane(directory, LANE, BUFFER_ID, fs):
        pass
    for run in export_lane(directory, LANE, BUFFER_ID, fs):
        check_run(run.messages(), sealed)
    assert files_before == {path.name for path in directory.iterdir()}, "a look changed something"
    if rng.random() < 0.2:
        repair_lane(directory, LANE, BUFFER_ID, fs)
    with SpillStore(directory, LANE, BUFFER_ID, SMALL, fs) as store:
        drain_store(store, rng, sealed)
        end = store.end_seq
        with appending_may_end(end):
            store.append(end, *columns([event(end + i) for i in range(20)]))
            store.sync()
    # A start later what was left of it is as sound as a new one.
    with SpillStore(directory, LANE, BUFFER_ID, SMALL, fs) as store:
        drain_store(store, rng, sealed)
        store._check()


@contextlib.contextmanager
def appending_may_end(end: int) -> Iterator[None]:
    """A lane whose files say that it has come to the last number there is takes no
    more, and says so.
    """
    try:
        yield
    except ValueError:
        if end < (1 << 64) - 100:
            raise


def drain_store(store: SpillStore, rng: random.Random, sealed: bool) -> None:
    """Read it all, ack most of it; each number comes once, ascending."""
    seq = reads = 0
    store.stats()
    while (
        found := store.read(seq, rng.choice((1, 7, 1000)), rng.choice((0, 500, 1 << 20)))
    ) is not None:
        reads += 1
        assert reads < 20_000, "there is no end to it"
        if isinstance(found, Lost):
            assert found.events > 0
            continue
        messages = found.messages()
        assert len(messages) > 0
        assert found.first_seq >= seq, "the same numbers again"
        check_run(messages, sealed)
        if rng.random() < 0.7:
            store.ack(found.first_seq, len(found))
        seq = found.end_seq
    stats = store.stats()
    assert stats.events_on_disk >= 0, f"{stats.events_on_disk} events on disk"
    store.sync_acks()


def check_run(messages: Messages, sealed: bool) -> None:
    for i, one in enumerate(messages.tolist()):
        if not sealed:
            assert one == event(messages.first_seq + i), (
                f"number {messages.first_seq + i} is not what was stored"
            )


# ------------------------------------------------------------ dead letters


def letter(number: int) -> DeadLetter:
    return DeadLetter(
        event=event(number), error=f"error of {number} \N{EURO SIGN}",
        attempts=number % 5, priority=1 + number % 5,
        seq=number, time_ns=number,
    )  # fmt: skip


def make_letters(directory: Path, rng: random.Random) -> None:
    letters = DeadLetterStore(directory, BUFFER_ID, SMALL, SaltedFiles(rng))
    for start in range(0, 100, 20):
        letters.add([letter(i) for i in range(start, start + 20)])
    letters.purge([one for one in letters.letters() if rng.random() < 0.2])
    if rng.random() < 0.5:
        letters.close()
    os._exit(0)


def damage_letters(files: Contents, rng: random.Random) -> bool:
    if rng.random() < 0.5:
        return damage_spill(files, rng)
    # Within a letter of a block that is stored as it is: the reader of letters sees it,
    # under checksums that are right.
    data = files[rng.choice(sorted(files))]
    plain = [at for at in heads_of(data, BLOCK) if data[at + 68 : at + 69] == b"\0"]
    if not plain:
        return damage_spill(files, rng)
    at = rng.choice(plain)
    count, _, width = struct.unpack_from("<IBB", data, at + 64)
    if WORD.unpack_from(data, at + 80)[0] > len(data):
        return damage_spill(files, rng)
    change_word(data, at + HEAD_BYTES + count * width + 4 * rng.randrange(12), rng)
    if count > 1 and rng.random() < 0.3:  # a letter that is shorter than its head
        first = at + HEAD_BYTES
        moved = rng.randrange(data[first] + 1)
        if data[first + width] + moved < 256:
            data[first] -= moved
            data[first + width] += moved
    seal(data, at)
    return True


def use_letters(directory: Path, rng: random.Random, sealed: bool) -> None:
    letters = DeadLetterStore(directory, BUFFER_ID, SMALL, SaltedFiles(rng))
    found = list(letters.letters())
    assert len(letters) >= 0
    assert [one.id for one in found] == sorted({one.id for one in found})
    if not sealed:
        for one in found:
            assert one.event == event(one.seq)
    letters.purge(found[::2])
    with appending_may_end(letters._store.end_seq):
        letters.add([letter(1), letter(2)])
    letters.close()


# ----------------------------------------------------------- a buffer's whole directory


def make_buffer(directory: Path, rng: random.Random) -> None:
    from tests.support.durable import open_buffer

    buffer = open_buffer(directory)
    number = 0
    for _ in range(rng.randrange(3, 20)):
        events = [event(number + i) for i in range(rng.randrange(1, 40))]
        number += buffer.add_events(events).accepted
        if rng.random() < 0.4:
            batch = buffer.get_batch(rng.randrange(1, 30), timeout=0)
            if batch is not None and rng.random() < 0.7:
                batch.ack()
    if rng.random() < 0.3:
        buffer.close(timeout=0)
    os.kill(os.getpid(), signal.SIGKILL)


def damage_buffer(files: Contents, rng: random.Random) -> bool:
    rings = [name for name in files if name.endswith("/ring")]
    if rings and rng.random() < 0.5:
        data = files[rng.choice(sorted(rings))]
        if rng.random() < 0.5:
            # As another boot left it: it is salvaged.
            data[BOOT_ID] = rng.randbytes(16)
            end = SHARED_HEADER.size + SHARED_HEADER.unpack_from(data)[-1]
            struct.pack_into("<I", data, end, zlib.crc32(data[:end]))
        for _ in range(rng.choice((1, 2, 6))):
            change_word(
                data, rng.choice(used_lines(data, PAGE, len(data))) + 8 * rng.randrange(8), rng
            )
        return True
    return damage_spill(files, rng)


def use_buffer(directory: Path, rng: random.Random, sealed: bool) -> None:
    from tests.support.durable import open_buffer

    path = str(directory / "buffer")
    if os.path.isdir(path):
        view = look_at_buffer(path)
        for lane in view.everything():
            owed_on_disk(recover(view.files, lane.path, lane.number, view.buffer_id))
            for read in (stored_events(view, lane), with_quarantined(view, lane)):
                for item in read:
                    if not isinstance(item, Lost):
                        item.messages()
    buffer = open_buffer(directory)
    try:
        buffer.stats().check()
        for _ in range(3000):
            batch = buffer.get_batch(100, timeout=0)
            if batch is None:
                break
            batch.ack()
        else:
            raise AssertionError("there is no end to it")
        buffer.add_events([b"more"] * 20)
    finally:
        buffer.close(timeout=0)


# ------------------------------------------------------------ state files of sources


def make_state(directory: Path, rng: random.Random) -> None:
    from backpressure.sources.file_id import FileId, Place
    from backpressure.sources.positions import Positions

    (directory / "log").write_bytes(b"line\n" * 100)
    found = os.stat(directory / "log")
    positions = Positions(directory / "state")
    file = FileId(found.st_dev, found.st_ino, 5, 100, 6)
    positions.begin("*.log")
    positions.note("log", Place(file, 50, 7, found.st_mtime_ns, done=True), (0,) * 5)
    positions.note("other", Place(FileId(1, 2, 3, 4), 0), (0,) * 5)
    positions.commit((1,) * 5)
    positions.save()
    os._exit(0)


def damage_state(files: Contents, rng: random.Random) -> bool:
    data = files["state"]
    way = rng.random()
    if way < 0.5:
        state = json.loads(bytes(data))
        target = rng.choice((state, state, *state["files"]))
        name = rng.choice(sorted(target))
        value = rng.choice(
            (
                *VALUES,
                -1,
                -(1 << 70),
                1 << 70,
                0.5,
                float("inf"),
                float("nan"),
                None,
                True,
                "7",
                "",
                [],
                {},
                [[]],
            )
        )
        if rng.random() < 0.3:
            target[rng.choice(("more", "dev", "offset", "version", "path", "done", "\0"))] = value
        else:
            target[name] = value
        data[:] = json.dumps(state).encode()
    elif way < 0.6:
        data[:] = rng.choice(
            (
                b"",
                b"[" * 100_000,
                b"1" * 5000,
                b"\xff\xfe",
                b"null",
                b'{"version": 1, "files": ' + b'{"a":' * 50_000,
            )
        )
    elif way < 0.75:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.choice((1, 3))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return True


def use_state(directory: Path, rng: random.Random, sealed: bool) -> None:
    from backpressure.sources.positions import Positions

    try:
        positions = Positions(directory / "state")
    except ValueError as error:
        if "state" not in str(error):
            raise AssertionError("the file is not named") from error
        return
    fd = os.open(directory / "log", os.O_RDONLY)
    for name in ("log", "other"):
        for kept in positions.get(name):
            kept.fits(fd)
            kept.is_copied_to(fd)
            assert kept.offset >= 0
    os.close(fd)
    positions.save()


KINDS: Final[dict[str, Kind]] = {
    "ring": Kind(make_ring(False), damage_shared(ring_regions), use_ring(False)),
    "sealed-ring": Kind(make_ring(True), damage_shared(ring_regions), use_ring(True)),
    "records": Kind(make_records, damage_shared(records_regions), use_records),
    "bucket": Kind(make_bucket, damage_shared(bucket_regions), use_bucket),
    "segments": Kind(make_segments, damage_spill, use_segments),
    "letters": Kind(make_letters, damage_letters, use_letters),
    "buffer": Kind(make_buffer, damage_buffer, use_buffer),
    "state": Kind(make_state, damage_state, use_state),
}


# ------------------------------------------------------------ running them


class Finding(NamedTuple):
    """A file that broke a promise."""

    kind: str
    seed: int
    what: str

    def __str__(self) -> str:
        return (
            f"{self.kind}, seed {self.seed}: {self.what}\n"
            f"    python -m tests.torture.fuzz_files --kind {self.kind} --seed {self.seed} "
            "--files 1"
        )


@dataclass
class Report:
    """What came of the files."""

    files: int = 0
    findings: list[Finding] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)


def is_documented(error: Exception) -> bool:
    """Whether a damaged file may be answered so."""
    if isinstance(error, (SharedFileError, FormatError, NotNow)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("is damaged", "participant slots are taken")
    )


def fuzz(
    name: str,
    seed: int,
    *,
    files: int | None = None,
    seconds: float | None = None,
    most_findings: int = 1,
) -> Report:
    """Damage files of one kind, from `seed` on: that many of them, or for that long. A
    number of findings ends it sooner.
    """
    report = Report()
    start = time.monotonic()
    # What the child is at: its seed, and whether it has ended with it.
    with (
        mmap.mmap(-1, PAGE) as place,
        tempfile.TemporaryDirectory(prefix="forebay-fuzz-", dir=_fast()) as scratch,
    ):
        while (files is None or report.files < files) and (
            seconds is None or time.monotonic() - start < seconds
        ):
            left = FILES_PER_BASE - seed % FILES_PER_BASE
            end = seed + left if files is None else seed + min(left, files - report.files)
            WORD.pack_into(place, 0, seed)
            read_end, write_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    os.close(read_end)
                    _run(name, seed, end, Path(scratch), place, write_end)
                    status = 0
                except BaseException:
                    os.write(2, traceback.format_exc().encode())
                finally:
                    os._exit(status)
            os.close(write_end)
            with open(read_end, "rb") as pipe:
                said = [json.loads(line) for line in pipe.read().splitlines()]
            _, status = os.waitpid(pid, 0)
            for answer, broken in said:
                report.answers[answer] += 1
                report.files += 1
                if broken is not None:
                    report.findings.append(Finding(name, *broken))
            seed += len(said)
            if status:
                at = WORD.unpack_from(place)[0]
                report.findings.append(Finding(name, at, _fate(status)))
                report.answers["crash or hang"] += 1
                report.files += 1
                seed = at + 1
            if len(report.findings) >= most_findings:
                break
    return report


def _fast() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def check(name: str, in_full: bool) -> None:
    """For tests: some files of one kind, always the same ones, of which none may break
    a promise.
    """
    files = 600 if in_full else 50
    report = fuzz(name, 1, files=files)
    assert not report.findings, str(report.findings[0])
    assert report.answers["served"] > files // 3, "where nearly all is refused, little is proved"


def _fate(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in (signal.SIGPROF, signal.SIGALRM):
            return "a hang: ended by " + signal.Signals(number).name
        return "a crash: " + signal.Signals(number).name
    return f"the child ended with {os.waitstatus_to_exitcode(status)}"


def _run(name: str, start: int, end: int, scratch: Path, place: mmap.mmap, pipe: int) -> None:
    """In the child: the files from one seed to another."""
    kind = KINDS[name]
    # What pytest has put there would be run by the interpreter, which a hang does not
    # come back to. For the same reason the child speaks to descriptor 2: what pytest
    # has put into the place of `sys.stderr` may end with the child.
    for one in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(one, signal.SIG_DFL)
    base = _base_of(kind, start // FILES_PER_BASE, scratch)
    bounded = "asan" not in os.environ.get("LD_PRELOAD", "") and "tsan" not in os.environ.get(
        "LD_PRELOAD", ""
    )
    alone = end - start == 1
    for seed in range(start, end):
        WORD.pack_into(place, 0, seed)
        rng = random.Random(seed)
        contents = {file: bytearray(data) for file, data in base.items()}
        sealed = kind.mutate(contents, rng)
        directory = scratch / "files"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        for file, data in contents.items():
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / file).write_bytes(data)
        if bounded:
            most = MOST_BYTES + 4096 * int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        if alone:
            faulthandler.dump_traceback_later(MOST_CPU_SECONDS * 0.8, file=2)
        answer, broken = "served", None
        try:
            kind.use(directory, rng, sealed)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".replace(str(directory), "")[:60]
            if not is_documented(error):
                where = traceback.format_exc() if alone else _where(error)
                broken = (seed, f"{type(error).__name__}: {error}\n    {where}"[:3000])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        os.write(pipe, json.dumps([answer, broken]).encode() + b"\n")
        if broken is not None:
            break  # what it has left behind may be anything


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def _base_of(kind: Kind, seed: int, scratch: Path) -> dict[str, bytes]:
    """Sound files, as a child that may have been killed at its work left them."""
    directory = scratch / "base"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            kind.make(directory, random.Random(seed))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    made = status == 0 or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    assert made, f"no base of seed {seed} could be made"
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kind", action="append", choices=KINDS, help="may be given again; without it all are"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first file; the next has the next one"
    )
    parser.add_argument("--seconds", type=float, help="for each kind")
    parser.add_argument("--files", type=int, help="of each kind")
    parser.add_argument("--findings", type=int, default=20, help="a kind ends after this many")
    arguments = parser.parse_args()
    if arguments.seconds is None and arguments.files is None:
        arguments.seconds = 60.0
    broken = 0
    for name in arguments.kind or KINDS:
        report = fuzz(
            name,
            arguments.seed,
            files=arguments.files,
            seconds=arguments.seconds,
            most_findings=arguments.findings,
        )
        print(f"{name}: {report.files:,} files, {len(report.findings)} broke a promise", flush=True)
        for answer, count in report.answers.most_common(12):
            print(f"{count:10,}  {answer}")
        for one in report.findings:
            print(one, flush=True)
        broken += len(report.findings)
    raise SystemExit(broken > 0)


if __name__ == "__main__":
    main()
