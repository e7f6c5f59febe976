"""LatencyHistogram against the sorted list of all values, at the edges of its buckets,
and under threads.
"""

from __future__ import annotations

import math
import pickle
import random
import threading
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringbuf._meters.latency_histogram import HistogramSnapshot, LatencyHistogram
from tests.support.columns import Column
from tests.support.threads import run_threads

LOWEST, HIGHEST = 1e-6, 1000.0

in_range = st.one_of(
    st.floats(LOWEST, HIGHEST),
    st.floats(math.log(LOWEST), math.log(HIGHEST)).map(
        lambda x: min(max(math.exp(x), LOWEST), HIGHEST)
    ),
    st.sampled_from([LOWEST, HIGHEST, 1.0, 0.5, math.nextafter(1.0, 0), 2.0**-19]),
)
latencies = st.one_of(
    in_range,
    st.floats(0.0, LOWEST),
    st.floats(HIGHEST, 1e15),
    st.sampled_from([0.0, 5e-324, math.nextafter(LOWEST, 0), math.nextafter(HIGHEST, 2000)]),
)
percents = st.one_of(
    st.sampled_from([0, 1, 25, 50, 90, 95, 99, 99.9, 99.99, 100]),
    st.integers(0, 100_000).map(lambda k: k / 1000),
)


def nearest_rank(ordered: list[float], q: float) -> float:
    """The smallest value that q percent do not exceed; q as it is written, not as the
    float nearest to that.
    """
    return ordered[max(1, math.ceil(Fraction(str(q)) * len(ordered) / 100)) - 1]


def check_percentile(found: float, true: float, high: float) -> None:
    """`found` must be as near to `true` as the docstring promises for its place in or
    beside the range.
    """
    if true < LOWEST:
        assert abs(found - true) < LOWEST
    elif true <= HIGHEST:
        assert abs(found - true) <= true / 128
    else:
        assert abs(found - true) <= true / 64 or found == high


def filled(
    values: list[float], lowest: float = LOWEST, highest: float = HIGHEST
) -> LatencyHistogram:
    histogram = LatencyHistogram(lowest, highest)
    for value in values:
        histogram.record(value)
    return histogram


def same(one: LatencyHistogram, other: LatencyHistogram) -> bool:
    a, b = one.snapshot(), other.snapshot()
    return (
        np.array_equal(a.counts, b.counts)
        and a.sum == pytest.approx(b.sum, rel=1e-12)
        and np.array_equal([a.count, a.min, a.max], [b.count, b.min, b.max], equal_nan=True)
    )


# Against the exact values


@given(
    values=st.lists(in_range, min_size=1, max_size=60),
    qs=st.lists(percents, min_size=1, max_size=8),
)
def test_percentiles_are_within_one_percent(values: list[float], qs: list[float]) -> None:
    histogram = filled(values)
    ordered = sorted(values)
    found = histogram.percentiles(qs)
    assert found == [histogram.percentile(q) for q in qs] == histogram.snapshot().percentiles(qs)
    for q, each in zip(qs, found, strict=True):
        true = nearest_rank(ordered, q)
        assert abs(each - true) <= true / 100
        assert ordered[0] <= each <= ordered[-1]


@given(values=st.lists(latencies, min_size=1, max_size=60), q=percents)
@example(values=[1e-9] * 5 + [1e6], q=50)
def test_values_outside_the_range_are_counted_where_promised(values: list[float], q: float) -> None:
    histogram = filled(values)
    ordered = sorted(values)
    check_percentile(histogram.percentile(q), nearest_rank(ordered, q), ordered[-1])
    assert histogram.percentile(0) == ordered[0]
    assert histogram.percentile(100) == ordered[-1]


@given(values=st.lists(latencies, max_size=60))
def test_the_counts_and_the_totals_are_exact(values: list[float]) -> None:
    histogram = filled(values)
    snapshot = histogram.snapshot()
    assert histogram.count == snapshot.count == len(values)
    buckets = np.searchsorted(snapshot.edges, values, side="right") - 1
    assert np.array_equal(snapshot.counts, np.bincount(buckets, minlength=len(snapshot.counts)))
    assert histogram.sum == snapshot.sum == pytest.approx(math.fsum(values), rel=1e-12)
    if values:
        assert (
            (histogram.min, histogram.max)
            == (snapshot.min, snapshot.max)
            == (min(values), max(values))
        )
        assert (
            histogram.mean
            == snapshot.mean
            == pytest.approx(math.fsum(values) / len(values), rel=1e-12)
        )


