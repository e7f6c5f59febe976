"""Only the ring that took messages releases or splits them, and releases them once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ringbuf import MessageRing, Messages


@pytest.mark.parametrize("size", [1 << 12, 1 << 16])
@pytest.mark.parametrize(
    "use", [lambda ring, m: ring.release(m), lambda ring, m: ring.split(m, 50)]
)
def test_another_ring_refuses_it(use: Callable[[MessageRing, Messages], object], size: int) -> None:
    ours, other = MessageRing(1 << 16), MessageRing(size)
    ours.push_many([b"x" * 50] * 100)
    other.push_many([b"y" * 20] * 50)
    held = ours.take()
    for stranger in (other, other.consumer()):
        with pytest.raises(ValueError, match="taken from another ring"):
            use(stranger, held)  # type: ignore[arg-type]
    assert other.pop_many().tolist() == [b"y" * 20] * 50
    ours.consumer().release(held)  # a handle of the same ring may
    for ring in (ours, other):
        ring._check()
        assert ring.used_bytes == 0


def test_what_a_ring_that_is_gone_had_taken() -> None:
    ring = MessageRing(4096)
    ring.push_many([b"one", b"two"])
    held = ring.take()
    del ring
    again = MessageRing(4096)
    again.push_many([b"1", b"2"])
    with pytest.raises(ValueError, match="taken from another ring"):
        again.release(held)
    assert held.tolist() == [b"one", b"two"]
    assert len(again) == 2


@pytest.mark.threads
@pytest.mark.parametrize("way", ["release", "split"])
def test_of_threads_that_release_the_same_one_does(way: str) -> None:
    ring = MessageRing(1 << 16)
    for _ in range(200):
        ring.push_many([b"a", b"b"])
        held = ring.take()
        ring.push_many([b"c"])
        start = threading.Barrier(3)
        parts: list[Messages] = []
        errors: list[ValueError] = []

        def use(held: Messages = held, start: threading.Barrier = start) -> None:
            start.wait()
            if way == "release":
                ring.release(held)
                return
            try:
                parts.extend(ring.split(held, 1))  # noqa: B023
            except ValueError as error:
                errors.append(error)  # noqa: B023

        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait()
        for thread in threads:
            thread.join()
        if way == "split":
            assert (len(parts), len(errors)) == (2, 1)
            for part in parts:
                ring.release(part)
        assert len(ring) == 1  # what was not taken is not freed
        assert ring.pop_many().tolist() == [b"c"]
        ring._check()
        assert ring.used_bytes == 0
