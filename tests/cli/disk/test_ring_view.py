"""What is read of a ring's file without opening it."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import pytest

from backpressure.cli.disk.ring_view import look_at_ring, next_seq_in, ring_events
from ringbuf import MessageRing
from tests.support.disk import RING_BYTES, fingerprint

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a directory needs Linux"),
    pytest.mark.platform,
]


@pytest.mark.parametrize("capacity", [4096, 8192, 1 << 14, 1 << 20])
@pytest.mark.parametrize("first_seq", [0, (1 << 32) - 5, (1 << 61) + 7])
def test_a_look_at_a_ring_says_what_the_ring_says(
    tmp_path: Path, capacity: int, first_seq: int
) -> None:
    path = str(tmp_path / "ring")
    ring = MessageRing(capacity, path=path, first_seq=first_seq)
    rng = random.Random(capacity)
    for _ in range(300):
        if rng.random() < 0.6:
            ring.push_many([rng.randbytes(rng.randrange(300)) for _ in range(rng.randrange(1, 9))])
        else:
            ring.pop_many(rng.randrange(1, 20))
        look = look_at_ring(path)
        assert look is not None
        assert (look.damage, look.from_before_reboot) == (None, False)
        assert (look.capacity_bytes, look.used_bytes, look.next_seq) == (
            ring.capacity_bytes,
            ring.used_bytes,
            ring.next_seq,
        )
        assert next_seq_in(look) == ring.next_seq
    before = fingerprint(tmp_path)
    ring.close()
    assert look is not None
    events = list(ring_events(look))
    assert fingerprint(tmp_path) == before
    again = MessageRing.attach(path)
    assert [event for part in events for event in part] == again.pop_many().tolist()
    assert all(a.first_seq + len(a) <= b.first_seq for a, b in itertools.pairwise(events))
    assert look_at_ring(str(tmp_path / "none")) is None


def test_what_was_taken_and_not_released_comes_first_out_of_a_ring(tmp_path: Path) -> None:
    path = str(tmp_path / "ring")
    ring = MessageRing(RING_BYTES, path=path)
    ring.push_many([b"%d" % i for i in range(10)])
    taken = [ring.take(2), ring.take(3)]
    ring.close()
    look = look_at_ring(path)
    assert look is not None
    for _ in range(2):  # it can be looked at again and again
        assert [event for part in ring_events(look) for event in part] == [
            b"%d" % i for i in range(10)
        ]
    assert len(taken) == 2
