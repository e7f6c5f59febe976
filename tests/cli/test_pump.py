"""`forebay pump`, end to end: what comes out, what is said, and with which exit code."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from backpressure.buffer.batch import Batch
from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.cli import main
from backpressure.cli.progress import make_display
from backpressure.cli.pump.transfer import Progress, Transfer
from backpressure.sinks import FileSink, Sink
from backpressure.sources.priority_rules import PriorityRules, parse_rule
from backpressure.testing import FailingSink, FakeClock, MemorySink
from tests.support.logs import access_log, real_log
from tests.support.processes import forebay_command
from tests.support.threads import until


class Run:
    """What one in-process call of the command did."""

    def __init__(self, capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> None:
        capfd.readouterr()
        self.code = main(["pump", *map(str, arguments)])
        self.out, self.err = capfd.readouterr()

    def row(self, name: str) -> str:
        """A row of the closing table."""
        found = re.search(rf"^{name}  +(.*)$", self.err, re.MULTILINE)
        assert found, self.err
        return found[1]


def command(*arguments: str | Path) -> list[str]:
    return forebay_command("pump", *arguments)


CONTENTS = {
    "log": access_log(3000),
    "empty": b"",
    "no trailing newline": b"one\ntwo",
    "one byte": b"x",
    "one newline": b"\n",
    "only newlines": b"\n" * 1000,
    "crlf": b"one\r\ntwo\r\n\r\nthree\r",
    "nul": b"\0\n\0\0\n\0",
    "invalid utf-8": bytes(range(256)) * 20 + b"\xff\xfe\n\xc3",
}


# A drill that trips the breaker, and ends soon.
DRILL = ["--inject-failures", "0.3", "--reset-timeout", "0.01", "--batch-size", "100"]


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("options", [[], DRILL])
def test_the_output_is_the_input(
    name: str, options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(CONTENTS[name])
    for _ in range(2):  # the second run overwrites what the first has written
        run = Run(capfd, source, "--to", sink, *options)
        assert run.code == 0, run.err
        assert sink.read_bytes() == CONTENTS[name]
        lines = CONTENTS[name].count(b"\n") + (CONTENTS[name][-1:] not in (b"", b"\n"))
        assert run.row("events delivered") == f"{lines:,}"
        assert run.row("bytes") == f"{len(CONTENTS[name]) / 1e6:,.1f} MB"
        assert run.row("not delivered") == "0"


@pytest.mark.parametrize("name", ["apache_access.log", "nginx_json.log"])
def test_real_logs_come_through_unchanged(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(real_log(name))
    assert Run(capfd, source, "--to", sink).code == 0
    assert sink.read_bytes() == source.read_bytes()


def test_failures_are_seen_and_nothing_is_doubled(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(access_log(20_000))
    options = [
        "--inject-failures",
        "0.4",
        "--seed",
        "3",
        "--reset-timeout",
        "0.01",
        "--batch-size",
        "200",
    ]
    run = Run(capfd, source, "--to", sink, *options)
    assert run.code == 0, run.err
    assert sink.read_bytes() == source.read_bytes()
    batches, failed = int(run.row("batches")), int(run.row("failed batches"))
    assert batches >= 100
    assert 0.2 < failed / (batches + failed) < 0.6
    assert int(run.row("events redelivered").replace(",", "")) >= failed
    assert int(run.row("breaker trips")) >= 1
    mean, smallest, largest = re.findall(r"\d+", run.row("events in a batch"))
    assert int(smallest) <= int(mean) <= int(largest) == 200


def test_several_sources_are_joined_as_by_cat(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    contents = [b"one\ntwo", b"", b" and a half\nthree\n", b"\nfour"]
    sources = [tmp_path / f"{number}.log" for number in range(len(contents))]
    for source, content in zip(sources, contents, strict=True):
        source.write_bytes(content)
    run = Run(capfd, *sources, "--to", tmp_path / "out.log")
    assert run.code == 0
    assert (tmp_path / "out.log").read_bytes() == b"".join(contents)
    assert run.row("events delivered") == "5"


def test_append_adds_to_the_sink(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"two\n")
    sink.write_bytes(b"one\n")
    assert Run(capfd, source, "--to", sink, "--append").code == 0
    assert sink.read_bytes() == b"one\ntwo\n"


def test_from_stdin_to_stdout() -> None:
    content = access_log(5000) + b"the end"
    done = subprocess.run(command("-", "--to", "-"), input=content, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == content
    assert b"events delivered" in done.stderr


def test_an_injected_failure_on_stdout_neither_loses_nor_doubles() -> None:
    content = access_log(5000)
    done = subprocess.run(
        command("-", "--to", "-", *DRILL), input=content, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == content


def test_a_line_of_50_megabytes_passes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    content = b"before\n" + bytes(50_000_000) + b"\nafter\n"
    source.write_bytes(content)
    assert Run(capfd, source, "--to", sink).code == 0
    assert sink.read_bytes() == content


def test_a_line_that_no_lane_can_hold_is_refused_after_all_before_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    before = access_log(100)
    source.write_bytes(before + b"x" * 50_000_000 + b"\nafter\n")
    run = Run(capfd, source, "--to", sink, "--lane-bytes", "32M")
    assert run.code == 1
    assert sink.read_bytes() == before
    assert f"{source}: the line that begins at byte {len(before):,} has more than" in run.err
    assert "--lane-bytes" in run.err
    assert run.row("not delivered") == "0"


def test_the_longest_line_that_is_not_refused_fits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"x" * 70_000)
    refused = Run(capfd, source, "--to", sink, "--lane-bytes", "64K")
    limit = re.search(r"more than ([\d,]+) bytes", refused.err)
    assert limit, refused.err
    longest = int(limit[1].replace(",", ""))
    source.write_bytes(b"x" * longest + b"\ny\n" + b"z" * longest)
    assert Run(capfd, source, "--to", sink, "--lane-bytes", "64K").code == 0
    assert sink.read_bytes() == source.read_bytes()
    source.write_bytes(b"x" * (longest + 1) + b"\ny\n")
    assert Run(capfd, source, "--to", sink, "--lane-bytes", "64K").code == 1
    assert sink.read_bytes() == b""


# A share of failures below the one from which flow control sheds the less urgent, which takes its time.
@pytest.mark.parametrize("options", [[], ["--inject-failures", "0.1", "--batch-size", "100"]])
def test_priorities_keep_all_lines_and_the_order_within_each(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    content = access_log(8000) + b"\n\xff 500 \nlast line, without newline"
    source.write_bytes(content)
    rules = {rb'" 500 ': 1, rb'" (404|304) ': 4, rb"\xff": 2, rb'" 404 ': 5}
    arguments = [f"--priority-by={regex.decode()}={priority}" for regex, priority in rules.items()]
    run = Run(capfd, source, "--to", sink, *arguments, *options)
    assert run.code == 0, run.err

    def priority_of(line: bytes) -> int:
        return next((priority for regex, priority in rules.items() if re.search(regex, line)), 3)

    lines, got = content.split(b"\n"), sink.read_bytes().split(b"\n")
    assert got.pop() == b""  # with rules every line is ended
    assert Counter(got) == Counter(lines)
    for priority in range(1, 6):
        expected = [line for line in lines if priority_of(line) == priority]
        assert [line for line in got if priority_of(line) == priority] == expected
        assert expected or priority == 5  # 404 has matched an earlier rule


def test_urgent_lines_overtake(tmp_path: Path) -> None:
    source = tmp_path / "in.log"
    source.write_bytes(b"low\n" * 1000 + b"URGENT\n" * 3)
    done = subprocess.run(
        command(source, "--to", "-", "--priority-by", "URGENT=1", "--priority-by", "low=5"),
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == b"URGENT\n" * 3 + b"low\n" * 1000


def test_a_rate_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"x\n" * 1500)
    started = time.monotonic()
    assert Run(capfd, source, "--to", sink, "--rate", "1000").code == 0
    assert time.monotonic() - started > 0.3  # a second's worth at once, the rest in half a second
    assert sink.read_bytes() == source.read_bytes()


# ------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.log"], "--to"),
        (["--to", "out.log"], "SOURCE"),
        (["a.log", "--to", "out.log", "--priority-by", "(=1"], "regular expression"),
        (["a.log", "--to", "out.log", "--priority-by", "x=6"], "from 1 to 5"),
        (["a.log", "--to", "out.log", "--priority-by", "x=low"], "from 1 to 5"),
        (["a.log", "--to", "out.log", "--priority-by", "x"], "REGEX=N"),
        (["a.log", "--to", "out.log", "--lane-bytes", "many"], "64M"),
        (["a.log", "--to", "out.log", "--batch-size", "0"], "from 1 on"),
        (["a.log", "--to", "out.log", "--rate", "0"], "above 0"),
        (["a.log", "--to", "out.log", "--rate", "nan"], "above 0"),
        (["a.log", "--to", "out.log", "--retry-for", "-1"], "0 or more"),
        (["a.log", "--to", "out.log", "--inject-failures", "1.5"], "from 0 to 1"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["pump", *arguments])
    assert caught.value.code == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_the_buffer_refuses_ends_with_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(capfd, tmp_path / "in.log", "--to", tmp_path / "out.log", "--lane-bytes", "1K")
    assert run.code == 2
    assert "lane_bytes" in run.err
    assert not (tmp_path / "out.log").exists()


def test_a_mistake_in_a_source_costs_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"one\n")
    sink.write_bytes(b"precious\n")
    for wrong, message in (
        (tmp_path / "missing.log", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        run = Run(capfd, source, wrong, "--to", sink)
        assert run.code == 1
        assert f"{wrong}: {message}" in run.err
        assert sink.read_bytes() == b"precious\n"


def test_a_sink_that_can_not_be_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.log"
    source.write_bytes(b"one\n")
    run = Run(capfd, source, "--to", tmp_path / "missing" / "out.log")
    assert run.code == 1
    assert "missing/out.log: No such file" in run.err


def test_a_source_is_not_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, link = tmp_path / "in.log", tmp_path / "link.log"
    source.write_bytes(b"one\n")
    link.symlink_to(source)
    run = Run(capfd, source, "--to", link)
    assert run.code == 1
    assert "also the source" in run.err
    assert source.read_bytes() == b"one\n"


def test_a_sink_that_never_works_is_given_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, sink = tmp_path / "in.log", tmp_path / "out.log"
    source.write_bytes(b"one\ntwo\n")
    run = Run(capfd, source, "--to", sink, "--inject-failures", "1", "--retry-for", "0")
    assert run.code == 1
    assert "injected" in run.err
    assert "2 events were read and NOT delivered" in run.err
    assert run.row("not delivered") == "2"
    assert sink.read_bytes() == b""


def test_a_reader_that_leaves_ends_it_clearly() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            command("-", "--to", "-"),
            input=b"one\ntwo\n",
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(write_end)
    assert done.returncode == 1
    assert b"stdout: the reader of this pipe has closed it" in done.stderr
    assert b"2 events were read and NOT delivered" in done.stderr
    assert b"Traceback" not in done.stderr


# ------------------------------------------------------------ signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_reading_and_delivers_the_rest(
    number: int, code: int, tmp_path: Path
) -> None:
    sink = tmp_path / "out.log"
    process = subprocess.Popen(
        command("-", "--to", sink), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    assert process.stderr
    with process.stdin, process.stderr:
        process.stdin.write(b"one\ntwo\nthr")
        process.stdin.flush()
        until(lambda: sink.exists() and sink.read_bytes() == b"one\ntwo\n")
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        err = process.stderr.read()
    assert sink.read_bytes() == b"one\ntwo\n"
    assert b"reading ended before the end, after byte 8 of -, 3 bytes into a line" in err
    assert b"NOT delivered" not in err
    assert b"Traceback" not in err


def test_a_second_signal_ends_at_once_and_what_is_missing_is_counted() -> None:
    lines = 3000
    process = subprocess.Popen(
        command("-", "--to", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(b"".join(b"%0999d\n" % number for number in range(lines)))
    process.stdin.close()
    output = process.stdout.fileno()
    # Nobody reads: the pipe fills up, and the write that filled it hangs. How much it holds depends on the sizes of the writes,
    # which share no page; but then it holds no more for as long as anybody looks.
    filled = [0]
    until(
        lambda: (
            filled.append(struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, bytes(4)))[0])
            or (len(filled) > 60 and 30_000 < filled[-1] == filled[-60])
        )
    )
    process.send_signal(signal.SIGINT)
    said = b""
    while b"Ctrl-C again" not in said:
        said += os.read(process.stderr.fileno(), 4096)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - started < 1.9  # the drain alone would take 2 s
    err = (said + process.stderr.read()).decode()
    got = process.stdout.read()
    delivered = re.search(r"^events delivered +([\d,]+)$", err, re.MULTILINE)
    missing = re.search(r"([\d,]+) events were read and NOT delivered", err)
    assert delivered, err
    assert missing, err
    assert int(delivered[1].replace(",", "")) + int(missing[1].replace(",", "")) == lines
    assert got.count(b"\n") >= int(delivered[1].replace(",", ""))
    assert got == b"".join(b"%0999d\n" % number for number in range(lines))[: len(got)]
    assert "a batch was still being written" in err
    process.stdout.close()
    process.stderr.close()


# ------------------------------------------------------------ the transfer itself


class Gate:
    """A sink that waits to be opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.inner = MemorySink()

    def send(self, batch: Batch) -> None:
        self.entered.set()
        assert self.open.wait(30)
        self.inner.send(batch)

    def close(self) -> None:
        pass


