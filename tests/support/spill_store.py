"""What the tests of SpillStore share."""

from __future__ import annotations

from backpressure.spill import Lost, Run, SpillStore
from tests.torture.journal import columns


def put(store: SpillStore, first: int, *events: bytes, pressure: float = 0.0) -> None:
    store.append(first, *columns(list(events)), pressure)


def got(answer: Run | Lost | None) -> tuple[int, list[bytes]]:
    assert isinstance(answer, Run), answer
    return answer.first_seq, answer.messages().tolist()


def everything(store: SpillStore, from_seq: int = 0) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while (answer := store.read(from_seq, 1000, 1 << 20)) is not None:
        first, events = got(answer)
        found.update(enumerate(events, first))
        from_seq = first + len(events)
    return found
