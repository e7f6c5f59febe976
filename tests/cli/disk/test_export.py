"""`forebay export`: it writes what the next start would deliver, in every format."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure.cli.disk.framing import framed, with_newlines
from ringbuf import Messages
from tests.support.buffers import add_all, crash, drain, drain_lanes
from tests.support.disk import (
    RING_BYTES,
    fingerprint,
    flip,
    in_order,
    noise,
    open_buffer,
    records,
    segments_of,
)
from tests.support.processes import environment, forebay_command

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


def test_looking_changes_nothing_and_export_is_what_the_next_start_delivers(
    forebay: Any, killed: Any, tmp_path: Path
) -> None:
    path, owed = killed
    before = fingerprint(path)
    code, out, _ = forebay("inspect", path, "--json")
    report = json.loads(out)
    assert (code, report["owner"], report["manifest"]) == (0, None, "sound")
    one, _, three, _, _ = report["lanes"]
    assert (one["ring"]["events"], one["disk"]["events"]) == (1, 0)
    assert three["ring"]["events"] + three["disk"]["events"] == len(owed) - 1
    assert three["disk"]["segments"] > 3
    assert three["disk"]["blocks"] > three["disk"]["segments"]
    assert three["ring"]["next_seq"] == 3000
    assert three["ring"]["capacity_bytes"] == RING_BYTES
    assert (three["disk"]["first_seq"], three["disk"]["acked_below"]) == (0, 0)
    assert three["disk"]["acked_ranges"] == [[5, 15]]
    assert 0 < three["disk"]["durable_seq"] <= three["disk"]["end_seq"]
    assert report["dead_letters"]["events"] == 0
    code, text, _ = forebay("inspect", path)
    assert code == 0
    assert "no process has it open" in text
    assert "and 5-14" in text
    assert forebay("verify", path)[0] == 0
    code, said, errors = forebay("export", path, "--to", tmp_path / "out", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(said)["events"] == len(owed)
    assert (tmp_path / "out").read_bytes() == b"".join(event + b"\n" for event in owed)
    assert fingerprint(path) == before
    with open_buffer(path) as buffer:
        assert in_order(drain_lanes(buffer)) == owed


@pytest.mark.parametrize("seed", range(6))
def test_export_is_what_the_next_start_delivers_whatever_came_before(
    forebay: Any, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    path = tmp_path / "buffer"
    for life in range(3):
        buffer = open_buffer(path, lane_bytes=rng.choice((1 << 12, 1 << 14)))
        for _ in range(30):
            add_all(
                buffer,
                noise(rng.randrange(120), rng.randrange(1 << 30)),
                priority=rng.choice((1, 3)),
            )
            batch = buffer.get_batch(rng.randrange(1, 80))
            if batch is None:
                continue
            if rng.random() < 0.25:
                batch.nack("no")
            else:
                batch.ack()
        if rng.random() < 0.3:
            buffer.flush()
        if rng.random() < 0.2 and life < 2:
            buffer.close(timeout=0)
        else:
            crash(buffer)
    out = tmp_path / "out"
    assert forebay("export", path, "--to", out, "--format", "records", "--quiet") == (0, "", "")
    exported = list(records(out.read_bytes()))
    with open_buffer(path) as again:
        assert exported == in_order(drain_lanes(again))
    assert len(exported) > 100


def test_priorities_and_formats(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    buffer = open_buffer(path)
    buffer.add_events([b"a\nb", b"", b"c"], priority=2)
    buffer.add_events([b"low"], priority=5)
    buffer.close(timeout=0)
    code, out, err = forebay("export", path, "--priority", "5")
    assert (code, out) == (0, "low\n")
    assert "1 events written" in err
    code, out, err = forebay("export", path, "--priority", "2", "--quiet")
    assert (code, out) == (1, "a\nb\n\nc\n")
    assert "use --format records" in err
    code, out, _ = forebay("export", path, "--format", "records")
    assert (code, list(records(out.encode()))) == (0, [b"a\nb", b"", b"c", b"low"])
    assert forebay("export", path, "--to", path / "out")[0] == 2
    assert not (path / "out").exists()


@given(st.lists(st.binary(max_size=20)), st.integers(0, 3))
def test_framing(events: list[bytes], skip: int) -> None:
    offsets = np.cumsum([0, *map(len, events)])
    messages = Messages.from_columns(np.frombuffer(b"".join(events), np.uint8), offsets)[skip:]
    rest = events[skip:]
    assert list(records(bytes(framed(messages, "records")))) == rest
    assert bytes(framed(messages, "lines")) == b"".join(event + b"\n" for event in rest)
    assert with_newlines(messages) == sum(b"\n" in event for event in rest)


def test_everything_readable_is_exported_with_all(
    forebay: Any, killed: Any, tmp_path: Path
) -> None:
    path, _ = killed
    victim = segments_of(path)[1]
    flip(victim, victim.stat().st_size // 2)
    _, out, _ = forebay("verify", path, "--json")
    (lost,) = json.loads(out)["lanes"][2]["lost"]
    left = [
        event
        for event in noise(3000)
        if not lost["first_seq"] <= int(event[:6]) <= lost["last_seq"]
    ]
    exported = tmp_path / "out"
    code, _, err = forebay("export", path, "--all", "--priority", "3", "--to", exported)
    assert (code, "are lost" in err) == (1, True)
    assert exported.read_bytes() == b"".join(event + b"\n" for event in left), (
        "acked ones are there as well"
    )
    # The store keeps the damaged file aside when all in it is acked; the rest is
    # deleted.
    buffer = open_buffer(path)
    drain(buffer)
    crash(buffer)
    (aside,) = (path / "lane-3").glob("*.damaged")
    assert aside.name.startswith(victim.name)
    forebay("export", path, "--all", "--priority", "3", "--to", exported)
    numbers = [int(line[:6]) for line in exported.read_bytes().splitlines()]
    next_base = int(segments_of(path)[0].name.split("-")[1], 16)
    base = int(victim.name.split("-")[1], 16)
    assert numbers[0] == base
    assert next_base not in numbers[: len(numbers) // 2] or next_base > numbers[0]
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers)
    assert set(numbers).isdisjoint(range(lost["first_seq"], lost["last_seq"] + 1))


def test_a_reader_that_has_enough_ends_an_export(killed: Any) -> None:
    path, _ = killed
    with subprocess.Popen(
        forebay_command("export", path, "--all"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 1