@pytest.fixture(params=["file", "pipe"])
def give(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bytes], Path]]:
    """Makes a source with some content: a regular file, which is carried in lockstep, or a pipe, which two threads carry."""
    writers: list[threading.Thread] = []

    def write(path: Path, content: bytes) -> None:
        try:
            path.write_bytes(content)
        except BrokenPipeError:
            pass  # the transfer ended before it had read all

    def make(content: bytes) -> Path:
        path = tmp_path / f"{len(writers)}.log"
        if request.param == "file":
            path.write_bytes(content)
            return path
        os.mkfifo(path)
        writers.append(threading.Thread(target=write, args=(path, content)))
        writers[-1].start()
        return path

    yield make
    for writer in writers:
        writer.join(30)


def transfer_of(path: Path, sink: Sink, lane_bytes: int = 1 << 20, **options: object) -> Transfer:
    buffer = BufferManager(BufferConfig(lane_bytes=lane_bytes))
    return Transfer(buffer, [str(path)], sink, max_line_bytes=1 << 20, **options)  # type: ignore[arg-type]


def rules_for(some: bool) -> PriorityRules | None:
    return PriorityRules([parse_rule("[05]$=2")]) if some else None


def numbered(lines: int) -> bytes:
    """Lines of 100 bytes."""
    return b"".join(b"%099d\n" % number for number in range(lines))


