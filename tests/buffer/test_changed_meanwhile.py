"""What is offered to a buffer stays the caller's, who may change it while the offer
waits: what is accepted does not change.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backpressure import BufferConfig, BufferManager, Durability, FlowControlConfig
from backpressure.buffer.config import WhenFull
from tests.support.buffers import EVENT, SMALL, drain, numbered
from tests.support.threads import background, until

EVENTS = numbered(30, size=800)  # a lane of SMALL holds a few of them


def fresh() -> list[bytes]:
    """The events, each an object that the list alone refers to."""
    return [bytes(bytearray(event)) for event in EVENTS]


def accepted(buffer: BufferManager) -> int:
    return buffer.stats().accepted


def take_all(buffer: BufferManager) -> list[bytes]:
    got: list[bytes] = []

    def all_are_there() -> bool:
        got.extend(drain(buffer))
        return len(got) >= len(EVENTS)

    until(all_are_there)
    return got


@pytest.mark.parametrize(
    "change", [list.clear, list.reverse, lambda events: events.extend([b"more"] * 1000)]
)
def test_a_list_may_change_while_its_offer_waits_for_room(
    change: Callable[[list[bytes]], object],
) -> None:
    buffer = BufferManager(SMALL)
    events = fresh()
    with background(lambda: buffer.add_events(events, timeout=30.0)):
        until(lambda: accepted(buffer))
        change(events)
        junk = [b"\xee" * len(EVENTS[0]) for _ in range(200)]  # where the items may have been
        assert take_all(buffer) == EVENTS
    assert len(junk) == 200


def test_a_list_may_change_while_its_offer_waits_for_tokens() -> None:
    flow = FlowControlConfig(max_events_per_second=1000.0, burst_size=10)
    buffer = BufferManager(BufferConfig(flow_control=flow))
    events = fresh()
    with background(lambda: buffer.add_events(events, timeout=30.0)):
        until(lambda: accepted(buffer))
        events.clear()
        assert take_all(buffer) == EVENTS


def test_a_list_may_change_while_its_offer_becomes_durable(tmp_path: Path) -> None:
    config = BufferConfig(directory=tmp_path, durability=Durability.COMMIT, lane_bytes=4096)
    with BufferManager(config) as buffer:
        events = fresh()
        with background(lambda: buffer.add_events(events, timeout=30.0)):
            until(lambda: accepted(buffer))
            events.clear()
            assert take_all(buffer) == EVENTS


def test_a_task_may_change_the_list_that_another_offers() -> None:
    buffer = BufferManager(SMALL)

    async def main() -> list[bytes]:
        events = fresh()
        offer = asyncio.create_task(buffer.aio.add_events(events, timeout=30.0))
        await asyncio.sleep(0)
        assert accepted(buffer) < len(EVENTS)
        events.clear()
        got: list[bytes] = []
        while len(got) < len(EVENTS):
            got += drain(buffer)
            await asyncio.sleep(0)
        assert (await offer).accepted == len(EVENTS)
        return got

    assert asyncio.run(main()) == EVENTS


def test_a_chunk_stays_as_long_as_it_is_while_its_lines_wait() -> None:
    buffer = BufferManager(SMALL)

    async def main(chunk: Any, shrink: Callable[[], object]) -> list[bytes]:
        offer = asyncio.create_task(buffer.aio.add_lines(chunk, timeout=30.0))
        await asyncio.sleep(0)
        with pytest.raises((BufferError, ValueError), match=r"re-?size"):
            shrink()
        got: list[bytes] = []
        while len(got) < len(EVENTS):
            got += drain(buffer)
            await asyncio.sleep(0)
        assert (await offer).consumed == len(chunk)
        return got

    text = b"\n".join(EVENTS)
    mutable = bytearray(text)
    assert asyncio.run(main(mutable, mutable.clear)) == EVENTS
    array = np.frombuffer(text, np.uint8).copy()
    assert asyncio.run(main(array, partial(array.resize, 1, refcheck=False))) == EVENTS
    mutable.clear()
    array.resize(1, refcheck=False)


def test_nothing_waits_for_lines_that_are_gone() -> None:
    buffer = BufferManager(BufferConfig(lane_bytes=4096, when_full=WhenFull.BLOCK))
    chunk = bytearray(b"\n".join(EVENTS))
    with background(lambda: buffer.add_lines(chunk, final=False)):
        until(lambda: accepted(buffer))
        chunk[:] = b"x" * len(chunk)
        drain(buffer)
    buffer.stats().check()


def test_a_full_buffer_and_a_list_that_changes_all_the_time() -> None:
    buffer = BufferManager(SMALL)
    events = [EVENT[:100] for _ in range(50)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            events.clear()
            events.extend(bytes(bytearray(EVENT[:100])) for _ in range(50))

    with background(change, stop=stop):
        for _ in range(200):
            buffer.add_events(events)
            assert set(drain(buffer)) <= {EVENT[:100]}
