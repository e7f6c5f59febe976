"""Several sinks: routes, one buffer each, who waits for whom, and kills at any time."""

from __future__ import annotations

import random
import re
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backpressure.buffer.config import BufferConfig, Durability, WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.service.config import FileTarget, Route
from backpressure.service.explain import explain
from backpressure.service.fan_out import UNROUTED, FanOut, Way
from backpressure.service.load import Mistakes, parse
from backpressure.service.reload import put_in_force
from backpressure.service.service import Service
from backpressure.sources.base import Incidents
from tests.service.test_service import HttpReceiver
from tests.support.threads import until

SOURCE = {"type": "file", "start": "beginning"}


def tables(tmp_path: Path, *sinks: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A file into files, one for each of these tables of [[sink]]."""
    made = [{"type": "file", "path": str(tmp_path / f"{one['name']}.out"), **one} for one in sinks]
    return {"source": [{**SOURCE, "path": str(tmp_path / "in.log")}], "sink": made, **others}


def drained(buffer: BufferManager) -> list[bytes]:
    found: list[bytes] = []
    while (batch := buffer.get_batch()) is not None:
        found += batch.tolist()
        batch.ack()
    return found


# ---------------------------------------------------------------- the configuration


def test_each_sink_has_a_buffer_of_its_own_over_the_common_one(tmp_path: Path) -> None:
    config = parse(
        tables(
            tmp_path,
            {"name": "all"},
            {
                "name": "errors",
                "route": {"priority": [1, 2], "match": "ERROR"},
                "buffer": {"when_full": "drop_oldest", "batching": {"max_batch_size": 60_000}},
            },
            buffer={
                "directory": str(tmp_path / "buffer"),
                "lane_bytes": "1M",
                "batching": {"target_latency": 0.5},
            },
        ),
        {"FOREBAY_SINK__1__BUFFER__LANE_BYTES": "2M"},
    )
    one, other = config.sinks
    assert (one.name, other.name) == ("all", "errors")
    assert one.target == FileTarget(path=str(tmp_path / "all.out"))
    assert other.route == Route(priority=(1, 2), match="ERROR")
    assert one.buffer.directory == str(tmp_path / "buffer" / "all")
    assert other.buffer.directory == str(tmp_path / "buffer" / "errors")
    assert (one.buffer.lane_bytes, other.buffer.lane_bytes) == (1 << 20, 2 << 20)
    assert (one.buffer.when_full, other.buffer.when_full) == (WhenFull.REJECT, WhenFull.DROP_OLDEST)
    batching = other.buffer.batching
    assert (batching.target_latency, batching.max_batch_size) == (0.5, 60_000)
    told = explain(config)
    for words in (
        "all: gets every line",
        "errors: gets lines of priority 1, 2, where 'ERROR' matches",
        "the other sinks wait as well",
        "it holds up no other sink",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("sinks", "line"),
    [
        ([], "sink: there is none"),
        ([{"type": "stdout"}], "sink[0].name: must be text"),
        ([{"type": "stdout", "name": "../x"}], "sink[0].name: must be up to 64"),
        ([{"type": "stdout", "name": "a", "rout": {}}], "sink[0].rout: there is no such key"),
        ([{"type": "stdout", "name": "a", "route": {"match": "("}}], "sink[0].route.match: the"),
        (
            [{"type": "stdout", "name": "a", "route": {"match": "(a+)+b"}}],
            "sink[0].route.match: the regular expression '(a+)+b' may search a single line for",
        ),
        (
            [{"type": "stdout", "name": "a", "route": {"priority": [6]}}],
            "sink[0].route.priority: must be an int from 1 to 5",
        ),
        (
            [{"type": "stdout", "name": "a", "route": {"source": ["x"]}}],
            "sink[0].route.source: no [[source]] has the name 'x'; there are web",
        ),
        (
            [{"type": "stdout", "name": "a", "buffer": {"lane_byte": 1}}],
            "sink[0].buffer.lane_byte: there is no such key; did you mean 'lane_bytes'?",
        ),
        (
            [
                {
                    "type": "stdout",
                    "name": "a",
                    "buffer": {"flow_control": {"priority_levels": 2}},
                }
            ],
            "sink[0].buffer.flow_control.priority_levels: must be that of [buffer], 5",
        ),
        (
            [{"type": "stdout", "name": "a"}, {"type": "file", "path": "x", "name": "A"}],
            "sink[1].name: there is a 'A' already",
        ),
        (
            [{"type": "stdout", "name": "a"}, {"type": "stdout", "name": "b"}],
            "sink[1]: sink[0] writes to stdout already",
        ),
    ],
)
def test_mistakes(sinks: list[dict[str, Any]], line: str) -> None:
    with pytest.raises(Mistakes) as caught:
        parse({"source": [{"type": "stdin", "name": "web"}], "sink": sinks}, {})
    assert any(found.startswith(line) for found in caught.value.lines), caught.value.lines


def test_a_backlog_that_no_sink_would_deliver_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "buffer"
    for name in ("", "old"):
        BufferManager(
            BufferConfig(directory=directory / name, lane_bytes=4096, durability="process")  # type: ignore[arg-type]
        ).close(timeout=0)
    buffer = {"directory": str(directory), "lane_bytes": 4096}
    with pytest.raises(Mistakes, match="nothing would deliver") as caught:
        parse(tables(tmp_path, {"name": "new"}, buffer=buffer), {})
    assert len(caught.value.lines) == 2, "the one of a single sink, and of a name of before"
    single = {**tables(tmp_path, buffer=buffer), "sink": {"type": "stdout"}}
    with pytest.raises(Mistakes, match=re.escape(str(directory / "old"))):
        parse(single, {})


# ---------------------------------------------------------------- where a line goes


@pytest.fixture
def buffers() -> Iterator[list[BufferManager]]:
    made = [BufferManager(BufferConfig(lane_bytes=1 << 16)) for _ in range(3)]
    yield made
    for buffer in made:
        buffer.close(timeout=0)


def test_routes_against_a_model(buffers: list[BufferManager]) -> None:
    chance = random.Random(16)
    words = [b"ERROR", b"WARN", b"x", b"", b"y"]
    for _ in range(200):
        routes = [
            Route(
                priority=tuple(chance.sample((1, 2, 3), chance.randrange(3))),
                source=tuple(chance.sample(("web", "db"), chance.randrange(2))),
                match=chance.choice((None, None, "ERROR", "x|y", "^$")),
            )
            for _ in buffers
        ]
        source = chance.choice(("web", "db", None))
        rules = chance.choice(([], ["ERROR=1", "WARN=2"]))
        routing = Incidents("routes", UNROUTED)
        ways = [Way(buffer, route) for buffer, route in zip(buffers, routes, strict=True)]
        fan_out = FanOut(ways, source, 3, rules, routing)
        lines = [chance.choice(words) for _ in range(chance.randrange(1, 9))]
        before = [buffer.positions() for buffer in buffers]
        marks = fan_out.put(memoryview(b"".join(line + b"\n" for line in lines)))

        def priority_of(line: bytes, rules: list[str] = rules) -> int:
            return {b"ERROR": 1, b"WARN": 2}.get(line, 3) if rules else 3

        def goes(line: bytes, route: Route, source: str | None = source) -> bool:
            return (
                (not route.priority or priority_of(line) in route.priority)
                and (not route.source or source in route.source)
                and (route.match is None or re.search(route.match.encode(), line) is not None)
            )

        expected_marks: list[int] = []
        for buffer, route, positions in zip(buffers, routes, before, strict=True):
            expected = [line for line in lines if goes(line, route)]
            for priority in range(1, 6):
                added = sum(priority_of(line) == priority for line in expected)
                expected_marks.append(positions[priority - 1] + added if added else 0)
            assert drained(buffer) == sorted(expected, key=priority_of)
        assert marks == tuple(expected_marks)
        lost = [line for line in lines if not any(goes(line, route) for route in routes)]
        assert routing.count(UNROUTED) == len(lost)


@pytest.mark.parametrize("when_full", list(WhenFull))
def test_a_full_sink_holds_up_the_others_as_its_when_full_says(
    tmp_path: Path, when_full: WhenFull
) -> None:
    needs_disk = when_full is WhenFull.DROP_LOWEST_PRIORITY
    full = BufferManager(
        BufferConfig(
            lane_bytes=4096,
            when_full=when_full,
            directory=tmp_path / "b" if needs_disk else None,
            max_disk_bytes=1 << 20 if needs_disk else None,
        )
    )
    other = BufferManager(BufferConfig(lane_bytes=1 << 20))
    fan_out = FanOut(
        [Way(full, Route()), Way(other, Route())], None, 3, [], Incidents("routes", UNROUTED)
    )
    chunk = memoryview(b"x" * 49 + b"\n")
    done = threading.Event()

    def feed() -> None:
        for _ in range(2000):
            if fan_out.put(chunk) is None:
                return
        done.set()

    thread = threading.Thread(target=feed)
    thread.start()
    if when_full in (WhenFull.BLOCK, WhenFull.REJECT):
        until(lambda: full.stats().waiting > 20)
        assert not done.wait(0.1), "it waits"
        assert other.stats().accepted < 2000
        while not done.is_set():
            drained(full)
    else:
        assert done.wait(30)
    thread.join(30)
    assert other.stats().accepted == 2000
    stats = full.stats()
    assert stats.offered == 2000
    full.close(timeout=0)
    other.close(timeout=0)


def test_a_sink_that_drops_never_waits_for_flow_control() -> None:
    flow = {"max_events_per_second": 0.0, "burst_size": 3}
    config = parse(
        {
            "source": [{"type": "stdin"}],
            "sink": [
                {
                    "type": "stdout",
                    "name": "a",
                    "buffer": {"when_full": "drop_oldest", "flow_control": flow},
                },
                {"type": "file", "path": "x", "name": "b"},
            ],
        },
        {},
    )
    ways = [Way(BufferManager(sink.buffer), sink.route) for sink in config.sinks]
    fan_out = FanOut(ways, None, 3, [], Incidents("routes", UNROUTED))
    assert fan_out.put(memoryview(b"x\n" * 10)) is not None
    assert ways[0].buffer.stats().accepted == 3
    assert sum(ways[0].buffer.stats().rejected.values()) == 7
    assert ways[1].buffer.stats().accepted == 10


# ---------------------------------------------------------------- a service


def test_a_service_with_routes(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes(b"one\nERROR two\nthree\n")
    given = tables(tmp_path, {"name": "all"}, {"name": "errors", "route": {"match": "ERROR"}})
    service = Service(parse(given, {}))
    service.start()
    until(lambda: (tmp_path / "all.out").read_bytes() == b"one\nERROR two\nthree\n")
    until(lambda: (tmp_path / "errors.out").read_bytes() == b"ERROR two\n")
    assert service.stop() == 0
    assert service.errors == []


def test_lines_that_fit_no_route_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.log").write_bytes(b"one\nERROR two\nthree\n")
    given = tables(tmp_path, {"name": "errors", "route": {"match": "ERROR"}})
    config = parse(given, {})
    assert "a line that fits none of them is dropped, and counted" in explain(config)
    service = Service(config)
    service.start()
    until(lambda: (tmp_path / "errors.out").read_bytes() == b"ERROR two\n")
    assert service.source_stats()[-1].incidents == {"unrouted": 2}
    assert "fit no sink's route" in caplog.text
    service.stop()


@pytest.mark.parametrize("durability", [None, *Durability])
def test_a_position_waits_for_every_sink_that_a_buffer_in_memory_serves(
    tmp_path: Path, durability: Durability | None
) -> None:
    (tmp_path / "in.log").write_bytes(b"one\ntwo\n")
    state = tmp_path / "state"
    down = {"type": "tcp", "host": "127.0.0.1", "port": 9}
    buffer: dict[str, Any] = {"lane_bytes": "64K"}
    if durability is not None:
        buffer |= {"directory": str(tmp_path / "b"), "durability": durability.value}
    settings = {"state_file": str(state), "drain_timeout": 0.2}
    given = tables(tmp_path, {"name": "up"}, buffer=buffer, service=settings)
    given["sink"].append({"name": "down", **down})
    service = Service(parse(given, {}))
    service.start()
    until(lambda: (tmp_path / "up.out").read_bytes() == b"one\ntwo\n")
    until(lambda: service.buffer_of("down").stats().batches_nacked)

    def saved() -> bool:
        service.save_positions()
        return state.exists() and '"offset": 8' in state.read_text()

    if durability is None:
        assert not saved()
        assert service.stop() == 2, "of the sink that is down"
        assert service.kept == 0
    else:
        until(saved)
        assert service.stop() == 0
        assert service.kept == 2


def test_a_sink_that_is_gone_leaves_the_others_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backpressure.sinks import SinkGone

    (tmp_path / "in.log").write_bytes(b"one\n")
    dropping = {"when_full": "drop_oldest"}
    given = tables(tmp_path, {"name": "a", "buffer": dropping}, {"name": "b"})
    service = Service(parse(given, {}))

    def send(batch: object) -> None:
        raise SinkGone(32, "the reader is gone")

    monkeypatch.setattr(service._branches[0].sink, "send", send)
    service.start()
    until(lambda: service.failures())
    assert "sink a: " in service.failures()[0]
    with (tmp_path / "in.log").open("ab") as file:
        file.write(b"two\n")
    until(lambda: (tmp_path / "b.out").read_bytes() == b"one\ntwo\n")
    assert not service.finished
    service.stop()
    assert "the reader is gone" in service.errors[0]


def test_a_reload_changes_each_sink_by_itself(tmp_path: Path) -> None:
    def with_rate(rate: int, size: int = 50_000, **others: Any) -> Any:
        own = {
            "flow_control": {"max_events_per_second": rate},
            "batching": {"initial_batch_size": size},
        }
        given = tables(tmp_path, {"name": "a", "buffer": own}, {"name": "b"}, **others)
        return parse(given, {})

    service = Service(with_rate(1000))
    done, later = put_in_force(service, with_rate(2000, 40_000))
    assert set(done) == {
        "sink.a.buffer.batching.initial_batch_size",
        "sink.a.buffer.flow_control.max_events_per_second",
    }
    assert later == []
    assert service.buffer_of("a").stats().flow_control.rate_limit == 2000
    assert service.buffer_of("b").stats().flow_control.rate_limit == 20_000_000
    assert put_in_force(service, with_rate(2000, 40_000)) == ([], []), "it is in force"
    everywhere = {"flow_control": {"burst_size": 77}}
    done, later = put_in_force(service, with_rate(2000, 40_000, buffer=everywhere))
    assert set(done) == {f"sink.{name}.buffer.flow_control.burst_size" for name in "ab"}
    others = parse(tables(tmp_path, {"name": "c"}), {})
    assert put_in_force(service, others) == ([], ["sink"])
    single = {**tables(tmp_path), "sink": {"type": "stdout"}}
    assert put_in_force(service, parse(single, {})) == ([], ["sink"])
    service.stop()


# ---------------------------------------------------------------- over HTTP


def test_a_request_names_its_sink(buffers: list[BufferManager]) -> None:
    pytest.importorskip("backpressure.http")
    from backpressure.http import create_app
    from tests.support.http import TOKEN, request

    app = create_app({"a": buffers[0], "b": buffers[1]}, TOKEN)
    assert request(app, "GET", "/buffer/sinks").json() == {"sinks": ["a", "b"]}
    sent = request(app, "POST", "/events?sink=b", content=b"one\ntwo\n")
    assert (sent.status_code, sent.json()["accepted"]) == (202, 2)
    assert request(app, "GET", "/buffer/stats?sink=a").json()["accepted"] == 0
    assert request(app, "GET", "/buffer/stats?sink=b").json()["accepted"] == 2
    changed = request(app, "POST", "/buffer/flow-control/rate?sink=b", json={"rate": 5})
    assert changed.status_code == 200
    assert buffers[0].stats().flow_control.rate_limit != 5
    assert buffers[1].stats().flow_control.rate_limit == 5
    for method, path in (
        ("GET", "/buffer/stats"),
        ("GET", "/buffer/backpressure"),
        ("GET", "/buffer/flow-control"),
        ("GET", "/buffer/events"),
        ("POST", "/buffer/circuit-breaker/reset"),
        ("POST", "/events"),
    ):
        for query in ("", "?sink=", "?sink=c"):
            answer = request(app, method, path + query)
            assert answer.status_code == 404, (path, query)
            assert answer.json()["detail"].endswith("add ?sink= and one of a, b")
    assert request(app, "GET", "/buffer/health?sink=c").status_code == 404
    assert request(app, "GET", "/buffer/health?sink=b").json()["status"] == "ok"
    assert request(app, "GET", "/buffer/health").json()["status"] == "ok"
    buffers[1].close(timeout=0)
    health = request(app, "GET", "/buffer/health")
    assert (health.status_code, health.json()["reasons"]) == (503, ["b: the buffer is closed"])
    text = request(app, "GET", "/metrics").text
    if "pip install" not in text:
        assert 'backpressure_buffer_closed{buffer="a"} 0.0' in text
        assert 'backpressure_buffer_closed{buffer="b"} 1.0' in text
    document = request(app, "GET", "/buffer/openapi.json").json()
    assert document["paths"]["/buffer/stats"]["get"]["parameters"][0]["schema"]["enum"] == [
        "a",
        "b",
    ]


def test_a_buffer_without_a_name_has_no_sinks(buffers: list[BufferManager]) -> None:
    pytest.importorskip("backpressure.http")
    from backpressure.http import create_app
    from tests.support.http import request

    app = create_app(buffers[0])
    assert request(app, "GET", "/buffer/sinks").json() == {"sinks": []}
    assert request(app, "GET", "/buffer/stats?sink=a").status_code == 404
    with pytest.raises(ValueError, match="one or more"):
        create_app({})


# ---------------------------------------------------------------- kills

KILLED = """
    [buffer]
    lane_bytes = "1M"
    {directory}
    [[source]]
    type = "file"
    path = "{here}/in.log"
    start = "beginning"
    priority_by = ["^[0-9]*0 =1"]
    [[sink]]
    name = "all"
    type = "file"
    path = "{here}/all.out"
    [[sink]]
    name = "sevens"
    type = "file"
    path = "{here}/sevens.out"
    [sink.route]
    match = "7 "
    [[sink]]
    name = "urgent"
    type = "http"
    url = "{url}"
    [sink.route]
    priority = [1]
    [service]
    state_file = "{here}/state"
    drain_timeout = 30
"""


@pytest.fixture
def http() -> Iterator[HttpReceiver]:
    made = HttpReceiver()
    yield made
    made.close()


@pytest.mark.parametrize("directory", ["", 'directory = "{here}/buffer"'], ids=["memory", "disk"])
def test_every_sink_is_complete_after_kills(
    tmp_path: Path, directory: str, http: HttpReceiver, in_full: bool
) -> None:
    """A writer that lives on is the oracle; each run of the service is killed, some
    while one of the sinks refuses what it is sent.
    """
    from tests.service.test_serve import Process

    chance = random.Random(16)
    toml = textwrap.dedent(KILLED).format(
        here=tmp_path, url=http.url, directory=directory.format(here=tmp_path)
    )
    written = 0
    stop = threading.Event()

    def write() -> None:
        nonlocal written
        with (tmp_path / "in.log").open("ab", buffering=0) as file:
            while not stop.is_set():
                first, written = written, written + chance.randrange(1, 20)
                file.write(b"".join(b"%d line\n" % number for number in range(first, written)))
                stop.wait(0.002)

    def delivered_bytes() -> int:
        return sum(path.stat().st_size for path in tmp_path.glob("*.out"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(12 if in_full else 2):
            (http.works.set if number % 3 == 0 else http.works.clear)()
            with Process(tmp_path, toml) as running:
                enough = delivered_bytes() + chance.choice((0, 1, 1_000, 10_000))
                until(lambda enough=enough: delivered_bytes() >= enough)  # type: ignore[misc]
                if in_full and number % 3 == 1:
                    # Until positions were saved twice: once a second, or not at all
                    # where a buffer in memory holds what is not delivered.
                    stop.wait(2.5)
                running.process.kill()
                running.process.wait(20)
    finally:
        stop.set()
        writer.join(20)
    expected = {
        "all": set(range(written)),
        "sevens": {number for number in range(written) if number % 10 == 7},
        "urgent": set(range(0, written, 10)),
    }

    def delivered(name: str) -> set[int]:
        path = tmp_path / f"{name}.out"
        lines = http.taken if name == "urgent" else path.read_bytes().splitlines()
        # A kill may leave half of a line; it comes again whole.
        return {
            int(line.split()[0])
            for line in lines
            if line.endswith(b" line") and line[:-5].isdigit()
        }

    http.works.set()
    with Process(tmp_path, toml) as running:
        until(lambda: all(delivered(name) >= wanted for name, wanted in expected.items()))
        assert running.end() == 0, running.said
    for name, wanted in expected.items():
        assert delivered(name) == wanted, "and nothing that is another's"
