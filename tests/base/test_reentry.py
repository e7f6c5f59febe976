"""Reentry, by itself; tests/lanes and tests/buffer have what it is for."""

from __future__ import annotations

import gc

import pytest

from backpressure.base.reentry import Reentry, interrupted


class Owner:
    """In a cycle: only a collection takes it."""

    def __init__(self) -> None:
        self.reentry = Reentry(self.start_over)
        self.me = self

    def start_over(self) -> None:
        """Nothing is half changed."""


@pytest.mark.single_thread
def test_a_collection_at_any_moment_of_looking_at_every_lock() -> None:
    """It takes owners, and their locks, out of what is being looked at."""
    kept = Owner()
    threshold = gc.get_threshold()
    try:
        for first in range(20, 400):
            gc.collect()
            gc.disable()
            for _ in range(10):
                Owner()
            # The collection comes after as many allocations, the ones above included.
            gc.set_threshold(first, 1000, 1000)
            gc.enable()
            assert interrupted() is None
            gc.set_threshold(*threshold)
    finally:
        gc.enable()
        gc.set_threshold(*threshold)
    with kept.reentry.lock:
        assert interrupted() is kept.reentry