@pytest.mark.parametrize("rules", [False, True])
def test_every_line_that_was_read_is_counted(rules: bool, give: Callable[[bytes], Path]) -> None:
    path = give(numbered(20_000))
    gate = Gate()
    transfer = transfer_of(path, gate, lane_bytes=65536, rules=rules_for(rules))
    transfer.start()
    assert gate.entered.wait(30)
    transfer.abandon()
    gate.open.set()
    assert transfer.settle(30)
    progress = transfer.progress()
    assert transfer.position is not None
    assert progress.events == len(gate.inner.events) > 0
    assert progress.events + progress.undelivered == transfer.position[1] // 100
    assert transfer.unaccepted > 0 or path.is_fifo()  # a lane holds less than a chunk of a file


@pytest.mark.parametrize("rules", [False, True])
def test_what_a_sink_that_hangs_holds_up_is_counted_too(
    rules: bool, give: Callable[[bytes], Path]
) -> None:
    gate = Gate()
    transfer = transfer_of(give(numbered(20_000)), gate, lane_bytes=65536, rules=rules_for(rules))
    transfer.start()
    assert gate.entered.wait(30)
    transfer.abandon()
    assert not transfer.settle(0.5)
    progress = transfer.progress()
    assert transfer.position is not None
    assert progress.events == 0
    assert progress.undelivered == transfer.position[1] // 100
    gate.open.set()
    assert transfer.wait(30)
    assert transfer.sink_error is None  # that the batch came too late is nobody's fault
    assert transfer.progress().undelivered == progress.undelivered


