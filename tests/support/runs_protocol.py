"""The protocol of RingBuffer in memory, step by step, for `interleave.explore`: what is
in `_records/positions.pxd`, under the same names, as on a build without a GIL; without
blocks, so without HELD and RETURNED.

`read` joins a position with how many records are known to be published from there:
narrow, the low bits of the position, extended from `tail`; whole, all of it. A record
is told by its position, which never comes again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import Any

from tests.support.interleave import Memory, Violation, exchange, ghost, load, run_alone, store

__all__ = ["RunsProtocol", "Runs", "runs_script"]

Steps = Generator[tuple[Any, ...], Any, Any]

NOTHING, PUBLISHED, RELEASED, VOID = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsProtocol:
    """
    capacity: records, a power of two.
    narrow: bits of the position in `read`; None: all of it.
    beyond: an empty ring that has come further goes back to its start; None: never.
    without: steps that are left out, to show that this is found.
    """

    capacity: int = 2
    narrow: int | None = None
    beyond: int | None = None
    participants: int = 2
    without: frozenset[str] = frozenset()


class Runs:
    def __init__(self, protocol: RunsProtocol) -> None:
        self.protocol = p = protocol
        self.capacity = p.capacity
        self.mask = p.capacity - 1
        self.memory = m = Memory()
        first = p.capacity
        self.write = m.word("write", first)
        self.read = m.word("read", self.make_read(first, 0))
        self.tail = m.word("tail", first)
        self.seen = m.word("seen", first)
        self.index = m.words("index", (NOTHING, 0, 0), p.capacity)
        self.data = m.words("record", None, p.capacity)
        self.g_pushed = m.word("pushed", ())
        self.g_read = m.word("where read is", first)
        self.g_taken = m.word("taken", (1 << first) - 1)
        self.g_released = m.word("released", (1 << first) - 1)

    def make_read(self, position: int, known: int) -> tuple[int, int]:
        if self.protocol.narrow is not None:
            position &= (1 << self.protocol.narrow) - 1
        return position, known

    def position_of(self, read: tuple[int, int]) -> Generator[Any, Any, int]:
        if self.protocol.narrow is None:
            return read[0]
        tail = yield load(self.tail)
        return self.full(read[0], tail)

    def full(self, position: int, tail: int) -> int:
        if self.protocol.narrow is None:
            return position
        return tail + ((position - tail) & (1 << self.protocol.narrow) - 1)

    def does(self, what: str) -> bool:
        return what not in self.protocol.without

    # ---------------------------------------------------------------- producers

    def room(self, most: int, write: int) -> Generator[Any, Any, tuple[int, int]]:
        while True:
            seen = yield load(self.seen)
            free = self.capacity - (write - seen)
            if not most <= free <= self.capacity:
                tail = yield load(self.tail)
                yield store(self.seen, tail)
                free = self.capacity - (write - tail)
            # Less than 0 is, as an unsigned number, more than any capacity.
            if 0 <= free <= self.capacity:
                return free, write
            write = yield load(self.write)

    def push(self, count: int, value: int) -> Generator[Any, Any, int]:
        """How many were pushed."""
        write = yield load(self.write)
        while True:
            free, write = yield from self.room(count, write)
            if free < count:
                passed = yield from self.pass_void()
                if passed:
                    continue
            many = min(count, free)
            if many == 0:
                return 0
            found = yield exchange(self.write, write, write + many)
            if found == write:
                break
            write = found
        del found, free
        yield ghost(self.note_claim, write, many, value)
        for at in range(many):
            yield store(self.data[(write + at) & self.mask], value + at)
        yield store(self.index[write & self.mask], (PUBLISHED, many, write))
        return many

    # ---------------------------------------------------------------- consumers

    def take(self, most: int) -> Generator[Any, Any, tuple[int, int] | None]:
        """Position and count of what was taken and read; None: nothing there."""
        read = yield load(self.read)
        while True:
            at = yield from self.position_of(read)
            end, known = at, read[1]
            while end - at < most:
                if known == 0:
                    kind, length, of = yield load(self.index[end & self.mask])
                    if kind != PUBLISHED or of != end:
                        break
                    known = length
                many = min(known, most - (end - at))
                end += many
                known -= many
            kind = length = of = many = None
            if end != at:
                found = yield exchange(self.read, read, self.make_read(end, known))
                if found == read:
                    yield ghost(self.note_take, at, end - at)
                    break
                read = found
                continue
            passed = yield from self.pass_void()
            seen = read
            read = yield load(self.read)
            if read == seen and not passed:
                return None
            del passed, seen
        for position in range(at, end):
            value = yield load(self.data[position & self.mask])
            yield ghost(self.note_copy, position, value)
        return at, end - at

    def pass_void(self) -> Generator[Any, Any, bool]:
        read = yield load(self.read)
        at = yield from self.position_of(read)
        if read[1] != 0:
            return False
        kind, count, of = yield load(self.index[at & self.mask])
        if of != at or kind != VOID:
            return False
        found = yield exchange(self.read, read, self.make_read(at + count, 0))
        if found == read:
            yield ghost(self.note_take, at, count)
            yield from self.release(at, count)
        return True

    def release(self, position: int, count: int) -> Steps:
        tail = yield load(self.tail)
        if tail == position:
            tail += count
            yield store(self.tail, tail)
            yield ghost(self.note_release, position, count)
        else:
            yield store(self.index[position & self.mask], (RELEASED, count, position))
            yield ghost(self.note_release, position, count)
            if not self.does("second load of tail"):
                return
            tail = yield load(self.tail)
            if tail != position:
                return
        yield from self.advance(tail)

    def advance(self, tail: int) -> Steps:
        while True:
            kind, count, of = yield load(self.index[tail & self.mask])
            if kind != RELEASED or of != tail:
                return
            found = yield exchange(self.tail, tail, tail + count)
            tail = tail + count if found == tail else found

    def rewind(self, beyond: int) -> Steps:
        tail = yield load(self.tail)
        count = self.capacity - (tail & self.mask)
        if tail & self.mask <= beyond:
            return
        found = yield exchange(self.write, tail, tail + count)
        if found == tail:
            yield store(self.index[tail & self.mask], (VOID, count, tail))
            yield from self.pass_void()

    # ---------------------------------------------------------------- ghosts

    def note_claim(
        self, words: list[Any], actor: int, position: int, count: int, value: int
    ) -> None:
        words[self.g_pushed] += tuple((position + at, value + at) for at in range(count))

    def note_take(self, words: list[Any], actor: int, position: int, count: int) -> None:
        if position != words[self.g_read]:
            raise Violation(f"takes from {position}, and {words[self.g_read]} is next")
        words[self.g_read] += count
        words[self.g_taken] |= ((1 << count) - 1) << position

    def note_copy(self, words: list[Any], actor: int, position: int, value: int) -> None:
        if (position, value) not in words[self.g_pushed]:
            raise Violation(f"reads {value} at {position}, which was not pushed there")

    def note_release(self, words: list[Any], actor: int, position: int, count: int) -> None:
        words[self.g_released] |= ((1 << count) - 1) << position

    def check(self, words: list[Any]) -> None:
        tail, write = words[self.tail], words[self.write]
        read = self.full(words[self.read][0], tail)
        if read != words[self.g_read]:
            raise Violation(f"`read` is at {read}, and all before {words[self.g_read]} was taken")
        if not tail <= read <= write <= tail + self.capacity:
            raise Violation(f"tail {tail}, read {read}, write {write}: out of order")
        if ~words[self.g_released] & (1 << tail) - 1:
            raise Violation(f"`tail` {tail} passes what is not released")
        pushed = words[self.g_pushed]
        if pushed and pushed[0][0] < tail:
            words[self.g_pushed] = tuple(one for one in pushed if one[0] >= tail)

    def at_end(self, state: tuple[Any, ...]) -> None:
        """When all have ended, nothing is lost and a whole lap has room."""
        words = list(state[: len(self.memory.values)])

        def run(steps: Steps) -> Any:
            nonlocal words
            words, result = run_alone(words, steps, self.protocol.participants, self.check)
            return result

        def drain() -> None:
            while (taken := run(self.take(self.capacity))) is not None:
                run(self.release(*taken))

        released = words[self.g_released] >> words[self.tail] & 1
        if released and words[self.tail] < words[self.write]:
            raise Violation(f"`tail` stands at {words[self.tail]}, which is released")
        drain()
        if run(self.push(self.capacity, 1000)) != self.capacity:
            raise Violation("no room for a whole lap, and the ring is empty")
        drain()
        if not words[self.tail] == words[self.g_read] == words[self.write]:
            raise Violation(f"`tail` is {words[self.tail]}, `write` {words[self.write]}")


def runs_script(ring: Runs, number: int, *operations: tuple[Any, ...]) -> Callable[[], Steps]:
    """A participant that does these operations, one after the other:

    ("push", count)    ("take", most)    ("release", n): its n-th take, if there was any
    """

    def steps() -> Steps:
        held: tuple[tuple[int, int] | None, ...] = ()
        for at, (operation, argument) in enumerate(operations):
            if operation == "push":
                yield from ring.push(argument, 100 * number + 10 * at)
            elif operation == "take":
                take = yield from ring.take(argument)
                held = (*held, take)
            else:
                take = held[argument]
                if take is not None:
                    yield from ring.release(*take)
                    if ring.protocol.beyond is not None:
                        yield from ring.rewind(ring.protocol.beyond)
            take = None

    return steps
