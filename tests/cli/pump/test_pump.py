"""`forebay pump`, end to end: its output, its messages and its exit codes."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.logs import access_log, real_log
from tests.support.pump import Run, command
from tests.support.threads import until

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
        "0.5",
        "--seed",
        "3",
        "--reset-timeout",
        "0.01",
        "--batch-size",
        "200",
    ]
    run = Run(capfd, source, "--to", sink, *options)
    assert run.code == 0, run.err
    assert "50 % of the writes fail on purpose" in run.err
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


# A share of failures below the one from which flow control sheds the less urgent, which
# takes its time.
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
    # No process reads: the pipe fills up, and the write that filled it hangs. How much
    # it holds depends on the sizes of the writes, which share no page; but from then on
    # it holds no more.
    filled = [0]

    def is_full() -> bool:
        filled.extend(struct.unpack("i", fcntl.ioctl(output, termios.FIONREAD, bytes(4))))
        return len(filled) > 60 and 30_000 < filled[-1] == filled[-60]

    until(is_full)
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
