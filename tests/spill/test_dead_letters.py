"""Dead letters: kept across restarts and power loss, listed, replayed, purged."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from backpressure.base.errors import DiskFull
from backpressure.spill import DeadLetter, DeadLetterStore
from backpressure.spill.budget import DiskBudget
from backpressure.testing import CrashingFileSystem
from tests.torture.journal import BUFFER_ID, LANE, SMALL, disk_with_lane


def letter(number: int, event: bytes = b"poison") -> DeadLetter:
    return DeadLetter(
        event=event,
        error=f"ValueError: bad byte {number} é",
        attempts=number + 1,
        priority=number % 5 + 1,
        seq=1000 + number,
        time_ns=1_700_000_000_000_000_000 + number,
    )


def opened(disk: CrashingFileSystem) -> DeadLetterStore:
    return DeadLetterStore(LANE, BUFFER_ID, fs=disk)


def test_everything_about_a_letter_is_kept_and_durable() -> None:
    disk = disk_with_lane()
    store = opened(disk)
    assert store.add([letter(0), letter(1, b"")]) == 0
    assert store.add([letter(2, bytes(range(256)) * 300)]) == 2
    for seed in range(20):
        after = opened(disk.image(random.Random(seed)))
        found = list(after.letters())
        assert [one.id for one in found] == [0, 1, 2]
        assert [one.event for one in found] == [b"poison", b"", bytes(range(256)) * 300]
        for number, one in enumerate(found):
            assert one == replace(letter(number), event=one.event, id=number)
        assert list(after.letters(2)) == found[2:]
        assert len(after) == 3


def test_a_long_error_is_cut_and_stays_text() -> None:
    store = opened(disk_with_lane())
    store.add(
        [DeadLetter(event=b"e", error="x" + "é" * 10_000, attempts=1, priority=1, seq=0, time_ns=0)]
    )
    (one,) = store.letters()
    assert one.error.startswith("xéé")
    assert 2000 < len(one.error) < 2100
    assert one.event == b"e"


def test_purged_letters_stay_away_the_others_stay() -> None:
    disk = disk_with_lane()
    store = opened(disk)
    store.add([letter(number) for number in range(600)])
    odd = [one for one in store.letters() if one.id % 2]
    assert store.purge(odd) == 300
    with pytest.raises(ValueError, match="acked already"):
        store.purge(odd[:1])
    for seed in range(5):
        after = opened(disk.image(random.Random(seed)))
        assert [one.id for one in after.letters()] == list(range(0, 600, 2)), (
            "the record has room for that many ranges"
        )
    assert store.purge() == 300
    assert len(store) == 0
    assert list(store.letters()) == []
    assert store.add([letter(1)]) == 600, "an id is never used twice"


def test_a_replay_passes_over_what_another_one_has_purged() -> None:
    disk = disk_with_lane()
    store = opened(disk)
    store.add([letter(number) for number in range(3)])
    # As a finaliser does that comes in between, or another thread.
    assert store.replay(lambda one: store.purge([one])) == 3
    assert len(store) == 0
    with pytest.raises(ValueError, match="acked already"):
        store.purge([replace(letter(0), id=0)])
    store.close()


def test_replay_stops_at_an_error_and_keeps_that_letter() -> None:
    disk = disk_with_lane()
    store = opened(disk)
    store.add([letter(number) for number in range(5)])
    seen: list[int] = []

    def deliver(one: DeadLetter) -> None:
        if one.id == 3:
            raise RuntimeError("still bad")
        seen.append(one.id)

    with pytest.raises(RuntimeError, match="still bad"):
        store.replay(deliver)
    assert seen == [0, 1, 2]
    store.close()
    store = opened(disk)
    assert [one.id for one in store.letters()] == [3, 4]
    assert store.replay(lambda one: seen.append(one.id)) == 2
    assert seen == [0, 1, 2, 3, 4]
    assert len(store) == 0
    store.close()
    assert disk.open_descriptors == 0


def test_letters_that_were_forgotten_are_said_though_the_next_has_no_room() -> None:
    lost: list[int] = []
    budget, of_others = DiskBudget(1 << 20), [0]
    budget.join(lambda: of_others[0])
    store = DeadLetterStore(
        LANE,
        BUFFER_ID,
        SMALL,
        disk_with_lane(),
        most_letters=1,
        budget=budget,
        overflowed=lost.append,
    )
    store.add([letter(1)])
    of_others[0] = budget.limit
    with pytest.raises(DiskFull):
        store.add([letter(2)])
    assert store.lost == 1
    assert lost == [1]
