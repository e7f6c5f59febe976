"""Reentry: what is looked at while objects come and go."""

from __future__ import annotations

import gc

from backpressure.base.reentry import Reentry, interrupted


def test_looking_at_all_of_them_bears_that_a_collection_takes_some_away() -> None:
    """The look itself allocates, and so may start one."""

    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.reentry = Reentry(self.start_over)

        def start_over(self) -> None:
            """Reentry keeps it by a weak reference."""

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(500):
            Cycle()
            assert interrupted() is None
    finally:
        gc.set_threshold(*thresholds)
