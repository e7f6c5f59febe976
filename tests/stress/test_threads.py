"""Threads on one ring, from one and one to several and several."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stress.body import Lines, Numbers, Records, Subject, in_a_file, run_in_threads
from tests.support.threads import switching_often

pytestmark = pytest.mark.threads

#: How much is pushed in all, in thousands: enough to go round the rings many times.
#: More finds what is seldom.
THOUSANDS = int(os.environ.get("FOREBAY_STRESS_THOUSANDS", "6"))


@pytest.fixture(autouse=True)
def fast_switching() -> Iterator[None]:
    with switching_often():
        yield


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (4, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize(
    "subject",
    [
        Records(),
        Records(exchanges=True),
        Records(failing=True),
        Records(failing=True, exchanges=True),
        Numbers(),
        Numbers(exchanges=True),
        Lines(),
        Lines(capacity_bytes=1 << 20),
    ],
    ids=repr,
)
def test_threads(subject: Subject, producers: int, consumers: int) -> None:
    run_in_threads(subject, producers, consumers, THOUSANDS * 1000 // producers)


@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
@pytest.mark.platform
@pytest.mark.parametrize(
    "subject", [Records(), Records(failing=True), Numbers(), Lines()], ids=repr
)
def test_threads_on_a_ring_in_a_file(subject: Subject, tmp_path: Path) -> None:
    run_in_threads(in_a_file(subject, tmp_path), 2, 2, THOUSANDS * 500)
