"""Kill producers and consumers of a shared MessageRing at random moments, again and
again; account for every message.

    python -m tests.torture.kill_ring --kills 1000 --seed 1

Producers write down what they had pushed in a file of their own after each push
returned, consumers what they had got before they released it; the parent, which is
never killed, compares:

    each message noted as pushed comes out, its bytes intact; none comes twice but what
    its consumer had not released those of one producer come in their order, but for
    what is delivered again
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ringbuf import MessageRing

_NOTE = struct.Struct("<IQ")


def _payload(producer: int, number: int) -> bytes:
    # Its length varies, so that frames begin and end everywhere and run over the end of
    # the memory.
    return b"%d:%d:" % (producer, number) + b"x" * (number * 7919 % 150)


def produce(path: str, notes: str, producer: int, seed: int) -> None:
    """Push until killed; note each number when its push has returned."""
    ring, rng, number = MessageRing.attach(path), random.Random(seed), 0
    with open(notes, "ab", buffering=0) as file:
        while True:
            messages = [_payload(producer, number + i) for i in range(rng.choice((1, 1, 3, 40)))]
            pushed = ring.push_many(messages)
            if pushed:
                number += pushed
                file.write(_NOTE.pack(producer, number))  # all below it
            else:
                time.sleep(0.0002)


def consume(path: str, notes: str, seed: int) -> None:
    """Take until killed; note what was got, then release it."""
    ring, rng = MessageRing.attach(path), random.Random(seed)
    with open(notes, "ab", buffering=0) as file:
        while True:
            messages = ring.take(rng.choice((1, 5, 100)))
            if not len(messages):
                time.sleep(0.0002)
                continue
            text = b"".join(b"%s\n" % message for message in messages)
            file.write(b"T%d\n" % len(messages) + text)
            ring.release(messages)
            file.write(b"R\n")


def _spawn(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid


class Oracle:
    """What must be, from the notes of the dead."""

    def __init__(self) -> None:
        self.expected: dict[int, int] = {}  # by producer: how many are noted as pushed
        self.seen: dict[int, dict[int, int]] = {}  # by producer, by number: how often it came
        self.unreleased: set[tuple[int, int]] = set()

    def read_pushed(self, path: Path) -> None:
        data = path.read_bytes()
        for at in range(0, len(data) - _NOTE.size + 1, _NOTE.size):
            producer, number = _NOTE.unpack_from(data, at)
            self.expected[producer] = max(self.expected.get(producer, 0), number)

    def read_taken(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")
        at = 0
        while at < len(lines) and lines[at].startswith(b"T"):
            count = int(lines[at][1:])
            batch = lines[at + 1 : at + 1 + count]
            released = len(lines) > at + 1 + count and lines[at + 1 + count] == b"R"
            whole = len(lines) > at + 1 + count
            if whole:
                self.take(batch, released)
            at += count + 1 + released

    def take(self, messages: list[bytes], released: bool) -> None:
        for message in messages:
            producer, number, _ = message.split(b":", 2)
            key = int(producer), int(number)
            assert message == _payload(*key), f"{message!r} is corrupt"
            seen = self.seen.setdefault(key[0], {})
            seen[key[1]] = seen.get(key[1], 0) + 1
            if not released:
                self.unreleased.add(key)

    def judge(self) -> None:
        for producer, count in self.expected.items():
            seen = self.seen.get(producer, {})
            missing = [number for number in range(count) if number not in seen]
            assert not missing, (
                f"producer {producer}: {len(missing)} of {count} lost, the first {missing[0]}"
            )
        for producer, seen in self.seen.items():
            for number, times in seen.items():
                assert times == 1 or (producer, number) in self.unreleased, (
                    f"{producer}:{number} came {times} times"
                )


def torture(kills: int, seed: int, progress: bool = False) -> Oracle:
    """Run the loop in a directory of its own; AssertionError says what went wrong."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "ring")
        ring = MessageRing(1 << 15, path=path)
        living: dict[int, tuple[str, str]] = {}
        notes: list[tuple[str, Path]] = []
        made = 0
        killed = 0
        try:
            while killed < kills:
                while len(living) < 4:
                    kind = (
                        "producer"
                        if sum(kind == "producer" for kind, _ in living.values()) < 2
                        else "consumer"
                    )
                    file = os.path.join(directory, f"{kind}-{made}")
                    open(file, "xb").close()
                    notes.append((kind, Path(file)))
                    number, part_seed = made, rng.getrandbits(32)
                    if kind == "producer":
                        pid = _spawn(lambda f=file, n=number, s=part_seed: produce(path, f, n, s))  # type: ignore[misc]
                    else:
                        pid = _spawn(lambda f=file, s=part_seed: consume(path, f, s))  # type: ignore[misc]
                    living[pid] = (kind, file)
                    made += 1
                time.sleep(rng.uniform(0.002, 0.03))
                victim = rng.choice(list(living))
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
                del living[victim]
                killed += 1
                if progress and killed % 50 == 0:
                    print(f"{killed} of {kills} killed", file=sys.stderr)
        finally:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        # The survivor drains what is left, also what the dead had in their hands.
        oracle = Oracle()
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < 0.05:
            messages = ring.pop_many(64)
            if len(messages):
                oracle.take(messages.tolist(), True)
                quiet_since = time.monotonic()
        ring._check()
        assert ring.used_bytes == 0, f"{ring.used_bytes} bytes are occupied and not in use"
        for kind, file_path in notes:
            if kind == "producer":
                oracle.read_pushed(file_path)
            else:
                oracle.read_taken(file_path)
        oracle.judge()
        return oracle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    started = time.monotonic()
    oracle = torture(options.kills, options.seed, progress=True)
    total = sum(oracle.expected.values())
    again = sum(times > 1 for seen in oracle.seen.values() for times in seen.values())
    print(
        f"seed {options.seed}: {options.kills} kills in {time.monotonic() - started:.0f} s, "
        f"{total:,} messages noted as pushed, "
        f"0 lost, 0 corrupt, {again:,} delivered again after their consumer was killed"
    )


if __name__ == "__main__":
    main()
