"""RingBuffer against deques, at the edges of its widths, in all of its modes."""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringbuf import RingBuffer
from tests.support.models import share_and_proof
from tests.support.ring_buffer import MODES


class Run:
    """One push or reservation, in the order of claims: what the consumers will see of
    it, and whether they can yet.
    """

    def __init__(self, records: list[int], *, ready: bool) -> None:
        self.records = deque(records)
        self.ready = ready


class RecordMachine(RuleBasedStateMachine):
    """Every operation against deques; positions start anywhere, blocks are held open
    and end in any order, well or not.
    """

    @initialize(
        capacity=st.sampled_from([2, 8, 64]),
        position=st.sampled_from([0, 2**31 - 64, 2**32 - 64, 2**61 - 64, 2**63 - 64, 2**64 - 64]),
        mode=st.sampled_from(MODES),
    )
    def make(self, capacity: int, position: int, mode: str) -> None:
        self.shared = mode == "shared"
        self.directory = tempfile.TemporaryDirectory()
        path = Path(self.directory.name) / "ring" if self.shared else None
        self.ring = RingBuffer(capacity, np.int64, path=path)
        if position and not (self.shared and position > 2**62):
            self.ring._start_at(position)
        if mode == "exchanges":
            self.ring._use_exchanges()
        # The pushing and the popping side could as well be two processes.
        self.popping = RingBuffer.attach(path) if path is not None else self.ring
        self.capacity = capacity
        self.runs: deque[Run] = deque()
        self.number = 0
        self.given_back: list[list[int]] = []  # what peeks gave back, each list in order
        self.reserved: list[tuple[Any, Run]] = []
        self.peeked: list[tuple[Any, list[int]]] = []
        self.escaped: list[Any] = []

    @property
    def undisturbed(self) -> bool:
        """No block is open, and none left anything: then room is known exactly."""
        left = self.escaped or self.given_back or any(not run.records for run in self.runs)
        return not (self.reserved or self.peeked or left)

    def numbers(self, count: int) -> list[int]:
        self.number += count
        return list(range(self.number - count, self.number))

    def waiting(self) -> int:
        return sum(len(run.records) for run in self.runs if run.ready) + sum(
            map(len, self.given_back)
        )

    def readable(self) -> list[int]:
        """What consumers would get now, in order: what was given back, oldest first,
        then all before an open reservation.
        """
        found = [number for part in sorted(self.given_back) for number in part]
        for run in self.runs:
            if not run.ready:
                break
            found += run.records
        return found

    def take(self, count: int) -> list[int]:
        """Take that many off the front of what is readable."""
        taken: list[int] = []
        self.given_back.sort()
        while count > len(taken) and self.given_back:
            part = self.given_back[0]
            taken.append(part.pop(0))
            if not part:
                del self.given_back[0]
        while count > len(taken):
            if self.runs[0].records:
                taken.append(self.runs[0].records.popleft())
            if not self.runs[0].records:
                self.runs.popleft()
        while self.runs and self.runs[0].ready and not self.runs[0].records:
            self.runs.popleft()
        return taken

    def pushed(self, records: list[int]) -> None:
        if records:
            self.runs.append(Run(records, ready=True))

    @rule(
        count=st.integers(0, 80),
        kind=st.sampled_from(["array", "list", "other dtype", "strided", "swapped"]),
    )
    def push_many(self, count: int, kind: str) -> None:
        given = self.numbers(count)
        dtype: Any = {"other dtype": np.int32, "swapped": ">i8"}.get(kind, np.int64)
        array = np.array(given, dtype)
        room = self.capacity - self.waiting()
        exact = self.undisturbed
        if kind == "list":
            pushed = self.ring.push_many(given)
        else:
            pushed = self.ring.push_many(np.repeat(array, 2)[::2] if kind == "strided" else array)
        assert pushed == min(count, room) if exact else pushed <= min(count, room)
        self.pushed(given[:pushed])

    @rule()
    def try_push(self) -> None:
        given = self.numbers(1)
        room, exact = self.capacity - self.waiting(), self.undisturbed
        if self.ring.try_push(given[0]):
            assert room > 0
            self.pushed(given)
        else:
            assert room == 0 or not exact

    @rule()
    def try_pop(self) -> None:
        expected = self.readable()[:1]
        got = self.popping.try_pop()
        assert got == (expected[0] if expected else None)
        assert got is None or type(got) is int
        assert self.take(len(expected)) == expected

    @rule(count=st.integers(1, 80), into=st.booleans())
    def pop_many(self, count: int, into: bool) -> None:
        out = np.full(count, -1, np.int64) if into else None
        got = self.popping.pop_many(count, out)
        expected = self.readable()[:count]
        assert got.tolist() == expected
        assert self.take(len(expected)) == expected
        if out is not None:
            assert np.shares_memory(got, out) or len(got) == 0
            assert out[len(got) :].tolist() == [-1] * (count - len(got))

    @rule(count=st.integers(1, 80))
    def reserve(self, count: int) -> None:
        block = self.ring.reserve(count)
        span = block.__enter__()
        if len(span):
            given = self.numbers(len(span))
            span[:] = given
            self.runs.append(Run(given, ready=False))
            self.reserved.append((block, self.runs[-1]))
        else:
            block.__exit__(None, None, None)
            assert not self.undisturbed or self.waiting() == self.capacity

    @precondition(lambda self: self.reserved)
    @rule(
        data=st.data(),
        end=st.sampled_from(["well", "error", "escape", "error and escape", "forgotten"]),
    )
    def end_reserve(self, data: st.DataObject, end: str) -> None:
        if self.shared and "escape" in end:
            end = "error"  # it would delay what is behind it: see the test of that
        block, run = self.reserved.pop(data.draw(st.integers(0, len(self.reserved) - 1)))
        run.ready = True
        if end == "well":
            block.__exit__(None, None, None)
            return
        run.records.clear()
        if "escape" in end:
            self.escaped.append(np.asarray(block))
        if end == "forgotten":
            del block
        elif end == "escape":
            with pytest.raises(BufferError, match="still alive"):
                block.__exit__(None, None, None)
        else:
            block.__exit__(KeyError, KeyError(), None)

    @precondition(lambda self: self.escaped)
    @rule(data=st.data(), gone=st.booleans())
    def use_escaped(self, data: st.DataObject, gone: bool) -> None:
        place = data.draw(st.integers(0, len(self.escaped) - 1))
        self.escaped[place][:] = -99  # no consumer may ever see this
        if gone:
            del self.escaped[place]

    @rule(count=st.integers(1, 80))
    def peek(self, count: int) -> None:
        block = self.popping.peek(count)
        span = block.__enter__()
        readable = self.readable()
        taken = self.take(len(span))
        assert list(span) == taken == readable[: len(span)]
        assert len(span) or not readable
        if taken:
            self.peeked.append((block, taken))

    @precondition(lambda self: self.peeked)
    @rule(data=st.data(), end=st.sampled_from(["well", "error", "escape", "forgotten"]))
    def end_peek(self, data: st.DataObject, end: str) -> None:
        block, taken = self.peeked.pop(data.draw(st.integers(0, len(self.peeked) - 1)))
        if end == "well":
            block.__exit__(None, None, None)
            return
        self.given_back.append(taken)
        if end == "error":
            block.__exit__(KeyError, KeyError(), None)
        elif end == "escape":
            array = np.asarray(block)
            assert not array.flags.writeable
            with pytest.raises(BufferError, match="given back"):
                block.__exit__(None, None, None)
        else:
            del block

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "ring"):
            return
        reserved, taken = self.ring._check()
        assert reserved == sum(len(run.records) for _, run in self.reserved)
        assert taken >= sum(len(one) for _, one in self.peeked)
        if not self.escaped:
            assert taken == sum(len(one) for _, one in self.peeked)
        assert len(self.ring) == self.waiting()

    def teardown(self) -> None:
        if not hasattr(self, "ring"):
            return
        for block, _ in self.reserved + self.peeked:
            block.__exit__(None, None, None)
        for _, run in self.reserved:
            run.ready = True
        self.escaped.clear()
        assert self.ring.pop_many().tolist() == self.readable()
        assert self.ring._check() == (0, 0)
        assert self.ring.push_many(list(range(self.capacity))) == self.capacity, "room was lost"
        self.directory.cleanup()


TestRecordModel, TestRecordModelInFull = share_and_proof(RecordMachine, examples=200, steps=60)
