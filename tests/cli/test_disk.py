"""`forebay inspect`, `verify`, `repair`, `export` and `dlq`, on directories of owners that live, were killed, or met damage."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure import (
    BufferConfig,
    BufferManager,
    CircuitBreakerConfig,
    EmergencyModeConfig,
    FlowControlConfig,
    FormatError,
)
from backpressure.cli import main
from backpressure.cli.disk import find_owner, look_at_buffer
from backpressure.cli.disk.framing import framed, with_newlines
from backpressure.cli.disk.lane_reader import stored_events
from backpressure.cli.disk.ring_view import look_at_ring, next_seq_in, ring_events
from backpressure.spill import Lost, SpillConfig
from ringbuf import MessageRing, Messages
from tests.support.buffers import add_all, crash, drain, drain_lanes
from tests.support.processes import environment, forebay_command, python, run_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]

SMALL = SpillConfig(
    segment_bytes=1 << 14, block_bytes=1 << 12, reserve_bytes=1 << 13, slowest_level=-100
)
RING_BYTES = 1 << 14
Command = tuple[int, str, str]


@pytest.fixture
def forebay(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str | Path) -> Command:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return run


def open_buffer(path: Path, **changes: Any) -> BufferManager:
    # So many nacks in a test are no reason to hold anything up.
    breaker = CircuitBreakerConfig(min_requests=100_000)
    flow = FlowControlConfig(emergency_mode=EmergencyModeConfig(enabled=False))
    config = {
        "lane_bytes": RING_BYTES,
        "spill": SMALL,
        "retry_backoff": 0.0,
        "circuit_breaker": breaker,
        "flow_control": flow,
    }
    return BufferManager(
        BufferConfig(directory=path, **{**config, **changes}), rng=random.Random(1)
    )


def noise(count: int, seed: int = 0, size: int = 60) -> list[bytes]:
    """Events that hardly get smaller, so that few of them fill a segment."""
    rng = random.Random(seed)
    return [b"%06d:" % i + rng.randbytes(size).hex().encode() for i in range(count)]


def in_order(got: dict[int, list[bytes]]) -> list[bytes]:
    return [event for priority in sorted(got) for event in got[priority]]


def fingerprint(path: Path) -> dict[str, str]:
    """Every file's content."""
    return {
        str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(path.rglob("*"))
        if one.is_file()
    }


def segments_of(path: Path, lane: str = "lane-3") -> list[Path]:
    return sorted((path / lane).glob("*.seg"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def live_and_die(path: str) -> None:
    """Run in a process of its own: leaves events on disk, in rings, and out with consumers."""
    buffer = open_buffer(Path(path))
    add_all(buffer, noise(3000))
    buffer.add_events([b"urgent", b"more urgent"], priority=1)
    held = []
    for size, acked in ((1, True), (1, False), (5, False), (10, True)):  # of lane 1, then of lane 3
        batch = buffer.get_batch(size)
        assert batch is not None
        if acked:
            batch.ack()
        else:
            held.append(batch)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="session")
def a_killed_buffer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "buffer"
    code = "import sys; from tests.cli.test_disk import live_and_die; live_and_die(sys.argv[1])"
    assert run_python(code, path).returncode == -signal.SIGKILL
    return path


@pytest.fixture
def killed(tmp_path: Path, a_killed_buffer: Path) -> tuple[Path, list[bytes]]:
    """A directory whose owner was killed, and the events that it owes, in order."""
    path = tmp_path / "buffer"
    shutil.copytree(a_killed_buffer, path)
    events = noise(3000)
    return path, [b"more urgent", *events[:5], *events[15:]]


# ---------------------------------------------------------------- rings


@pytest.mark.parametrize("capacity", [4096, 8192, 1 << 14, 1 << 20])
@pytest.mark.parametrize("first_seq", [0, (1 << 32) - 5, (1 << 63) + 7])
def test_a_look_at_a_ring_says_what_the_ring_says(
    tmp_path: Path, capacity: int, first_seq: int
) -> None:
    path = str(tmp_path / "ring")
    ring = MessageRing(capacity, path=path, first_seq=first_seq)
    rng = random.Random(capacity)
    for _ in range(300):
        if rng.random() < 0.6:
            ring.push_many([rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 9))])
        else:
            ring.pop_many(rng.randrange(1, 20))
        look = look_at_ring(path)
        assert look is not None
        assert (look.damage, look.from_before_reboot) == (None, False)
        assert (look.capacity_bytes, look.used_bytes, look.next_seq) == (
            ring.capacity_bytes,
            ring.used_bytes,
            ring.next_seq,
        )
        assert next_seq_in(look) == ring.next_seq
    before = fingerprint(tmp_path)
    ring.close()
    events = list(ring_events(look))
    assert fingerprint(tmp_path) == before
    again = MessageRing.attach(path)
    assert [event for part in events for event in part] == again.pop_many().tolist()
    assert all(a.first_seq + len(a) <= b.first_seq for a, b in itertools.pairwise(events))
    assert look_at_ring(str(tmp_path / "none")) is None


