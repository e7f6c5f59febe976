"""`forebay bench`: its verdict and its exit code, without its minute of measuring."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from backpressure.cli import bench, main
from backpressure.cli.bench import Figure, verdict
from backpressure.cli.bench.hot_paths import PER_BATCH, PER_EVENT
from backpressure.cli.bench.hot_paths import figures as real_figures
from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("per_batch", "per_event", "words"),
    [
        (27.2e6, 0.346e6, "per batch yes (27.20 million), per event no (0.35 million)"),
        (9.99e6, 12e6, "per batch no (9.99 million), per event yes (12.00 million)"),
        (10e6, 10e6, "per batch yes (10.00 million), per event yes (10.00 million)"),
        (2e9, 1.0, "per batch yes (2,000.00 million), per event no (0.00 million)"),
    ],
)
def test_the_verdict(per_batch: float, per_event: float, words: str) -> None:
    assert verdict(per_batch, per_event) == f"10 million events a second: {words}"


def test_readme_has_the_same_words() -> None:
    page = " ".join((ROOT / "README.md").read_text().split())
    pattern = r"10 million events a second on one core.*?per batch (yes|no) .*?per event (yes|no) "
    assert re.search(pattern, page)


def figure(name: str, rate: float, ratio: float = 1.0, limit: float | None = 2.0) -> Figure:
    """One that carries 1,000 events at that rate."""
    seconds = 1000 / rate
    return Figure(name, "its yardstick", lambda: seconds, lambda: seconds / ratio, limit, 1000, 1)


@pytest.mark.parametrize(
    ("per_batch", "ratio", "code"), [(20e6, 1.0, 0), (5e6, 1.0, 1), (20e6, 3.0, 1)]
)
def test_it_prints_the_figures_of_this_run(
    per_batch: float,
    ratio: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[Callable[[], Figure]] = [
        # In another order than the real ones: they are found by their names.
        lambda: figure("something else", 1e6, ratio),
        lambda: figure(PER_EVENT, 0.5e6, limit=None),
        lambda: figure(PER_BATCH, per_batch),
    ]
    monkeypatch.setattr(bench, "figures", lambda *, long: made)
    assert main(["bench"]) == code
    *_, last = capsys.readouterr().out.splitlines()
    assert last == verdict(per_batch, 0.5e6)


def test_the_figures_of_the_promise_are_measured() -> None:
    lines, _, single = (make() for make in real_figures()[:3])
    assert (lines.name, single.name) == (PER_BATCH, PER_EVENT)
    assert single.ours() > 0.0, "it checks that all events came out"
