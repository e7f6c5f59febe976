"""`forebay serve` as a process of its own.

Signals, sinks that are down, kills, systemd, HTTP.
"""

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

from tests.support import processes
from tests.support.threads import until


class Process:
    """`forebay serve` with a config, and its stderr."""

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
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        toml = f"""
            [[source]]
            type = "tcp"
            port = 0
            [sink]
            type = "tcp"
            host = "127.0.0.1"
            port = {unused.getsockname()[1]}
            [service]
            drain_timeout = 0.3
        """
        with Process(tmp_path, toml) as running:
            with socket.create_connection(address_of(running, "tcp")) as peer:
                peer.sendall(b"one\ntwo\n")
                running.saying("fails, events are kept")
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
        # Something to do: when it is done, the process is up, and handles signals.
        expected.append(b"the last")
        with source.open("ab", buffering=0) as writer:
            writer.write(b"the last\n")
        until(lambda: set(out.read_bytes().splitlines()) == set(expected))
        assert running.end() == 0


def test_with_a_directory_what_was_accepted_is_delivered_after_a_crash(tmp_path: Path) -> None:
    out = tmp_path / "out.log"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
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
        indent, port = " " * 12, unused.getsockname()[1]
        down = f'{common}    type = "tcp"\n{indent}host = "127.0.0.1"\n{indent}port = {port}\n'
        with (
            Process(tmp_path, down) as running,
            socket.create_connection(address_of(running, "tcp")) as peer,
        ):
            peer.sendall(b"one\ntwo\n")
            running.saying("fails, events are kept")
            with Process(tmp_path, down) as second:
                assert second.end(None) == 1
                assert "Traceback" not in second.said
            running.process.kill()
            running.process.wait(20)
        with Process(tmp_path, down) as running:
            running.saying("fails, events are kept")
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
            heard: list[bytes] = []
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
