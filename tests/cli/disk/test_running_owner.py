"""The commands beside a running owner: they change nothing, and say what they cannot
know.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backpressure.spill import Lost
from backpressure.spill.offline.directory_view import find_owner, look_at_buffer
from backpressure.spill.offline.lane_reader import stored_events
from tests.support.buffers import add_all, crash
from tests.support.disk import fingerprint, noise, open_buffer, segments_of
from tests.support.processes import environment, python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

OWNER = """
    import sys
    from backpressure import BufferConfig, BufferManager
    from backpressure.spill import SpillConfig
    from tests.support.buffers import until_proved
    spill = SpillConfig(reserve_bytes=1 << 13)
    buffer = BufferManager(BufferConfig(directory=sys.argv[1], lane_bytes=1 << 14, spill=spill))
    events = [b"%06d" % i for i in range(5000)]
    while events:
        events = events[buffer.add_events(events, timeout=10.0).accepted:]
    buffer.flush()
    buffer.add_events([b"only in the ring"])
    until_proved(buffer)  # nothing but a call changes the files from here on
    print("ready", flush=True)
    sys.stdin.readline()
    got = []
    while (batch := buffer.get_batch()) is not None:
        got += batch.tolist()
        batch.ack()
    print(len(got), got[-1].decode(), flush=True)
    buffer.close()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has a directory open.

    5,000 events are on disk and one in a ring; a line on its stdin lets it deliver.
    """
    with subprocess.Popen(
        python(OWNER, tmp_path / "buffer"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_beside_a_running_owner(forebay: Any, tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    path = tmp_path / "buffer"
    before = fingerprint(path)
    code, out, _ = forebay("inspect", path, "--json")
    report = json.loads(out)
    assert (code, report["owner"]) == (0, {"pid": owner.pid})
    three = report["lanes"][2]
    assert (three["ring"]["next_seq"], three["ring"]["events"], three["disk"]["events"]) == (
        5001,
        None,
        5000,
    )
    assert f"open in process {owner.pid}" in forebay("inspect", path)[1]
    assert forebay("verify", path)[0] == 0
    code, out, err = forebay("export", path)
    assert (code, out) == (0, "".join(f"{i:06d}\n" for i in range(5000)))
    assert f"in the ring of process {owner.pid} are left out" in err
    for command in (
        ("repair",),
        ("repair", "--yes"),
        ("dlq", "replay"),
        ("dlq", "purge", "--all", "--yes"),
    ):
        code, out, err = (
            forebay(*command[:2], path, *command[2:])
            if command[0] == "dlq"
            else forebay(*command, path)
        )
        assert (code, out) == (3, ""), command
        assert f"in use by process {owner.pid}" in err
    assert forebay("dlq", "list", path)[0] == 0
    assert fingerprint(path) == before
    said, _ = owner.communicate("go on\n", timeout=60)
    assert said == "5001 only in the ring\n"
    assert owner.returncode == 0
    assert find_owner(str(path)) is None
    assert forebay("repair", path)[0] == 0


def test_what_an_owner_acks_and_deletes_meanwhile_is_not_taken_for_lost(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    buffer = open_buffer(path)
    events = noise(20_000)
    add_all(buffer, events)
    buffer.flush()
    view = look_at_buffer(str(path))
    reading = stored_events(view, view.lanes[2])
    got = next(reading)
    assert not isinstance(got, Lost)
    assert got.messages()[0] == events[0]
    for _ in range(15):
        batch = buffer.get_batch(1000)
        assert batch is not None
        batch.ack()
    assert int(segments_of(path)[0].name.split("-")[1], 16) > got.end_seq, (
        "no file was deleted: nothing is tested"
    )
    rest = list(reading)
    runs = [item for item in rest if not isinstance(item, Lost)]
    assert runs == rest
    assert [event for run in runs for event in run.messages()][-1] == events[-1]
    crash(buffer)


def test_an_owner_that_begins_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    open_buffer(path).close()
    view = look_at_buffer(str(path))
    assert not view.had_owner_since()
    lock = path / "lock"
    os.utime(
        lock, ns=(0, lock.stat().st_mtime_ns - 1_000_000_000)
    )  # coarse clocks give two quick writes the same time
    view = look_at_buffer(str(path))
    open_buffer(path).close()
    assert view.had_owner_since()
