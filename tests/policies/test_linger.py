"""Linger, the law: does a batch that is not full wait, and how long."""

from __future__ import annotations

import pytest

from backpressure.policies.linger import ArrivalRate, Linger

LIMIT = 0.005


# --- the estimator


def test_the_rate_is_that_of_the_last_whole_window() -> None:
    rate = ArrivalRate()
    assert rate.at(100.0, 5) < 1.0  # nothing is known before the first reading
    assert rate.at(100.019, 1_000) < 1.0  # a burst in the window under way promises nothing
    assert rate.at(100.025, 1_255) == pytest.approx(50_000)
    assert rate.at(100.044, 9_999) == pytest.approx(50_000)
    assert rate.at(110.025, 1_355) == pytest.approx(10)  # ten seconds without a look
    assert rate.at(110.050, 1_355) == 0.0


def test_a_clock_that_steps_back_begins_a_window_without_a_rate() -> None:
    rate = ArrivalRate()
    rate.at(100.0, 0)
    assert rate.at(100.025, 250) == pytest.approx(10_000)
    assert rate.at(5.0, 300) == 0.0
    assert rate.at(5.025, 550) == pytest.approx(10_000)


# --- the law


def steady(rate: float, now: float = 100.0, limit: float = LIMIT) -> tuple[Linger, int]:
    """A lane's linger right behind a batch that left at `now`, in a flow of so many
    events a second; and their count.
    """
    linger = Linger(limit)
    linger.holds(now - 0.025, 1, 1_000, 1_000)
    linger.left_at = now
    return linger, 1_000 + round(rate * 0.025)


def test_waits_behind_another_batch_until_the_limit_is_over() -> None:
    linger, count = steady(10_000)
    assert linger.holds(100.0, 1, 1_000, count)
    assert linger.holding
    assert linger.holds(100.0049, 48, 1_000, count + 48)
    assert linger.until() == 100.005
    assert not linger.holds(100.005, 49, 1_000, count + 49)


def test_what_finds_the_lane_idle_goes_at_once() -> None:
    linger, count = steady(10_000)
    assert not linger.holds(100.0051, 1, 1_000, count)
    assert not linger.holding
    assert not Linger(LIMIT).holds(100.0, 1, 1_000, 1)  # and so does the very first


def test_a_burst_promises_nothing() -> None:
    linger = Linger(LIMIT)
    linger.left_at = 100.0
    assert not linger.holds(100.0, 100, 1_000, 0)
    assert not linger.holds(100.001, 100, 1_000, 1_000_000)


@pytest.mark.parametrize(
    ("rate", "waiting", "wanted"),
    [
        (700, 1, False),  # 3.5 events in 5 ms: too few to be worth it
        (900, 1, True),
        (10_000, 49, True),
        (10_000, 51, False),  # 50 more would not save every other call
        (1e6, 4_000, True),
    ],
)
def test_waits_only_for_as_many_events_as_are_there_and_at_least_four(
    rate: float, waiting: int, wanted: bool
) -> None:
    linger, count = steady(rate)
    assert linger.holds(100.0, waiting, 100_000, count) is wanted


def test_what_is_left_of_the_limit_is_what_counts() -> None:
    for now, wanted in ((100.001, True), (100.002, False)):
        linger, count = steady(10_000)
        assert (
            linger.holds(now, 32, 1_000, count + round(10_000 * (now - 100.0))) is wanted
        )  # 40 or 30 more to be expected


def test_a_full_batch_does_not_wait() -> None:
    linger, count = steady(1e6)
    assert not linger.holds(100.0, 1_000, 1_000, count)
    assert linger.holds(100.0, 999, 1_000, count)
    assert not linger.holds(100.001, 1_000, 1_000, count)


def test_a_limit_of_zero_never_waits() -> None:
    linger, count = steady(1e6, limit=0.0)
    assert not linger.holds(100.0, 1, 1_000, count)


def test_a_clock_that_steps_back_ends_a_wait() -> None:
    linger, count = steady(10_000)
    assert linger.holds(100.0, 1, 1_000, count)
    assert not linger.holds(50.0, 1, 1_000, count)


def test_flush_ends_the_wait_that_is_going_on_and_no_later_one() -> None:
    linger, count = steady(10_000)
    linger.flush()
    assert linger.holds(100.0, 1, 1_000, count)
    linger.flush()
    assert not linger.holds(100.001, 1, 1_000, count)
    linger.wait_ended(100.001, 1, "flush")
    linger.left_at = 100.001
    assert linger.holds(100.001, 1, 1_000, count)


def test_a_sender_that_waits_for_its_own_event_is_held_up_ever_more_rarely() -> None:
    linger = Linger(LIMIT)
    now, count, held = 100.0, 0, 0.0
    sent_until = now + 60.0
    while now < sent_until:
        count += (
            1  # one event: delivered, acked half a millisecond later, and only then comes the next
        )
        if (
            now - linger.left_at < LIMIT
            and now >= linger.quiet_until
            and linger.holds(now, 1, 1_000, count)
        ):
            held += linger.until() - now
            now = linger.until()
            linger.wait_ended(now, 1, "linger")
        linger.left_at = now
        now += 0.0005
    assert 0.0 < held < 0.002 * 60.0
    assert count > 0.99 * 120_000


def test_a_wait_that_paid_restores_trust() -> None:
    linger, count = steady(10_000)
    for second, gained, misses in (
        (0, 0, 1),
        (1, 10, 2),
        (2, 0, 3),
        (3, 30, 0),
        (4, 0, 1),
        (5, 999, 0),
        (6, 0, 1),
    ):
        now = 100.0 + second
        linger._rate.at(now - 0.025, count)
        linger.left_at = now
        count += 250
        assert linger.holds(now, 1, 1_000, count)
        before = linger.quiet_until
        linger.wait_ended(
            now + LIMIT, 1 + gained, "size" if gained == 999 else "linger"
        )  # 50 had been expected
        assert linger.quiet_until == pytest.approx(
            now + LIMIT + LIMIT * 2**misses if misses else before
        )


@pytest.mark.parametrize("reason", ["ready", "pressure", "close", "flush", "retry", "too short"])
def test_a_wait_that_was_cut_short_teaches_nothing(reason: str) -> None:
    linger, count = steady(10_000)
    linger.holds(100.0, 1, 1_000, count)
    linger.wait_ended(100.005, 1, "linger")  # one disappointment
    for second, so_far in ((1, reason), (2, "linger")):
        now = 100.0 + second
        linger._rate.at(now - 0.025, count)
        linger.left_at = now
        count += 250
        assert linger.holds(now, 1, 1_000, count)
        cut = so_far == "too short"  # nothing could have come yet
        linger.wait_ended(now if cut else now + LIMIT, 1, "linger" if cut else so_far)  # type: ignore[arg-type]
        assert not linger.holding
    assert linger.quiet_until == pytest.approx(102.005 + 4 * LIMIT)  # the second one
