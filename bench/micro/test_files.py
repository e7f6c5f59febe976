"""From file to file with a directory, by both commands, against `cat` of the same.

Each in a process of its own, its start and end included, and in turn with the
yardstick; bytes are compared before anything counts.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure.cli.bench.hot_paths import access_log as long_log

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

# Fewer would measure Python's start.
LINES = 20_000 if os.environ.get("CI") else 2_000_000
ROUNDS = 5
# Times as long as `cat`.
PUMP_LIMIT = 4.0
SERVE_LIMIT = 5.0


class Carriage:
    """One file, and the ways to bring it to another."""

    def __init__(self, folder: Path) -> None:
        self.source, self.out = folder / "in.log", folder / "out.log"
        self._directory, self._config = folder / "buffer", folder / "forebay.toml"
        self.source.write_bytes(b"".join(long_log(LINES)))

    def cat(self) -> float:
        return self._timed(["sh", "-c", 'cat "$1" > "$2"', "sh", str(self.source), str(self.out)])

    def pump(self) -> float:
        options = ["--directory", str(self._directory), "--quiet"]
        return self._forebay("pump", str(self.source), "--to", str(self.out), *options)

    def serve(self, *, waits: bool = True) -> float:
        """From stdin, as the service has it."""
        config = f"""
            [buffer]
            directory = "{self._directory}"
            [[source]]
            type = "stdin"
            [sink]
            type = "file"
            path = "{self.out}"
            [service]
            wait_for_sink = {str(waits).lower()}
        """
        self._config.write_text(textwrap.dedent(config))
        return self._forebay("serve", "--config", str(self._config))

    def _forebay(self, *arguments: str) -> float:
        shutil.rmtree(self._directory, ignore_errors=True)
        return self._timed([sys.executable, "-m", "backpressure", *arguments])

    def _timed(self, command: list[str]) -> float:
        self.out.unlink(missing_ok=True)
        with self.source.open("rb") as stdin:
            start = time.perf_counter()
            subprocess.run(command, stdin=stdin, check=True)
            seconds = time.perf_counter() - start
        assert self.out.stat().st_size == self.source.stat().st_size, "bytes are missing"
        return seconds


@pytest.fixture(scope="module")
def carriage(tmp_path_factory: pytest.TempPathFactory) -> Carriage:
    return Carriage(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize(("command", "limit"), [("pump", PUMP_LIMIT), ("serve", SERVE_LIMIT)])
def test_with_a_directory_against_cat(
    benchmark: BenchmarkFixture, carriage: Carriage, command: str, limit: float
) -> None:
    run = getattr(carriage, command)
    benchmark.pedantic(run, rounds=1)
    assert carriage.out.read_bytes() == carriage.source.read_bytes()
    if benchmark.disabled:
        return
    carriage.cat()  # the first one writes where nothing was
    ratio = statistics.median(run() / carriage.cat() for _ in range(ROUNDS))
    benchmark.extra_info.update(ratio=round(ratio, 2), limit=limit, lines=LINES)
    assert ratio <= limit, f"{ratio:.2f} times cat, at most {limit} allowed"


def test_what_waiting_for_the_sink_saves(benchmark: BenchmarkFixture, carriage: Carriage) -> None:
    benchmark.pedantic(carriage.serve, rounds=1)
    if benchmark.disabled:
        return
    pairs = [(carriage.serve(waits=False), carriage.serve()) for _ in range(ROUNDS)]
    ratio = statistics.median(through / waiting for through, waiting in pairs)
    benchmark.extra_info.update(ratio=round(ratio, 2))
    assert ratio > 1.2, f"by way of the disk it takes {ratio:.2f} times as long"
