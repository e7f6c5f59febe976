"""A program that ends a call of a consumer at each point where CPython may run a
signal's handler, and checks what becomes of the events:
`python -m tests.buffer.interrupt_driver [OPERATION ...]`, without any: all of them.

Those points are the entry of a Python function, the end of a call of C and a loop going
back. The interpreter's own events stand for the signal, so each is hit for certain.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import backpressure
from backpressure import (
    Batch,
    BatchRejected,
    BatchTooLarge,
    BufferConfig,
    BufferManager,
    FlowControlConfig,
    WhenFull,
)
from backpressure.testing import FakeClock

_SOURCE = str(Path(backpressure.__file__).parent)
_EVENTS = [b"%03d" % number for number in range(40)]
# Of the default priority, where there are two: each lane more makes a directory slower.
_LANE = 1


# Of the passes of a loop that many are tried.
_SAME_POINTS = 3


class Interrupted(BaseException):
    """What the handler raises."""


class Interruption:
    """Raises at that point of a call, counted from 0; None: nowhere."""

    def __init__(self, point: int | None) -> None:
        #: The points passed: what happened, in which code and line.
        self.passed: list[tuple[str, CodeType, int]] = []
        self._point = point
        self.hit = False

    @property
    def where(self) -> str:
        event, code, line = self.passed[-1]
        return f"{event} {os.path.basename(code.co_filename)}:{line} {code.co_name}"

    def often(self) -> list[int]:
        """Which of the points passed are the same as several before them."""
        counts: Counter[tuple[str, CodeType, int]] = Counter()
        often = []
        for number, point in enumerate(self.passed):
            counts[point] += 1
            if counts[point] > _SAME_POINTS:
                often.append(number)
        return often

    def run(self, call: Callable[[], object]) -> None:
        gc.disable()
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        try:
            call()
        except Interrupted:
            assert self.hit
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            gc.enable()

    def _pass(self, frame: FrameType, event: str) -> None:
        if self.hit or not frame.f_code.co_filename.startswith(_SOURCE):
            return
        self.hit = len(self.passed) == self._point
        self.passed.append((event, frame.f_code, frame.f_lineno))
        if self.hit:
            raise Interrupted

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return"):
            self._pass(frame, event)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        loops = _loops(frame.f_code)
        if event == "opcode" and frame.f_lasti in loops:
            self._pass(frame, "loop")
        if self.hit or not loops:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._trace


@functools.cache
def _loops(code: CodeType) -> frozenset[int]:
    """Where loops of this code go back."""
    if not code.co_filename.startswith(_SOURCE):
        return frozenset()
    return frozenset(one.offset for one in dis.get_instructions(code) if "BACKWARD" in one.opname)


class Case:
    """A buffer with 40 events, of which some are with a consumer."""

    def __init__(self, directory: str | None, **config: Any) -> None:
        self.clock = FakeClock()
        config = {
            "max_attempts": 2,
            "retry_backoff": 0.0,
            "lane_bytes": 4096,
            "flow_control": FlowControlConfig(priority_levels=2),
            **config,
        }
        self.directory = directory
        self.config = BufferConfig(directory=directory, **config)
        self.buffer = BufferManager(self.config, clock=self.clock)
        self.lane = self.buffer._lanes[_LANE]
        assert self.buffer.add_events(_EVENTS).accepted == len(_EVENTS)
        self.acked: list[bytes] = []
        #: What the call may have settled, or not.
        self.doubtful: list[bytes] = []
        #: What it may have put in.
        self.others: list[bytes] = []
        #: Whether the consumer keeps the batch, and settles it if the call has not.
        self.keeps = False
        self.again: Callable[[], object] = int
        self.closes = False

    def take(self, events: int) -> Batch:
        batch = self.buffer.get_batch(events)
        assert batch is not None
        return batch

    def ack(self, batch: Batch) -> None:
        batch.ack()
        self.acked += batch.tolist()

    def settling(self, settle: Callable[[Batch], object], events: int = 10) -> Callable[[], object]:
        """A call that settles a batch, with others around it."""
        first, batch, last = self.take(5), self.take(events), self.take(5)
        self.ack(first)
        last.nack(KeyboardInterrupt())
        self.doubtful = batch.tolist()
        del first, last
        return self.call(settle, batch)

    def call(self, settle: Callable[[Batch], object], batch: Batch) -> Callable[[], object]:
        held = [batch]
        if not self.keeps:
            return lambda: settle(held.pop())
        self.again = lambda: batch.settled or settle(batch)
        return lambda: settle(batch)

    def check(self) -> None:
        """Drain it: all is there once, and nothing is in the way."""
        buffer = self.buffer
        buffer.stats().check()
        self.again()
        if self.closes:
            buffer.close(timeout=0)
            buffer.stats().check()
            if self.directory is None:
                assert buffer.resident == 0
                return
            self.buffer = buffer = BufferManager(self.config, clock=self.clock)
            self.lane = buffer._lanes[_LANE]
        drained: list[bytes] = []
        for _ in range(100):
            if not buffer.resident:
                break
            self.clock.advance(1.0)
            batch = buffer.get_batch()
            if batch is not None:
                batch.ack()
                drained += batch.tolist()
        stats = buffer.stats()
        stats.check()
        assert len(drained) == len(set(drained)), "delivered twice"
        assert not set(drained) & set(self.acked), "delivered after its ack"
        gone = {*_EVENTS, *self.others} - {*drained, *self.acked}
        assert gone <= {*self.doubtful}, ("lost", gone)
        lane = stats.lanes[_LANE + 1]
        settled = lane.acked + lane.dead_lettered + sum(lane.dropped.values())
        assert lane.accepted - lane.resident == settled
        assert (lane.in_flight, lane.retrying, lane.waiting) == (0, 0, 0)
        assert lane.used_bytes == 0, "room that nothing frees"
        assert not self.lane._out
        if lane.disk is not None:
            assert lane.disk.events == 0, "left on disk"
        assert buffer.add_events([b"last"])
        if self.directory is not None:
            buffer.close(timeout=0)
            buffer = BufferManager(self.config, clock=self.clock)
        batch = buffer.get_batch()
        assert batch is not None
        assert batch.tolist() == [b"last"]
        batch.ack()
        buffer.close(timeout=0)


def get(case: Case) -> Callable[[], object]:
    case.ack(case.take(5))
    return lambda: case.buffer.get_batch(7)


def get_again(case: Case) -> Callable[[], object]:
    first, second = case.take(7), case.take(5)
    second.nack(KeyboardInterrupt())
    first.nack("no")
    return lambda: case.buffer.get_batch(7)


def get_twice(case: Case) -> Callable[[], object]:
    """What a call has left half done, another one is interrupted with as well."""
    for point in range(10_000):
        interruption = Interruption(point)
        interruption.run(lambda: case.buffer.get_batch(9))
        if case.lane._front or not interruption.hit:
            break
    assert case.lane._front
    return lambda: case.buffer.get_batch(4)


def abandoned(case: Case) -> Callable[[], object]:
    case.take(5)
    case.take(5)
    return case.buffer.stats


def ack(case: Case) -> Callable[[], object]:
    return case.settling(Batch.ack)


def nack(case: Case) -> Callable[[], object]:
    return case.settling(lambda batch: batch.nack("no"))


def ignored(case: Case) -> Callable[[], object]:
    return case.settling(lambda batch: batch.nack(KeyboardInterrupt()))


def halve(case: Case) -> Callable[[], object]:
    return case.settling(lambda batch: batch.nack(BatchTooLarge("no")))


def reject(case: Case) -> Callable[[], object]:
    return case.settling(lambda batch: batch.nack(BatchRejected("no")), events=1)


def settle(case: Case) -> Callable[[], object]:
    return case.settling(lambda batch: batch.settle(retry=[1, 2, 7], reject=[4, 5]))


def settle_halved(case: Case) -> Callable[[], object]:
    batch = case.take(10)
    for _ in range(2):
        batch.nack(RuntimeError("no"))
        case.clock.advance(1.0)
        batch = case.take(10)
    case.doubtful = batch.tolist()
    return case.call(lambda batch: batch.settle(retry=[1, 2, 7], reject=[4]), batch)


def drop(case: Case) -> Callable[[], object]:
    case.ack(case.take(5))
    case.take(5).nack(KeyboardInterrupt())
    return drops(case)


def drop_waiting(case: Case) -> Callable[[], object]:
    case.ack(case.take(5))
    return drops(case)


def drops(case: Case) -> Callable[[], object]:
    case.others = [b"%03d" % number + bytes(80) for number in range(45)]
    case.doubtful = [*_EVENTS, *case.others]
    return lambda: case.buffer.add_events(case.others)


def expire(case: Case) -> Callable[[], object]:
    case.take(5).nack(KeyboardInterrupt())
    case.clock.advance(2.0)
    case.others = [b"new 1", b"new 2"]
    case.buffer.add_events(case.others)
    case.doubtful = _EVENTS
    return lambda: case.buffer.get_batch(3)


def close(case: Case) -> Callable[[], object]:
    case.ack(case.take(5))
    case.take(5).nack("no")
    case.closes = True
    return lambda: case.buffer.close(timeout=0)


def flush(case: Case) -> Callable[[], object]:
    case.ack(case.take(5))
    case.take(5).nack(KeyboardInterrupt())
    return case.buffer.flush


def kept(operation: Callable[[Case], Callable[[], object]]) -> Callable[[Case], Any]:
    """The same where the consumer keeps the batch, and settles it if that has not."""

    def begin(case: Case) -> Callable[[], object]:
        case.keeps = True
        return operation(case)

    return begin


def stored(operation: Callable[[Case], Callable[[], object]]) -> Callable[[Case], Any]:
    """The same where the events are on disk."""

    def begin(case: Case) -> Callable[[], object]:
        case.buffer.flush()
        return operation(case)

    return begin


OPERATIONS: dict[str, Callable[[Case], Callable[[], object]]] = {
    **{
        one.__name__: one
        for one in (
            *(get, get_again, get_twice, abandoned, ack, nack, ignored, halve, reject),
            *(settle, settle_halved, drop, drop_waiting, expire, close),
        )
    },
    **{
        f"kept {one.__name__}": kept(one)
        for one in (ack, nack, ignored, halve, reject, settle, settle_halved)
    },
}
ON_DISK: dict[str, Callable[[Case], Callable[[], object]]] = {
    "flush": flush,
    **{
        f"stored {one.__name__}": stored(one)
        for one in (get, get_again, ack, nack, halve, reject, settle, expire, close)
    },
}


def config_of(name: str) -> dict[str, Any]:
    if name.startswith("drop"):
        return {"when_full": WhenFull.DROP_OLDEST}
    return {"max_age": 1.0} if "expire" in name else {}


def check(name: str, parent: Path | None = None, step: int = 1) -> int:
    """Interrupt that operation at every `step`-th point; how many those are.

    parent: where buffers have their directories; None: they are in memory. Raises
    AssertionError, which names the point.
    """
    # Only what this makes is left for a collection: each `_interrupt` begins with one.
    gc.freeze()
    try:
        calm = _interrupt(name, parent, None)
        skipped = set(calm.often())
        points = [point for point in range(len(calm.passed)) if point not in skipped][::step]
        for point in points:
            _interrupt(name, parent, point)
    finally:
        gc.unfreeze()
    return len(points)


def _interrupt(name: str, parent: Path | None, point: int | None) -> Interruption:
    # What others left behind would be asked and collected in between, which moves the
    # points.
    gc.collect()
    directory = None if parent is None else tempfile.mkdtemp(dir=parent)
    case = Case(directory, **config_of(name))
    interruption = Interruption(point)
    interruption.run({**OPERATIONS, **ON_DISK}[name](case))
    try:
        case.check()
    except Exception as error:
        with contextlib.suppress(Exception):
            case.buffer.close(timeout=0)
        raise AssertionError(f"{name}, point {point}: {interruption.where}") from error
    finally:
        if directory is not None:
            shutil.rmtree(directory)
    return interruption


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for name in sys.argv[1:] or (*OPERATIONS, *ON_DISK):
            if name in OPERATIONS:
                print(f"{name}: {check(name)} points in memory", flush=True)
            print(f"{name}: {check(name, Path(directory))} points on disk", flush=True)


if __name__ == "__main__":
    main()
