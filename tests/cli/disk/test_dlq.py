"""`forebay dlq`: dead letters are listed, written to files, put back and purged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from backpressure import BatchRejected, FlowControlConfig
from tests.support.buffers import drain, drain_lanes
from tests.support.disk import fingerprint, flip, open_buffer, records, segments_of

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


def with_letters(path: Path, events: list[bytes], priority: int = 2) -> None:
    """Each event given up with an error that quotes its beginning."""
    buffer = open_buffer(path, max_attempts=1)
    for event in events:
        buffer.add_events([event], priority=priority)
        batch = buffer.get_batch(1)
        assert batch is not None
        batch.settle(reject={0: f"sink refused {event[:5]!r}"})
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
    # More than replay takes at a time, and some of another priority.
    bad = [b"bad %d" % i for i in range(1350)]
    with_letters(path, bad[:1250], priority=3)
    with_letters(path, bad[1250:], priority=4)
    assert forebay("dlq", "replay", path, "--error", "nothing like it") == (
        0,
        "0 letters replayed\n",
        "",
    )
    code, out, _ = forebay("dlq", "replay", path, "7", "8", "--json")
    assert (code, json.loads(out)) == (0, {"directory": str(path), "replayed": 2, "stayed": {}})
    assert len(letters_in(forebay, path)) == 1348
    assert forebay("dlq", "replay", path)[:2] == (0, "1,348 letters replayed\n")
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


def test_dlq_needs_an_action(forebay: Any) -> None:
    assert forebay("dlq")[0] == 2
    assert forebay("dlq", "lists", "x")[0] == 2
    assert forebay("dlq", "--help")[0] == 0


def test_a_letter_of_a_priority_that_is_no_more_goes_to_its_lane(
    forebay: Any, tmp_path: Path
) -> None:
    path = tmp_path / "buffer"
    with_letters(path, [b"old"], priority=4)
    flow = FlowControlConfig(priority_levels=2)
    open_buffer(path, flow_control=flow).close(timeout=0)
    assert forebay("dlq", "replay", path)[:2] == (0, "1 letters replayed\n")
    with open_buffer(path, flow_control=flow) as buffer:
        assert drain_lanes(buffer) == {4: [b"old"]}


def test_a_replay_makes_no_lane(forebay: Any, tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    flow = FlowControlConfig(priority_levels=2)
    buffer = open_buffer(path, flow_control=flow, max_attempts=1)
    buffer.add_events([b"a"])
    batch = buffer.get_batch()
    assert batch is not None
    batch.nack(BatchRejected("refused"))
    buffer.close(timeout=0)
    assert forebay("dlq", "replay", path)[:2] == (0, "1 letters replayed\n")
    assert sorted(one.name for one in path.glob("lane-*")) == ["lane-1", "lane-2"]
    with open_buffer(path, flow_control=flow) as buffer:
        assert drain_lanes(buffer) == {2: [b"a"]}
