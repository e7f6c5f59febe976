"""Stats are values: they can be copied, pickled, compared and taken apart."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

from backpressure import BufferConfig, BufferManager, BufferStats


@pytest.fixture
def stats() -> BufferStats:
    with BufferManager(BufferConfig(lane_bytes=4096)) as buffer:
        buffer.add_events([bytes(500)] * 20)
        batch = buffer.get_batch()
        assert batch is not None
        batch.ack()
        return buffer.close(timeout=0)


def test_stats_are_taken_apart_as_any_dataclass(stats: BufferStats) -> None:
    plain = dataclasses.asdict(stats)
    assert plain["rejected"] == {"full": 12}
    assert plain["lanes"][3]["accepted"] == 8
    assert plain["batching"]["flushes"] == dict(stats.batching.flushes)
    json.dumps(plain, default=lambda state: state.name)  # an enum is all that JSON lacks


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_stats_are_pickled(stats: BufferStats, protocol: int) -> None:
    assert pickle.loads(pickle.dumps(stats, protocol)) == stats


def test_stats_are_copied(stats: BufferStats) -> None:
    for other in (copy.copy(stats), copy.deepcopy(stats), dataclasses.replace(stats)):
        assert other == stats


def test_what_stats_hold_cannot_be_changed(stats: BufferStats) -> None:
    rejected: dict[str, int] = stats.rejected  # type: ignore[assignment]
    lanes: dict[int, object] = stats.lanes  # type: ignore[assignment]
    for change in (
        lambda: rejected.update(full=1),
        lambda: rejected.pop("full"),
        lambda: rejected.popitem(),
        lambda: rejected.clear(),
        lambda: rejected.setdefault("x", 1),
        lambda: rejected.__setitem__("x", 1),
        lambda: rejected.__delitem__("full"),
        lambda: rejected.__ior__({"x": 1}),
        lambda: lanes.clear(),
    ):
        with pytest.raises(TypeError, match="snapshot"):
            change()
    assert dict(stats.rejected) | {"x": 1} == {"full": 12, "x": 1}
