"""SpillStore: numbers and gaps, how little opening costs, and threads."""

from __future__ import annotations

import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from backpressure.base.errors import BufferClosed, ConfigError
from backpressure.spill import LocalFileSystem, Run, SpillConfig, SpillStore
from backpressure.spill.blocks import Link
from backpressure.spill.segments import Segment, frame_segment_header
from backpressure.spill.writer import level_for
from backpressure.testing import RecordingFileSystem
from tests.support.spill_store import everything, got, put
from tests.support.threads import run_threads
from tests.torture.journal import BUFFER_ID, LANE, SMALL, columns, disk_with_lane, opened

# ---------------------------------------------------------------- numbers


def test_what_goes_in_comes_out() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        assert store.read(0, 10, 100) is None
        put(store, 0, b"a", b"", b"ccc")
        put(store, 3, b"d" * 5000)
        assert got(store.read(0, 2, 100)) == (0, [b"a", b""])
        assert got(store.read(2, 10, 100)) == (2, [b"ccc"])
        assert got(store.read(3, 10, 1)) == (3, [b"d" * 5000]), (
            "one event alone may be larger than max_bytes"
        )
        assert got(store.read(0, 10, 1 << 20)) == (0, [b"a", b"", b"ccc", b"d" * 5000])
        assert (store.first_seq, store.end_seq, store.durable_seq, store.events_on_disk) == (
            0,
            4,
            0,
            4,
        )
        store.sync()
        assert store.durable_seq == 4


def test_gaps_are_no_losses() -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 100, b"x")
        assert (store.first_seq, store.end_seq) == (100, 101)
        put(store, 200, b"y")
        put(store, 201, b"z")
        assert got(store.read(0, 10, 100)) == (100, [b"x"]), "a run ends at a gap"
        assert got(store.read(101, 10, 100)) == (200, [b"y", b"z"])
        store.ack(100, 1)
        assert store.first_seq == 200, "the reader has seen the gap"
        store.ack(201, 1)
        assert (store.first_seq, store.events_on_disk) == (200, 1)
        assert got(store.read(0, 10, 100)) == (200, [b"y"])
    with opened(disk) as store:
        assert everything(store) == {200: b"y"}
        store.ack(200, 1)
        assert (store.first_seq, store.events_on_disk, store.stats().lost_events) == (202, 0, 0)
        # Nothing waits: the next numbers may start anywhere, and those between are
        # settled.
        put(store, 1 << 40, b"far")
        assert store.first_seq == 1 << 40


@pytest.mark.parametrize("start", [(1 << 32) - 2, (1 << 63) - 2, (1 << 64) - 5])
def test_large_numbers(start: int) -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, start, b"a", b"b", b"c", b"d")
        store.ack(start + 1, 1)
    with opened(disk) as store:
        assert everything(store) == {start: b"a", start + 2: b"c", start + 3: b"d"}
        if start + 4 == (1 << 64) - 1:
            with pytest.raises(ValueError, match="first_seq"):
                put(store, start + 4, b"one too many")


def test_bad_calls_change_nothing() -> None:
    disk = disk_with_lane()
    store = opened(disk)
    put(store, 5, b"a", b"b")
    data, offsets = columns([b"ab", b"c"])
    refused: list[tuple[type[Exception], tuple[Any, ...]]] = [
        (ValueError, (6, data, offsets)),
        (ValueError, (7, data, offsets, 1.5)),
        (ValueError, (7, data, offsets, float("nan"))),
        (ValueError, (7, data, offsets, 0.0, -1)),
        (ValueError, (7, data, offsets[::-1])),
        (ValueError, (7, data[:1], offsets)),
        (ValueError, (7, data, offsets - 1)),
        (TypeError, (7, data.astype(np.int8), offsets)),
        (TypeError, (7, data[::2], offsets)),
        (TypeError, (7, data, offsets.astype(np.int32))),
        (TypeError, (7, data, offsets[:0])),
    ]
    for error, arguments in refused:
        with pytest.raises(error):
            store.append(*arguments)
    for first, count in [(5, 3), (-1, 1), (7, 1), (5, -1)]:
        with pytest.raises(ValueError, match=r"stored|count"):
            store.ack(first, count)
    store.ack(5, 1)
    with pytest.raises(ValueError, match="acked already"):
        store.ack(5, 2)
    with pytest.raises(ValueError, match="max_events"):
        store.read(0, 0, 1)
    assert everything(store) == {6: b"b"}
    store.append(7, data, offsets[:1])
    assert store.end_seq == 7, "no events are no event"
    store.close()
    store.close()
    calls: list[Callable[[], object]] = [
        lambda: put(store, 7, b"x"),
        lambda: store.read(0, 1, 1),
        lambda: store.ack(6, 1),
        store.sync,
    ]
    for call in calls:
        with pytest.raises(BufferClosed):
            call()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("segment_bytes", 100),
        ("block_bytes", 0),
        ("max_disk_bytes", 100),
        ("slowest_level", 23),
        ("fastest_level", 4),
        ("reserve_bytes", -1),
        ("ack_record_bytes", 1000),
        ("max_quarantine_bytes", 1.5),
    ],
)
def test_config_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        SpillConfig(**{field: value})
    assert error.value.field == field


