"""A consumer that stands still between its load of `read` and its exchange, while
others send the ring round.

Were positions 32 bits wide, after 2**32 granules, less than a second of traffic, the
word that the consumer has loaded would show the same bits again, its exchange would
succeed, and it would take a frame of an older round. Here the traffic of the others is
made in one step (`_start_at`), so that a round takes no time.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringbuf import MessageRing, Messages
from tests.torture.step_kill import Stepped, is_allowed, steps_until

ROUND = 1 << 32
GRANULES = 64
OLD, NEW = b"the old message", b"a new message, which is longer"


@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
@pytest.mark.platform
@pytest.mark.single_thread
@pytest.mark.uninstrumented
@pytest.mark.parametrize("times", [1, 3])
def test_a_consumer_that_is_stopped_for_a_round(tmp_path: Path, times: int, in_full: bool) -> None:
    if not is_allowed():
        pytest.skip("ptrace is not allowed here")
    path, told = tmp_path / "ring", tmp_path / "told"

    def fresh() -> MessageRing:
        path.unlink(missing_ok=True)
        told.unlink(missing_ok=True)
        ring = MessageRing(GRANULES * 64, path=path)
        ring.try_push(OLD)
        return ring

    def setup() -> Callable[[], object]:
        for _ in range(2):  # what is done at a first call only
            warm = MessageRing(4096, path=path.with_name(f"warm-{os.getpid()}"))
            os.unlink(f"{path.with_name('warm')}-{os.getpid()}")
            warm.try_push(OLD)
            warm.take(1)
        ring = MessageRing.attach(path)
        ring._take_participant_slot()

        def operation() -> None:
            messages = ring.take(1)
            told.write_bytes(repr((messages.tolist(), messages.first_seq)).encode())
            ring.release(messages)

        return operation

    def steps_to_take() -> int:
        ring = fresh()
        return steps_until(setup, lambda: ring.count() == 0)

    # The least of several: an allocator that fetches memory takes hundreds of steps
    # more, and without these the others would have taken the message before.
    taken = min(steps_to_take() for _ in range(3))
    met = 0
    for steps in range(taken - 400, taken + 20, 3 if in_full else 29):
        ring = fresh()
        child = Stepped(setup, steps)
        if ring.pop_many().tolist() == [OLD]:
            ring._start_at(GRANULES + times * ROUND, 1)
            ring.try_push(NEW)
            child.finish()
            assert told.read_text() == repr(([NEW], 1)), steps
            met += 1
        child.kill()
        ring._check()
    assert met > 5


@pytest.mark.platform
@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="from 3.12 on nothing is collected in the midst of a take"
)
def test_a_consumer_that_is_held_up_by_a_collection() -> None:
    """At each allocation of a take in turn, also the one between load and exchange."""
    met = [take_that_is_held_up(allocations) for allocations in range(1, 12)]
    assert {OLD, NEW} == set(met), "no collection came before its exchange, or none after it"


def take_that_is_held_up(allocations: int) -> bytes:
    """What is taken where the others use the ring in a collection, after this many
    allocations.
    """
    ring = MessageRing(GRANULES * 64)
    consumer = ring.consumer()
    seen: list[list[bytes]] = []
    ring.try_push(OLD)

    def hold(phase: str, _: Any) -> None:
        if phase == "start" and not seen:
            gc.set_threshold(0)
            seen.append(ring.pop_many().tolist())
            if seen == [[OLD]]:
                ring._start_at(GRANULES + ROUND, 1)
                ring.try_push(NEW)

    thresholds = gc.get_threshold()
    take = consumer.take
    gc.collect()
    gc.callbacks.append(hold)
    try:
        gc.set_threshold(allocations, 1, 1)
        messages: Messages = take(1)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(hold)
    got = messages.tolist()
    assert got == ([NEW] if seen == [[OLD]] else [OLD])
    consumer.release(messages)
    ring._check()
    assert ring.used_bytes == 0
    return got[0]


@pytest.mark.parametrize("position", [(1 << 32) - 3, (1 << 48) - 2, (1 << 58) - 1, (1 << 58) + 1])
def test_a_ring_far_along_its_line(position: int) -> None:
    """Where the halves of the words go round, and where it no longer goes back to its
    start.
    """
    ring = MessageRing(1 << 22)
    ring._start_at(position + (-position) % 64 + 65536, (1 << 63) - 2)
    for number in range(40):
        sent = [b"%d-%d" % (number, i) + b"." * 1000 for i in range(100)]
        first = ring.next_seq
        assert first == (1 << 63) - 2 + number * 100
        assert ring.push_many(sent) == 100
        got = ring.take()
        assert (got.tolist(), got.first_seq) == (sent, first)
        ring.release(got)
        ring._check()
    assert ring.used_bytes == 0
