"""The figures of `forebay bench` in their long form, under pytest-benchmark.

Each run of a figure checks its result before it counts (see backpressure/cli/bench).
`extra_info` holds the ratio to the yardstick, measured in turn in the same process;
that is what a comparison between machines or commits should look at.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backpressure.cli.bench import Figure, figures, measure

LONG = not os.environ.get("CI")


@pytest.mark.parametrize("make", figures(long=LONG))
def test_figure(benchmark: BenchmarkFixture, make: Callable[[], Figure]) -> None:
    figure = make()
    try:
        assert figure.theirs() > 0
        assert benchmark.pedantic(figure.ours, rounds=3) > 0
        if benchmark.disabled:
            return
        measured = measure(figure)
    finally:
        figure.close()
    benchmark.extra_info.update(
        name=figure.name,
        yardstick=figure.yardstick,
        ratio=round(measured.ratio, 3),
        limit=figure.limit,
        events_per_second=round(measured.rate),
    )
    assert measured.within, (
        f"{figure.name}: {measured.ratio:.2f} times {figure.yardstick}, at most {figure.limit} "
        "allowed"
    )
