"""`forebay top DIR`: a buffer's directory, beside its owner and after it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backpressure import BatchRejected
from backpressure.buffer.config import BufferConfig
from backpressure.buffer_manager import BufferManager
from backpressure.cli import main, top
from backpressure.cli.top.directory import DirectoryView
from backpressure.testing import FakeClock
from tests.support.buffers import next_batch
from tests.support.processes import run_python

rich_console = pytest.importorskip("rich.console")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a buffer with a directory needs Linux"),
    pytest.mark.platform,
]


def shown(renderable: object, width: int = 80) -> str:
    out = io.StringIO()
    rich_console.Console(file=out, width=width).print(renderable)
    return out.getvalue()


def fingerprint(path: Path) -> list[tuple[str, int, bytes]]:
    files = [one for one in sorted(path.rglob("*")) if one.is_file()]
    return [(str(one), one.stat().st_mtime_ns, one.read_bytes()) for one in files]


def test_what_the_owner_does_is_seen_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    clock = FakeClock()
    view = DirectoryView(str(path), clock=clock.now)
    with BufferManager(BufferConfig(directory=path, lane_bytes=1 << 16, max_attempts=1)) as buffer:
        first = view.read(None)
        assert first.view.owner is not None
        assert (first.view.owner.pid, list(first.lanes)) == (os.getpid(), [1, 2, 3, 4, 5])
        assert first.rate(lambda lane: lane.next_seq) is None
        buffer.add_events([b"x" * 100] * 100, priority=2)
        buffer.add_events([b"y"] * 7, priority=1)
        clock.advance(2.0)
        second = view.read(first)
        assert second.rate(lambda lane: lane.next_seq) == 53.5
        assert second.rate(lambda lane: lane.next_seq, 2) == 50.0
        assert second.rate(lambda lane: lane.next_seq - lane.owed) == 0.0
        assert second.lanes[2].owed == second.lanes[2].ring_waiting == 100
        held = next_batch(buffer, 3)
        clock.advance(1.0)
        third = view.read(second)
        assert (third.lanes[1].ring_waiting, third.lanes[1].ring_out) == (4, 3)
        held.ack()
        buffer.flush()  # the rest is on disk now, with nothing of it in the ring
        clock.advance(1.0)
        fourth = view.read(third)
        assert fourth.rate(lambda lane: lane.next_seq - lane.owed, 1) == 3.0
        assert fourth.rate(lambda lane: lane.disk_end) == 107.0
        one, two = fourth.lanes[1], fourth.lanes[2]
        assert (one.owed, one.disk_events, one.ring_waiting, one.ring_out) == (4, 4, 0, 0)
        assert two.ring is not None
        assert (two.owed, two.disk_events, two.segments, two.ring.used_bytes) == (100, 100, 1, 0)
        assert two.disk_bytes > 0 < two.oldest_ns
        next_batch(buffer, 1).nack(BatchRejected("no"))
        next_batch(buffer, 1).ack()
        stats = buffer.stats()
        clock.advance(1.0)
        last = view.read(fourth)
        assert sum(lane.owed for lane in last.lanes.values()) == stats.resident
        assert last.dead_letters is not None
        assert last.dead_letters.disk_events == stats.dead_lettered == 1
        text = shown(view.screen(last, None))
        assert f"open in process {os.getpid()}" in text
        assert f"dead letters {stats.dead_lettered}, " in text
        assert "…" not in text
        buffer.close(timeout=0)


def test_after_the_owner_died_it_shows_what_is_owed_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "buffer"
    source = (
        "import os, signal; from backpressure import BufferConfig, BufferManager\n"
        f"buffer = BufferManager(BufferConfig(directory={str(path)!r}, lane_bytes=1 << 16))\n"
        "buffer.add_events([b'x'] * 50); buffer.get_batch(max_events=20).ack()\n"
        "batch = buffer.get_batch(max_events=10)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert run_python(source).returncode == -signal.SIGKILL
    before = fingerprint(path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert main(["top", str(path), "--once"]) == 0
    text = capsys.readouterr().out
    assert "no process has it open" in text
    [lane] = [line.split() for line in text.splitlines() if line.split()[:1] == ["3"]][:1]
    assert lane == ["3", "0", "0", "0", "30", "20", "10", "0", "-"]
    assert fingerprint(path) == before
    with BufferManager(BufferConfig(directory=path, lane_bytes=1 << 16)) as buffer:
        assert buffer.stats().resident == 30
        buffer.close(timeout=0)


def test_damage_is_red_and_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with BufferManager(BufferConfig(directory=path, lane_bytes=1 << 16)) as buffer:
        buffer.add_events([b"x"] * 10)
        buffer.close(timeout=0)
    ring = path / "lane-4" / "ring"
    ring.write_bytes(b"?" + ring.read_bytes()[1:])
    (path / "manifest").write_bytes(b"")
    view = DirectoryView(str(path))
    text = shown(view.screen(view.read(None), None), 200)
    assert f"priority 4: {ring} is not a file of ringbuf" in text
    assert "DAMAGED" in text
    assert "the manifest is damaged" in text


def test_what_is_no_buffer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(tmp_path), "--once"]) == 1
    assert "is not the directory of a buffer" in capsys.readouterr().err


def test_live_it_survives_a_directory_that_goes_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "buffer"
    with BufferManager(BufferConfig(directory=path, lane_bytes=1 << 16)) as buffer:
        buffer.add_events([b"x"] * 1234)
        buffer.close(timeout=0)
    out = io.StringIO()
    console = rich_console.Console(file=out, force_terminal=True, width=200, height=50)
    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: path.rename(tmp_path / "elsewhere"),
            lambda: shutil.copytree(tmp_path / "elsewhere", path),
        ]
    )

    def sleep(seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        top._watch(console, DirectoryView(str(path)), 1.0)
    gone, back = out.getvalue().split("is not a directory")
    assert "1,234" in gone
    assert "what follows is old" in back
    assert "no process has it open" in back.split("what follows is old")[1]
