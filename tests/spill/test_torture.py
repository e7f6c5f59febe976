"""A share of the torture under pytest: power loss, and an error at every call.

The commands in tests/torture do more of both.
"""

from __future__ import annotations

import os

import pytest

from tests.torture import io_errors, power_loss


def test_power_loss(in_full: bool) -> None:
    images = events = 0
    seed = 1 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "little")
    while images < (500 if in_full else 60):
        more, delivered = power_loss.one_life(seed)
        images += more
        events += delivered
        seed += 1
    assert events > (5000 if in_full else 500), "so few events prove nothing"


@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize(
    "error", io_errors.ERRORS, ids=["EIO", "ENOSPC", "EDQUOT", "EINTR", "short"]
)
def test_every_call_fails_in_turn(error: int | None, sticky: bool, in_full: bool) -> None:
    assert io_errors.every_call(1, error, sticky, 1 if in_full else 11) > (
        20 if error is None else 80
    )


@pytest.mark.parametrize(("seed", "sticky"), [(13, False), (8, True)])
def test_every_call_fails_in_turn_where_that_once_lost_something(
    seed: int, sticky: bool, in_full: bool
) -> None:
    assert io_errors.every_call(seed, io_errors.ERRORS[0], sticky, 1 if in_full else 11) > 80
