"""Kill a process that fills and drains a BufferManager with a directory, again and
again, and account for every accepted event.

    python -m tests.torture.kill_buffer --cycles 10000 --seed 1

The child notes each event when its add has returned, each batch when it has been got,
and each ack when it has returned; the parent, which is never killed, compares at the
end:

    each event noted as accepted is delivered, its bytes intact none is delivered again
    after its ack was noted within a priority, events come for the first time in the
    order in which they were accepted, across all lives of the process
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from backpressure import BufferConfig, BufferManager, Durability
from backpressure.spill import SpillConfig

_PRIORITIES = (1, 3, 5)


def config_for(directory: str, rng: random.Random) -> BufferConfig:
    """Small sizes, so that all that can happen happens often: full rings, spilling, new
    files, and rings of another size.
    """
    return BufferConfig(
        directory=directory,
        lane_bytes=rng.choice((1 << 14, 1 << 16, 1 << 16)),
        max_batch_bytes=1 << 14,
        retry_backoff=0.001,
        durability=rng.choice(
            (Durability.PROCESS, Durability.PROCESS, Durability.INTERVAL, Durability.COMMIT)
        ),
        spill=SpillConfig(segment_bytes=1 << 16, block_bytes=1 << 12, reserve_bytes=1 << 14),
    )


def _event(life: int, number: int) -> bytes:
    return b"%d:%d:" % (life, number) + b"x" * (number * 7919 % 300)


def live(directory: str, notes: str, life: int, seed: int) -> None:
    """One life: open, add and deliver until killed."""
    rng = random.Random(seed)
    buffer = BufferManager(config_for(directory, rng), rng=random.Random(seed))
    with open(notes, "ab", buffering=0) as file:

        def consume(seed: int) -> None:
            rng = random.Random(seed)
            while True:
                batch = buffer.get_batch(rng.choice((1, 20, 300)), timeout=0.01)
                if batch is None:
                    continue
                file.write(
                    b"G %d %s\n"
                    % (batch.priority, b" ".join(event.rstrip(b"x") for event in batch))
                )
                if any(event != _event(*map(int, event.split(b":")[:2])) for event in batch):
                    file.write(b"CORRUPT\n")
                if rng.random() < 0.1:
                    batch.nack("refused")
                    continue
                events = b" ".join(event.rstrip(b"x") for event in batch)
                if rng.random() < 0.05:
                    time.sleep(0.005)
                batch.ack()
                file.write(b"A %d %s\n" % (batch.priority, events))

        for _ in range(rng.choice((0, 1, 1, 2))):
            threading.Thread(target=consume, args=(rng.getrandbits(32),), daemon=True).start()
        number = dict.fromkeys(_PRIORITIES, 0)
        while True:
            priority = rng.choice(_PRIORITIES)
            events = [_event(life, number[priority] + i) for i in range(rng.choice((1, 10, 60)))]
            accepted = buffer.add_events(events, priority=priority).accepted
            number[priority] += accepted
            if accepted:
                file.write(b"P %d %d\n" % (priority, number[priority]))
            if rng.random() < 0.3:
                time.sleep(0.0005)


class Oracle:
    """What must be, from the notes."""

    def __init__(self) -> None:
        self.accepted: dict[tuple[int, int], int] = {}  # by (priority, life): how many
        self.delivered: dict[int, dict[tuple[int, int], None]] = {
            p: {} for p in _PRIORITIES
        }  # in order of their first time
        self.acked: set[tuple[int, int, int]] = set()
        self.redelivered = 0

    def read(self, notes: Path, life: int) -> None:
        """The notes of one life, complete lines only."""
        data = notes.read_bytes()
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            kind, *words = line.split(b" ")
            assert kind != b"CORRUPT", f"life {life} got corrupt bytes"
            priority = int(words[0])
            if kind == b"P":
                self.accepted[priority, life] = int(words[1])
                continue
            for word in words[1:]:
                a, b, _ = word.split(b":")
                self.see(priority, (int(a), int(b)), acked=kind == b"A")

    def see(self, priority: int, event: tuple[int, int], acked: bool) -> None:
        key = (priority, *event)
        if acked:
            self.acked.add(key)
            return
        assert key not in self.acked, f"{key} came again after its ack"
        if event in self.delivered[priority]:
            self.redelivered += 1
        self.delivered[priority][event] = None

    def judge(self, ordered: bool) -> None:
        for (priority, life), count in self.accepted.items():
            missing = [
                number for number in range(count) if (life, number) not in self.delivered[priority]
            ]
            assert not missing, (
                f"priority {priority}, life {life}: {len(missing)} of {count} lost, the first "
                f"is {missing[0]}"
            )
        if ordered:
            for priority, events in self.delivered.items():
                assert list(events) == sorted(events), f"priority {priority}: out of order"


def torture(cycles: int, seed: int, progress: bool = False) -> Oracle:
    """Run the loop in a directory of its own; AssertionError says what went wrong."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "buffer")
        oracle = Oracle()
        for life in range(cycles):
            notes = os.path.join(directory, f"notes-{life}")
            open(notes, "xb").close()
            life_seed = rng.getrandbits(32)
            pid = os.fork()
            if pid == 0:
                try:
                    live(path, notes, life, life_seed)
                except BaseException as error:
                    os.write(2, f"life {life}: {error!r}\n".encode())
                finally:
                    os._exit(1)
            # Some die while they open and recover.
            time.sleep(rng.choice((rng.uniform(0.0, 0.05), rng.uniform(0.05, 0.2))))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"life {life} (seed {life_seed}) ended by itself"
            # Two consumers note what they got in another order than they got it.
            oracle.read(Path(notes), life)
            os.unlink(notes)
            if progress and (life + 1) % 50 == 0:
                print(f"{life + 1} of {cycles} killed", file=sys.stderr)
        with BufferManager(config_for(path, rng)) as buffer:
            while (batch := buffer.get_batch()) is not None:
                for event in batch:
                    life_text, number, rest = event.split(b":")
                    assert rest.strip(b"x") == b""
                    key = int(life_text), int(number)
                    assert event == _event(*key)
                    oracle.see(batch.priority, key, acked=False)
                batch.ack()
            stats = buffer.stats()
            stats.check()
            assert stats.resident == 0
        oracle.judge(ordered=False)
        return oracle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    started = time.monotonic()
    oracle = torture(options.cycles, options.seed, progress=True)
    print(
        f"seed {options.seed}: {options.cycles} kills in {time.monotonic() - started:.0f} s, "
        f"{sum(oracle.accepted.values()):,} events noted as accepted, 0 lost, 0 corrupt, none "
        "again after its ack, "
        f"{oracle.redelivered:,} delivered again"
    )


if __name__ == "__main__":
    main()
