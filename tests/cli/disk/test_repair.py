"""`forebay verify` and `repair`: damage is found, named and put aside.

The rest is delivered.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from backpressure import (
    BufferConfig,
    BufferManager,
    FormatError,
)
from backpressure.cli.disk.ring_view import look_at_ring
from ringbuf import MessageRing
from tests.support.buffers import crash, drain, drain_lanes, until_proved
from tests.support.disk import fingerprint, flip, in_order, open_buffer, segments_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


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
            first_seq = buffer.add_events([b"new"], priority=priority).first_seq
            assert first_seq is not None
            assert first_seq >= 1 << 40
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


def from_before_reboot(ring: Path) -> bytearray:
    data = bytearray(ring.read_bytes())
    data[40:56] = bytes(16)  # the boot id
    length = struct.unpack_from("<I", data, 56)[0]
    struct.pack_into("<I", data, 60 + length, zlib.crc32(data[: 60 + length]))
    ring.write_bytes(data)
    return data


@pytest.mark.parametrize("rebooted", [False, True])
def test_numbers_that_no_lane_comes_to_are_damage(
    forebay: Any, tmp_path: Path, rebooted: bool
) -> None:
    path = tmp_path / "buffer"
    with open_buffer(path) as buffer:
        assert buffer.add_events([b"stays"], priority=3).accepted == 1
        buffer.get_batch().ack()  # type: ignore[union-attr]
    ring = path / "lane-3" / "ring"
    size = MessageRing.look(ring).capacity_bytes
    ring.unlink()
    MessageRing(size, path=ring, first_seq=1 << 63, checksums=rebooted).close()
    if rebooted:
        from_before_reboot(ring)
    with pytest.raises(FormatError, match="events were numbered, more than a lane can have"):
        open_buffer(path)
    code, out, _ = forebay("verify", path)
    assert (code, f"DAMAGED {ring}: is damaged: it says that 9,223,372" in out) == (1, True)
    assert forebay("repair", path, "--yes")[0] == 0
    assert forebay("verify", path)[0] == 0
    with open_buffer(path) as buffer:
        first = buffer.add_events([b"new"], priority=3).first_seq
        assert first is not None
        assert 1 << 40 <= first < 1 << 62
        assert drain(buffer)


def test_of_a_ring_from_before_a_reboot_what_is_whole(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    with BufferManager(
        BufferConfig(directory=path, lane_bytes=1 << 17, ring_checksums=True)
    ) as buffer:
        events = [b"%03d" % i + b"z" * 100 for i in range(200)]
        for event in events:
            assert buffer.add_events([event], priority=2).accepted == 1
        until_proved(buffer)
        crash(buffer)
    ring = path / "lane-2" / "ring"
    data = from_before_reboot(ring)
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
