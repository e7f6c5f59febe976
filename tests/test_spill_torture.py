"""A share of the torture under pytest: power loss, and an error at every call. By command there is more of both."""

from __future__ import annotations

import errno
import os

import pytest
from tests.torture import io_errors, power_loss


@pytest.mark.slow
def test_power_loss() -> None:
    images = events = 0
    seed = 1 if os.environ.get("CI") else int.from_bytes(os.urandom(4), "little")
    while images < 500:
        more, delivered = power_loss.one_life(seed)
        images += more
        events += delivered
        seed += 1
    assert events > 5000, "so few events prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", io_errors.ERRORS, ids=["EIO", "ENOSPC", "EDQUOT", "EINTR", "short"])
def test_every_call_fails_in_turn(error: int | None, sticky: bool) -> None:
    assert io_errors.every_call(1, error, sticky) > (20 if error is None else 80)


def test_a_new_file_whose_name_may_come_back_is_not_outlived_by_the_old_one() -> None:
    """The directory's sync failed after the rename, what came next went into the old file, and then the power went."""
    assert io_errors.one_run(13, 129, errno.EIO, sticky=False)


def test_a_gap_before_what_can_not_be_read_is_not_taken_for_events() -> None:
    """A disk that can never be read again: what is lost is counted in full, also behind numbers that carried no event."""
    assert io_errors.one_run(8, 45, errno.EIO, sticky=True)
