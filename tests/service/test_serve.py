"""`forebay serve`: its configuration, and the service as a process: signals, drain, reload, restarts."""

from __future__ import annotations

import signal
import socket
import subprocess
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from backpressure.base.errors import ConfigError
from backpressure.buffer.config import WhenFull
from backpressure.cli import main
from backpressure.service.config import (
    FileFollow,
    FileTarget,
    HttpTarget,
    Mistakes,
    ServeConfig,
    TcpLines,
    differences,
    load,
    parse,
)
from backpressure.service.explain import explain
from backpressure.service.service import Feed, Service, put_in_force, reload_plan
from backpressure.sinks import SinkGone
from tests.support import processes
from tests.support.paths import ROOT
from tests.support.threads import until

MINIMAL = {"source": [{"type": "stdin"}], "sink": {"type": "stdout"}}


def mistakes(given: dict, environment: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(Mistakes) as caught:
        parse(given, environment or {})
    return caught.value.lines


# ---------------------------------------------------------------- configuration


def test_everything_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "forebay.toml"
    path.write_text(
        textwrap.dedent(
            """
            [buffer]
            lane_bytes = "1M"
            when_full = "drop_oldest"
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
    assert config.source == (
        FileFollow(path="/var/log/*.log", priority_by=(" 50[0-9] =1",)),
        TcpLines(port=7000),
    )
    assert config.sink == HttpTarget(
        url="https://logs.example.com/in",
        headers={"Authorization": "Bearer none"},
        compression="zstd",
    )
    assert config.http is not None
    assert config.http.host == "127.0.0.1"
    assert config.service.drain_timeout == 3
    assert "0123456789abcdef" not in repr(config)
    told = explain(config)
    for word in (
        "follows /var/log/*.log",
        "1 where",
        "5 lanes of 1 MiB",
        "oldest events are dropped",
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
            "source[0].type: must be one of file, stdin, tcp, unix, not 'std'",
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
        ({**MINIMAL, "sink": {"type": "http", "url": "ftp://x"}}, "sink.url: url must be http"),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "compression": "lz4"}},
            "sink.compression: compression",
        ),
        (
            {**MINIMAL, "sink": {"type": "http", "url": "http://x", "headers": {"a": 1}}},
            "sink.headers: must be a table of",
        ),
        ({**MINIMAL, "sink": {"type": "tcp", "host": "x"}}, "sink.port: is missing"),
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
def test_mistakes_name_table_and_key(given: dict, line: str) -> None:
    assert any(found.startswith(line) for found in mistakes(given)), mistakes(given)


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


# ---------------------------------------------------------------- the parts


def make(tmp_path: Path, **tables) -> ServeConfig:
    tables.setdefault(
        "source", [{"type": "file", "path": str(tmp_path / "in.log"), "start": "beginning"}]
    )
    tables.setdefault("sink", {"type": "file", "path": str(tmp_path / "out.log")})
    return parse(tables, {})


def test_a_feed_gives_priorities_and_marks() -> None:
    from backpressure.buffer_manager import BufferManager

    buffer = BufferManager()
    feed = Feed(buffer, 4, ["ERROR=1"])
    assert feed.put(memoryview(b"ERROR a\nb\nc\n")) == (1, 0, 0, 2, 0)
    assert feed.put(memoryview(b"d\n")) == (0, 0, 0, 3, 0)
    plain = Feed(buffer, 2, [])
    assert plain.put(memoryview(b"x\ny\n")) == (0, 2, 0, 0, 0)
    held = [buffer.get_batch() for _ in range(3)]
    assert [(batch.priority, batch.tolist()) for batch in held if batch is not None] == [
        (1, [b"ERROR a"]),
        (2, [b"x", b"y"]),
        (4, [b"b", b"c", b"d"]),
    ]


@pytest.mark.parametrize("rules", [[], ["never matches=1"]])
def test_a_feed_waits_for_room_and_ends_with_the_buffer(rules: list[str]) -> None:
    from backpressure.buffer.config import BufferConfig
    from backpressure.buffer_manager import BufferManager

    buffer = BufferManager(BufferConfig(lane_bytes=4096))
    feed = Feed(buffer, 3, rules)
    results = []
    lines = memoryview((b"x" * 99 + b"\n") * 100)
    thread = threading.Thread(target=lambda: results.append(feed.put(lines)))
    thread.start()
    until(lambda: buffer.stats().waiting > 10)
    time.sleep(0.05)
    assert not results, "it waits"
    stats = buffer.close(timeout=0)
    thread.join(10)
    assert results == [None]
    assert feed.unaccepted == 100 - stats.accepted > 0
    assert feed.put(memoryview(b"x\n")) is None
    assert feed.unaccepted == 101 - stats.accepted


def test_a_service_from_file_to_file(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes(b"one\ntwo\n")
    service = Service(make(tmp_path, service={"state_file": str(tmp_path / "state")}))
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes() == b"one\ntwo\n")
    assert not service.finished
    assert service.stop() == 0
    assert service.errors == []
    with (tmp_path / "in.log").open("ab") as file:
        file.write(b"three\n")
    service = Service(make(tmp_path, service={"state_file": str(tmp_path / "state")}))
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes() == b"one\ntwo\nthree\n")
    assert service.stop() == 0


def test_what_is_not_delivered_is_counted_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "in.log").write_bytes(b"one\ntwo\n")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        down = {"type": "tcp", "host": "127.0.0.1", "port": port}
        settings = {"state_file": str(tmp_path / "state"), "drain_timeout": 0.2}
        service = Service(make(tmp_path, sink=down, service=settings))
        service.start()
        until(lambda: service.buffer.stats().batches_nacked)
        assert service.stop() == 2
    service = Service(make(tmp_path, service=settings))
    service.start()
    until(lambda: (tmp_path / "out.log").read_bytes() == b"one\ntwo\n")
    service.stop()


def test_a_sink_that_is_gone_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.log").write_bytes(b"one\n")
    service = Service(make(tmp_path))

    def send(batch) -> None:
        raise SinkGone(32, "nobody reads this")

    monkeypatch.setattr(service._sink, "send", send)
    service.start()
    until(lambda: service.finished)
    assert service.stop() == 1
    assert "nobody reads this" in service.errors[0]


def test_a_reload_changes_what_it_can_and_opens_the_file_anew(tmp_path: Path) -> None:
    source, out = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"one\n")
    service = Service(make(tmp_path))
    service.start()
    until(lambda: out.read_bytes() == b"one\n")
    out.rename(tmp_path / "out.log.1")
    flow = {"max_events_per_second": 1234, "burst_size": 5000}
    new = make(
        tmp_path,
        buffer={"lane_bytes": "1M", "flow_control": flow, "batching": {"initial_batch_size": 2000}},
    )
    done, later = put_in_force(service, new)
    assert set(done) == {
        "buffer.flow_control.max_events_per_second",
        "buffer.flow_control.burst_size",
        "buffer.batching.initial_batch_size",
    }
    assert later == ["buffer.lane_bytes"]
    stats = service.buffer.stats()
    assert (stats.flow_control.rate_limit, stats.flow_control.burst, stats.batching.batch_size) == (
        1234,
        5000,
        2000,
    )
    with source.open("ab") as file:
        file.write(b"two\n")
    until(lambda: out.exists() and out.read_bytes() == b"two\n")
    assert put_in_force(service, new) == ([], ["buffer.lane_bytes"]), (
        "what is in force is not changed again"
    )
    beyond = {
        "initial_batch_size": 200_000,
        "max_batch_size": 200_000,
    }  # more than the running buffer's bounds
    new = make(tmp_path, buffer={"flow_control": {"max_events_per_second": 77}, "batching": beyond})
    with pytest.raises(Mistakes, match="must be from 1,000 to 100,000, until a restart"):
        put_in_force(service, new)
    assert service.buffer.stats().flow_control.rate_limit == 1234, "nothing was changed"
    service.stop()


@pytest.mark.parametrize(
    ("tables", "error", "message"),
    [
        ({"sink": {"type": "file", "path": "/nowhere/at/all"}}, OSError, "No such file"),
        ({"service": {"state_file": "/nowhere/state"}}, ConfigError, "service.state_file"),
        ({"http": {"port": 0, "token_file": "/nowhere/token"}}, ConfigError, "http"),
    ],
)
def test_what_can_not_be_opened(
    tmp_path: Path, tables: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Service(make(tmp_path, **tables))


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            Service(
                make(tmp_path, source=[{"type": "tcp", "port": 0}, {"type": "tcp", "port": port}])
            )


# ---------------------------------------------------------------- the process


class Process:
    """`forebay serve` with a config, and what it writes to stderr."""

    def __init__(self, tmp_path: Path, toml: str, **environment: str) -> None:
        self.config = tmp_path / "forebay.toml"
        self.config.write_text(textwrap.dedent(toml))
        self.process = subprocess.Popen(
            processes.forebay_command("serve", "--config", self.config),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=processes.environment(**environment),
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line.decode()

    def saying(self, text: str) -> None:
        until(lambda: text in self.said or self.process.poll() is not None)
        assert text in self.said, self.said

    def end(self, number: int | None = signal.SIGTERM) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        self._reader.join(10)
        return code

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._reader.join(10)


def address_of(process: Process, kind: str) -> tuple[str, int]:
    process.saying(f"listening: {kind}")
    host, port = process.said.partition(f"listening: {kind}:")[2].split()[0].rsplit(":", 1)
    return host, int(port)


def test_stdin_to_stdout_ends_with_its_input(tmp_path: Path) -> None:
    with Process(tmp_path, '[[source]]\ntype = "stdin"\n[sink]\ntype = "stdout"\n') as running:
        assert running.process.stdin is not None
        assert running.process.stdout is not None
        running.process.stdin.write(b"one\ntwo\nno newline")
        running.process.stdin.close()
        out = running.process.stdout.read()
        assert running.process.wait(20) == 0
        running.process.stdin = None
    assert out == b"one\ntwo\nno newline\n"


TCP_TO_FILE = """
    [[source]]
    type = "tcp"
    port = 0
    [sink]
    type = "file"
    path = "{out}"
    [buffer.flow_control]
    max_events_per_second = {rate}
    [service]
    drain_timeout = 5
"""


def test_sigterm_delivers_what_was_received(tmp_path: Path) -> None:
    out = tmp_path / "out.log"
    with Process(tmp_path, TCP_TO_FILE.format(out=out, rate=1e6)) as running:
        with socket.create_connection(address_of(running, "tcp")) as peer:
            lines = b"".join(b"%d\n" % n for n in range(20_000))
            peer.sendall(lines)
            until(out.exists)
            time.sleep(0.3)  # the kernel has what was sent
            assert running.end() == 0, running.said
        assert out.read_bytes() == lines


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
@pytest.mark.platform
def test_sighup_reloads_and_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.log"
    with Process(tmp_path, TCP_TO_FILE.format(out=out, rate=1000)) as running:
        address_of(running, "tcp")
        running.config.write_text(
            textwrap.dedent(TCP_TO_FILE.format(out=out, rate=2000)).replace("port = 0", "port = 1")
        )
        running.process.send_signal(signal.SIGHUP)
        running.saying("reloaded: buffer.flow_control.max_events_per_second")
        running.saying("needs a restart: source")
        running.config.write_text("[buffer]\nlane_byte = 1\n")
        running.process.send_signal(signal.SIGHUP)
        running.saying("not reloaded: buffer.lane_byte")
        assert running.end() == 0


def test_a_sink_that_is_down_ends_in_time_and_says_what_is_lost(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        toml = f"""
            [[source]]
            type = "tcp"
            port = 0
            [sink]
            type = "tcp"
            host = "127.0.0.1"
            port = {nobody.getsockname()[1]}
            [service]
            drain_timeout = 0.3
        """
        with Process(tmp_path, toml) as running:
            with socket.create_connection(address_of(running, "tcp")) as peer:
                peer.sendall(b"one\ntwo\n")
                running.saying("the sink fails")
                assert running.end() == 128 + signal.SIGTERM
            assert "2 events were NOT delivered" in running.said


def test_killed_and_started_again_nothing_of_a_file_is_lost(tmp_path: Path) -> None:
    source, out = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"")
    toml = f"""
        [[source]]
        type = "file"
        path = "{source}"
        start = "beginning"
        [sink]
        type = "file"
        path = "{out}"
        [service]
        state_file = "{tmp_path / "state"}"
    """
    expected = []
    with source.open("ab", buffering=0) as writer:
        for turn in range(3):
            with Process(tmp_path, toml) as running:
                for number in range(500):
                    line = b"%d %d" % (turn, number)
                    expected.append(line)
                    writer.write(line + b"\n")
                until(lambda: out.exists() and out.read_bytes().count(b"\n") >= len(expected) - 100)
                running.process.kill()
                running.process.wait(20)
    with Process(tmp_path, toml) as running:
        # Something for this one to do: when it is done, the process is up, and takes a signal for what it means.
        expected.append(b"the last")
        with source.open("ab", buffering=0) as writer:
            writer.write(b"the last\n")
        until(lambda: set(out.read_bytes().splitlines()) == set(expected))
        assert running.end() == 0


def test_with_a_directory_what_was_accepted_is_delivered_after_a_crash(tmp_path: Path) -> None:
    out = tmp_path / "out.log"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        common = f"""
            [buffer]
            lane_bytes = "1M"
            directory = "{tmp_path / "buffer"}"
            [[source]]
            type = "tcp"
            port = 0
            [service]
            drain_timeout = 0.2
            [sink]
        """
        down = (
            common
            + f'    type = "tcp"\n            host = "127.0.0.1"\n            port = {nobody.getsockname()[1]}\n'
        )
        with (
            Process(tmp_path, down) as running,
            socket.create_connection(address_of(running, "tcp")) as peer,
        ):
            peer.sendall(b"one\ntwo\n")
            running.saying("the sink fails")
            with Process(tmp_path, down) as second:
                assert second.end(None) == 1
                assert "Traceback" not in second.said
            running.process.kill()
            running.process.wait(20)
        with Process(tmp_path, down) as running:
            running.saying("the sink fails")
            assert running.end() == 0
            assert "2 events stay in" in running.said
    with Process(tmp_path, common + f'    type = "file"\n            path = "{out}"\n') as running:
        until(lambda: out.exists() and out.read_bytes() == b"one\ntwo\n")
        assert running.end() == 0


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
@pytest.mark.platform
def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        toml = TCP_TO_FILE.format(out=tmp_path / "out.log", rate=1000)
        with Process(
            tmp_path, toml, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000"
        ) as running:
            assert manager.recv(1000).startswith(b"READY=1")
            assert manager.recv(1000) == b"WATCHDOG=1"
            running.process.send_signal(signal.SIGHUP)
            heard = []
            while heard[-1:] != [b"READY=1"]:
                heard.append(manager.recv(1000))
            assert any(one.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for one in heard)
            assert running.end() == 0
            while heard[-1] != b"STOPPING=1":
                heard.append(manager.recv(1000))


def test_http(tmp_path: Path) -> None:
    pytest.importorskip("backpressure.http")
    out = tmp_path / "out.log"
    toml = f"""
        [sink]
        type = "file"
        path = "{out}"
        [http]
        port = 0
        token = "0123456789abcdef"
    """
    with Process(tmp_path, toml) as running:
        running.saying("listening: http://")
        base = running.said.partition("listening: ")[2].split()[0]
        with urllib.request.urlopen(base + "stats", timeout=10) as answer:
            assert b'"offered"' in answer.read()
        request = urllib.request.Request(
            base.removesuffix("buffer/") + "events",
            b"one\ntwo\n",
            {"Authorization": "Bearer 0123456789abcdef"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 202
        with urllib.request.urlopen(base.removesuffix("buffer/") + "metrics", timeout=10) as answer:
            assert b"backpressure_buffer_events_total" in answer.read()
        until(lambda: out.read_bytes() == b"one\ntwo\n")
        assert running.end() == 0, running.said
