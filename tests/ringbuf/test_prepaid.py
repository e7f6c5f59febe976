"""The entrance of single events: nothing is in between its answers, with any number of
threads.
"""

from __future__ import annotations

import gc
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from ringbuf import MessageRing
from ringbuf._messages.prepaid import Entrance, Entrances, Gate, Purse, settle_stores


class Way:
    """An entrance that is filled with `fill` admissions at a time."""

    def __init__(self, ring: MessageRing, fill: int = 3, pace: float = 0.0) -> None:
        self.ring, self.gate, self.purse = ring, Gate(), Purse()
        self.filled = 0
        self.fill_with = fill
        self.arrived: list[int] = []
        self.ready: tuple[set[Any], list[Any]] = (set(), [])
        self.hold: tuple[set[Any], list[Any]] = (set(), [])
        self.entrance = Entrance()
        self.entrance._open(
            ring,
            self.gate,
            self.purse,
            self.fill,
            self.arrived.append,
            self.ready,
            self.hold,
            pace,
        )

    def fill(self) -> None:
        self.filled += self.fill_with
        self.purse.put(self.fill_with)


def test_each_event_takes_one_admission_out() -> None:
    way = Way(MessageRing(1 << 16))
    for i in range(7):
        assert way.entrance.try_add(b"%d" % i)
    assert (way.filled, way.purse.unused, way.purse.used) == (9, 2, 7)
    assert way.arrived == list(range(7))
    assert way.ring.pop_many().tolist() == [b"%d" % i for i in range(7)]
    assert way.entrance.try_add("\u00e4")
    assert way.ring.pop_many().tolist() == ["\u00e4".encode()]


def test_without_admissions_nothing_enters() -> None:
    way = Way(MessageRing(1 << 16), fill=0)
    assert not way.entrance.try_add(b"x")
    assert (way.ring.next_seq, way.purse.used) == (0, 0)


@pytest.mark.parametrize(
    "event",
    [None, 1, bytearray(b"a"), memoryview(b"a"), "\ud800", b"x" * 5000, np.bytes_(b"a"), [b"a"]],
)
def test_what_is_no_plain_event_changes_nothing(event: Any) -> None:
    way = Way(MessageRing(4096))
    assert not way.entrance.try_add(event)
    assert (way.filled, way.purse.unused, way.purse.used, way.ring.next_seq) == (0, 0, 0, 0)


def test_a_full_ring_gives_the_admission_back() -> None:
    way = Way(MessageRing(4096))
    while way.entrance.try_add(b"x" * 900):
        pass
    assert way.purse.unused + way.purse.used == way.filled
    assert way.purse.used == way.ring.next_seq


def test_a_closed_ring_and_a_shut_gate_let_nothing_in(tmp_path: Any) -> None:
    for path in (None, tmp_path / "ring"):
        way = Way(MessageRing(4096, path=path))
        assert way.entrance.try_add(b"x")
        way.ring.close()
        assert not way.entrance.try_add(b"x")
        assert (way.purse.used, way.purse.unused) == (1, 2)
    way = Way(MessageRing(4096))
    way.gate.shut()
    assert way.gate.is_shut
    assert not way.entrance.try_add(b"x")
    assert not way.filled


def test_it_tells_of_an_arrival_while_something_waits() -> None:
    way = Way(MessageRing(1 << 16), pace=3600.0)
    assert way.entrance.try_add(b"first")
    assert way.entrance.try_add(b"quiet")
    assert way.arrived == [0]
    for sleepers, listeners in (way.ready, way.hold):
        for waiting in (sleepers, listeners):
            sleepers.update([1] if waiting is sleepers else [])
            listeners.extend([1] if waiting is listeners else [])
            before = len(way.arrived)
            assert way.entrance.try_add(b"x")
            waiting.clear()
            assert way.entrance.try_add(b"y")
            assert len(way.arrived) == before + 1
    settle_stores()


def test_what_a_callback_raises_comes_out_and_the_event_is_in() -> None:
    def refuse(*_: object) -> None:
        raise OSError("no")

    way = Way(MessageRing(4096))
    way.entrance = Entrance()
    way.entrance._open(way.ring, way.gate, way.purse, way.fill, refuse, way.ready, way.hold, 0.0)
    with pytest.raises(OSError, match="no"):
        way.entrance.try_add(b"x")
    assert (way.purse.used, way.ring.next_seq) == (1, 1)


def test_what_was_not_opened_is_of_no_use() -> None:
    assert not Entrance().try_add(b"x")
    assert not Entrances()._try_add(b"x", 1)
    with pytest.raises(TypeError, match="producer"):
        Entrance().add(b"x")
    with pytest.raises(TypeError, match="add_event"):
        Entrances().add_event(b"x")
    way = Way(MessageRing(4096))
    with pytest.raises(TypeError, match="once"):
        way.entrance._open(way.ring, way.gate, way.purse, way.fill, print, way.ready, way.hold, 0.0)
    for one in (way.entrance, way.gate, way.purse, Entrances()):
        with pytest.raises(TypeError):
            pickle.dumps(one)
    wrong: Any = (1,)
    with pytest.raises(TypeError, match="entrances"):
        Entrances()._open_entrances(wrong, way.entrance)


def test_a_cycle_is_collected() -> None:
    way = Way(MessageRing(4096))
    way.entrance.try_add(b"x")
    gone: list[int] = []

    class Told:
        def __del__(self) -> None:
            gone.append(1)

    way.ready[1].append((way, Told()))
    del way
    gc.collect()
    assert gone == [1]


@pytest.mark.threads
def test_threads_use_each_admission_once() -> None:
    """Of one entrance, while another thread takes back what is unused."""
    way = Way(MessageRing(1 << 20), fill=0, pace=0.001)
    done, filled, taken = threading.Event(), 0, 0
    entered = [0] * 3

    def add(which: int) -> None:
        while not done.is_set():
            entered[which] += way.entrance.try_add(b"%d" % which)

    threads = [threading.Thread(target=add, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    popped = 0
    for i in range(2_000):
        way.purse.put(i % 7)
        filled += i % 7
        if i % 3 == 0:
            taken += way.purse.take_unused()
        popped += len(way.ring.pop_many())
    done.set()
    for thread in threads:
        thread.join()
    popped += len(way.ring.pop_many())
    assert sum(entered) == way.purse.used == way.ring.next_seq == popped
    assert filled == taken + way.purse.used + way.purse.unused
