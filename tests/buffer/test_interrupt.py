"""What a signal's handler that raises does to a consumer's calls, at each point where
it may run.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backpressure.lanes.durable_lane import DurableLane
from tests.buffer.interrupt_driver import ON_DISK, OPERATIONS, Case, Interruption, check

pytestmark = [
    pytest.mark.single_thread,
    # A finaliser, as of a generator, may be what is interrupted.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("fsync", "fdatasync"):
        # As fast as nothing, and still a call of C.
        monkeypatch.setattr(os, name, os.fstat)
    return tmp_path


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_loses_repeats_and_keeps_nothing_in_memory(operation: str) -> None:
    check(operation, step=9)


@pytest.mark.parametrize("operation", [*OPERATIONS, *ON_DISK])
def test_nor_does_it_in_a_directory(operation: str, directory: Path) -> None:
    check(operation, directory, step=61)


def test_a_look_into_an_empty_lane_leaves_nothing_there(directory: Path) -> None:
    # What it left there was written, for ever, as the oldest piece of the lane.
    hits, interruption = 0, Interruption(0)
    case = Case(str(directory))
    case.buffer.flush()
    lane = case.lane
    assert isinstance(lane, DurableLane)
    while hits == 0 or interruption.hit:
        interruption = Interruption(hits)
        interruption.run(lambda: lane.spill(0.0))
        assert lane.spill(0.0) == 0, interruption.where
        hits += 1
    assert hits > 10
    case.buffer.close(timeout=0)


@pytest.mark.proof
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_point_does_in_memory(operation: str) -> None:
    check(operation)


@pytest.mark.proof
@pytest.mark.parametrize("operation", [*OPERATIONS, *ON_DISK])
def test_no_point_does_in_a_directory(operation: str, directory: Path) -> None:
    # All of them take a quarter of an hour: that is for `make torture`.
    check(operation, directory, step=13)
