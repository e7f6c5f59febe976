"""How large lanes are where nobody says so: the law, and what it sees of a machine."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpressure import BufferConfig, BufferManager, FlowControlConfig
from backpressure.buffer import lane_size
from backpressure.buffer.lane_size import lane_bytes_for, lane_bytes_within
from ringbuf import MessageRing
from tests.support.durable import SMALL

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("levels", "disk", "memory", "longest", "size"),
    [
        (5, 100 * GIB, 64 * GIB, 0, 64 * MIB),  # enough of both
        (5, 2 * GIB, 64 * GIB, 0, 16 * MIB),
        (1, 2 * GIB, 64 * GIB, 0, 64 * MIB),  # one lane has the room of five
        (5, 100 * GIB, 1 * GIB, 0, 16 * MIB),
        (5, 10 * MIB, 64 * GIB, 0, MIB),  # allocating them is to say that it is too little
        (5, 0, 0, 0, MIB),
        (5, math.inf, math.inf, 0, 64 * MIB),
        (5, 10 * MIB, 64 * GIB, 3 * MIB, 8 * MIB),  # a line that may come has to fit
        (5, 100 * GIB, 64 * GIB, 100 * MIB, 256 * MIB),
    ],
)
def test_the_law(levels: int, disk: float, memory: float, longest: int, size: int) -> None:
    assert lane_bytes_within(levels, disk, memory, longest) == size


@given(st.integers(1, 5), st.integers(0, 1 << 50), st.integers(0, 1 << 45), st.integers(0, 1 << 28))
def test_its_promises(levels: int, disk: int, memory: int, longest: int) -> None:
    size = lane_bytes_within(levels, disk, memory, longest)
    assert size & (size - 1) == 0
    assert size >= MIB
    assert size >= 2 * longest
    assert size <= 64 * MIB or size < 4 * longest
    if size > MIB and size >= 4 * longest:
        assert levels * size * 9 / 8 <= disk / 16
        assert levels * size <= memory / 8
        if size < 64 * MIB:
            twice = 2 * size
            assert levels * twice * 9 / 8 > disk / 16 or levels * twice > memory / 8


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_size, "_free_bytes", lambda path: 2 * GIB)
    monkeypatch.setattr(lane_size, "_memory_bytes", lambda: 64 * GIB)


def test_in_memory_the_config_says_it() -> None:
    assert lane_bytes_for(BufferConfig()) == BufferConfig().lane_bytes
    assert lane_bytes_for(BufferConfig(lane_bytes=4096)) == 4096


@pytest.mark.usefixtures("room")
def test_a_new_directory_has_what_there_is_room_for(tmp_path: Path) -> None:
    config = BufferConfig(directory=tmp_path / "not" / "there" / "yet")
    assert lane_bytes_for(config) == 16 * MIB
    assert lane_bytes_for(config, 10 * MIB) == 32 * MIB
    few = BufferConfig(directory=tmp_path, flow_control=FlowControlConfig(priority_levels=2))
    assert lane_bytes_for(few) == 32 * MIB
    bounded = BufferConfig(directory=tmp_path, max_disk_bytes=400 * MIB)
    assert lane_bytes_for(bounded) == 4 * MIB
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def test_the_space_of_this_machine_is_seen(tmp_path: Path) -> None:
    here = lane_size._free_bytes(str(tmp_path))
    there = lane_size._free_bytes(str(tmp_path / "not" / "there"))
    assert 0 < here < math.inf
    assert 0 < there < math.inf
    assert lane_size._free_bytes("/dev/null/nothing") > 0
    assert 64 * MIB < lane_size._memory_bytes() < math.inf


@pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux")
@pytest.mark.platform
class TestADirectoryThatIsThere:
    def make(self, path: Path, lane_bytes: int, levels: int = 5) -> None:
        flow = FlowControlConfig(priority_levels=levels)
        config = BufferConfig(directory=path, lane_bytes=lane_bytes, spill=SMALL, flow_control=flow)
        buffer = BufferManager(config)
        buffer.add_events([b"event"], priority=1)
        buffer.close(timeout=0)

    @pytest.mark.usefixtures("room")
    def test_it_keeps_its_size(self, tmp_path: Path) -> None:
        for lane_bytes in (16 * KIB, 100 * KIB):
            path = tmp_path / str(lane_bytes)
            self.make(path, lane_bytes)
            size = MessageRing(lane_bytes).capacity_bytes
            config = BufferConfig(directory=path)
            assert lane_bytes_for(config, MIB) == size, "also where a line does not fit"
            buffer = BufferManager(BufferConfig(directory=path, lane_bytes=size))
            assert buffer._lanes[0].ring.count() == 0, "nothing was moved, as the ring fits"
            buffer.close(timeout=0)

    @pytest.mark.usefixtures("room")
    def test_also_where_it_was_made_with_other_priorities(self, tmp_path: Path) -> None:
        self.make(tmp_path / "buffer", 64 * KIB, levels=2)
        assert lane_bytes_for(BufferConfig(directory=tmp_path / "buffer")) == 64 * KIB

    @pytest.mark.usefixtures("room")
    def test_a_ring_that_is_damaged_is_left_to_whoever_opens_it(self, tmp_path: Path) -> None:
        self.make(tmp_path / "buffer", 64 * KIB)
        for ring in tmp_path.glob("buffer/lane-*/ring"):
            with ring.open("r+b") as file:
                file.write(bytes(4096))
        assert lane_bytes_for(BufferConfig(directory=tmp_path / "buffer")) == 16 * MIB

    def test_its_files_are_never_sparse(self, tmp_path: Path) -> None:
        self.make(tmp_path / "buffer", MIB)
        rings = list(tmp_path.glob("buffer/lane-*/ring"))
        assert len(rings) == 5
        for ring in rings:
            found = ring.stat()
            assert found.st_blocks * 512 >= found.st_size
            assert MIB * 9 // 8 <= found.st_size <= MIB * 9 // 8 + 256 * KIB