def test_stop_delivers_what_was_read_and_reads_no_more(give: Callable[[bytes], Path]) -> None:
    gate = Gate()
    transfer = transfer_of(give(numbered(50_000)), gate, lane_bytes=65536)
    transfer.start()
    assert gate.entered.wait(30)
    transfer.stop()
    gate.open.set()
    assert transfer.wait(30)
    assert transfer.settle(30)
    assert not transfer.reader.exhausted
    assert transfer.position is not None
    assert len(gate.inner.events) == transfer.position[1] // 100
    assert transfer.progress().undelivered == 0


def test_it_gives_up_when_the_sink_has_failed_for_too_long(give: Callable[[bytes], Path]) -> None:
    path = give(b"one\n")
    clock = FakeClock()
    inner = MemorySink()

    class Slow:
        calls = 0

        def send(self, batch: Batch) -> None:
            self.calls += 1
            clock.advance(10)
            raise OSError("no")

        def close(self) -> None:
            pass

    slow = Slow()
    transfer = transfer_of(path, slow, retry_for=30.0, clock=clock)
    transfer.start()
    assert transfer.wait(30)
    assert str(transfer.sink_error) == "no"
    assert slow.calls == 4  # the fourth comes 30 s after the first
    assert transfer.progress().undelivered == 1
    assert inner.events == []


