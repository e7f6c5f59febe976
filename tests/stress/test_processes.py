"""Processes on one ring in a file: the same body as for threads."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.stress.body import Lines, Numbers, Records, Subject, in_a_file, run_in_processes
from tests.stress.test_threads import THOUSANDS

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
]


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (3, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize(
    "subject", [Records(), Records(failing=True), Numbers(), Lines()], ids=repr
)
def test_processes(subject: Subject, producers: int, consumers: int, tmp_path: Path) -> None:
    shared = in_a_file(subject, tmp_path)
    run_in_processes(shared, producers, consumers, THOUSANDS * 1000 // producers)


@pytest.mark.parametrize(
    "subject", [Records(), Records(failing=True), Numbers(), Lines()], ids=repr
)
def test_processes_that_are_stopped_and_continued(subject: Subject, tmp_path: Path) -> None:
    """One that stands still anywhere, alive, delays the others at most until it goes
    on.
    """
    shared = in_a_file(subject, tmp_path)
    run_in_processes(shared, 2, 2, THOUSANDS * 500, random.Random(repr(subject)))
