"""The body of all stress tests of the rings: producers number what they push, and what
consumers got is compared with it.

A subject says how one kind of ring is made and used; a mode says what runs `produce`
and `consume`: threads, processes, processes that are stopped and continued at random,
or one thread whose collections push and pop too. All modes check the same: the exact
count, nothing twice, each producer's order, and the ring's own `_check()` at the end.

Subjects and what they return can be used in any process that can reach the ring:
`Subject.open` is called once in each.
"""

from __future__ import annotations

import contextvars
import dataclasses
import gc
import mmap
import os
import pickle
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ringbuf import MessageRing, RingBuffer

#: (producer, number of its record)
Item = tuple[int, int]
#: push(at, end): push some of the producer's items from number `at` on, `end` not
#: included; how many went in.
Push = Callable[[int, int], int]
#: pop(): some of the oldest items.
Pop = Callable[[], list[Item]]

JOIN_SECONDS = 120


class Subject(Protocol):
    @property
    def ordered(self) -> bool:
        """Whether one consumer gets each producer's items in order, however many
        consumers there are.
        """

    def open(self) -> Any:
        """The ring, empty the first time."""

    def producer(self, ring: Any, number: int) -> Push: ...

    def consumer(self, ring: Any, number: int) -> Pop: ...

    def finish(self, ring: Any) -> list[Item]:
        """All that is left when the ring is no longer used; asserts that it is then in
        order and has all its room.
        """


def in_a_file(subject: Subject, directory: Path) -> Subject:
    """The same with a ring in a file there."""
    parameters: Any = subject
    replaced: Subject = dataclasses.replace(parameters, path=str(directory / "ring"))
    return replaced


def produce(push: Push, count: int, stop: Callable[[], bool]) -> None:
    at = 0
    while at < count and not stop():
        at += push(at, count)


def consume(pop: Pop, over: Callable[[], bool], stop: Callable[[], bool]) -> list[Item]:
    """Pop until all producers are done (`over`) and nothing comes any more."""
    received: list[Item] = []
    while not stop():
        last_round = over()
        got = pop()
        received += got
        if last_round and not got:
            break
    return received


def check(
    received: Iterable[list[Item]],
    rest: list[Item],
    producers: int,
    per_producer: int,
    *,
    ordered: bool,
) -> None:
    lists = list(received)
    everything = sorted(item for one in [*lists, rest] for item in one)
    assert everything == [
        (producer, number) for producer in range(producers) for number in range(per_producer)
    ]
    if not ordered:
        return
    for one in lists:
        newest = [-1] * producers
        for producer, number in one:
            assert number > newest[producer], "a producer's items are out of order"
            newest[producer] = number


