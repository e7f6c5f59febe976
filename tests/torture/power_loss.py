"""Power loss: a store is cut off at some call, and opened on what a disk may hold then.

    python -m tests.torture.power_loss --images 20000 --seed 1

Every image is recovered, drained and checked, some are worked on and cut off again.
Prints the seed of the first one that broke a promise; that seed alone repeats it.
"""

from __future__ import annotations

import argparse
import copy
import random
import time

from backpressure.testing import CrashingFileSystem, PowerLoss, RecordingFileSystem
from tests.torture.journal import STARTS, Journal, disk_with_lane, opened

IMAGES_PER_CUT = 8


def one_life(seed: int) -> tuple[int, int]:
    """Up to three cuts of one lane; returns how many images were checked, and how many
    events they gave back.
    """
    rng = random.Random(seed)
    disk = disk_with_lane(seed=seed)
    journal = Journal(rng.choice(STARTS))
    images = 0
    for _ in range(rng.randint(1, 3)):
        recording = RecordingFileSystem(
            disk, crash_at=rng.choice((rng.randint(1, 60), rng.randint(1, 600), 1 << 30))
        )
        try:
            store = opened(recording)
            journal.work(store, rng, rng.randint(1, 60), disk)
            if rng.random() < 0.2:
                store.close()
                journal.durable = max(journal.durable, store.durable_seq)
        except PowerLoss:
            pass
        for _ in range(IMAGES_PER_CUT):
            check_image(disk.image(rng), journal, rng)
            images += 1
        # The process alone dies: then everything that was stored is there.
        killed = copy.deepcopy(disk)
        killed.kill()
        with opened(killed) as store:
            journal.check_recovered(store, 1 << 64)
        images += 1
        # One of the images is what life goes on with.
        disk = disk.image(rng)
        store = opened(disk)
        journal.restarted(store, journal.check_recovered(store, journal.durable))
        if rng.random() < 0.5:
            store.close()
        disk.kill()
        images += 1
    return images, journal.delivered


def check_image(image: CrashingFileSystem, journal: Journal, rng: random.Random) -> None:
    """Recover; and again after a recovery that was itself cut off, at any call."""
    if rng.random() < 0.3:
        recording = RecordingFileSystem(image, crash_at=rng.randint(1, 40))
        try:
            with opened(recording) as store:
                journal.check_recovered(store, journal.durable)
        except PowerLoss:
            image = image.image(rng)
    with opened(image) as store:
        found = journal.check_recovered(store, journal.durable)
        for seq in sorted(found):
            store.ack(seq, 1)
        assert store.events_on_disk == 0
        assert store.read(0, 1, 1) is None
    assert image.open_descriptors == 0


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
    while images < arguments.images:
        try:
            more, delivered = one_life(seed)
        except BaseException:
            print(
                f"seed {seed} breaks a promise: python -m tests.torture.power_loss --images 1 "
                f"--seed {seed}"
            )
            raise
        images += more
        events += delivered
        seed += 1
    took = time.monotonic() - start
    print(
        f"{images:,} images of {seed - arguments.seed:,} lives, {events:,} events found again, "
        f"0 lost, {took:.0f} s"
    )


if __name__ == "__main__":
    main()
