"""Damaged and crafted files of the disk tier, by the hundred.

The command in tests/torture/fuzz_files.py does more.
"""

from __future__ import annotations

import sys

import pytest

from tests.torture.fuzz_files import check

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


@pytest.mark.parametrize("kind", ["segments", "letters", "buffer"])
def test_files_are_refused_or_do_no_harm(kind: str, in_full: bool) -> None:
    check(kind, in_full)
