"""The configuration of `forebay serve`.

Files, the environment, mistakes, and what a reload can change.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from backpressure.buffer import lane_size
from backpressure.buffer.config import WhenFull
from backpressure.buffer_manager import BufferManager
from backpressure.cli import main
from backpressure.service.config import (
    FileFollow,
    FileTarget,
    HttpTarget,
    TcpLines,
)
from backpressure.service.explain import explain
from backpressure.service.load import Mistakes, load, parse
from backpressure.service.reference import reference
from backpressure.service.reload import differences, reload_plan
from backpressure.service.service import make_sink
from tests.support.paths import ROOT

MINIMAL = {"source": [{"type": "stdin"}], "sink": {"type": "stdout"}}


def mistakes(given: dict[str, Any], environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(Mistakes) as caught:
        parse(given, environment or {})
    return caught.value.lines


def test_everything_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "forebay.toml"
    path.write_text(
        textwrap.dedent(
            """
            [buffer]
            lane_bytes = "1M"
            when_full = "drop_oldest"
            max_age = 3600
            [buffer.flow_control]
            max_events_per_second = 1000
            burst_size = 2000

            [[source]]
            type = "file"
            path = "${LOGS}/*.log"
            priority_by = [" 50[0-9] =1"]

            [[source]]
            type = "tcp"
            port = 6514

            [sink]
            type = "http"
            url = "https://logs.example.com/in"
            headers = { Authorization = "Bearer ${TOKEN:-none}" }
            compression = "zstd"
            workers = 4

            [http]
            token = "0123456789abcdef"

            [service]
            state_file = "/var/lib/forebay/positions.json"
            """
        )
    )
    config = load(
        str(path),
        {
            "LOGS": "/var/log",
            "FOREBAY_SERVICE__DRAIN_TIMEOUT": "3",
            "FOREBAY_SOURCE__1__PORT": "7000",
        },
    )
    assert config.buffer.lane_bytes == 1 << 20
    assert config.buffer.when_full is WhenFull.DROP_OLDEST
    assert config.buffer.max_age == 3600
    assert config.source == (
        FileFollow(path="/var/log/*.log", priority_by=(" 50[0-9] =1",)),
        TcpLines(port=7000),
    )
    assert config.sink == HttpTarget(
        url="https://logs.example.com/in",
        headers={"Authorization": "Bearer none"},
        compression="zstd",
        workers=4,
    )
    assert config.http is not None
    assert config.http.host == "127.0.0.1"
    assert config.service.drain_timeout == 3
    assert "0123456789abcdef" not in repr(config)
    told = explain(config)
    for word in (
        "up to 4 at a time",
        "follows /var/log/*.log",
        "1 where",
        "5 lanes of 1 MiB",
        "oldest events are dropped",
        "older than 3600 s are dropped",
        "zstd",
    ):
        assert word in told
    assert "0123456789abcdef" not in told


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "sink: is missing"),
        ({"sink": {"type": "stdout"}}, "source: there is none"),
        ({**MINIMAL, "sorce": []}, "sorce: there is no such key; did you mean 'source'?"),
        ({**MINIMAL, "source": {"type": "stdin"}}, "source: must be an array of tables"),
        (
            {**MINIMAL, "source": [{"type": "std"}]},
            "source[0].type: must be one of file, stdin, tcp, udp, unix, not 'std'",
        ),
        ({**MINIMAL, "source": [{}]}, "source[0].type: must be one of"),
        ({**MINIMAL, "source": [{"type": "file"}]}, "source[0].path: is missing"),
        (
            {**MINIMAL, "source": [{"type": "file", "path": ""}]},
            "source[0].path: must not be empty",
        ),
        (
            {**MINIMAL, "source": [{"type": "file", "path": "x", "strat": "end"}]},
            "source[0].strat: there is no such key",
        ),
        (
            {**MINIMAL, "source": [{"type": "file", "path": "x", "start": "top"}]},
            'source[0].start: must be "end" or "beginning"',
        ),
        (
            {**MINIMAL, "source": [{"type": "tcp", "port": "6514"}]},
            "source[0].port: must be a whole number, not '6514'",
        ),
        (
            {**MINIMAL, "source": [{"type": "tcp", "port": 65536}]},
            "source[0].port: must be an int from 0",
        ),
        (
            {**MINIMAL, "source": [{"type": "unix", "path": "x", "mode": "rw"}]},
            "source[0].mode: must be octal",
        ),
        (
            {**MINIMAL, "source": [{"type": "stdin", "priority": 9}]},
            "source[0].priority: must be an int from 1 to 5",
        ),
        (
            {**MINIMAL, "source": [{"type": "stdin", "priority_by": ["(=1"]}]},
            "source[0].priority_by: the regular expression",
        ),
        (
            {**MINIMAL, "source": [{"type": "stdin"}, {"type": "stdin"}]},
            "source: stdin can be read once only",
        ),
        (
            {**MINIMAL, "source": [{"type": "stdin", "max_line_bytes": "1G"}]},
            "source[0].max_line_bytes: a lane of",
        ),
        (
            {**MINIMAL, "source": [{"type": "tcp", "port": 1, "framing": "lf"}]},
            "source[0].framing: must be one of auto, newline, octet-counting, not 'lf'",
        ),
        (
            {**MINIMAL, "source": [{"type": "unix", "path": "x", "idle_timeout": 0.0}]},
            "source[0].idle_timeout: ",
        ),
        ({**MINIMAL, "source": [{"type": "udp", "port": 70000}]}, "source[0].port: "),
        ({**MINIMAL, "http": {"keep_alive": -1.0}}, "http.keep_alive: "),
        ({**MINIMAL, "sink": {"type": "http", "url": "ftp://x"}}, "sink.url: url must be http"),
        ({**MINIMAL, "sink": {"type": "http", "url": "http://x/a b"}}, "sink.url: url must have"),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "headers": {"a b": "x"}}},
            "sink.headers: 'a b' is no name of a header",
        ),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "deadline": 0.0}},
            "sink.deadline: ",
        ),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "compression": "lz4"}},
            "sink.compression: compression",
        ),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "headers": {"a": True}}},
            "sink.headers.a: must be text, not true or false",
        ),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "headers": "a: b"}},
            "sink.headers: must be a table of texts, not text",
        ),
        (
            {**MINIMAL, "http": {"allowed_hosts": "example.com"}},
            "http.allowed_hosts: must be an array, not text",
        ),
        (
            {**MINIMAL, "source": [{"type": "stdin", "priority_by": "x=1"}]},
            "source[0].priority_by: must be an array, not text",
        ),
        (
            {**MINIMAL, "source": [{"type": "unix", "path": "x", "mode": 0o660}]},
            "source[0].mode: must be text, not 432",
        ),
        ({**MINIMAL, "sink": {"type": "tcp", "host": "x"}}, "sink.port: is missing"),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "workers": 0}},
            "sink.workers: must be",
        ),
        (
            {**MINIMAL, "buffer": {"circuit_breaker": {"reset": 1}}},
            "buffer.circuit_breaker.reset: there is no such key",
        ),
        ({**MINIMAL, "http": {"token": "short"}}, "http.token: must have 16"),
        (
            {**MINIMAL, "http": {"token": "x" * 16, "token_file": "y"}},
            "http.token_file: give it or token",
        ),
        ({**MINIMAL, "service": {"log_level": "loud"}}, "service.log_level: must be one of debug"),
        (
            {**MINIMAL, "service": {"drain_timeout": -1}},
            "service.drain_timeout: must be a number from 0",
        ),
        (
            {**MINIMAL, "service": {"wait_for_sink": "sometimes"}},
            "service.wait_for_sink: must be true or false",
        ),
        (
            {**MINIMAL, "service": {"state_file": "${NOT_SET}"}},
            "service.state_file: the environment has no variable NOT_SET",
        ),
        (
            {
                "source": [{"type": "file", "path": "/l/*.log"}],
                "sink": {"type": "file", "path": "/l/out.log"},
            },
            "sink.path: source[0] follows /l/out.log as well",
        ),
    ],
)
def test_mistakes_name_table_and_key(given: dict[str, Any], line: str) -> None:
    assert any(found.startswith(line) for found in mistakes(given)), mistakes(given)


@pytest.mark.parametrize(
    ("buffer", "service", "words"),
    [
        ({"directory": "d"}, {}, "sources wait for a sink that takes"),
        ({"directory": "d"}, {"wait_for_sink": False}, "does not take at once goes to disk"),
        ({"directory": "d", "durability": "commit"}, {}, "is written to disk as it comes"),
        ({}, {}, "in memory: what is buffered is lost"),
    ],
)
def test_what_goes_to_disk_is_explained(
    buffer: dict[str, Any], service: dict[str, Any], words: str
) -> None:
    assert words in explain(parse({**MINIMAL, "buffer": buffer, "service": service}, {}))


def test_all_mistakes_at_once() -> None:
    found = mistakes(
        {
            "buffer": {"lane_bytes": 1},
            "source": [{"type": "tcp"}],
            "sink": {"type": "x"},
            "service": {"x": 1},
        }
    )
    assert [line.partition(":")[0] for line in found] == [
        "buffer.lane_bytes",
        "source[0].port",
        "sink.type",
        "service.x",
    ]


def test_the_environment_goes_over_the_file() -> None:
    config = parse(
        MINIMAL,
        {
            "FOREBAY_BUFFER__LANE_BYTES": "1M",
            "FOREBAY_BUFFER__FLOW_CONTROL__BURST_SIZE": "1000",
            "FOREBAY_BUFFER__FLOW_CONTROL__THROTTLE_ENABLED": "false",
            "FOREBAY_SINK__TYPE": "file",
            "FOREBAY_SINK__PATH": "/tmp/x=[1]",
            "FOREBAY_TOKEN": "not for us",
        },
    )
    assert config.buffer.lane_bytes == 1 << 20
    assert config.buffer.flow_control.burst_size == 1000
    assert config.buffer.flow_control.throttle_enabled is False
    assert config.sink == FileTarget(path="/tmp/x=[1]")
    assert MINIMAL["sink"] == {"type": "stdout"}, "what was given is not changed"


DIGITS = "12345678901234567890"


def test_a_token_of_digits_is_a_token() -> None:
    for tables, environment in [
        ({**MINIMAL, "http": {"token": int(DIGITS)}}, {}),
        ({**MINIMAL, "http": {}}, {"FOREBAY_HTTP__TOKEN": DIGITS}),
        ({**MINIMAL, "http": {"token": "${T}"}}, {"T": DIGITS}),
    ]:
        http = parse(tables, environment).http
        assert http is not None
        assert http.token == DIGITS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("007", "007"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("2026-11-30", "2026-11-30"),
        ("true", "true"),
        ("[1]", "[1]"),
        ("{a=1}", "{a=1}"),
        ("x # y", "x # y"),
        ("x\ny = 1", "x\ny = 1"),
        ('"a # b"', "a # b"),
        ("'quoted'", "quoted"),
        ("9" * 5000, "9" * 5000),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_text_in_the_environment_is_that_text(text: str, value: str) -> None:
    config = parse(MINIMAL, {"FOREBAY_SINK__TYPE": "file", "FOREBAY_SINK__PATH": text})
    assert config.sink == FileTarget(path=value)


def test_what_is_no_text_in_the_environment_is_toml() -> None:
    config = parse(
        {**MINIMAL, "http": {}},
        {
            "FOREBAY_HTTP__ALLOWED_HOSTS": '["a", "b"]',
            "FOREBAY_HTTP__PORT": "${PORT}",
            "PORT": "80",
            "FOREBAY_BUFFER__FLOW_CONTROL": "{burst_size = 7}",
            "FOREBAY_BUFFER__FLOW_CONTROL__MAX_EVENTS_PER_SECOND": "5",
            "FOREBAY_BUFFER__WHEN_FULL": "block",
        },
    )
    assert config.http is not None
    assert (config.http.allowed_hosts, config.http.port) == (("a", "b"), 80)
    flow = config.buffer.flow_control
    assert (flow.burst_size, flow.max_events_per_second) == (7, 5)
    assert config.buffer.when_full is WhenFull.BLOCK


SECRET = "s3cr3t" * 5


@pytest.mark.parametrize(
    "tables",
    [
        {"http": {"token": [SECRET]}},
        {"http": {"token": {"a": SECRET}}},
        {"http": {"token": float("1" * 20)}},
        {"http": {"token": SECRET[:8]}},
        {"http": SECRET},
        {"http": {"token": SECRET, "port": -1}},
        {"sink": SECRET},
        {"source": [SECRET]},
        {"source": SECRET},
        *(
            {"sink": {"type": "http", "url": url}}
            for url in (
                f"ftp://u:{SECRET}@x/",
                f"http://u:{SECRET}@x/",
                f"http://u:{SECRET}/more@x/",
                f"http://[u:{SECRET}@x/",
                f"u:{SECRET}@x",
            )
        ),
        {"sink": {"type": "http", "url": f"http://x/?key={SECRET}", "compression": "lz4"}},
        {"sink": {"type": "http", "url": "http://x", "headers": {"a": [SECRET]}}},
        {"sink": {"type": "http", "url": "http://x", "headers": [SECRET]}},
        {"sink": {"type": "http", "url": "http://x", "headers": {"a": SECRET}, "workers": 0}},
    ],
    ids=repr,
)
def test_no_message_shows_a_secret(tables: dict[str, Any]) -> None:
    said = mistakes({**MINIMAL, **tables})
    assert said
    assert not any("s3cr3t" in line or "1e+19" in line or "1" * 9 in line for line in said), said


def test_what_is_shown_of_a_configuration_has_no_secret() -> None:
    sink = {
        "type": "http",
        "url": f"http://x/in?key={SECRET}",
        "headers": {"Authorization": SECRET},
    }
    config = parse({**MINIMAL, "sink": sink, "http": {"token": SECRET}}, {})
    made = make_sink(config.sinks[0].target)
    for shown in (repr(config), explain(config), str(getattr(made, "name", ""))):
        assert "s3cr3t" not in shown
    assert "POST http://x/in, one" in explain(config)
    made.close()


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 5000, "a = \x80"])
def test_a_hostile_file_is_a_mistake(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Mistakes):
        load(str(path), {})


def test_the_reference_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--print-config-reference"])
    assert ended.value.code == 0
    page = ROOT / "docs" / "configuration.md"
    assert capsys.readouterr().out == page.read_text(), (
        f"forebay serve --print-config-reference > docs/{page.name}"
    )


def test_every_key_is_in_the_reference_and_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 90
    for row in rows:
        assert not row.endswith("|  |"), f"its dataclass does not say what it means: {row}"
    for key in ("lane_bytes", "token_file", "throttle_rate", "workers", "segment_bytes"):
        assert any(row.startswith(f"| `{key}` |") for row in rows)


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("FOREBAY_BUFER__LANE_BYTES", "did you mean 'buffer'"),
        (
            "FOREBAY_BUFFER__LANE_BYTE",
            "buffer.lane_byte: there is no such key; did you mean 'lane_bytes'",
        ),
        ("FOREBAY_SOURCE__3__PATH", "no number 3 of 1"),
        ("FOREBAY_SOURCE__X__PATH", "no number x of 1"),
        ("FOREBAY_SINK__TYPE__X", "no table"),
    ],
)
def test_variables_that_name_nothing(variable: str, message: str) -> None:
    assert any(message in line for line in mistakes(MINIMAL, {variable: "1"}))


def test_lanes_are_as_large_as_there_is_room_for_where_nobody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_size, "_free_bytes", lambda path: 2 << 30)
    monkeypatch.setattr(lane_size, "_memory_bytes", lambda: 64 << 30)
    tables: dict[str, Any] = {**MINIMAL, "buffer": {"directory": str(tmp_path / "buffer")}}
    config = parse(tables, {})
    assert config.buffer.lane_bytes == 16 << 20
    assert "5 lanes of 16 MiB" in explain(config)
    assert parse(MINIMAL, {}).buffer.lane_bytes == 64 << 20, "in memory it costs nothing"
    said = parse(tables, {"FOREBAY_BUFFER__LANE_BYTES": "1M"})
    assert said.buffer.lane_bytes == 1 << 20
    long = [{"type": "stdin", "max_line_bytes": "20M"}]
    assert parse({**tables, "source": long}, {}).buffer.lane_bytes == 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux")
@pytest.mark.platform
def test_a_reload_finds_the_lanes_as_large_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [100 << 20]
    monkeypatch.setattr(lane_size, "_free_bytes", lambda path: free[0])
    tables: dict[str, Any] = {**MINIMAL, "buffer": {"directory": str(tmp_path / "buffer")}}
    old = parse(tables, {})
    buffer = BufferManager(old.buffer)
    free[0] = 1 << 40
    assert reload_plan(old, parse(tables, {})) == ({}, [])
    buffer.close(timeout=0)


def test_differences_and_what_a_reload_can_do() -> None:
    old = parse(MINIMAL, {})
    new = parse(
        {
            **MINIMAL,
            "sink": {"type": "file", "path": "x"},
            "buffer": {"lane_bytes": "1M", "flow_control": {"max_events_per_second": 5}},
            "service": {"log_level": "debug"},
        },
        {},
    )
    assert differences(old, old) == {}
    now, later = reload_plan(old, new)
    assert now == {"buffer.flow_control.max_events_per_second": 5, "service.log_level": "debug"}
    assert later == ["buffer.lane_bytes", "sink"]


def test_check_explains_or_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[[source]]\ntype = "stdin"\n[sink]\ntype = "stdout"\n')
    assert main(["serve", "--config", str(path), "--check"]) == 0
    assert "this configuration is valid" in capsys.readouterr().out
    path.write_text('[[source]]\ntype = "stdi"\n[sink]\ntyp = "stdout"\n')
    assert main(["serve", "--config", str(path), "--check"]) == 2
    said = capsys.readouterr()
    assert "source[0].type" in said.err
    assert "sink.type" in said.err
    assert said.out == ""
    path.write_text("[[source]\n")
    assert main(["serve", "--config", str(path), "--check"]) == 2
    assert "not TOML" in capsys.readouterr().err
    assert main(["serve", "--config", str(tmp_path / "nothing.toml")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_the_example_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    config = load(str(ROOT / "deploy" / "forebay.toml"), {})
    assert config.http is not None
    assert explain(config)
