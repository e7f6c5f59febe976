"""The edges of a buffer with fewer priorities than five: HTTP, metrics, the service,
the logging handler, the pump.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backpressure import BufferConfig, BufferManager, FlowControlConfig, InvalidEvents
from backpressure.buffer.from_mapping import build
from backpressure.buffer.single_events import SingleEventWriter
from backpressure.cli.pump.transfer import Transfer
from backpressure.http import create_app
from backpressure.logging import BufferHandler
from backpressure.metrics import exposition
from backpressure.service.explain import explain
from backpressure.service.feed import Feed
from backpressure.service.load import Mistakes, parse
from backpressure.service.service import Service
from backpressure.testing import MemorySink
from tests.support.buffers import drain_lanes
from tests.support.http import Client
from tests.support.threads import until

LEVELS = (1, 2, 3, 4, 5)

on_disk = pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux")


def config(levels: int, directory: Path | None = None) -> BufferConfig:
    return BufferConfig(
        lane_bytes=1 << 14,
        directory=directory,
        flow_control=FlowControlConfig(priority_levels=levels),
    )


def surplus(path: Path, levels: int, priority: int, event: bytes) -> BufferManager:
    """A buffer with fewer levels than its directory was made with, which holds that
    event of a priority beyond.
    """
    buffer = BufferManager(config(priority, path))
    buffer.add_events([event], priority)
    buffer.close(timeout=0)
    return BufferManager(config(levels, path))


# ---------------------------------------------------------------- HTTP


@pytest.mark.parametrize("levels", LEVELS)
def test_an_upload_beyond_is_refused_over_http(levels: int) -> None:
    buffer = BufferManager(config(levels))
    client = Client(buffer)
    for priority in (0, levels + 1, 6, 100):
        reply = client.post(f"/events?priority={priority}", content=b"a\n")
        assert reply.status_code == 422
        assert reply.json()["detail"].startswith("priority: ")
    assert buffer.stats().offered == 0
    for priority in range(1, levels + 1):
        assert client.post(f"/events?priority={priority}", content=b"a\n").status_code == 202
    assert client.post("/events", content=b"b\n").status_code == 202
    got = drain_lanes(buffer)
    assert got.pop(min(3, levels)) == [b"a", b"b"]
    assert got == {p: [b"a"] for p in range(1, levels + 1) if p != min(3, levels)}
    stats = client.get("/buffer/stats").json()
    assert list(stats["lanes"]) == [str(priority) for priority in range(1, levels + 1)]
    assert len(client.get("/buffer/flow-control").json()["rates"]) == levels


@pytest.mark.parametrize("levels", LEVELS)
def test_the_document_has_the_bounds_of_this_buffer(levels: int) -> None:
    document = create_app(BufferManager(config(levels))).openapi()
    parameters = document["paths"]["/events"]["post"]["parameters"]
    (schema,) = [one["schema"] for one in parameters if one["name"] == "priority"]
    assert (schema["minimum"], schema["maximum"]) == (1, levels)
    assert schema["default"] == min(3, levels)


@on_disk
def test_a_full_surplus_lane_makes_no_buffer_unready(tmp_path: Path) -> None:
    with surplus(tmp_path / "buffer", 2, 3, b"x" * 8000) as buffer:
        lane = buffer._lanes[2]
        lane.ring.push_many([b"x" * 900] * 8)
        while lane.ring.try_push(b"x" * 60):
            pass
        assert lane.ring.used_bytes >= 0.95 * lane.ring.capacity_bytes
        health = Client(buffer).get("/buffer/health").json()
        assert (health["ready"], health["reasons"]) == (True, [])
        buffer.close(timeout=0)


# ---------------------------------------------------------------- metrics


def priorities_in(buffer: BufferManager) -> set[str]:
    text = exposition(buffer, "")[0].decode()
    return {line.split('priority="')[1][0] for line in text.splitlines() if 'priority="' in line}


@pytest.mark.parametrize("levels", LEVELS)
def test_there_are_series_for_the_lanes_that_there_are(levels: int) -> None:
    assert priorities_in(BufferManager(config(levels))) == set("12345"[:levels])


@on_disk
def test_a_surplus_lane_has_series_until_the_buffer_is_closed(tmp_path: Path) -> None:
    with surplus(tmp_path / "buffer", 2, 4, b"old") as buffer:
        assert priorities_in(buffer) == {"1", "2", "4"}
        drain_lanes(buffer)
        assert priorities_in(buffer) == {"1", "2", "4"}
    with BufferManager(config(2, tmp_path / "buffer")) as buffer:
        assert priorities_in(buffer) == {"1", "2"}


# ---------------------------------------------------------------- the service


def serve_config(levels: Any, **source: Any) -> Any:
    return parse(
        {
            "buffer": {"lane_bytes": "16K", "flow_control": {"priority_levels": levels}},
            "source": [{"type": "stdin", **source}],
            "sink": {"type": "stdout"},
        },
        {},
    )


@pytest.mark.parametrize("levels", LEVELS)
def test_a_source_has_the_least_urgent_of_three(levels: int) -> None:
    made = serve_config(levels)
    assert made.priority_of(made.source[0]) == min(3, levels)
    assert f"priority {min(3, levels)}; lines" in explain(made)
    lanes = "1 lane of" if levels == 1 else f"{levels} lanes of"
    assert f"buffer     {lanes} 16 KiB: at most {16 * levels} KiB" in explain(made)


@pytest.mark.parametrize(
    ("levels", "source", "lines"),
    [
        (0, {}, ["buffer.flow_control.priority_levels: must be an int from 1 to 5, not 0"]),
        (6, {}, ["buffer.flow_control.priority_levels: must be an int from 1 to 5, not 6"]),
        (
            "2",
            {},
            ["buffer.flow_control.priority_levels: must be a whole number, not '2'"],
        ),
        (
            2,
            {"priority": 3, "priority_by": ["a=2", "b=5"]},
            [
                f"source[0].{key}: there is no priority {priority}: "
                "buffer.flow_control.priority_levels is 2"
                for key, priority in (("priority", 3), ("priority_by", 5))
            ],
        ),
        (5, {"priority": 6}, ["source[0].priority: must be an int from 1 to 5, not 6"]),
    ],
)
def test_what_the_file_says_beyond_is_a_mistake(levels: Any, source: Any, lines: Any) -> None:
    with pytest.raises(Mistakes) as caught:
        serve_config(levels, **source)
    assert caught.value.lines == lines


def test_a_feed_marks_as_many_lanes_as_there_are(tmp_path: Path) -> None:
    buffer = BufferManager(config(2))
    feed = Feed(buffer, 2, ["ERROR=1"])
    assert feed.put(memoryview(b"ERROR a\nb\n")) == (1, 1)
    assert feed.put(memoryview(b"c\n")) == (0, 2)
    assert drain_lanes(buffer) == {1: [b"ERROR a"], 2: [b"b", b"c"]}


@on_disk
def test_a_service_saves_positions_beside_a_surplus_lane(tmp_path: Path) -> None:
    surplus(tmp_path / "buffer", 2, 5, b"old").close(timeout=0)
    (tmp_path / "in.log").write_bytes(b"new\n")
    service = Service(
        parse(
            {
                "buffer": {
                    "directory": str(tmp_path / "buffer"),
                    "lane_bytes": 1 << 14,
                    "flow_control": {"priority_levels": 2},
                },
                "source": [
                    {"type": "file", "path": str(tmp_path / "in.log"), "start": "beginning"}
                ],
                "sink": {"type": "file", "path": str(tmp_path / "out.log")},
                "service": {"state_file": str(tmp_path / "state.json")},
            },
            {},
        )
    )
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes().count(b"\n") == 2)
    assert service.stop() == 0
    assert sorted((tmp_path / "out.log").read_bytes().split()) == [b"new", b"old"]
    assert '"offset": 4' in (tmp_path / "state.json").read_text()


# ---------------------------------------------------------------- logging


@pytest.mark.parametrize("levels", LEVELS)
def test_the_least_urgent_levels_share_the_last_priority(levels: int) -> None:
    handler = BufferHandler({"flow_control": {"priority_levels": levels}})
    for index, level in enumerate((50, 40, 30, 20, 10)):
        handler.handle(logging.LogRecord("x", level, "", 0, f"{index}", None, None))
    assert handler.refused == {}
    got = drain_lanes(handler.buffer)
    assert [event for events in got.values() for event in events] == [b"0", b"1", b"2", b"3", b"4"]
    assert [len(events) for events in got.values()] == [1] * (levels - 1) + [6 - levels]
    handler.close()


def test_a_priority_that_is_given_and_beyond_is_refused() -> None:
    by_level: dict[int | str, int] = {"ERROR": 1, "INFO": 4}
    for priority in (3, by_level):
        with pytest.raises(InvalidEvents, match="priority_levels is 2"):
            BufferHandler(config(2), priority=priority)
    writer = SingleEventWriter(BufferManager(config(2)))
    assert writer.add(b"a", 2) is None
    with pytest.raises(InvalidEvents, match="priority_levels is 2"):
        writer.add(b"a", 3)
    wrong: Any
    for wrong in (0, -1, 1.0, "1", None):
        with pytest.raises(InvalidEvents, match="priority must be an int from 1"):
            writer.add(b"a", wrong)
    assert writer.add(b"a", np.int64(1)) is None  # type: ignore[arg-type]
    assert writer.add(b"a", np.uint8(1)) is None  # type: ignore[arg-type]


def test_dictconfig_takes_the_field() -> None:
    made = build(BufferConfig, {"flow_control": {"priority_levels": 1}})
    assert made.flow_control.priority_levels == 1


# ---------------------------------------------------------------- the pump


@pytest.mark.parametrize("levels", LEVELS)
def test_a_last_line_without_newline_stays_so(tmp_path: Path, levels: int) -> None:
    (tmp_path / "in").write_bytes(b"a\nb")
    ends: list[tuple[int, int]] = []
    buffer = BufferManager(config(levels))
    transfer = Transfer(
        buffer,
        [str(tmp_path / "in")],
        MemorySink(),
        max_line_bytes=1000,
        leave_open=lambda priority, seq: ends.append((priority, seq)),
    )
    transfer.start()
    assert transfer.wait(10)
    assert transfer.settle(1.0)
    assert ends == [(min(3, levels), 1)]
    assert (transfer.progress().events, transfer.progress().nbytes) == (2, 3)