@pytest.mark.parametrize(
    ("lowest", "highest"),
    [(1e-6, 1000.0), (1e-12, 1e9), (1.0, 2.0), (0.5, 0.6), (3e-4, 7.7), (1, 60)],
)
def test_the_buckets_tile_the_range_to_one_percent(lowest: float, highest: float) -> None:
    histogram = LatencyHistogram(lowest, highest)
    assert (histogram.lowest, histogram.highest) == (lowest, highest)
    edges = histogram.snapshot().edges
    assert edges[0] == 0.0
    assert edges[-1] == math.inf
    inner = edges[1:-1]
    assert lowest / (1 + 1 / 64) < inner[0] <= lowest
    assert highest < inner[-1] <= highest * (1 + 1 / 32)
    assert np.all(np.diff(inner) > 0)
    assert np.all(inner[1:] / inner[:-1] <= 1 + 1 / 64)
    # Each edge belongs to the bucket above it, and the last double below it to the one
    # below.
    for i, edge in enumerate(inner, start=1):
        histogram.reset()
        histogram.record(edge, 2)
        histogram.record(math.nextafter(edge, 0.0), 3)
        counts = histogram.snapshot().counts
        assert (counts[i - 1], counts[i], counts.sum()) == (3, 2, 5)


def test_the_default_range_is_small_and_wide() -> None:
    histogram = LatencyHistogram()
    assert (histogram.lowest, histogram.highest) == (1e-6, 1000.0)
    assert len(histogram.snapshot().counts) < 2_000


def test_a_percent_means_what_is_written() -> None:
    histogram = filled([k / 1000 for k in range(1, 1001)])
    assert histogram.percentile(99.9) == pytest.approx(0.999, rel=0.01)
    few = filled([1e-3] * 999 + [10.0])
    assert few.percentile(99.9) == pytest.approx(1e-3, rel=0.01)
    assert few.percentile(99.91) == few.percentile(100) == 10.0
    for q in (0.1, 0.7, 7, 14, 16.1, 28, 29, 55, 57, 58, 99.9):
        # 1,000 values, of which the last that counts is small: one rank further is
        # large.
        rank = math.ceil(Fraction(str(q)) * 10)
        assert filled([1e-3] * rank + [10.0] * (1000 - rank)).percentile(q) == pytest.approx(
            1e-3, rel=0.01
        ), q


def test_billions_of_records() -> None:
    histogram = LatencyHistogram()
    histogram.record(0.001, 10**12)
    histogram.record(1.0, 10**12)
    histogram.record(5.0, 1)
    assert histogram.count == 2 * 10**12 + 1
    assert histogram.percentile(49.9999999) == pytest.approx(0.001, rel=0.01)
    assert histogram.percentile(50.0000001) == pytest.approx(1.0, rel=0.01)
    assert histogram.max == 5.0
    assert histogram.sum == pytest.approx(1.001e12 + 5, rel=1e-12)


# Ways in


@given(values=st.lists(latencies, max_size=80))
def test_record_many_does_what_as_many_records_do(values: list[float]) -> None:
    histogram = LatencyHistogram()
    histogram.record_many(values)
    assert same(histogram, filled(values))


def test_record_many_takes_what_numpy_takes() -> None:
    flat = np.linspace(0.001, 0.9, 24)
    expected = filled(flat.tolist())
    for given_as in (flat, flat.reshape(2, 3, 4), np.asfortranarray(flat.reshape(4, 6)),
                     np.repeat(flat, 2)[::2],
                     tuple(flat), flat.astype(">f8"), list(flat)):  # fmt: skip
        histogram = LatencyHistogram()
        histogram.record_many(given_as)
        assert same(histogram, expected)
    ints = LatencyHistogram()
    ints.record_many([1, 2, 3])
    ints.record_many(np.array([4, 5], dtype=np.int8))
    ints.record_many(np.array([0.5], dtype=np.float32))
    ints.record_many(0.25)
    ints.record_many([])
    assert same(ints, filled([1, 2, 3, 4, 5, 0.5, 0.25]))
    locked = flat.copy()
    locked.flags.writeable = False
    histogram = LatencyHistogram()
    histogram.record_many(locked)
    assert same(histogram, expected)