def test_what_was_taken_and_not_released_comes_first_out_of_a_ring(tmp_path: Path) -> None:
    path = str(tmp_path / "ring")
    ring = MessageRing(RING_BYTES, path=path)
    ring.push_many([b"%d" % i for i in range(10)])
    taken = [ring.take(2), ring.take(3)]
    ring.close()
    look = look_at_ring(path)
    assert look is not None
    for _ in range(2):  # it can be looked at again and again
        assert [event for part in ring_events(look) for event in part] == [
            b"%d" % i for i in range(10)
        ]
    assert len(taken) == 2


# ---------------------------------------------------------------- a killed owner


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
    assert "nobody has it open" in text
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


# ---------------------------------------------------------------- a running owner

OWNER = """
    import sys
    from backpressure import BufferConfig, BufferManager
    from backpressure.spill import SpillConfig
    buffer = BufferManager(BufferConfig(directory=sys.argv[1], lane_bytes=1 << 14, spill=SpillConfig(reserve_bytes=1 << 13)))
    events = [b"%06d" % i for i in range(5000)]
    while events:
        events = events[buffer.add_events(events, timeout=10.0).accepted:]
    buffer.flush()
    buffer.add_events([b"only in the ring"])
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
    """A process that has a directory open, with 5,000 events on disk and one in a ring; a line on its stdin lets it deliver."""
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
    assert not any(isinstance(item, Lost) for item in rest)
    assert [event for item in rest for event in item.messages()][-1] == events[-1]
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


# ---------------------------------------------------------------- damage


def delivered_and_lost(path: Path) -> tuple[list[bytes], int]:
    with open_buffer(path) as buffer:
        got = in_order(drain_lanes(buffer))
        return got, sum(buffer.stats().dropped.values())


@pytest.mark.parametrize(
    "where", ["body", "block header", "segment header", "two blocks", "second segment gone"]
)
def test_damage_is_found_named_and_put_aside(
    forebay: Any, killed: Any, tmp_path: Path, where: str
) -> None:
    path, owed = killed
    segments = segments_of(path)
    victim = segments[1]
    size = victim.stat().st_size
    match where:
        case "body":
            flip(victim, size // 2)
        case "block header":
            flip(victim, 96 + 20)
        case "segment header":
            flip(victim, 20)
        case "two blocks":
            flip(victim, 96 + 200)
            flip(victim, size - 100)
        case _:
            victim.write_bytes(b"\0" * size)
    before = fingerprint(path)
    code, out, _ = forebay("verify", path, "--json")
    report = json.loads(out)
    assert (code, report["damaged"]) == (1, True)
    three = report["lanes"][2]
    assert {one["path"] for one in three["damage"]} == {str(victim)}
    lost = {
        number for one in three["lost"] for number in range(one["first_seq"], one["last_seq"] + 1)
    }
    assert len(lost) == sum(one["events"] for one in three["lost"])
    assert bool(lost) == (where != "segment header")
    # The numbers of lane 3 are those in its events.
    left = [event for event in owed if event == b"more urgent" or int(event[:6]) not in lost]
    code, text, _ = forebay("verify", path)
    assert (code, f"DAMAGED {victim}" in text) == (1, True)
    for one in three["lost"]:
        assert f"numbers {one['first_seq']} to {one['last_seq']}" in text
    exported = tmp_path / "out"
    code, _, err = forebay("export", path, "--to", exported)
    assert code == (1 if lost else 0)
    assert exported.read_bytes() == b"".join(event + b"\n" for event in left)
    assert ("are lost" in err) == bool(lost)
    code, out, _ = forebay("repair", path)
    assert (code, "would write without its damage" in out) == (1, True)
    assert fingerprint(path) == before
    code, out, _ = forebay("repair", path, "--yes", "--json")
    assert (code, [step["action"] for step in json.loads(out)["steps"]]) == (0, ["rewrite"])
    assert (
        hashlib.sha256(Path(f"{victim}.damaged").read_bytes()).hexdigest()
        == before[str(victim.relative_to(path))]
    )
    assert forebay("verify", path)[0] == 0
    assert forebay("repair", path)[:2] == (0, f"{path}: nothing is damaged\n")
    got, dropped = delivered_and_lost(path)
    assert got == left
    assert dropped == len(lost)


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
    # The store keeps the damaged file aside when all in it is acked; the rest is deleted.
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


def test_a_repaired_file_and_its_original_give_each_event_once(
    forebay: Any, killed: Any, tmp_path: Path
) -> None:
    path, _ = killed
    victim = segments_of(path)[1]
    flip(victim, victim.stat().st_size // 2)
    exported = tmp_path / "out"
    forebay("export", path, "--all", "--to", exported)
    before = exported.read_bytes()
    assert forebay("repair", path, "--yes")[0] == 0
    forebay("export", path, "--all", "--to", exported)
    assert exported.read_bytes() == before


@pytest.mark.parametrize("at", [0, 9, 30, 70])
def test_a_ring_with_a_damaged_header_is_moved_aside_and_the_numbers_go_on(
    forebay: Any, killed: Any, at: int
) -> None:
    path, owed = killed
    ring = path / "lane-3" / "ring"
    stored = json.loads(forebay("inspect", path, "--json")[1])["lanes"][2]["disk"]["end_seq"]
    flip(ring, at)
    damaged = ring.read_bytes()
    with pytest.raises(FormatError):
        open_buffer(path)
    code, out, _ = forebay("verify", path)
    assert (code, f"DAMAGED {ring}" in out) == (1, True)
    code, _, err = forebay("export", path, "--to", path.parent / "out")
    assert (code, "left out" in err) == (1, True)
    code, out, err = forebay("repair", path, "--yes")
    if at == 9:
        # Another version: a later release may have written it.
        assert (code, "left as it is" in out) == (1, True)
        assert ring.read_bytes() == damaged
        return
    assert (code, err) == (0, "")
    assert (path / "lane-3" / "ring.damaged").read_bytes() == damaged
    assert forebay("verify", path)[0] == 0
    with open_buffer(path) as buffer:
        assert buffer.add_events([b"new"]).first_seq == 3000
        got = drain_lanes(buffer)
        assert got[3] == [*(event for event in owed[1:] if int(event[:6]) < stored), b"new"]


def test_where_nothing_tells_the_next_number_it_jumps(forebay: Any, killed: Any) -> None:
    path, _ = killed
    for lane, content in (("lane-3", b""), ("lane-1", b"\0" * 163_840)):
        (path / lane / "ring").write_bytes(content)
    assert forebay("repair", path, "--yes")[0] == 0
    with open_buffer(path) as buffer:
        for priority in (1, 3):
            assert buffer.add_events([b"new"], priority=priority).first_seq >= 1 << 40
        drain(buffer)


def test_positions_without_sense_are_damage(forebay: Any, killed: Any) -> None:
    path, _ = killed
    ring = path / "lane-3" / "ring"
    look = look_at_ring(str(ring))
    assert look is not None
    at = look.size - look.capacity_bytes - 4096 - 4096
    data = bytearray(ring.read_bytes())
    data[at + 5] ^= 0x40  # of the write position
    ring.write_bytes(data)
    code, out, _ = forebay("verify", path)
    assert (code, "its positions make no sense" in out) == (1, True)
    assert forebay("repair", path, "--yes")[0] == 0
    assert forebay("verify", path)[0] == 0
    open_buffer(path).close(timeout=0)


def test_of_a_ring_from_before_a_reboot_what_is_whole(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with BufferManager(
        BufferConfig(directory=path, lane_bytes=1 << 16, ring_checksums=True)
    ) as buffer:
        events = [b"%03d" % i + b"z" * 100 for i in range(200)]
        for event in events:
            assert buffer.add_events([event], priority=2).accepted == 1
        crash(buffer)
    ring = path / "lane-2" / "ring"
    data = bytearray(ring.read_bytes())
    data[40:56] = bytes(16)  # the boot id
    length = struct.unpack_from("<I", data, 56)[0]
    struct.pack_into("<I", data, 60 + length, zlib.crc32(data[: 60 + length]))
    ring.write_bytes(data)
    before = fingerprint(path)
    whole = json.loads(forebay("inspect", path, "--json")[1])["lanes"][1]["ring"]
    assert (whole["state"], whole["events"], whole["lost"]) == ("from before a reboot", 200, [])
    assert "200 events are whole and owed" in forebay("inspect", path)[1]
    assert forebay("verify", path)[0] == 0
    code, _, err = forebay("export", path, "--to", tmp_path / "out")
    assert (code, (tmp_path / "out").read_bytes()) == (
        0,
        b"".join(event + b"\n" for event in events),
    )
    assert "200 events of a ring from before a reboot are whole" in err
    assert fingerprint(path) == before
    data[data.index(b"123zzz")] ^= 1
    ring.write_bytes(data)
    torn = json.loads(forebay("inspect", path, "--json")[1])["lanes"][1]["ring"]
    assert (torn["events"], torn["lost"]) == (
        199,
        [{"first_seq": 123, "last_seq": 123, "events": 1}],
    )
    assert "numbers 123 to 123 are lost" in forebay("inspect", path)[1]
    code, out, _ = forebay("verify", path)
    assert (
        code,
        "LOST 1 events, numbers 123 to 123: in memory when the machine went down" in out,
    ) == (1, True)
    code, _, err = forebay("export", path, "--to", tmp_path / "out", "--json")
    assert code == 1
    assert (tmp_path / "out").read_bytes() == b"".join(
        event + b"\n" for event in events[:123] + events[124:]
    )


def test_a_damaged_manifest_and_a_damaged_record(forebay: Any, killed: Any) -> None:
    path, owed = killed
    flip(path / "manifest", 512 + 14)
    (path / "lane-3" / "acked").write_bytes(b"\0" * 8192)
    assert json.loads(forebay("inspect", path, "--json")[1])["manifest"] == "damaged"
    code, out, _ = forebay("verify", path)
    assert (code, "one copy is damaged" in out, "events will be delivered again" in out) == (
        1,
        True,
        True,
    )
    assert forebay("repair", path)[0] == 1
    code, out, err = forebay("repair", path, "--yes")
    assert (code, err) == (0, "")
    assert forebay("verify", path)[0] == 0
    with open_buffer(path) as buffer:
        assert set(owed) <= set(in_order(drain_lanes(buffer)))


def test_a_later_version_is_left_untouched(forebay: Any, killed: Any) -> None:
    path, _ = killed
    victim = segments_of(path)[0]
    data = bytearray(victim.read_bytes())
    data[8] = 2
    struct.pack_into("<I", data, 92, zlib.crc32(data[:92]))
    victim.write_bytes(data)
    before = fingerprint(path)
    for command in (("inspect", path), ("verify", path), ("export", path), ("repair", path)):
        code, _, err = forebay(*command)
        assert (code, "use a later release" in err) == (1, True)
    assert fingerprint(path) == before


# ---------------------------------------------------------------- dead letters


def with_letters(path: Path, events: list[bytes], priority: int = 2) -> None:
    """Each event given up with an error that quotes its beginning."""
    buffer = open_buffer(path, max_attempts=1)
    for event in events:
        buffer.add_events([event], priority=priority)
        batch = buffer.get_batch(1)
        assert batch is not None
        batch.nack(f"sink refused {event[:5]!r}")
    buffer.close(timeout=0)


def letters_in(forebay: Any, path: Path, *filters: str) -> list[dict[str, Any]]:
    code, out, _ = forebay("dlq", "list", path, *filters, "--json")
    assert code == 0
    letters: list[dict[str, Any]] = json.loads(out)["letters"]
    return letters


def test_dead_letters_are_listed_and_filtered(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with_letters(path, [b"apple", b"\xff\x00", b"\x1b[31mred" + b"x" * 500])
    with_letters(path, [b"pear"], priority=4)
    letters = letters_in(forebay, path)
    assert [letter["id"] for letter in letters] == [0, 1, 2, 3]
    assert [letter["priority"] for letter in letters] == [2, 2, 2, 4]
    assert letters[0]["event"] == "apple"
    assert letters[0]["attempts"] == 1
    assert letters[1]["event_base64"] == "/wA="
    assert [letter["id"] for letter in letters_in(forebay, path, "--priority", "4")] == [3]
    assert [letter["id"] for letter in letters_in(forebay, path, "--error", "apple")] == [0]
    assert [letter["id"] for letter in letters_in(forebay, path, "--limit", "2")] == [0, 1]
    assert [letter["id"] for letter in letters_in(forebay, path, "1", "3")] == [1, 3]
    code, out, _ = forebay("dlq", "list", path)
    assert code == 0
    assert "\x1b" not in out, "a terminal would obey it"
    assert "priority 4, number 0, 1 attempts" in out
    assert max(map(len, out.splitlines())) < 200


def test_a_replayed_letter_is_delivered_by_the_next_start(forebay: Any, killed: Any) -> None:
    path, _ = killed
    ring = json.loads(forebay("inspect", path, "--json")[1])["lanes"][2]["ring"]
    with open_buffer(path) as buffer:
        drain(buffer)
    bad = [b"bad %d" % i for i in range(2500)]
    with_letters(path, bad[:1250], priority=3)
    with_letters(path, bad[1250:], priority=4)
    assert forebay("dlq", "replay", path, "--error", "nothing like it") == (
        0,
        "0 letters replayed\n",
        "",
    )
    code, out, _ = forebay("dlq", "replay", path, "7", "8", "--json")
    assert (code, json.loads(out)) == (0, {"directory": str(path), "replayed": 2, "stayed": {}})
    assert len(letters_in(forebay, path)) == 2498
    assert forebay("dlq", "replay", path)[:2] == (0, "2,498 letters replayed\n")
    assert letters_in(forebay, path) == []
    # Rings have kept their size.
    assert (
        json.loads(forebay("inspect", path, "--json")[1])["lanes"][2]["ring"]["capacity_bytes"]
        == ring["capacity_bytes"]
    )
    with open_buffer(path) as buffer:
        got = drain_lanes(buffer)
    assert got == {3: [bad[7], bad[8], *bad[:7], *bad[9:1250]], 4: bad[1250:]}


def test_a_letter_that_can_not_be_put_back_stays(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    large = b"x" * 8000
    with_letters(path, [large, b"small"])
    open_buffer(path, lane_bytes=4096).close(timeout=0)  # smaller rings than when it was given up
    code, out, err = forebay("dlq", "replay", path)
    assert (code, out) == (1, "1 letters replayed\n")
    assert "1 letters stay: larger than a lane can hold" in err
    assert [len(letter["event"]) for letter in letters_in(forebay, path)] == [8000]


def test_letters_go_to_the_end_of_a_file(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with_letters(path, [b"one", b"two\nlines", b"three"])
    out = tmp_path / "out"
    out.write_bytes(b"zero\n")
    code, said, err = forebay("dlq", "replay", path, "--to", out)
    assert (code, said) == (1, "2 letters replayed\n")
    assert "1 letters stay" in err
    assert out.read_bytes() == b"zero\none\nthree\n"
    assert [letter["event"] for letter in letters_in(forebay, path)] == ["two\nlines"]
    more = tmp_path / "records"
    assert forebay("dlq", "replay", path, "--to", more, "--format", "records")[0] == 0
    assert list(records(more.read_bytes())) == [b"two\nlines"]
    assert letters_in(forebay, path) == []


def test_purging_asks_first(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with_letters(path, [b"a", b"b", b"c", b"d"])
    before = fingerprint(path)
    assert forebay("dlq", "purge", path)[0] == 2
    code, out, _ = forebay("dlq", "purge", path, "--all")
    assert (code, "would purge 4 letters" in out) == (1, True)
    assert fingerprint(path) == before
    assert forebay("dlq", "purge", path, "1", "2", "99", "--yes")[:2] == (0, "2 letters purged\n")
    assert [letter["event"] for letter in letters_in(forebay, path)] == ["a", "d"]
    assert forebay("dlq", "purge", path, "--error", "b'd'", "--yes")[:2] == (
        0,
        "1 letters purged\n",
    )
    assert forebay("dlq", "purge", path, "--all", "--yes")[:2] == (0, "1 letters purged\n")
    assert forebay("dlq", "purge", path, "--all")[0] == 0
    open_buffer(path).close()


def test_damaged_letters_are_said_to_be_lost(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with_letters(path, [b"a", b"b", b"c"])
    (segment,) = segments_of(path, "dead-letters")
    flip(segment, 96 + 100)
    code, out, err = forebay("dlq", "list", path)
    assert (code, "1 letters, ids 0 to 0, are lost" in err) == (1, True)
    assert "    event  1 bytes: b" in out
    assert forebay("verify", path)[0] == 1


# ---------------------------------------------------------------- the command line


def test_what_is_no_buffer_is_refused_and_not_made(forebay: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        for command in (
            ("inspect",),
            ("verify",),
            ("repair", "--yes"),
            ("export",),
            ("dlq", "list"),
            ("dlq", "replay"),
        ):
            code, out, err = forebay(*command, tmp_path / name)
            assert (code, out) == (2, "")
            assert str(tmp_path / name) in err
    assert [one.name for one in tmp_path.iterdir()] == ["empty"]
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    "command", ["inspect", "verify", "repair", "export", "dlq list", "dlq replay", "dlq purge"]
)
def test_help_tells_the_exit_codes(forebay: Any, command: str) -> None:
    code, out, _ = forebay(*command.split(), "--help")
    assert (code, "exit codes:" in out) == (0, True)
    assert ("3    another process" in out) == (command in ("repair", "dlq replay", "dlq purge"))


def test_dlq_needs_an_action(forebay: Any) -> None:
    assert forebay("dlq")[0] == 2
    assert forebay("dlq", "lists", "x")[0] == 2
    assert forebay("dlq", "--help")[0] == 0


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
