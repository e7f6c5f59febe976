"""Kill producers and consumers of a shared RingBuffer at random moments, again and
again; account for every record.

    python -m tests.torture.kill_records --kills 1000 --seed 1

Producers write down what they had pushed in a file of their own after each push
returned, consumers what they had got before they released it; the parent, which is
never killed, compares: each record noted as pushed comes out, its bytes intact; none
comes twice but what its consumer had not released.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ringbuf import RingBuffer

RECORD = np.dtype([("producer", "<u4"), ("number", "<u4"), ("check", "<u8", (3,))])
CAPACITY = 512
#: Between what a consumer got and that it has released it, in its notes.
RELEASED = 0xFFFFFFFF


def make(producer: int, start: int, count: int) -> np.ndarray[Any, Any]:
    records = np.zeros(count, RECORD)
    records["producer"] = producer
    records["number"] = np.arange(start, start + count)
    records["check"] = check_of(records)
    return records


def check_of(records: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    one = records["producer"].astype(np.uint64) * np.uint64(2654435761) ^ records["number"].astype(
        np.uint64
    ) << np.uint64(20)
    return np.stack([one, ~one, one + np.uint64(1)], axis=1)


def produce(path: str, notes: str, producer: int, seed: int) -> None:
    """Push until killed; note how many when a push has returned."""
    ring, rng, number = RingBuffer.attach(path), random.Random(seed), 0
    with open(notes, "ab", buffering=0) as file:
        while True:
            count, way = rng.choice((1, 1, 3, 40)), rng.randrange(4)
            if way == 0:
                pushed = int(ring.try_push(make(producer, number, 1)[0]))
            elif way == 1:
                try:
                    with ring.reserve(count) as span:
                        pushed = len(span)
                        span[:] = make(producer, number, pushed)
                        if rng.random() < 0.1:
                            raise KeyError
                except KeyError:
                    continue
            else:
                pushed = ring.push_many(make(producer, number, count))
            if pushed:
                number += pushed
                file.write(number.to_bytes(4, "little"))
            else:
                time.sleep(0.0002)


def consume(path: str, notes: str, seed: int) -> None:
    """Take until killed; note what was got, then release it."""
    ring, rng = RingBuffer.attach(path), random.Random(seed)
    with open(notes, "ab", buffering=0) as file:
        while True:
            try:
                with ring.peek(rng.choice((1, 5, 100))) as span:
                    got = np.array(span)
                    if rng.random() < 0.1:
                        raise KeyError
                    if len(got):
                        note(file, got)
            except KeyError:
                continue
            if len(got):
                file.write(np.array([RELEASED, 0], "<u4").tobytes())
            else:
                time.sleep(0.0002)


def note(file: Any, got: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(got["check"], check_of(got)), "a record is corrupt"
    file.write(np.stack([got["producer"], got["number"]], axis=1).tobytes())


def spawn(work: Any, *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
        finally:
            os._exit(1)
    return pid


def torture(kills: int, seed: int, progress: bool = False) -> int:
    """Run the loop in a directory of its own; how many records were pushed.
    AssertionError says what went wrong.
    """
    rng = random.Random(seed)
    living: dict[int, str] = {}
    names: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "ring")
        ring = RingBuffer(CAPACITY, RECORD, path=path)
        try:
            for killed in range(kills):
                while len(living) < 4:
                    kind = "producer" if list(living.values()).count("producer") < 2 else "consumer"
                    names.append(os.path.join(directory, f"{kind}-{len(names)}"))
                    Path(names[-1]).touch()
                    if kind == "producer":
                        pid = spawn(produce, path, names[-1], len(names), rng.getrandbits(32))
                    else:
                        pid = spawn(consume, path, names[-1], rng.getrandbits(32))
                    living[pid] = kind
                time.sleep(rng.uniform(0.002, 0.03))
                victim = rng.choice(list(living))
                os.kill(victim, signal.SIGKILL)
                _, status = os.waitpid(victim, 0)
                assert os.WIFSIGNALED(status), f"a {living[victim]} failed before it was killed"
                del living[victim]
                if progress and (killed + 1) % 50 == 0:
                    print(f"{killed + 1} of {kills} killed", file=sys.stderr)
        finally:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        rest = drain(ring)
        return judge(names, rest)


def drain(ring: RingBuffer) -> np.ndarray[Any, Any]:
    """What is left, also what the dead had in their hands."""
    parts = []
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.05:
        parts.append(ring.pop_many())
        if len(parts[-1]):
            quiet_since = time.monotonic()
    assert ring._check() == (0, 0)
    assert ring.push_many(np.zeros(CAPACITY, RECORD)) == CAPACITY, "room was lost"
    return np.concatenate(parts)


def judge(names: list[str], rest: np.ndarray[Any, Any]) -> int:
    assert np.array_equal(rest["check"], check_of(rest)), "a record is corrupt"
    came = Counter(zip(rest["producer"].tolist(), rest["number"].tolist(), strict=True))
    unreleased: set[tuple[int, int]] = set()
    pushed: dict[int, int] = {}
    for number, name in enumerate(names, start=1):
        data = Path(name).read_bytes()
        if "producer" in name:
            pushed[number] = (
                int.from_bytes(data[len(data) // 4 * 4 - 4 :][:4], "little")
                if len(data) >= 4
                else 0
            )
            continue
        batch: list[tuple[int, int]] = []
        for producer, item in (
            np.frombuffer(data[: len(data) // 8 * 8], "<u4").reshape(-1, 2).tolist()
        ):
            if producer == RELEASED:
                batch.clear()
            else:
                batch.append((producer, item))
                came[producer, item] += 1
        unreleased.update(batch)
    for producer, count in pushed.items():
        missing = [item for item in range(count) if (producer, item) not in came]
        assert not missing, (
            f"producer {producer}: {len(missing)} of {count} lost, the first {missing[0]}"
        )
    twice = [one for one, times in came.items() if times > 1 and one not in unreleased]
    assert not twice, f"{len(twice)} came twice, as {twice[0]}"
    return sum(pushed.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    started = time.monotonic()
    total = torture(options.kills, options.seed, progress=True)
    print(
        f"seed {options.seed}: {options.kills} kills in {time.monotonic() - started:.0f} s, "
        f"{total:,} records, none lost"
    )


if __name__ == "__main__":
    main()
