"""I/O errors: the k-th call to the file system fails, for every k, with every errno,
once or from then on.

    python -m tests.torture.io_errors --seeds 20

After the error the store works on; then it is opened again without errors, as it is and
on what power loss may leave of it.
"""

from __future__ import annotations

import argparse
import copy
import errno
import random
import time

from backpressure.base.errors import NotNow
from backpressure.testing import FaultyFileSystem
from tests.torture.journal import Journal, disk_with_lane, opened

ERRORS: tuple[int | None, ...] = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, None)
STEPS = 40


def one_run(seed: int, fail_at: int, error: int | None, sticky: bool) -> bool:
    """Work with one error; False where the work was done before it came."""
    rng = random.Random(seed)
    disk = disk_with_lane(seed=seed)
    journal = Journal()
    faulty = FaultyFileSystem(disk, fail_at=fail_at, error=error, sticky=sticky)
    if error is None:
        faulty.only = {"pwrite"}  # only a write can be a short one
    # What cannot be read at a second try is lost. A call that is interrupted for ever
    # fails like any other.
    journal.may_lose = sticky and error == errno.EIO
    store = None
    for _ in range(2):
        try:
            store = opened(faulty)
            break
        except NotNow:
            assert disk.open_descriptors == 0, "a store that could not be opened holds files"
    if store is not None:
        journal.work(store, rng, STEPS, disk)
        if not sticky:
            # It resumes by itself: the one error is behind it, or comes now, and then
            # the next try succeeds.
            for attempt in range(2):
                try:
                    journal.append(store, rng, disk)
                    store.sync()
                    break
                except NotNow:
                    assert attempt == 0
            assert store.durable_seq == store.end_seq
            journal.durable = store.end_seq
        store.close()
        journal.durable = max(journal.durable, store.durable_seq)
    assert disk.open_descriptors == 0
    for image, survivors in [(disk.image(rng), journal.durable) for _ in range(2)] + [
        (copy.deepcopy(disk), 1 << 64)
    ]:
        with opened(image) as store:
            journal.check_recovered(store, survivors)
    return faulty.failures > 0


def every_call(seed: int, error: int | None, sticky: bool, stride: int = 1) -> int:
    """Let each call fail in turn, or one in `stride`; returns how many there were,
    or a few more.
    """
    fail_at = 1
    while one_run(seed, fail_at, error, sticky):
        fail_at += stride
    return fail_at - 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    start = time.monotonic()
    runs = 0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for error in ERRORS:
            for sticky in (False, True):
                runs += every_call(seed, error, sticky)
    took = time.monotonic() - start
    print(
        f"{runs:,} runs, every call of {arguments.seeds} kinds of work failed in turn, 0 lost, "
        f"{took:.0f} s"
    )


if __name__ == "__main__":
    main()
