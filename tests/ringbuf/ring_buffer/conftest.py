"""A ring in each of the modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ringbuf import RingBuffer
from tests.support.ring_buffer import MODES


@pytest.fixture(params=MODES)
def ring(request: pytest.FixtureRequest, tmp_path: Path) -> RingBuffer:
    ring = RingBuffer(8, "i8", path=tmp_path / "ring" if request.param == "shared" else None)
    if request.param == "exchanges":
        ring._use_exchanges()
    return ring