def test_the_level_follows_the_pressure_within_its_bounds() -> None:
    def levels(**bounds: int) -> list[int | None]:
        config = SpillConfig(**bounds)
        return [level_for(pressure, config) for pressure in (0.0, 0.5, 0.9, 1.0)]

    assert levels(slowest_level=3) == [3, 1, -5, None]
    assert levels() == [1, 1, -5, None]
    assert levels(slowest_level=1, fastest_level=1) == [1, 1, 1, 1]
    assert levels(slowest_level=3, fastest_level=-5) == [3, 1, -5, -5]


def test_pressure_trades_room_for_time() -> None:
    disk = disk_with_lane()
    with opened(disk, SpillConfig()) as store:
        event = b"the same words again and again " * 200
        sizes = []
        for number, pressure in enumerate((0.0, 1.0)):
            before = store.stats().stored_bytes
            put(store, number, event, pressure=pressure)
            sizes.append(store.stats().stored_bytes - before)
        assert sizes[0] < len(event) / 10
        assert sizes[1] > len(event)
        noise = random.Random(1).randbytes(5000)
        before = store.stats().stored_bytes
        put(store, 2, noise)
        assert store.stats().stored_bytes - before < 5150, (
            "what compression makes larger is stored as it is"
        )
        assert everything(store) == {0: event, 1: event, 2: noise}


# ---------------------------------------------------------------- a large directory


def test_opening_reads_headers_only_and_remembers_little(tmp_path: Path) -> None:
    """100 GB in sparse files: four calls and 96 bytes for each but the newest.

    The index takes a few hundred bytes each.
    """
    lane = tmp_path / "lane"
    lane.mkdir()
    count = 100_000_000_000 // SpillConfig().segment_bytes
    per_segment = 1000
    for serial in range(count):
        base = serial * per_segment
        link = Link(max(base - 1, 0), base, base)
        segment = Segment(serial, base, serial.to_bytes(8, "little"), link, 0)
        path = lane / segment.name
        path.write_bytes(frame_segment_header(1, BUFFER_ID, segment))
        os.truncate(path, SpillConfig().segment_bytes)
    os.truncate(path, 96)
    recording = RecordingFileSystem(LocalFileSystem())
    tracemalloc.start()
    store = SpillStore(lane, 1, BUFFER_ID, None, recording)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    read = sum(call.arguments[1] for call in recording.calls if call.name == "pread")
    assert store.stats().segments == count
    assert store.events_on_disk == per_segment * (count - 1)
    assert store.bytes_on_disk > 99_000_000_000
    assert read < 100 * count + 10_000
    # open, size, pread, close for each
    assert (
        sum(call.name in ("open", "pread", "size", "close") for call in recording.calls)
        < 4 * count + 20
    )
    assert used - len(recording.calls) * 300 < 1000 * count
    store.close()


def test_reading_holds_two_segments_at_most(tmp_path: Path) -> None:
    lane = tmp_path / "lane"
    lane.mkdir()
    config = SpillConfig(segment_bytes=1 << 20, block_bytes=64 * 1024)
    event = np.frombuffer(random.Random(6).randbytes(1000), np.uint8)
    data, offsets = np.tile(event, 1000), np.arange(0, 1_000_001, 1000)
    with SpillStore(lane, 1, BUFFER_ID, config) as store:
        for first in range(0, 30_000, 1000):
            store.append(first, data, offsets, 1.0)
        tracemalloc.start()
        seq = 0
        while isinstance(run := store.read(seq, 100, 1 << 20), Run):
            seq = run.end_seq
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seq == 30_000
        assert peak < 2 * (config.segment_bytes + (1 << 20))


# ---------------------------------------------------------------- threads


def test_one_appends_while_others_read_and_ack(tmp_path: Path) -> None:
    lane = tmp_path / "lane"
    lane.mkdir()
    config = SpillConfig(segment_bytes=64 * 1024, block_bytes=4096, reserve_bytes=4096)
    total = 20_000
    errors: list[BaseException] = []
    unacked: list[tuple[int, int]] = []
    lock = threading.Lock()
    reading_done = threading.Event()

    with SpillStore(lane, 1, BUFFER_ID, config) as store:

        def append() -> None:
            rng = random.Random(7)
            seq = 0
            while seq < total:
                events = [
                    b"%d" % (seq + index) for index in range(min(rng.randint(1, 200), total - seq))
                ]
                put(store, seq, *events, pressure=rng.random())
                seq += len(events)
                if rng.random() < 0.05:
                    store.sync()

        def read() -> None:
            seq = 0
            while seq < total and not errors:
                run = store.read(seq, 300, 1 << 20)
                if run is None:
                    continue
                first, events = got(run)
                assert first == seq
                assert events == [b"%d" % number for number in range(first, first + len(events))]
                seq += len(events)
                with lock:
                    unacked.append((first, len(events)))
            reading_done.set()

        def ack(seed: int) -> None:
            rng = random.Random(seed)
            while not errors:
                done = reading_done.is_set()
                with lock:
                    one = unacked.pop(rng.randrange(len(unacked))) if unacked else None
                if one is not None:
                    store.ack(*one)
                elif done:
                    return

        run_threads((append, read, lambda: ack(1), lambda: ack(2)), errors)
        assert (store.events_on_disk, store.first_seq, store.end_seq) == (0, total, total)
        store._check()


def test_another_buffer_id_is_another_store() -> None:
    disk = disk_with_lane()
    opened(disk).close()
    with SpillStore(LANE, 4, UUID(int=1), SMALL, disk) as store:
        assert store.end_seq == 0, "an empty directory belongs to the next buffer"
