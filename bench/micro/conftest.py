"""What the benches share: log lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.demo.make_log import log_lines

REAL = Path(__file__).parents[3] / "shared" / "data" / "apache_access.log"


@pytest.fixture(scope="session")
def access_log() -> list[bytes]:
    """10,000 lines of an access log, without newlines.

    A real one where it is at hand, else one of that shape.
    """
    return REAL.read_bytes().splitlines() if REAL.exists() else list(log_lines(10_000))
