"""examples/market_ticks.py: as a program, and its bars against plain Python's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.market_ticks import SECOND, SYMBOLS, TICK, Bars, feed, run
from tests.support.paths import ROOT


def plain(ticks: list[bytes]) -> dict[tuple[int, str], tuple[float, float, float, float, int]]:
    groups: dict[tuple[int, str], list[tuple[float, int]]] = {}
    for tick in ticks:
        at, symbol, size, price = np.frombuffer(tick, TICK)[0].item()
        groups.setdefault((at // SECOND, SYMBOLS[symbol]), []).append((price, size))
    return {
        key: (
            trades[0][0],
            max(price for price, _ in trades),
            min(price for price, _ in trades),
            trades[-1][0],
            sum(size for _, size in trades),
        )
        for key, trades in groups.items()
    }


@pytest.mark.parametrize(
    "kept",
    [
        False,
        pytest.param(
            True,
            marks=[
                pytest.mark.platform,
                pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
            ],
        ),
    ],
    ids=["memory", "directory"],
)
def test_every_tick_is_in_its_bar(kept: bool, tmp_path: Path) -> None:
    ticks, bars = list(feed(20_000, per_second=5_000)), Bars()
    run(ticks, bars, str(tmp_path / "buffer") if kept else None)
    assert bars.ticks == len(ticks)
    assert bars.bars == plain(ticks)


def test_the_program_says_what_it_did() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "market_ticks.py", "--ticks", "3000"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, *bars = done.stdout.splitlines()
    assert first.startswith("3,000 ticks in ")
    assert first.endswith(" 3,000 in bars")
    assert [line.split()[2] for line in bars] == list(SYMBOLS)
