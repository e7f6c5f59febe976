"""`forebay pump --directory`: what was accepted comes out, whatever ends the run."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backpressure import BufferConfig, BufferManager, Durability
from backpressure.cli import main
from ringbuf import MessageRing
from tests.support.logs import access_log
from tests.support.processes import environment
from tests.support.pump import Run, command
from tests.support.threads import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

# Small lanes, so that half of one is soon there.
SMALL = ["--lane-bytes", "256K", "--quiet"]


def numbered(lines: int) -> list[bytes]:
    """Lines of 100 bytes."""
    return [b"%099d\n" % number for number in range(lines)]


@contextmanager
def pumping(sink: Path, directory: Path, lines: list[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A run that reads these lines from stdin, which stays open, until the body kills
    it.
    """
    process = subprocess.Popen(
        command("-", "--to", sink, "--directory", directory, *SMALL),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    stdin = process.stdin

    def feed() -> None:
        try:
            stdin.write(b"".join(lines))
            stdin.flush()
        except BrokenPipeError:
            pass  # it was killed before it had read all

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        feeder.join(30)
        try:
            stdin.close()
        except BrokenPipeError:
            pass
        assert process.stderr is not None
        process.stderr.close()


def accepted(directory: Path) -> int:
    """How many events the lane of lines without a rule has ever accepted."""
    try:
        return MessageRing.look(directory / "lane-3" / "ring").next_seq
    except FileNotFoundError:
        return 0


def accepted_lines(directory: Path, out: Path | bytes) -> int:
    """How many of numbered lines the killed runs have accepted, whose sink has `out`.

    The last one that is there tells. (The ring's next number does not: a run that is
    killed within a push had claimed numbers for what it did not accept.)
    """
    came = out if isinstance(out, bytes) else out.read_bytes()
    numbers = [int(one) for one in re.findall(rb"^\d{99}$", came, re.MULTILINE)]
    with BufferManager(BufferConfig(directory=directory, lane_bytes=1 << 18)) as buffer:
        held = []
        while batch := buffer.get_batch():
            held.append(batch)
            numbers += map(int, batch.tolist())
        for batch in held:
            batch.nack(KeyboardInterrupt())
        buffer.close(timeout=0)
    return max(numbers, default=-1) + 1


def finish(sink: Path, directory: Path, lines: list[bytes]) -> str:
    """A run that reads these lines to their end; what it said."""
    done = subprocess.run(
        command("-", "--to", sink, "--directory", directory, "--lane-bytes", "256K"),
        input=b"".join(lines),
        stderr=subprocess.PIPE,
        timeout=60,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()


# Within half a lane, and beyond it, where a sink that takes nothing has lines spilled.
@pytest.mark.parametrize("kill_at", [500, 8_000], ids=["in the ring", "on disk"])
def test_what_a_killed_run_had_accepted_comes_out_of_the_next(kill_at: int, tmp_path: Path) -> None:
    lines = numbered(10_000)
    pipe, out, directory = tmp_path / "pipe", tmp_path / "out.log", tmp_path / "buffer"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reader, "rb") as taken:
        # Nothing is read from the pipe: it takes some of the lines, and then no more.
        with pumping(pipe, directory, lines) as process:
            until(lambda: accepted(directory) >= kill_at, 60)
            process.kill()
            process.wait(30)
        came = taken.read()
        count = accepted_lines(directory, came)
        # The rest of the source is what was not accepted.
        said = finish(out, directory, lines[count:])
        came_first = set(re.findall(rb"\d{99}\n", came))
    found = re.search(r"([\d,]+) events of an earlier run are in", said)
    assert found, said
    waited = int(found[1].replace(",", ""))
    assert count - len(came_first) <= waited <= count
    rest = out.read_bytes().splitlines(keepends=True)
    assert rest == lines[-len(rest) :], "in order, each once"
    assert len(rest) == waited + 10_000 - count
    assert came_first | set(rest) == set(lines), "nothing is lost"


def test_killed_again_and_again_every_line_comes_out(tmp_path: Path) -> None:
    lines = numbered(20_000)
    out, directory = tmp_path / "out.log", tmp_path / "buffer"
    rng = random.Random(5)
    begun = 0
    for turn in range(3):
        with pumping(out, directory, lines[begun:]) as process:
            target = begun + rng.randrange(1, 4000) if turn else 1
            until(lambda least=target: accepted(directory) >= least, 60)  # type: ignore[misc]
            process.kill()
            process.wait(30)
        begun = accepted_lines(directory, out)
    finish(out, directory, lines[begun:])
    came = Counter(out.read_bytes().splitlines(keepends=True))
    assert set(lines) <= set(came), "nothing is lost"
    assert sum(came.values()) - 20_000 < 20_000, "what was in flight may come twice"
    for torn in set(came) - set(lines):
        assert any(line.startswith(torn[:-1]) for line in lines), "half a line, and ended"
    assert finish(out, directory, []).count("earlier run") == 0


def test_a_file_is_read_from_its_beginning_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out, directory = tmp_path / "in.log", tmp_path / "out.log", tmp_path / "buffer"
    source.write_bytes(b"one\ntwo\n")
    with BufferManager(BufferConfig(directory=directory, lane_bytes=1 << 16)) as buffer:
        buffer.add_events([b"left"])
        buffer.close(timeout=0)
    out.write_bytes(b"delivered\n")
    run = Run(capfd, source, "--to", out, "--directory", directory)
    assert run.code == 0, run.err
    assert out.read_bytes() == b"delivered\nleft\none\ntwo\n"
    assert "1 events of an earlier run" in run.err
    assert run.row("events delivered") == "3"
    assert Run(capfd, source, "--to", out, "--directory", directory).code == 0
    assert out.read_bytes() == b"delivered\nleft\none\ntwo\none\ntwo\n"
    assert MessageRing.look(directory / "lane-3" / "ring").capacity_bytes == 1 << 16


@pytest.mark.parametrize("options", [[], ["--inject-failures", "0.3", "--batch-size", "100"]])
@pytest.mark.parametrize("durability", [one.value for one in Durability])
def test_the_output_is_the_input(
    options: list[str], durability: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.log", tmp_path / "out.log"
    content = access_log(3000) + b"no newline"
    source.write_bytes(content)
    more = ["--reset-timeout", "0.01", "--lane-bytes", "256K", "--durability", durability, *options]
    run = Run(capfd, source, "--to", out, "--directory", tmp_path / "buffer", *more)
    assert run.code == 0, run.err
    assert out.read_bytes() == content
    assert run.row("not delivered") == "0"


def test_priorities_come_through(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in.log", tmp_path / "out.log"
    content = access_log(3000)
    source.write_bytes(content)
    rules = ["--priority-by", '" 404 =1', "--priority-by", '" 500 =5']
    run = Run(capfd, source, "--to", out, "--directory", tmp_path / "buffer", *SMALL, *rules)
    assert run.code == 0, run.err
    assert Counter(out.read_bytes().splitlines()) == Counter(content.splitlines())


def test_what_a_sink_that_fails_leaves_stays_and_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out, directory = tmp_path / "in.log", tmp_path / "out.log", tmp_path / "buffer"
    source.write_bytes(b"".join(numbered(50)))
    common: list[str | Path] = ["--to", out, "--directory", directory, *SMALL]
    run = Run(capfd, source, *common, "--inject-failures", "1", "--retry-for", "0")
    assert run.code == 1
    assert f"50 events stay in {directory}, and the next run with it delivers them" in run.err
    assert "NOT delivered" not in run.err
    source.write_bytes(b"")
    assert Run(capfd, source, *common).code == 0
    assert out.read_bytes() == b"".join(numbered(50))


def test_a_signal_leaves_the_rest_for_the_next_run(tmp_path: Path) -> None:
    lines = numbered(3000)
    pipe, out, directory = tmp_path / "pipe", tmp_path / "out.log", tmp_path / "buffer"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as taken:
        with pumping(pipe, directory, lines) as process:
            until(lambda: accepted(directory) >= 1000, 60)
            for number in (signal.SIGTERM, signal.SIGINT):  # the second ends the drain
                process.send_signal(number)
            assert process.wait(30) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
            assert process.stderr is not None
            said = process.stderr.read().decode()
        count = accepted(directory)
        assert f"events stay in {directory}" in said
        finish(out, directory, lines[count:])
        came_first = set(re.findall(rb"\d{99}\n", taken.read()))
    assert came_first | set(out.read_bytes().splitlines(keepends=True)) == set(lines)


# ------------------------------------------------------------ what goes wrong


def test_a_directory_in_use_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out, directory = tmp_path / "in.log", tmp_path / "out.log", tmp_path / "buffer"
    source.write_bytes(b"one\n")
    with BufferManager(BufferConfig(directory=directory, lane_bytes=1 << 16)):
        run = Run(capfd, source, "--to", out, "--directory", directory)
    assert run.code == 1
    assert "is locked: another process" in run.err
    assert not out.exists()


def test_a_durability_needs_a_directory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = Run(capfd, tmp_path / "in.log", "--to", tmp_path / "o", "--durability", "commit")
    assert run.code == 2
    assert "durability: needs a directory" in run.err
    with pytest.raises(SystemExit):
        main(["pump", "in.log", "--to", "o", "--directory", "d", "--durability", "always"])
    assert "invalid choice" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_leaves_no_directory_in_use(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, directory = tmp_path / "in.log", tmp_path / "buffer"
    run = Run(capfd, source, "--to", tmp_path / "o", "--directory", directory)
    assert run.code == 1
    assert "No such file" in run.err
    assert not directory.exists(), "sources are looked at first"
    source.write_bytes(b"no newline")
    run = Run(capfd, source, "--to", tmp_path / "missing" / "o", "--directory", directory)
    assert run.code == 1
    run = Run(capfd, source, "--to", source, "--directory", directory)
    assert run.code == 1
    assert "also the source" in run.err
    assert source.read_bytes() == b"no newline", "nothing is written to it either"
    assert Run(capfd, source, "--to", tmp_path / "o", "--directory", directory).code == 0


def test_half_a_line_of_a_killed_run_spoils_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"one\ntwo\n")
    out.write_bytes(b"zero\non")
    assert Run(capfd, source, "--to", out, "--directory", tmp_path / "buffer").code == 0
    assert out.read_bytes() == b"zero\non\none\ntwo\n"
