"""One thread whose collections come in the midst of its pushes and pops, and push and
pop as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.stress.body import Lines, Records, Subject, in_a_file, run_with_collections

pytestmark = pytest.mark.single_thread

#: Numbers are pushed and popped without an allocation that the collector counts.
SUBJECTS = [Records(), Records(failing=True), Lines()]


@pytest.mark.parametrize(
    "subject", [*SUBJECTS, Records(exchanges=True), Lines(capacity_bytes=1 << 20)], ids=repr
)
def test_collections(subject: Subject) -> None:
    run_with_collections(subject, 5000)


@pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux")
@pytest.mark.platform
@pytest.mark.parametrize("subject", SUBJECTS, ids=repr)
def test_collections_on_a_ring_in_a_file(subject: Subject, tmp_path: Path) -> None:
    run_with_collections(in_a_file(subject, tmp_path), 5000)