def test_a_success_starts_the_patience_anew(give: Callable[[bytes], Path]) -> None:
    path = give(b"one\ntwo\nthree\n")
    clock = FakeClock()

    class EverySecond(MemorySink):
        calls = 0

        def send(self, batch: Batch) -> None:
            self.calls += 1
            clock.advance(20)
            if self.calls % 2:
                raise OSError("no")
            super().send(batch)

    sink = EverySecond()
    transfer = transfer_of(path, sink, retry_for=30.0, clock=clock, batch_size=1)
    transfer.start()
    assert transfer.wait(30)
    assert transfer.sink_error is None
    assert sink.events == [b"one", b"two", b"three"]


def test_an_error_that_is_no_failure_of_the_sink_is_not_retried(
    give: Callable[[bytes], Path],
) -> None:
    path = give(b"one\n")

    class Broken(MemorySink):
        def send(self, batch: Batch) -> None:
            raise ZeroDivisionError

    transfer = transfer_of(path, Broken())
    transfer.start()
    assert transfer.wait(30)
    assert isinstance(transfer.sink_error, ZeroDivisionError)
    assert transfer.progress().undelivered == 1


def test_a_last_line_is_never_sent_before_it_is_marked(
    give: Callable[[bytes], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.log"
    for number in range(50):
        content = b"one\n" * (number % 3) + b"two"
        sink = FileSink(out)
        transfer = transfer_of(
            give(content), FailingSink(sink, 0.3, seed=number), leave_open=sink.leave_open
        )
        transfer.start()
        assert transfer.wait(30)
        sink.close()
        assert out.read_bytes() == content
        assert transfer.progress().nbytes == len(content)


# ------------------------------------------------------------ what is shown


def progress_of(events: int) -> Progress:
    return Progress(
        seconds=2.0,
        events=events,
        nbytes=events * 100,
        batches=2,
        smallest_batch=1,
        largest_batch=9,
        undelivered=7,
    )


class Terminal:
    """A stderr that says that it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_plain_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display(quiet=False, total_bytes=None)
    display.update(progress_of(20_000), "circuit open")
    display.finish([("events delivered", "20,000"), ("time", "2.00 s")])
    err = capsys.readouterr().err.splitlines()
    assert (
        err[0]
        == "forebay: 20,000 events, 2.0 MB, 10,000 events/s, 1.0 MB/s, 7 buffered, circuit open"
    )
    assert err[1:] == ["events delivered  20,000", "time              2.00 s"]


def test_quiet_shows_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.log"
    source.write_bytes(b"one\n")
    run = Run(capfd, source, "--to", tmp_path / "out.log", "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")
    assert Run(capfd, tmp_path / "missing", "--to", tmp_path / "out.log", "--quiet").err != ""


@pytest.mark.parametrize("total", [None, 0, 4_000_000])
def test_a_live_line_and_a_table_on_a_terminal(
    total: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    display = make_display(quiet=False, total_bytes=total)
    display.update(progress_of(20_000), "backpressure")
    display.note("a [remark]")
    display.finish([("events delivered", "20,000")])
    assert "20,000 events, 2.0 MB" in terminal.text
    assert ("50%" in terminal.text) == bool(total)
    assert "backpressure" in terminal.text
    assert "a [remark]" in terminal.text
    assert "events delivered" in terminal.text


def test_a_terminal_without_rich_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    display = make_display(quiet=False, total_bytes=None)
    display.update(progress_of(1), "")
    assert terminal.text.startswith("forebay: 1 events")


# ------------------------------------------------------------ the command around it


@pytest.mark.parametrize("arguments", [[], ["pmup"]])
def test_an_unknown_command_ends_with_2(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "usage: forebay" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_help_and_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    assert "forebay" in capsys.readouterr().out


def test_the_help_of_pump_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["pump", "--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    for code in ("0  ", "1  ", "2  ", "130  ", "143"):
        assert code in help_text
