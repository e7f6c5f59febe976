"""Makes tests/golden/spill-v1: what version 1 of the disk format looks like. Run it
once for a version, never again:

    python -m tests.golden.make_spill_v1

The test that reads the files makes them again in memory, and compares those that hold
nothing compressed byte by byte.
"""

from __future__ import annotations

from pathlib import Path

from backpressure.spill import (
    BufferDirectory,
    DeadLetter,
    DeadLetterStore,
    Run,
    SpillConfig,
    SpillStore,
)
from backpressure.testing import CrashingFileSystem
from tests.torture.journal import columns

GOLDEN = Path(__file__).parent / "spill-v1"
CONFIG = SpillConfig(segment_bytes=4096, block_bytes=512, reserve_bytes=0, ack_record_bytes=512)
START = (1 << 32) - 3
EVENTS = [b"event %d" % number * (number % 40 + 1) for number in range(60)] + [
    b"",
    b"\n",
    b"\0" * 300,
]
LETTER = DeadLetter(
    event=b"poison",
    error="too sharp: é",
    attempts=5,
    priority=2,
    seq=77,
    time_ns=1_700_000_000_000_000_000,
)


def make() -> CrashingFileSystem:
    """/golden: lane-1 not compressed, lane-2 compressed, each with a gap and a range
    acked out of turn; and a dead letter.
    """
    disk = CrashingFileSystem(seed=1)
    with BufferDirectory("/golden", disk) as directory:
        for lane, pressure in ((1, 1.0), (2, 0.0)):
            with SpillStore(
                directory.lane(f"lane-{lane}"), lane, directory.buffer_id, CONFIG, disk
            ) as store:
                store.append(START, *columns(EVENTS[:50]), pressure, 1_700_000_000_000_000_000)
                store.append(START + 100, *columns(EVENTS[50:]), pressure)
                for first, count in ((START + 10, 5), (START, 2)):
                    run = store.read(first, count, 1 << 20)
                    assert isinstance(run, Run)
                    store.ack(first, count)
        letters = DeadLetterStore(directory.lane("dead-letters"), directory.buffer_id, CONFIG, disk)
        letters.add([LETTER])
        letters.close()
    return disk


def files_of(disk: CrashingFileSystem) -> dict[str, bytes]:
    """Path below /golden: content."""
    found = {"manifest": disk.read_file("/golden/manifest")}
    for name in ("lane-1", "lane-2", "dead-letters"):
        found |= {
            f"{name}/{one}": disk.read_file(f"/golden/{name}/{one}")
            for one in sorted(disk.listdir(f"/golden/{name}"))
        }
    return found


if __name__ == "__main__":
    for path, content in files_of(make()).items():
        (GOLDEN / path).parent.mkdir(parents=True, exist_ok=True)
        (GOLDEN / path).write_bytes(content)
