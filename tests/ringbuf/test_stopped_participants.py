"""One who is stopped in the midst of a push, alive, while another one is killed: what the others then wait for, and what not.

A child stands still after its k-th instruction, for each k around its claim; another one claims at the same position, or behind
it, and is killed before it publishes. Had the living one claimed, what lies behind waits for him: only he can publish it. Had he
not, he is no matter, though his slot says that he is about to.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringbuf import MessageRing, RingBuffer
from tests.torture.step_kill import Stepped, is_allowed, run_and_kill, steps_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]

#: Longer than the pause between two looks for the dead.
A_LOOK = 0.002
#: Instructions before the claim and after it, each of which is tried. Some 30 lie between what the slot says and the claim.
BEFORE, BEHIND = 40, 12


class Records:
    BEFORE, BETWEEN, AFTER = [1, 2], [50], [3, 4]
    MINE = THEIRS = (
        1  # what the stopped one claims, and the killed one: as many, so that their claims look the same
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring = RingBuffer(16, "i8", path=path)

    def attach(self) -> Records:
        again = Records.__new__(Records)
        again.path, again.ring = self.path, RingBuffer.attach(self.path)
        again.ring._take_seat()
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
    _steps = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ring = MessageRing(4096, path=path)

    def attach(self) -> Messages:
        again = Messages.__new__(Messages)
        again.path, again.ring = self.path, MessageRing.attach(self.path)
        again.ring._take_seat()
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
            ring._take_seat()
            push = ring.try_push
            return lambda: push(b"x" * 300)

        return setup

    def claim_and_die(self) -> None:
        # Where in a push the claim has been made is found once. It may be some steps off in another run: the caller looks.
        if not Messages._steps:
            alone = Messages(self.path.with_name("alone"))
            start = alone.ring.used_bytes
            claimed = steps_until(alone._large(), lambda: alone.ring.used_bytes > start)
            Messages._steps = claimed + 5
        run_and_kill(self._large(), Messages._steps)

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


@pytest.mark.parametrize("kind", [Records, Messages])
def test_one_who_is_stopped_before_his_claim_delays_nobody(
    tmp_path: Path, steps_are_allowed: None, kind: Any, in_full: bool
) -> None:
    def fresh() -> Any:
        path = tmp_path / "ring"
        path.unlink(missing_ok=True)
        subject = kind(path)
        subject.push(kind.BEFORE)
        return subject

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

    # After how many instructions he has claimed.
    alone = fresh()
    claimed = steps_until(setup(alone), alone.claimed)
    met = {"slower": 0, "owner": 0}
    for steps in range(claimed - BEFORE, claimed + BEHIND, 1 if in_full else 5):
        subject = fresh()
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
                f"after {steps} instructions he has not claimed, and yet the others wait for him"
            )
            met["owner"] += 1
            rest = kind.BETWEEN + kind.AFTER if steps % 2 else kind.AFTER
        elif got == kind.BEFORE + kind.BETWEEN + kind.AFTER:
            rest = []  # he had published
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


def drain(subject: Any) -> list[Any]:
    """All that can be had, also from the dead."""
    got: list[Any] = []
    for _ in range(2):
        time.sleep(A_LOOK)
        while items := subject.pop():
            got += items
    return got
