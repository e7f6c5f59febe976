"""Followed files under everything that happens to log files, against an oracle that
knows every line.

    python -m tests.torture.follow_files --seeds 10000
    python -m tests.torture.follow_files --first 4711 --seeds 1       repeats one
    python -m tests.torture.follow_files --directory /mnt/ext4        there

Each seed is a life: appends (whole lines and halves of them), rotation by rename and by
copying and truncation, deletions, files written anew in place, a sink that takes
nothing for a while, a service that is stopped or killed and starts again, few
descriptors. The files are real, the follower is the real one; it is stepped in this
process by a clock of the test's own, so a life takes milliseconds and repeats.

What must hold at the end, when all has come to rest:

1. Every line that was complete and could be read was delivered. A line is excused only
   once it is in no file any more, nor in the buffer, nor in a deleted file that a look
   had found and that the follower still had to hold.
2. Nothing comes out that was not written: no line begins or ends in its middle. The one
   exception is a line of which only half stood in a file when that was rotated.
3. Without kills, copies and files written anew, nothing comes twice.
4. No descriptor is left open, and the state has only what exists.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from backpressure.sources.follower import Follower
from backpressure.sources.open_files import OpenFiles
from backpressure.sources.patterns import PathPattern
from backpressure.sources.positions import Positions

__all__ = ["one_life"]

_NAMES: Final = ("a.log", "b.log")
_GRACE: Final = 2.0
#: Rotated generations that are kept.
_KEPT: Final = 4
_DAY_NS: Final = 86_400 * 10**9


class Life:
    """One seed in one directory."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        self.logs = directory / "logs"
        self.logs.mkdir()
        self.state = directory / "state.json"
        self.pattern = rng.choice(("a.log", "*.log", "{a,b}.log", "**/*.log", "a.log*"))
        self.kills = rng.random() < 0.6
        self.changes = rng.random() < 0.6  # copies, and files written anew
        # Time stamps long ago, or of this moment: what is settled, and what is not.
        self.old = rng.random() < 0.5
        self.header = b"# a header that all of them have\n" if rng.random() < 0.4 else b""
        self.few = rng.random() < 0.25
        self.open_files = OpenFiles(1 if self.few else None)
        self.now = 1000.0
        self.base_ns = time.time_ns() - _DAY_NS
        self.stamp = 0
        self.number = 0
        #: Lines that must come, that were ever complete, and halves of lines.
        self.must: set[bytes] = set()
        self.written: set[bytes] = set()
        self.torn: set[bytes] = set()
        self.half: dict[str, tuple[int, bytes, bytes]] = {}
        self.buffer: list[bytes] = []
        self.sequence = 0
        self.delivered: list[bytes] = []
        self.taking = True
        self.saved_ns = 0
        #: Inodes that a look has found, and what deleted ones held.
        self.looked: set[int] = set()
        self.held: list[set[bytes]] = []
        self.copied: str | None = None
        self.trace: list[str] = []
        self.positions = Positions(self.state)
        self.follower: Follower | None = None
        self.start()

    # ------------------------------------------------------------ the service

    def start(self) -> None:
        self.sequence = 0
        self.positions = Positions(self.state)
        if self.old:
            self.positions.saved_ns = self.saved_ns
        self.follower = Follower(
            PathPattern(str(self.logs / self.pattern)),
            self.positions,
            start_at_end=False,
            max_line_bytes=2000,
            grace=_GRACE,
            open_files=self.open_files,
            wall_ns=self.wall_ns if self.old else time.time_ns,
        )
        self.look()
        # Nothing is known of what happens before the first save.
        self.save()

    def save(self) -> None:
        if self.follower is None:
            return
        self.positions.commit((self.sequence - len(self.buffer),))
        self.positions.save()
        self.saved_ns = self.wall_ns()

    def wall_ns(self) -> int:
        return self.base_ns + self.stamp

    def end(self, kill: bool) -> None:
        if self.follower is None:
            return
        if not kill:
            self.deliver()
            self.save()
        self.follower.close()
        self.follower = None
        self.buffer.clear()
        self.held.clear()
        self.looked.clear()
        self.excuse()

    def look(self) -> None:
        self.now += self.rng.choice((0.2, 0.2, 1.1))
        if self.follower is None:
            return
        scans = self.now >= self.follower._next_scan
        self.follower.look(self.now)
        for path in self.base_paths():
            # What has appeared is found by a scan, what is followed by every look.
            if path.exists() and (scans or str(path) in self.follower._trails):
                self.looked.add(path.stat().st_ino)

    def read(self) -> None:
        if self.follower is not None and self.taking:
            self.follower.read(self.put, lambda: False, self.now)

    def put(self, lines: memoryview) -> tuple[int, ...]:
        for line in bytes(lines).splitlines():
            self.buffer.append(line)
            self.sequence += 1
        return (self.sequence,)

    def deliver(self) -> None:
        self.delivered += self.buffer
        self.buffer.clear()
        self.positions.commit((self.sequence,))

    # ------------------------------------------------------------ the writers

    def base_paths(self) -> list[Path]:
        names = _NAMES if self.pattern not in ("a.log", "a.log*") else _NAMES[:1]
        return [self.logs / name for name in names]

    def touched(self, path: Path) -> None:
        self.stamp += 10_000_000
        if self.old:
            os.utime(path, ns=(self.base_ns + self.stamp,) * 2)

    def line(self) -> bytes:
        self.number += 1
        return b"%06d " % self.number + b"x" * self.rng.choice((0, 3, 40, 300, 900))

    def append(self, path: Path) -> None:
        half = self.half.pop(str(path), None)
        with path.open("ab", buffering=0) as file:
            if not os.fstat(file.fileno()).st_size:
                file.write(self.header)
            if half is not None and os.fstat(file.fileno()).st_ino == half[0]:
                file.write(half[2] + b"\n")
                self.finish(half[1] + half[2])
            elif self.ends_in_line(path):
                file.write(b"\n")
            text = [self.line() for _ in range(self.rng.choice((1, 1, 2, 9)))]
            file.write(b"".join(one + b"\n" for one in text))
            for one in text:
                self.finish(one)
            if self.rng.random() < 0.2:
                one = self.line()
                cut = self.rng.randrange(1, len(one))
                file.write(one[:cut])
                self.half[str(path)] = os.fstat(file.fileno()).st_ino, one[:cut], one[cut:]
        self.touched(path)

    def finish(self, line: bytes) -> None:
        self.written.add(line)
        self.must.add(line)

    def tear(self, path: Path, copied: bool = False) -> None:
        """A half of a line may come as it is from here on."""
        half = self.half.get(str(path)) if copied else self.half.pop(str(path), None)
        if half is not None:
            self.torn.add(half[1])

    def shift(self, path: Path) -> None:
        """Make room for `.1`."""
        last = Path(f"{path}.{_KEPT}")
        if last.exists():
            self.unlink(last)
        for number in range(_KEPT - 1, 0, -1):
            one = Path(f"{path}.{number}")
            if one.exists():
                one.rename(f"{path}.{number + 1}")

    def rename(self, path: Path) -> None:
        self.tear(path)
        self.shift(path)
        path.rename(f"{path}.1")
        if self.rng.random() < 0.5:
            self.append(path)
        if self.rng.random() < 0.3:  # its writer has not reopened yet
            late = self.line()
            with Path(f"{path}.1").open("ab", buffering=0) as file:
                if not self.ends_in_line(Path(f"{path}.1")):
                    file.write(late + b"\n")
                    self.finish(late)
            self.touched(Path(f"{path}.1"))

    def ends_in_line(self, path: Path) -> bool:
        text = path.read_bytes()
        return bool(text) and not text.endswith(b"\n")

    def copy(self, path: Path) -> None:
        self.tear(path, copied=True)
        self.shift(path)
        shutil.copyfile(path, f"{path}.1")
        self.touched(Path(f"{path}.1"))
        self.copied = str(path)
        if self.rng.random() < 0.6:
            self.truncate()

    def truncate(self) -> None:
        if self.copied is not None and os.path.exists(self.copied):
            path = Path(self.copied)
            self.tear(path)
            os.truncate(path, 0)
            self.touched(path)
            if self.rng.random() < 0.6:
                self.append(path)
        self.copied = None

    def rewrite(self, path: Path) -> None:
        self.tear(path)
        text = [self.line() for _ in range(self.rng.choice((1, 3, 12)))]
        path.write_bytes(self.header + b"".join(one + b"\n" for one in text))
        for one in text:
            self.finish(one)
        self.touched(path)

    def unlink(self, path: Path) -> None:
        if path.stat().st_ino in self.looked and self.follower is not None and not self.few:
            self.held.append(set(path.read_bytes().splitlines()))
        self.looked.discard(path.stat().st_ino)
        self.tear(path)
        path.unlink()

    def excuse(self) -> None:
        """Give up the lines that nobody could read any more."""
        alive: set[bytes] = set(self.buffer) | set(self.delivered)
        for path in self.logs.iterdir():
            alive.update(path.read_bytes().splitlines())
        for text in self.held:
            alive |= text
        self.must &= alive

    # ------------------------------------------------------------ its course

    def step(self) -> None:
        rng = self.rng
        path = self.logs / rng.choice(_NAMES[: len(self.base_paths())])
        deeds = ["append"] * 8 + ["look"] * 6 + ["read"] * 6 + ["deliver"] * 3 + ["save"] * 2
        deeds += ["rename"] * 2 + ["delete", "outage", "wait", "restart"]
        if self.changes:
            deeds += ["copy", "copy", "truncate", "rewrite"]
        if self.kills:
            deeds += ["kill", "kill"]
        deed = rng.choice(deeds)
        self.trace.append(f"{deed} {path.name}")
        if deed == "append":
            self.append(path)
        elif deed == "look":
            self.look()
        elif deed == "read":
            self.read()
        elif deed == "deliver":
            self.deliver()
        elif deed == "save":
            self.save()
        elif deed == "outage":
            self.taking = not self.taking
        elif deed == "wait":
            self.now += 5.0
            self.look()
        elif deed == "truncate":
            self.truncate()
        elif deed in ("restart", "kill"):
            if self.follower is None:
                self.start()
            else:
                self.end(kill=deed == "kill")
                if rng.random() < 0.5:
                    self.start()
        elif path.exists():
            if deed == "rename":
                self.rename(path)
            elif deed == "delete":
                self.unlink(path)
            elif deed == "copy":
                self.copy(path)
            else:
                self.rewrite(path)
        self.excuse()

    def come_to_rest(self) -> None:
        if self.follower is None:
            self.start()
        self.taking = True
        for path in self.base_paths():
            self.append(path)  # generations are found by a name that exists
        for _ in range(14):
            self.now += 2.5
            self.look()
            self.read()
            self.read()
        self.deliver()
        self.save()
        self.look()
        self.deliver()
        self.save()

    def check(self) -> None:
        came = set(self.delivered)
        lost = sorted(self.must - came)
        assert not lost, f"{len(lost)} lines are lost, as {lost[0][:20]!r}"
        for line in came - self.written:
            # A half, or what was written to its file behind the half.
            assert (
                line + b"\n" == self.header
                or any(line == half for half in self.torn)
                or any(line.startswith(half) for half in self.torn)
            ), f"{line[:40]!r} was never written"
        if not (self.kills or self.changes or self.pattern == "a.log*" or self.few):
            mine = [line for line in self.delivered if line in self.written]
            assert len(mine) == len(set(mine)), "a line came twice"
        names = {path.stat().st_ino for path in self.logs.iterdir()}
        kept = {one["ino"] for one in json.loads(self.state.read_text())["files"]}
        assert kept <= names, "the state has files that are gone"
        assert self.follower is not None
        self.follower.close()
        assert not self.open_files._open, "a descriptor is left open"


def one_life(seed: int, where: Path | None = None, steps: int = 70) -> int:
    """Live one seed; how many lines were delivered. AssertionError names the seed."""
    directory = Path(tempfile.mkdtemp(prefix="follow-", dir=where))
    life = None
    try:
        life = Life(seed, directory)
        for _ in range(steps):
            life.step()
        life.come_to_rest()
        life.check()
        return len(life.delivered)
    except Exception as error:
        trace = "" if life is None else f" ({life.pattern}): {' | '.join(life.trace)}"
        raise AssertionError(f"seed {seed}: {error}{trace}") from error
    finally:
        if life is not None and life.follower is not None:
            with contextlib.suppress(OSError):
                life.follower.close()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--directory", type=Path)
    options = parser.parse_args()
    logging.getLogger("backpressure").setLevel(logging.CRITICAL)
    lines = failed = 0
    for seed in range(options.first, options.first + options.seeds):
        try:
            lines += one_life(seed, options.directory)
        except AssertionError as error:
            failed += 1
            print(error, flush=True)
    print(f"{options.seeds:,} lives, {lines:,} lines delivered, {failed:,} lives failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