def run_in_threads(subject: Subject, producers: int, consumers: int, per_producer: int) -> None:
    ring = subject.open()
    failures: list[BaseException] = []
    received: list[list[Item]] = [[] for _ in range(consumers)]
    finished = [False] * producers
    start = threading.Barrier(producers + consumers)

    def stop() -> bool:
        return bool(failures)

    def pushing(number: int) -> None:
        push = subject.producer(ring, number)
        start.wait()
        produce(push, per_producer, stop)
        finished[number] = True

    def popping(number: int) -> None:
        pop = subject.consumer(ring, number)
        start.wait()
        received[number] = consume(pop, lambda: all(finished), stop)

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)
            start.abort()

    threads = [
        threading.Thread(target=guarded, args=(pushing, number)) for number in range(producers)
    ]
    threads += [
        threading.Thread(target=guarded, args=(popping, number)) for number in range(consumers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive(), "a thread hangs"
    assert not failures, failures
    check(
        received,
        subject.finish(ring),
        producers,
        per_producer,
        ordered=subject.ordered or consumers == 1,
    )


def run_in_processes(
    subject: Subject,
    producers: int,
    consumers: int,
    per_producer: int,
    dice: random.Random | None = None,
) -> None:
    """Each in a forked process that opens the ring anew; the subject has to have a
    path.

    dice: with them one process after the other is stopped for a moment, wherever it
        stands.
    """
    ring = subject.open()
    finished = mmap.mmap(-1, mmap.PAGESIZE)  # a byte for each producer, shared by all
    started = mmap.mmap(-1, mmap.PAGESIZE)

    def starting() -> None:
        while not started[0]:
            time.sleep(0.001)

    def pushing(number: int) -> None:
        push = subject.producer(subject.open(), number)
        starting()
        produce(patient(push), per_producer, lambda: False)
        finished[number] = 1

    def popping(number: int) -> None:
        pop = subject.consumer(subject.open(), number)
        starting()
        got = consume(
            patient(pop), lambda: finished[:producers] == b"\1" * producers, lambda: False
        )
        with open(os.path.join(directory, str(number)), "wb") as file:
            pickle.dump(got, file)

    with tempfile.TemporaryDirectory() as directory:
        children = [forked(pushing, number) for number in range(producers)]
        children += [forked(popping, number) for number in range(consumers)]
        started[0] = 1
        if dice is not None:
            stop_at_random(children, dice)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        assert statuses == [0] * len(children), "a process failed"
        received = []
        for number in range(consumers):
            with open(os.path.join(directory, str(number)), "rb") as file:
                received.append(pickle.load(file))
    check(
        received,
        subject.finish(ring),
        producers,
        per_producer,
        ordered=subject.ordered or consumers == 1,
    )


def stop_at_random(children: list[int], dice: random.Random) -> None:
    """Stop one process for a moment, and another one, until all have ended."""
    stops = 0
    while running := [child for child in children if not has_ended(child)]:
        # Each in turn, so that each is stopped, and in another order each time.
        for child in dice.sample(running, len(running)):
            os.kill(child, signal.SIGSTOP)
            time.sleep(dice.uniform(0, 0.002))
            os.kill(child, signal.SIGCONT)
            stops += 1
            time.sleep(dice.uniform(0, 0.001))
    assert stops >= 2 * len(children), f"only {stops} stops"


def has_ended(child: int) -> bool:
    """Whether a child process is gone; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run_with_collections(subject: Subject, per_producer: int) -> None:
    """In one thread that is interrupted by its collector, in the midst of pushes and
    pops.

    There are three participants, each with handles of its own: the thread, a callback
    of the collector, and the finalizer of what the collector frees.
    """
    ring = subject.open()
    pushes = [subject.producer(ring, number) for number in range(3)]
    pops = [subject.consumer(ring, number) for number in range(3)]
    received: list[list[Item]] = [[] for _ in range(3)]
    pushed = [0, 0, 0]
    busy = [False, False, False]
    interrupted = [0, 0, 0]
    failures: list[BaseException] = []

    def act(number: int) -> None:
        if busy[number]:
            return
        interrupted[number] += any(busy)
        busy[number] = True
        try:
            if pushed[number] < per_producer:
                pushed[number] += pushes[number](pushed[number], per_producer)
            received[number] += pops[number]()
        except BaseException as error:  # the collector would only print it
            failures.append(error)
        finally:
            busy[number] = False

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            apart(2)

    def called(phase: str, info: dict[str, int]) -> None:
        apart(1)

    def apart(number: int) -> None:
        # numpy sets a context variable, and CPython 3.11 crashes where a collection
        # comes in the midst of that and sets one of the same context.
        contextvars.Context().run(act, number)

    with collecting_often(called):
        turn = 0
        while min(pushed) < per_producer and not failures:
            # At another allocation each time.
            gc.set_threshold(1 + turn % 8, 1, 1)
            turn += 1
            Garbage()
            act(0)
    while not failures and (got := pops[0]()):
        received[0] += got
    assert not failures, failures
    assert min(interrupted[1:]) > 10, "collections hardly ever came in the midst of anything"
    check(received, subject.finish(ring), 3, per_producer, ordered=subject.ordered)


@contextmanager
def collecting_often(called: Callable[[str, dict[str, int]], None]) -> Iterator[None]:
    """Collections at every few allocations, before and after each of which `called`
    runs.
    """
    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()  # what is there already would make each of them long
    gc.callbacks.append(called)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(called)
        gc.unfreeze()


def forked(work: Callable[[int], None], number: int) -> int:
    """The number of the process."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(number)
            status = 0
        finally:
            os._exit(status)
    return child


def patient(work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, but a worker that gets nothing leaves the processor to the others:
    there are more processes than processors.
    """

    def worked(*arguments: int) -> Any:
        got = work(*arguments)
        if not got:
            time.sleep(0.0001)
        return got

    return worked


# ---------------------------------------------------------------- subjects


class Failed(Exception):
    """What goes wrong in a block, now and then."""


# One lap of 256 is longer than what an empty ring is sent back for.
RECORD = np.dtype([("producer", "i8"), ("number", "i8"), ("filler", "V2032")])
CAPACITY = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """A RingBuffer, by one record, by arrays and by blocks in turn.

    failing: now and then a block ends with an error, and what it was about is tried
        again.
    exchanges: as without a GIL. path: in a file that processes share.
    """

    failing: bool = False
    exchanges: bool = False
    path: str | None = None

    @property
    def ordered(self) -> bool:
        return not self.failing  # what one consumer gave back, another may get after newer ones

    def open(self) -> RingBuffer:
        ring = RingBuffer(CAPACITY, RECORD, path=self.path)
        if self.exchanges:
            ring._use_exchanges()
        return ring

    def producer(self, ring: RingBuffer, number: int) -> Push:
        handle = ring.producer()
        turn = 0

        def reserve(at: int, many: int) -> int:
            fail = self.failing and turn % 5 == 0
            with handle.reserve(many) as span:
                span["producer"] = number
                span["number"] = np.arange(at, at + len(span)) + fail * 10**9
                if fail:
                    raise Failed
                return len(span)

        def push(at: int, end: int) -> int:
            nonlocal turn
            turn += 1
            many = min(1 + at % 40, end - at)
            if turn % 3 == 0:
                record: Any = (number, at, b"")
                if turn % 2 == 0:
                    record = np.array([record], RECORD)[0]
                return int(handle.try_push(record))
            if turn % 3 == 1:
                try:
                    return reserve(at, many)
                except Failed:
                    return 0
            records = np.zeros(many, RECORD)
            records["producer"] = number
            records["number"] = np.arange(at, at + many)
            return handle.push_many(records)

        return push

    def consumer(self, ring: RingBuffer, number: int) -> Pop:
        handle = ring.consumer()
        turn = 0

        def peek() -> list[Item]:
            with handle.peek(30) as span:
                got = items_of(np.array(span["producer"]), np.array(span["number"]))
                if self.failing and turn % 4 == 0:
                    raise Failed
                return got

        def pop() -> list[Item]:
            nonlocal turn
            turn += 1
            if turn % 3 == 0:
                try:
                    return peek()
                except Failed:
                    return []  # if it was the last round, what was given back is found by `finish`
            if turn % 3 == 1:
                one = handle.try_pop()
                return [(int(one["producer"]), int(one["number"]))] if one is not None else []
            records = handle.pop_many(1 + turn % 60)
            return items_of(records["producer"], records["number"])

        return pop

    def finish(self, ring: RingBuffer) -> list[Item]:
        records = ring.pop_many()
        rest = items_of(records["producer"], records["number"])
        assert ring._check() == (0, 0)
        assert len(ring) == 0
        assert ring.push_many(np.zeros(CAPACITY, RECORD)) == CAPACITY, "room was lost"
        return rest


def items_of(producers: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> list[Item]:
    return list(zip(producers.tolist(), numbers.tolist(), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbers:
    """A RingBuffer of plain ints, one at a time: the shortest way through the code."""

    exchanges: bool = False
    path: str | None = None
    ordered: bool = True

    def open(self) -> RingBuffer:
        ring = RingBuffer(64, "i8", path=self.path)
        if self.exchanges:
            ring._use_exchanges()
        return ring

    def producer(self, ring: RingBuffer, number: int) -> Push:
        push = ring.producer().try_push
        return lambda at, end: int(push(number << 32 | at))

    def consumer(self, ring: RingBuffer, number: int) -> Pop:
        pop = ring.consumer().try_pop

        def one() -> list[Item]:
            got = pop()
            return [] if got is None else [(got >> 32, got & 0xFFFFFFFF)]

        return one

    def finish(self, ring: RingBuffer) -> list[Item]:
        assert ring._check() == (0, 0)
        assert ring.push_many(range(64)) == 64, "room was lost"
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lines:
    """A MessageRing, by one message, by lists and by lines in turn; messages of many
    lengths.
    """

    capacity_bytes: int = 1 << 14
    path: str | None = None
    ordered: bool = True

    def open(self) -> MessageRing:
        return MessageRing(self.capacity_bytes, path=self.path)

    def producer(self, ring: MessageRing, number: int) -> Push:
        def push(at: int, end: int) -> int:
            batch = [
                b"%d:%d:" % (number, i) + b"." * (i % 50)
                for i in range(at, min(at + 1 + at % 97, end))
            ]
            if at % 3 == 0:
                return ring.push_many(batch)
            if at % 3 == 1:
                return ring.push_lines(b"\n".join(batch), True)[0]
            return int(ring.try_push(batch[0]))

        return push

    def consumer(self, ring: MessageRing, number: int) -> Pop:
        turn = 0

        def pop() -> list[Item]:
            nonlocal turn
            turn += 1
            items = []
            if turn % 3 == 0:
                one = ring.try_pop()
                messages = [] if one is None else [one]
            else:
                messages = ring.pop_many(1 + turn % 200).tolist()
            for message in messages:
                producer, at, dots = message.split(b":")
                assert len(dots) == int(at) % 50
                items.append((int(producer), int(at)))
            return items

        return pop

    def finish(self, ring: MessageRing) -> list[Item]:
        ring._check()
        assert len(ring) == 0
        assert ring.used_bytes == 0
        return []
