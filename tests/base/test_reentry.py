"""Reentry: what is looked at while objects come and go."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from backpressure.base import reentry
from backpressure.base.reentry import Reentry, interrupted


class Owner:
    """Of one Reentry, which keeps its method by a weak reference."""

    def __init__(self) -> None:
        self.reentry = Reentry(self.start_over)

    def start_over(self) -> None:
        pass


class Collected(dict[int, "weakref.ref[Reentry]"]):
    """In the midst of the first look some go, as where it starts a collection."""

    def __init__(self, kept: dict[int, weakref.ref[Reentry]], doomed: list[Any]) -> None:
        super().__init__(kept)
        self.doomed = doomed

    def values(self) -> Any:
        return self._each()

    def _each(self) -> Iterator[weakref.ref[Reentry]]:
        for ref in super().values():
            if self.doomed:
                del self[id(self.doomed.pop().reentry)]
            yield ref


def test_a_look_at_all_of_them_bears_that_some_go(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = [Owner() for _ in range(3)]
    kept = {id(one.reentry): weakref.ref(one.reentry) for one in owners}
    assert set(kept) <= set(reentry._all)
    monkeypatch.setattr(reentry, "_all", Collected(kept, owners[1:]))
    with owners[0].reentry.lock:
        assert interrupted() is owners[0].reentry
    assert len(reentry._all) == 1
