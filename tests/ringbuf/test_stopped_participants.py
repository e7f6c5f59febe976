"""A process that is stopped in mid-push or mid-take, alive: what the others wait for,
and what not.

A child stands still after its k-th instruction, for each k around its claim; another
one claims at the same position, or behind it, and is killed before it publishes. If the
living one has claimed, what lies behind waits for it: only that one can publish. If it
has not, it delays nothing, though its op slot says that it is about to claim.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringbuf import MessageRing, RingBuffer
from tests.torture.step_kill import Stepped, is_allowed, steps_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]

#: Longer than the pause between two checks for dead participants.
A_LOOK = 0.002
#: Instructions before the claim and after it that are tried. Some 50 lie between what
#: the slot says and the claim, and the same operation takes some 30 more or fewer from
#: run to run of a child.
BEFORE, BEHIND = 110, 40


class Records:
    BEFORE, BETWEEN, AFTER = [1, 2], [50], [3, 4]
    # What the stopped one claims, and the killed one: as many, so that their claims
    # look the same.
    MINE = THEIRS = 1

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring = RingBuffer(16, "i8", path=path)

    def attach(self) -> Records:
        again = Records.__new__(Records)
        again.path, again.ring = self.path, RingBuffer.attach(self.path)
        again.ring._take_participant_slot()
        return again

    def push(self, items: list[Any]) -> None:
        assert self.ring.push_many(items) == len(items)

    def operation(self) -> Callable[[], object]:
        push = self.ring.producer().try_push
        return lambda: push(50)

    def claim_and_die(self) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                block = RingBuffer.attach(self.path).reserve(1)
                block.__enter__()
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        os.waitpid(pid, 0)

    def claimed(self) -> int:
        """What is claimed and not published."""
        try:
            reserved: int = self.ring._check()[0]
        except AssertionError as error:
            reserved = error.args[0][0]
        return reserved

    def pop(self) -> list[Any]:
        got: list[Any] = self.ring.pop_many().tolist()
        return got

    def check(self) -> None:
        assert self.ring._check() == (0, 0)


class Messages:
    BEFORE, BETWEEN, AFTER = [b"1", b"2"], [b"50"], [b"3", b"4"]
    MINE, THEIRS = 64, 384  # bytes

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring = MessageRing(4096, path=path)

    def attach(self) -> Messages:
        again = Messages.__new__(Messages)
        again.path, again.ring = self.path, MessageRing.attach(self.path)
        again.ring._take_participant_slot()
        return again

    def push(self, items: list[Any]) -> None:
        assert self.ring.push_many(items) == len(items)

    def operation(self) -> Callable[[], object]:
        push = self.ring.producer().try_push
        return lambda: push(b"50")

    def _large(self) -> Callable[[], Callable[[], object]]:
        def setup() -> Callable[[], object]:
            for _ in range(2):
                MessageRing(4096).try_push(b"x" * 300)
            ring = MessageRing.attach(self.path)
            ring._take_participant_slot()
            push = ring.try_push
            return lambda: push(b"x" * 300)

        return setup

    def claim_and_die(self) -> None:
        start = self.ring.used_bytes
        steps_until(self._large(), lambda: self.ring.used_bytes >= start + self.THEIRS)

    def claimed(self) -> int:
        return self.ring.used_bytes - 64  # what was pushed before

    def pop(self) -> list[Any]:
        got: list[Any] = self.ring.pop_many().tolist()
        return got

    def check(self) -> None:
        self.ring._check()
        assert self.ring.used_bytes == 0


@pytest.fixture(scope="module")
def steps_are_allowed() -> None:
    if not is_allowed():
        pytest.skip("ptrace is not allowed here")


def anew(kind: Any, directory: Path) -> Any:
    """A new ring, with what is pushed first."""
    path = directory / "ring"
    path.unlink(missing_ok=True)
    subject = kind(path)
    subject.push(kind.BEFORE)
    return subject


@pytest.mark.parametrize("kind", [Records, Messages])
def test_one_that_is_stopped_before_its_claim_delays_nobody(
    tmp_path: Path, steps_are_allowed: None, kind: Any, in_full: bool
) -> None:
    def setup(subject: Any) -> Callable[[], Callable[[], object]]:
        def run() -> Callable[[], object]:
            for number in range(
                2
            ):  # what the linker and Python do at a first call would make the steps many
                warm = kind(subject.path.with_name(f"warm-{number}-{os.getpid()}"))
                warm.path.unlink()
                warm.operation()()
            operation: Callable[[], object] = subject.attach().operation()
            return operation

        return run

    # After how many instructions it has claimed.
    alone = anew(kind, tmp_path)
    claimed = steps_until(setup(alone), alone.claimed)
    met = {"slower": 0, "owner": 0}
    for steps in range(claimed - BEFORE, claimed + BEHIND, 1 if in_full else 9):
        subject = anew(kind, tmp_path)
        stopped = Stepped(setup(subject), steps)
        subject.claim_and_die()
        both = subject.claimed() == kind.MINE + kind.THEIRS
        if not both and subject.claimed() != kind.THEIRS:
            stopped.kill()
            continue  # the killed one had not come to its claim
        subject.push(kind.AFTER)
        got = drain(subject)
        if got == kind.BEFORE:
            assert both, (
                f"after {steps} instructions it has not claimed, and yet the others wait for it"
            )
            met["owner"] += 1
            rest = kind.BETWEEN + kind.AFTER if steps % 2 else kind.AFTER
        elif got == kind.BEFORE + kind.BETWEEN + kind.AFTER:
            rest = []  # it had published
        else:
            assert not both
            assert got == kind.BEFORE + kind.AFTER
            met["slower"] += 1
            rest = kind.BETWEEN if steps % 2 else []
        if steps % 2:
            stopped.finish()
        stopped.kill()
        assert drain(subject) == rest, steps
        subject.check()
    assert min(met.values()) > 0, met


@pytest.mark.parametrize("kind", [Records, Messages])
def test_one_that_is_stopped_in_a_take_gets_nothing_twice(
    tmp_path: Path, steps_are_allowed: None, kind: Any, in_full: bool
) -> None:
    """It stands still around the exchange of `read`, while others send the positions
    round.
    """
    result = mmap.mmap(-1, mmap.PAGESIZE)  # 1 + what it took
    item: Callable[[int], Any] = int if kind is Records else lambda number: b"%d" % number

    def setup(subject: Any) -> Callable[[], Callable[[], object]]:
        def run() -> Callable[[], object]:
            for number in range(2):
                warm = kind(subject.path.with_name(f"warm-{number}-{os.getpid()}"))
                warm.path.unlink()
                warm.push(kind.BEFORE)
                warm.pop()
            pop = subject.attach().ring.consumer().pop_many

            def operation() -> None:
                got = pop(1).tolist()
                result[0] = 1 + (int(got[0]) if got else 0)

            return operation

        return run

    alone = anew(kind, tmp_path)
    taken = steps_until(setup(alone), lambda: len(alone.ring) < len(kind.BEFORE))
    met = {"before": 0, "behind": 0}
    # In another run it may come to its exchange some steps earlier or later.
    for steps in range(taken - BEFORE, taken + BEFORE, 1 if in_full else 11):
        subject = anew(kind, tmp_path)
        result[0] = 0
        stopped = Stepped(setup(subject), steps)
        got = [int(one) for one in subject.pop()]
        met["before" if len(got) == len(kind.BEFORE) else "behind"] += 1
        number = 10
        for _ in range(100):
            number += subject.ring.push_many([item(number)])
            got += [int(one) for one in subject.pop()]
        number += subject.ring.push_many([item(number)])  # so that there is something to take
        stopped.finish()
        stopped.kill()
        theirs = [result[0] - 1] if result[0] > 1 else []
        rest = [int(one) for one in drain(subject)]
        assert sorted(got + theirs + rest) == [1, 2, *range(10, number)], steps
        subject.check()
    assert min(met.values()) > 0, met


def drain(subject: Any) -> list[Any]:
    """All that can be had, also from dead participants."""
    got: list[Any] = []
    for _ in range(2):
        time.sleep(A_LOOK)
        while items := subject.pop():
            got += items
    return got