@pytest.mark.parametrize(
    ("unit", "count", "seconds"),
    [
        ("ms", 7, 0.007), ("us", 10**15, 1e9), ("ns", 2**62, 2**62 / 1e9), ("as", 10**18, 1.0),
        ("s", 3, 3.0), ("25s", 2, 50.0), ("m", 2, 120.0), ("h", 1, 3600.0),
        ("D", 10**17, 8.64e21), ("W", 1, 604_800.0),
    ],
)  # fmt: skip
def test_a_timedelta_counts_as_its_seconds(unit: str, count: int, seconds: float) -> None:
    histogram = LatencyHistogram()
    spans = np.array([count, -count], f"m8[{unit}]")
    histogram.record_many(spans)
    histogram.record(spans[0])
    histogram.record_many([spans[0]])
    histogram.record_many(spans.astype(spans.dtype.newbyteorder())[::2])
    assert (histogram.count, histogram.min, histogram.max) == (5, 0.0, seconds)
    assert histogram.sum == pytest.approx(4 * seconds)


def test_a_sum_that_no_double_holds_is_inf() -> None:
    histogram = LatencyHistogram()
    histogram.record(1e308, 2**60)
    assert (histogram.sum, histogram.mean, histogram.max) == (math.inf, math.inf, 1e308)


def test_a_clock_that_went_back_counts_as_no_time() -> None:
    histogram = LatencyHistogram()
    histogram.record(-0.5)
    histogram.record(-0.0)
    histogram.record(-5e-324, 2)
    histogram.record_many([-1.0, -0.0, 0.0, -1e300])
    assert histogram.count == histogram.snapshot().counts[0] == 8
    assert (histogram.sum, histogram.min, histogram.max) == (0.0, 0.0, 0.0)
    assert math.copysign(1, histogram.min) == 1
    calls: list[Callable[[LatencyHistogram], object]] = [
        lambda h: h.record(-0.0),
        lambda h: h.record_many([-0.0]),
    ]
    for call in calls:
        fresh = LatencyHistogram()
        call(fresh)
        assert (fresh.min, fresh.max) == (0.0, 0.0)
        assert math.copysign(1, fresh.max) == 1
    histogram.record(0.1)
    assert (histogram.min, histogram.max) == (0.0, 0.1)


