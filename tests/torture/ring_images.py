"""Power loss in a ring's file: a ring is worked on, and salvaged from what a disk may
hold of its file then.

    python -m tests.torture.ring_images --images 20000 --seed 1

In every image each page of the file is as it was at the end, as it was at some moment
before, or torn between sectors of both. Prints the seed of the first life that broke a
promise; that seed alone repeats it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import struct
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from backpressure.lanes.ring_debt import debt_of
from ringbuf import MessageRing, Messages, salvage
from ringbuf._messages.file_positions import layout

IMAGES_PER_LIFE = 12
PAGE, SECTOR, GRANULE = 4096, 512, 64
STARTS = (0, 1000, (1 << 32) - 40, (1 << 63) - 40)
#: Where the words lie in the positions: see _messages/positions.pxd.
WRITE, TAIL = 0, 128


class Frame(NamedTuple):
    """As the index of a ring's file says, which salvage does not look at."""

    slot: int
    granules: int
    first_seq: int
    count: int  # type: ignore[assignment]  # tuple.count, which it hides, is not called


class Life:
    """A ring, what was put into it and taken out of it, and its file at several
    moments.
    """

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.rng = rng
        self.granules = rng.choice((64, 64, 128, 512))
        self.first = rng.choice(STARTS)
        self.ring = MessageRing(
            self.granules * GRANULE, path=path, checksums=True, first_seq=self.first
        )
        if rng.random() < 0.3:
            # Positions go over 2**32 granules as well.
            self.ring._start_at((1 << 32) - rng.randrange(200), self.first)
        self.sent: dict[int, bytes] = {}
        #: By number, that of the first in the same frame.
        self.frame_of: dict[int, int] = {}
        #: What was pushed without a checksum and has none yet; of it, what was there at
        #: the last round of checksums.
        self.unproved: set[int] = set()
        self.unproved_before: set[int] = set()
        self.defers = rng.random() < 0.7
        self.ring.defer_checksums(self.defers)
        self.settled: set[int] = set()
        #: Of a store: its end, and the least that power loss leaves of it.
        self.stored = self.durable = self.first
        self.spilled: set[int] = set()
        self.held: list[Messages] = []
        self.body = 4096 + layout(self.granules)[0]
        self.data = 4096 + layout(self.granules)[2]
        self.images: list[bytes] = []

    # ------------------------------------------------------------ work

    def work(self, steps: int) -> None:
        self.images.append(self.image())
        for _ in range(steps):
            action = self.rng.choices(
                (self.push, self.take, self.settle, self.spill, self.write_checksums),
                (5, 3, 3, 1, 1),
            )[0]
            action()
            if self.rng.random() < 0.15:
                self.images.append(self.image())
        self.images.append(self.image())

    def push(self) -> None:
        rng = self.rng
        kind = rng.random()
        if kind < 0.25:
            messages = [self.hostile()]
        elif kind < 0.4:
            messages = [rng.randbytes(rng.randrange(self.granules * GRANULE // 2))]
        else:
            messages = [
                rng.randbytes(rng.choice((0, 3, 20, 60, 200))) for _ in range(rng.randint(1, 12))
            ]
        first = self.ring.next_seq
        for i in range(self.ring.push_many(messages)):
            self.sent[first + i] = messages[i]
            self.frame_of[first + i] = first
            if self.defers:
                self.unproved.add(first + i)

    def write_checksums(self) -> None:
        recent = self.rng.random() < 0.3
        self.ring.write_checksums(recent)
        tail = self.settled_prefix()
        tail = self.frame_of.get(tail, tail)
        in_ring = {seq for seq in self.unproved if seq >= tail}
        self.unproved -= in_ring if recent else in_ring & self.unproved_before
        self.unproved_before = set(self.unproved)
        if self.rng.random() < 0.2:
            self.defers = not self.defers
            self.ring.defer_checksums(self.defers)

    def hostile(self) -> bytes:
        """What lies in the ring, so that it comes to lie where it lay: true frames of
        an earlier lap, at their places.
        """
        memory = self.ring._memory_view()
        (write,) = struct.unpack_from("<Q", self.image(), WRITE)
        at = (write + 1) % self.granules * GRANULE
        size = self.rng.randrange(1, self.granules // 2) * GRANULE
        return (
            self.rng.randbytes(GRANULE - 24)
            + (memory[at:].tobytes() + memory[:at].tobytes())[:size]
        )

    def take(self) -> None:
        messages = self.ring.take(self.rng.choice((1, 3, 20)))
        if len(messages):
            self.held.append(messages)

    def settle(self) -> None:
        if self.held:
            self.release(self.held.pop(self.rng.randrange(len(self.held))))

    def release(self, messages: Messages) -> None:
        self.ring.release(messages)
        self.settled.update(range(messages.first_seq, messages.first_seq + len(messages)))

    def spill(self) -> None:
        """All that is held goes to disk."""
        for messages in sorted(self.held, key=lambda one: one.first_seq):
            self.stored = messages.first_seq + len(messages)
            self.ring.note_stored(self.stored)
            self.spilled.update(range(messages.first_seq, self.stored))
            self.release(messages)
        self.held.clear()
        if self.rng.random() < 0.5:
            self.durable = self.stored

    def image(self) -> bytes:
        """The file from the positions on."""
        with open(self.path, "rb") as file:
            file.seek(self.body)
            return file.read()

    # ------------------------------------------------------------ power loss

    def lose_power(self) -> int:
        """Check one image; returns how many events were found again."""
        rng = self.rng
        newest = bytearray(self.images[-1])
        unfilled = 0
        if rng.random() < 0.3:
            # A claim that was never filled.
            write, next_seq = struct.unpack_from("<QQ", newest, WRITE)
            (tail,) = struct.unpack_from("<Q", newest, TAIL)
            if write - tail < self.granules - 2:
                unfilled = rng.randrange(1, 20)
                struct.pack_into("<QQ", newest, WRITE, write + 2, next_seq + unfilled)
        image = bytearray(newest)
        share = rng.random()
        older = rng.choice(self.images)
        one = rng.random() < 0.5
        for page in range(0, len(image), PAGE):
            old = older if one else rng.choice(self.images)
            kept = rng.random()
            step = PAGE if kept < 0.5 else SECTOR
            for at in range(page, page + PAGE, step):
                if rng.random() < share:
                    image[at : at + step] = old[at : at + step]
        with open(self.path, "r+b") as file:
            file.seek(self.body)
            file.write(image)
        return self.check(bytes(image), bytes(newest), unfilled)

    def check(self, image: bytes, newest: bytes, unfilled: int) -> int:
        found = salvage(self.path)
        next_seq = self.ring_end + unfilled
        assert found.settled_seq <= self.settled_prefix(), (
            "what had not been released counts as released"
        )
        assert self.first <= found.next_seq <= next_seq
        for first, end in found.ranges:
            contents = [
                (m.first_seq + i, m[i]) for m in found.messages(first, end) for i in range(len(m))
            ]
            assert [seq for seq, _ in contents] == list(range(first, end))
            for seq, content in contents:
                assert self.sent[seq] == content, f"number {seq} is not what was pushed"
        assert found.ranges == sorted(found.ranges)
        whole = {seq for first, end in found.ranges for seq in range(first, end)}
        assert not whole & self.unproved, "what has no checksum counts as whole"
        for frame in self.frames(newest):
            if self.span(image, frame) == self.span(newest, frame):
                numbers = set(range(frame.first_seq, frame.first_seq + frame.count))
                assert numbers <= whole or numbers <= self.settled or numbers & self.unproved, (
                    f"a whole frame was not found: {frame}"
                )
        end_seq = self.rng.choice((self.durable, self.stored))
        debt = debt_of(found, end_seq)
        ranges = sorted((*debt.whole, *debt.missing))
        for (_, before), (after, _) in itertools.pairwise(ranges):
            assert before <= after, "ranges overlap"
        assert all(first < end for first, end in ranges)
        delivered = {seq for first, end in debt.whole for seq in range(first, end)}
        missing = {seq for first, end in debt.missing for seq in range(first, end)}
        assert delivered <= whole
        assert not missing & whole, "what is whole counts as missing"
        for seq in range(end_seq, found.next_seq):
            if seq not in delivered and seq not in missing:
                assert seq in self.settled, f"number {seq} is not owed"
                assert seq not in self.spilled, f"number {seq}, which the disk lost, is not owed"
        return len(delivered)

    def settled_prefix(self) -> int:
        seq = self.first
        while seq in self.settled:
            seq += 1
        return seq

    def frames(self, image: bytes) -> list[Frame]:
        """All that lie between tail and write."""
        (write,) = struct.unpack_from("<Q", image, WRITE)
        (tail,) = struct.unpack_from("<Q", image, TAIL)
        position = tail
        found = []
        while position != write:
            slot = position % self.granules
            (tag,) = struct.unpack_from("<Q", image, PAGE + 8 * slot)
            if tag // self.granules != position // self.granules:
                break  # claimed and never published
            granules = tag % self.granules + 1
            first_seq, count = struct.unpack_from(
                "<QI", image, self.data - self.body + slot * GRANULE
            )
            if count:
                found.append(Frame(slot, granules, first_seq, count))
            position += granules
        return found

    def span(self, image: bytes, frame: Frame) -> bytes:
        """A frame as it is in an image, without its marks."""
        memory = image[self.data - self.body :]
        start = frame.slot * GRANULE
        span = bytearray((memory[start:] + memory[:start])[: frame.granules * GRANULE])
        span[16:20] = bytes(4)
        for i in range(frame.count if frame.count > 1 else 0):
            (end,) = struct.unpack_from("<I", span, 24 + 4 * i)
            struct.pack_into("<I", span, 24 + 4 * i, end & (1 << 19) - 1)
        return bytes(span)

    def end(self) -> None:
        self.ring_end = self.ring.next_seq
        self.ring.close()


def one_life(seed: int, directory: Path, images: int = IMAGES_PER_LIFE) -> int:
    """Returns how many events were found again."""
    rng = random.Random(seed)
    path = directory / "ring"
    path.unlink(missing_ok=True)
    life = Life(path, rng)
    life.work(rng.choice((3, 30, 120)))
    life.end()
    return sum(life.lose_power() for _ in range(images))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first life; the next has the next one"
    )
    arguments = parser.parse_args()
    images = events = 0
    seed = arguments.seed
    start = time.monotonic()
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.path.isdir("/dev/shm") else None
    ) as directory:
        while images < arguments.images:
            try:
                events += one_life(seed, Path(directory))
            except BaseException:
                print(
                    f"seed {seed} breaks a promise: python -m tests.torture.ring_images "
                    f"--images 1 --seed {seed}"
                )
                raise
            images += IMAGES_PER_LIFE
            seed += 1
    took = time.monotonic() - start
    print(
        f"{images:,} images of {seed - arguments.seed:,} lives, {events:,} events found again, "
        f"none wrong, {took:.0f} s"
    )


if __name__ == "__main__":
    main()
