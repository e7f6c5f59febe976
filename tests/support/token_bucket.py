"""What the tests of TokenBucket share: units, and what rates and counts to try."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import strategies as st

SECOND = 1_000_000_000

DAY = 86_400 * SECOND

MAX_TOKENS = (2**63 - 1) // 2

CREDIT = 32

#: The smallest burst whose bucket lends a credit.
CREDIT_BURST = CREDIT << 10

INF = math.inf


def check_wait(seconds: float, now: int, due: float | int) -> None:
    """A wait of `seconds` from `now` must reach `due` (ns).

    It may overshoot by no more than some ns and a float's rounding.
    """
    if due == INF:
        assert seconds == INF
        return
    wait = due - now
    if wait > 4 * 10**18:
        assert seconds == pytest.approx(wait / SECOND, rel=1e-12)
        return
    waited = math.ceil(Fraction(seconds) * SECOND)
    assert wait <= waited <= wait + 4 + wait // 2**48, (wait, waited)


rates = st.one_of(
    st.sampled_from([0.0, INF, 1 / 86_400, 0.1, 1 / 3, 1.0, 10.0, 1e3, 30e6, 1e9, 1e10]),
    st.integers(1, 10**10).map(float),
    st.floats(1 / 86_400, 1e10),
)

bursts = st.one_of(st.integers(0, 5), st.integers(0, 10**6), st.integers(0, 10**12))

counts = st.one_of(st.integers(0, 5), st.integers(0, 10**4), st.integers(0, 10**12))

# ns that a machine's clock may move in one step, up to 11 days.
steps = st.one_of(
    st.integers(0, 20),
    st.sampled_from([SECOND, SECOND // 2, SECOND // 10, DAY]),
    st.integers(0, 10**9),
    st.integers(0, 10**15),
)