def test_what_is_refused_changes_nothing() -> None:
    histogram = filled([0.1, 0.2])
    before = filled([0.1, 0.2])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="seconds must be finite"):
            histogram.record(bad)
        with pytest.raises(ValueError, match=f"seconds must be finite, and item 2 is {bad}"):
            histogram.record_many([0.5, 7.0, bad, 0.25])
    masked = np.ma.array([0.5, 7.0], mask=[False, True])
    for latencies in (masked, Column(masked)):
        with pytest.raises(ValueError, match="masked"):
            histogram.record_many(latencies)
    for n in (-1, 2**62, 10**30):
        with pytest.raises(ValueError, match=f"n must be from 0 to {2**62 - 1}, not {n}"):
            histogram.record(0.1, n)
    for wrong in ("0.1", None, [0.1], True, np.True_, 1j, np.complex128(1j)):
        with pytest.raises(TypeError, match="seconds must be a number"):
            histogram.record(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="n must be an int"):
        histogram.record(0.1, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inhomogeneous"):
        histogram.record_many([[0.1], [0.2, 0.3]])
    for many in (
        ["fast"], "7", b"7", [b"7"], [object()], [0.1, None], [1j], [True], {0.1: 1},
        np.array([0.1], object), np.zeros(2, [("a", "f8")]), np.array(["2026-01-02"], "M8[s]"),
        np.array([1], "m8[Y]"), np.array([1], "m8"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="latencies"):
            histogram.record_many(many)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaT"):
        histogram.record_many(np.array([5, "NaT"], "m8[ms]"))
    with pytest.raises(ValueError, match="NaT"):
        histogram.record(np.timedelta64("NaT", "ms"))
    histogram.record(0.7, 0)
    assert same(histogram, before)


def test_bad_ranges_and_percents_are_named() -> None:
    for lowest in (0, -1, 1e-13, math.nan, math.inf, 2e9):
        with pytest.raises(ValueError, match=r"lowest must be from 1e-12 to 1e\+09 seconds"):
            LatencyHistogram(lowest)
    for highest in (1e-6, 1e-7, 0, 2e9, math.inf, math.nan):
        with pytest.raises(
            ValueError, match=r"highest must be above lowest \(1e-06\) and at most 1e\+09 seconds"
        ):
            LatencyHistogram(1e-6, highest)
    for histogram in (LatencyHistogram(), filled([0.1])):
        for q in (-0.1, 100.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="a percentile must be from 0 to 100, not"):
                histogram.percentile(q)
            with pytest.raises(ValueError, match="a percentile must be from 0 to 100, not"):
                histogram.snapshot().percentiles([50, q])
        for wrong in ("50", True, None):
            with pytest.raises(TypeError, match="q must be a number"):
                histogram.percentile(wrong)  # type: ignore[arg-type]
    for wrong in ("1", True, None):
        with pytest.raises(TypeError, match="lowest must be a number"):
            LatencyHistogram(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="highest must be a number"):
            LatencyHistogram(1e-6, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"LatencyHistogram\.snapshot"):
        HistogramSnapshot()


# The whole


def test_an_empty_one_has_no_values() -> None:
    histogram = LatencyHistogram()
    assert histogram.count == 0
    assert histogram.sum == 0.0
    for each in (
        histogram.min,
        histogram.max,
        histogram.mean,
        *histogram.percentiles([0, 50, 100]),
    ):
        assert math.isnan(each)
    assert histogram.percentiles([]) == []
    assert repr(histogram) == "LatencyHistogram(lowest=1e-06, highest=1000.0, count=0)"
    with pytest.raises(TypeError, match="live shared state"):
        pickle.dumps(histogram)


@given(a=st.lists(latencies, max_size=40), b=st.lists(latencies, max_size=40))
def test_a_merge_is_the_histogram_of_both(a: list[float], b: list[float]) -> None:
    one, other = filled(a), filled(b)
    one.merge(other)
    assert same(one, filled(a + b))
    assert same(other, filled(b))
    other.merge(other)
    assert same(other, filled(b + b))


# As many as one call may record.
MOST = (1 << 62) - 1


def test_a_bucket_stops_counting_before_it_goes_over() -> None:
    histogram = LatencyHistogram()
    for _ in range(5):
        histogram.record(0.5, MOST)
    assert histogram.count == 1 << 63
    histogram.record(0.5)
    histogram.record(0.5, 1 << 32)
    histogram.record_many([0.5] * 100)
    assert histogram.count == 1 << 63
    histogram.merge(histogram)
    assert histogram.count == 1 << 63
    for _ in range(3):
        histogram.record(7.0, MOST)
    assert histogram.count == (1 << 64) - 1, "of two full ones it is more than a word holds"
    histogram.record(90.0)
    assert histogram.count == (1 << 64) - 1
    assert histogram.snapshot().counts.max() == 1 << 63
    assert histogram.percentile(25) == pytest.approx(0.5, rel=0.01)
    assert histogram.percentile(75) == pytest.approx(7.0, rel=0.01)
    assert histogram.percentiles([0, 100]) == [0.5, 90.0]


@given(st.lists(st.tuples(st.sampled_from([0.001, 0.5, 7.0]), st.integers(0, MOST)), max_size=12))
def test_counts_are_exact_or_full(steps: list[tuple[float, int]]) -> None:
    histogram, other = LatencyHistogram(), LatencyHistogram()
    expected = {0.001: 0, 0.5: 0, 7.0: 0}
    for i, (value, times) in enumerate(steps):
        (histogram, other)[i % 2].record(value, times)
        expected[value] += times
    histogram.merge(other)
    total = min(sum(min(times, 1 << 63) for times in expected.values()), (1 << 64) - 1)
    assert histogram.count == total
    if total:
        assert histogram.percentile(50) > 0


def test_only_the_same_range_can_be_merged() -> None:
    histogram = LatencyHistogram()
    for other in (LatencyHistogram(1e-5), LatencyHistogram(1e-6, 100.0)):
        with pytest.raises(ValueError, match="same range"):
            histogram.merge(other)
    for wrong in (None, 3, filled([1.0]).snapshot()):
        with pytest.raises(TypeError):
            histogram.merge(wrong)  # type: ignore[arg-type]


def test_a_reset_forgets_everything() -> None:
    histogram = filled([0.1, 2000.0, 0.0])
    histogram.reset()
    assert same_empty(histogram)
    histogram.record(0.3)
    assert same(histogram, filled([0.3]))


def same_empty(histogram: LatencyHistogram) -> bool:
    snapshot = histogram.snapshot()
    return (
        snapshot.count == 0
        and not snapshot.counts.any()
        and snapshot.sum == 0.0
        and math.isnan(snapshot.max)
    )


def test_a_snapshot_is_frozen() -> None:
    histogram = filled([0.1, 0.2])
    snapshot = histogram.snapshot()
    histogram.record(0.4, 10)
    histogram.reset()
    assert (snapshot.count, snapshot.counts.sum(), snapshot.max) == (2, 2, 0.2)
    assert snapshot.percentile(100) == 0.2
    assert snapshot.counts.dtype == np.uint64
    assert len(snapshot.edges) == len(snapshot.counts) + 1
    for array in (snapshot.counts, snapshot.edges):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="resize"):
            array.resize(1, refcheck=False)
        array.shape = (1, len(array))  # its own array's, and of no consequence to the next
    assert (snapshot.counts.ndim, snapshot.edges.ndim) == (1, 1)
    assert histogram.snapshot().edges.tobytes() == snapshot.edges.tobytes()
    assert snapshot.percentile(50) == pytest.approx(0.1, rel=0.01)
    for name in ("counts", "edges", "count", "sum", "min", "max", "mean"):
        with pytest.raises(AttributeError):
            setattr(snapshot, name, 1)
    assert repr(snapshot).startswith("HistogramSnapshot(count=2, min=0.1, mean=0.15")


# Threads


@pytest.mark.threads
def test_threads_lose_no_record() -> None:
    histogram = LatencyHistogram()
    # Powers of two, so that their sums are exact in any order.
    values = [2.0**k for k in range(-16, 8)]
    expected = LatencyHistogram()

    def one_by_one(seed: int) -> Callable[[], None]:
        mine = random.Random(seed).choices(values, k=4_000)
        expected.record_many(mine)

        def body() -> None:
            for value in mine:
                histogram.record(value)

        return body

    def in_arrays(seed: int) -> Callable[[], None]:
        # Large enough that one call goes on for several turns of the others: it lets go
        # of the GIL.
        mine = np.array(random.Random(seed).choices(values, k=100_000))
        expected.record_many(mine)

        def body() -> None:
            for part in np.split(mine, 5):
                histogram.record_many(part)

        return body

    def by_merge(seed: int) -> Callable[[], None]:
        mine = random.Random(seed).choices(values, k=400)
        expected.record_many(mine)

        def body() -> None:
            for start in range(0, 400, 10):
                histogram.merge(filled(mine[start : start + 10]))

        return body

    run_threads([one_by_one(1), one_by_one(2), in_arrays(3), in_arrays(4), by_merge(5)])
    a, b = histogram.snapshot(), expected.snapshot()
    assert np.array_equal(a.counts, b.counts)
    assert (a.count, a.sum, a.min, a.max) == (b.count, b.sum, b.min, b.max)


def test_snapshots_among_recorders_are_consistent() -> None:
    histogram = LatencyHistogram()
    done = threading.Event()
    low, high = 2.0**-10, 2.0

    def record() -> None:
        many = np.array([low, high] * 5_000)
        try:
            for _ in range(20):
                histogram.record(high)
                histogram.record(low)
                histogram.record_many(many)
        finally:
            done.set()

    def read() -> None:
        last = 0
        while not done.is_set():
            taken = histogram.snapshot()
            assert taken.count == taken.counts.sum() >= last
            last = taken.count
            if last:
                small, large = (
                    int(taken.counts[np.searchsorted(taken.edges, each, side="right") - 1])
                    for each in (low, high)
                )
                assert small + large == last
                assert taken.sum >= small * low + large * high
                assert taken.min == (low if small else high)
                assert taken.max == (high if large else low)
                assert taken.percentiles([0, 100]) == [taken.min, taken.max]

    run_threads([record, record, read])
    assert histogram.count == 2 * 20 * 10_002


def test_a_reset_among_recorders_leaves_a_usable_histogram() -> None:
    histogram = LatencyHistogram()
    done = threading.Event()
    values = np.geomspace(1e-5, 100, 50_000)

    def record() -> None:
        try:
            for _ in range(100):
                histogram.record_many(values)
        finally:
            done.set()

    def reset() -> None:
        while not done.is_set():
            histogram.reset()
            taken = histogram.snapshot()
            if taken.count:
                first, *_, last = np.flatnonzero(taken.counts).tolist() * 2
                assert taken.edges[first] <= taken.min <= taken.edges[first + 1]
                assert taken.edges[last] <= taken.max <= taken.edges[last + 1]
                assert taken.min <= taken.percentile(50) <= taken.max

    run_threads([record, record, reset])
    histogram.reset()
    assert same_empty(histogram)
