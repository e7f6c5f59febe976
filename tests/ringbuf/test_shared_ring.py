"""A MessageRing in a file: making and attaching, several processes, and what is left by
those that are killed.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ringbuf import MessageRing, Messages, SharedFileError
from ringbuf._shared.shared_file import FORMAT
from tests.support.processes import in_child
from tests.torture.kill_ring import torture
from tests.torture.step_kill import is_allowed, run_and_kill, steps_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]

#: Longer than the pause between two checks for dead participants.
_A_LOOK = 0.002


def drain(ring: MessageRing) -> list[bytes]:
    """All that can be had, also from dead participants."""
    got: list[bytes] = []
    for _ in range(3):
        while messages := ring.pop_many(3).tolist():
            got += messages
        time.sleep(_A_LOOK)
    ring._check()
    assert ring.used_bytes == 0
    return got


# ---------------------------------------------------------------- the file


def test_two_rings_of_one_file_are_one_ring(tmp_path: Path) -> None:
    ring = MessageRing(1 << 16, path=tmp_path / "ring")
    other = MessageRing.attach(tmp_path / "ring")
    again = MessageRing(1 << 16, path=str(tmp_path / "ring"))
    assert ring.push_many([b"one", "two"]) == 2
    assert (len(other), other.next_seq, other.capacity_bytes) == (2, 2, 1 << 16)
    assert other.pop_many(1).tolist() == [b"one"]
    assert again.pop_many().tolist() == [b"two"]
    assert ring.path == str(tmp_path / "ring")
    assert MessageRing(4096).path is None


def test_the_file_is_allocated_in_full_and_its_owner_s_alone(tmp_path: Path) -> None:
    MessageRing(1 << 20, path=tmp_path / "ring")
    status = os.stat(tmp_path / "ring")
    assert status.st_blocks * 512 >= status.st_size > 1 << 20
    assert status.st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["ring"]


def test_what_was_pushed_outlives_the_ring(tmp_path: Path) -> None:
    ring = MessageRing(1 << 16, path=tmp_path / "ring")
    ring.push_many([b"a", b"b", b"c"])
    held = ring.take(1)
    del ring
    again = MessageRing.attach(tmp_path / "ring")
    assert held.tolist() == [b"a"]
    assert drain(again) == [b"a", b"b", b"c"]
    assert again.next_seq == 3


def test_a_closed_ring_leaves_what_it_held_to_others(tmp_path: Path) -> None:
    ring = MessageRing(1 << 16, path=tmp_path / "ring")
    ring.push_many([b"a", b"b", b"c"])
    first, second = ring.take(1), ring.take(1)
    ring.release(first)
    ring.close()
    again = MessageRing.attach(tmp_path / "ring")
    assert again.take_orphaned().tolist() == [b"b"] == second.tolist()


def test_a_child_that_outlives_its_parent_does_not_keep_its_slot(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring = MessageRing(1 << 16, path=path)
    ring.push_many([b"a", b"b"])
    reader, writer = os.pipe()

    def parent() -> None:
        mine = MessageRing.attach(path)
        assert mine.take(1).tolist() == [b"a"]
        child = os.fork()
        if child == 0:
            time.sleep(60)  # killed long before
            os._exit(0)
        os.write(writer, b"%d\n" % child)

    in_child(parent)
    child = int(os.read(reader, 100))
    try:
        time.sleep(_A_LOOK)
        assert ring.take_orphaned().tolist() == [b"a"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reader)
        os.close(writer)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_a_foreign_or_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    MessageRing(1 << 12, path=tmp_path / "ring")
    whole = (tmp_path / "ring").read_bytes()
    flipped = bytearray(whole)
    flipped[60] ^= 1
    later = bytearray(whole)
    later[8:12] = struct.pack("<I", FORMAT + 1)
    cases = {
        "is not a file of ringbuf": [b"", b"hello", bytes(100_000), b"X" + whole[1:]],
        f"format {FORMAT + 1}": [bytes(later)],
        "checksum of its header": [bytes(flipped)],
        "bytes and was made with": [whole[:-4096], whole + bytes(4096)],
    }
    for message, contents in cases.items():
        for number, content in enumerate(contents):
            path = write(tmp_path / f"{len(content)}-{number}", content)
            for use in (MessageRing.attach, lambda path: MessageRing(1 << 12, path=path)):
                with pytest.raises(SharedFileError, match=message):
                    use(path)
            assert path.read_bytes() == content


def test_a_file_that_speaks_nonsense_under_a_right_checksum_is_refused(tmp_path: Path) -> None:
    MessageRing(1 << 12, path=tmp_path / "ring")
    whole = (tmp_path / "ring").read_bytes()
    for meta in (
        b'{"granules": 63}',
        b'{"granules": 64e9}',
        b'{"granules": 1024}',
        b"{}",
        b"[]",
        b"not json",
    ):
        head = bytearray(whole[:60])
        struct.pack_into("<I", head, 56, len(meta))
        head += meta
        path = write(
            tmp_path / "bad",
            bytes(head + struct.pack("<I", zlib.crc32(head))).ljust(4096, b"\0") + whole[4096:],
        )
        with pytest.raises(SharedFileError, match="damaged"):
            MessageRing.attach(path)


def test_another_capacity_is_refused(tmp_path: Path) -> None:
    MessageRing(1 << 16, path=tmp_path / "ring")
    with pytest.raises(SharedFileError, match="65,536 bytes, not 131,072"):
        MessageRing(1 << 17, path=tmp_path / "ring")
    with pytest.raises(FileNotFoundError):
        MessageRing.attach(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        MessageRing(1 << 16, path=tmp_path / "no" / "directory")
    with pytest.raises(IsADirectoryError):
        MessageRing.attach(tmp_path)


def test_no_room_on_the_disk_is_an_error_at_the_start() -> None:
    path = Path(f"/dev/shm/forebay-test-{os.getpid()}-too-large")
    with pytest.raises(OSError, match="cannot allocate"):
        MessageRing(1 << 36, path=path)
    assert not path.exists()


def test_participant_slots_run_out_with_a_clear_error_and_come_back(tmp_path: Path) -> None:
    rings = [MessageRing(1 << 12, path=tmp_path / "ring") for _ in range(33)]
    for ring in rings[:32]:
        assert not ring.pop_many()
    with pytest.raises(RuntimeError, match="all 32 participant slots are taken"):
        rings[32].pop_many()
    del ring, rings[0]
    rings[0].try_push(b"x")
    assert rings[-1].pop_many().tolist() == [b"x"]


def test_more_takes_at_once_than_a_participant_has_op_slots(tmp_path: Path) -> None:
    ring = MessageRing(1 << 16, path=tmp_path / "ring")
    ring.push_many([b"%d" % i for i in range(200)])
    held = [ring.take(1) for _ in range(200)]
    assert [m[0] for m in held] == [b"%d" % i for i in range(200)]
    for messages in held[::2] + held[1::2]:
        ring.release(messages)
    ring._check()
    assert ring.used_bytes == 0


def test_what_a_forked_child_inherits_is_its_parent_s(tmp_path: Path) -> None:
    ring = MessageRing(1 << 16, path=tmp_path / "ring")
    ring.push_many([b"a", b"b"])
    held = ring.take(1)
    out = tmp_path / "out"

    def work() -> None:
        try:
            ring.release(held)
        except RuntimeError as error:
            out.write_text(str(error))
        ring.try_push(b"from the child")
        ring.take(1)

    in_child(work)
    assert "before a fork" in out.read_text()
    ring.release(held)
    assert drain(ring) == [b"from the child", b"b"] or drain(ring) == []


def test_a_new_file_is_ready_where_it_is_used_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[int, bytes]] = []
    pwrite = os.pwrite

    def noted(fd: int, data: bytes, at: int) -> int:
        writes.append((at, bytes(data)))
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", noted)
    ring = MessageRing(64 << 20, path=tmp_path / "ring")
    monkeypatch.undo()
    assert ring.push_many([b"first"]) == 1
    image = (tmp_path / "ring").read_bytes()
    data = image.index(b"first") // 4096 * 4096
    assert data == len(image) - ring.capacity_bytes
    written: set[int] = set()
    for at, what in writes:
        written.update(range(at // 4096, (at + len(what)) // 4096))
    # An eighth for a spike, and the index of that, which is an eighth; in huge pages
    # what a ring lives in that is kept empty.
    index = data - ring.capacity_bytes // 8
    assert set(range(data // 4096, (data + (8 << 20)) // 4096)) <= written
    assert set(range(index // 4096, (index + (1 << 20)) // 4096)) <= written
    assert len(written) < (14 << 20) // 4096
    huge = {at for at, what in writes if len(what) == 2 << 20 and at % (2 << 20) == 0}
    assert {at // (2 << 20) for at in huge} >= {data // (2 << 20), (data + (5 << 18)) // (2 << 20)}
    # Header and positions are there still.
    assert MessageRing.attach(tmp_path / "ring").next_seq == 1
    ring._check()


@pytest.mark.parametrize("capacity", [1, 1 << 12, 1 << 16, 1 << 20, 3 << 20])
def test_a_small_file_is_made_as_well(tmp_path: Path, capacity: int) -> None:
    ring = MessageRing(capacity, path=tmp_path / "ring")
    assert drain(ring) == []
    assert ring.push_many([b"x" * 100] * 10) == 10
    assert drain(MessageRing.attach(tmp_path / "ring")) == [b"x" * 100] * 10


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (5, 14), reason="needs MADV_POPULATE_WRITE"
)
@pytest.mark.uninstrumented
def test_a_ring_that_fills_is_made_ready_ahead(tmp_path: Path) -> None:
    ring = MessageRing(32 << 20, path=tmp_path / "ring")
    message = [b"y" * 1000] * 1000
    before = faults()
    for _ in range(12):
        ring.push_many(message)
    ring.warm_ahead(0)  # is nothing
    without = faults() - before
    ring.warm_ahead(8 << 20)
    before = faults()
    for _ in range(7):
        ring.push_many(message)
    # A page that is ready costs no fault: of some 1,700 none, but for what neighbours
    # of this process may do.
    assert faults() - before < 100 < without
    # Round the end of the memory, and never into what is still there.
    assert ring.pop_many(12_000).tolist() == message * 12
    for _ in range(12):
        ring.push_many(message)
        ring.warm_ahead(64 << 20)
    assert ring.pop_many().tolist() == message * 19
    ring._check()


@pytest.mark.uninstrumented
def test_an_empty_ring_and_one_in_memory_are_not_made_ready(tmp_path: Path) -> None:
    MessageRing(1 << 22).warm_ahead(1 << 20)
    ring = MessageRing(32 << 20, path=tmp_path / "ring")
    ring.push_many([b"y" * 1000] * 500)
    before = faults()
    ring.warm_ahead(16 << 20)
    assert faults() - before < 10


# ---------------------------------------------------------------- killed processes


@pytest.fixture(scope="module")
def steps_are_allowed() -> None:
    if not is_allowed():
        pytest.skip("ptrace is not allowed here")


def outcome(
    path: Path, setup: Callable[[], Callable[[], object]], steps: int
) -> tuple[bool, list[bytes]]:
    """What the others get from the ring after a process was killed in its operation, at
    this instruction.
    """
    path.unlink(missing_ok=True)
    ring = MessageRing(1 << 14, path=path)
    ring.push_many([b"a0", b"a1", b"a2", b"a3", b"a4"])
    within = run_and_kill(setup, steps)
    ring.push_many([b"z0", b"z1"])
    time.sleep(_A_LOOK)
    return within, drain(ring)


def explore(
    path: Path,
    setup: Callable[[], Callable[[], object]],
    stride: int,
    fine: bool = True,
    *,
    in_full: bool,
) -> list[list[bytes]]:
    """The outcomes in the order in which they come up as the kill comes later.

    fine: try each instruction around each change. Not in full: a few of them, from
        another instruction on.
    """
    points: list[tuple[int, list[bytes]]] = []
    steps, within = 0 if in_full else stride // 2, True
    while within:
        within, got = outcome(path, setup, steps)
        points.append((steps, got))
        steps += stride if in_full else 5 * stride
    changes = (
        []
        if not (fine and in_full)
        else [at for (at, got), (_, after) in itertools.pairwise(points) if got != after]
    )
    for start in changes:
        low, high = start, start + stride
        first = outcome(path, setup, low)[1]
        while high - low > 1:  # where it changes
            middle = (low + high) // 2
            if outcome(path, setup, middle)[1] == first:
                low = middle
            else:
                high = middle
        points += [(at, outcome(path, setup, at)[1]) for at in range(max(0, low - 8), low + 8)]
    seen: list[list[bytes]] = []
    for _, got in sorted(points):
        if got not in seen:
            seen.append(got)
    return seen


def attached(
    path: Path, operation: Callable[[MessageRing], Callable[[], object]]
) -> Callable[[], Callable[[], object]]:
    def setup() -> Callable[[], object]:
        # What Python and numpy do at a first call alone would make the steps many.
        warm = MessageRing(4096)
        warm.push_many([b"x"] * 4)
        warm.push_many([b"x"] * 4)
        warm.try_push(b"x")
        for count in (2, 1, 3, 2, None):
            warm.release(warm.take(count))
            warm.pop_many(count)
        ring = MessageRing.attach(path)
        ring._take_participant_slot()
        return operation(ring)

    return setup


def judge(seen: list[list[bytes]], expected: list[list[bytes]], in_full: bool) -> None:
    """A share of the instructions shows the first outcome and the last, and any of
    those between.
    """
    assert seen[0] == expected[0]
    assert seen[-1] == expected[-1]
    assert seen == (expected if in_full else [got for got in expected if got in seen])


def judge_taken(seen: list[list[bytes]], expected: list[list[bytes]], in_full: bool) -> None:
    """The outcomes of a killed consumer, in any order, none of them twice."""
    assert all(len(set(got)) == len(got) for got in seen)
    kinds = as_sets(expected)
    if in_full:
        assert as_sets(seen) == kinds
    else:
        assert as_sets([expected[0], expected[-1]]) <= as_sets(seen) <= kinds


def as_sets(outcomes: list[list[bytes]]) -> set[frozenset[bytes]]:
    return {frozenset(got) for got in outcomes}


A = [b"a0", b"a1", b"a2", b"a3", b"a4"]
Z = [b"z0", b"z1"]


def test_a_producer_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    path = tmp_path / "ring"
    seen = explore(
        path, attached(path, lambda ring: lambda: ring.try_push(b"new")), 149, in_full=in_full
    )
    judge(seen, [A + Z, [*A, b"new", *Z]], in_full)


def test_a_producer_of_two_frames_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    path = tmp_path / "ring"
    many = [b"%d" % i for i in range(5)]
    seen = explore(
        path,
        attached(path, lambda ring: lambda: (ring.try_push(b"new"), ring.push_many(many))),
        499,
        in_full=in_full,
    )
    judge(seen, [A + Z, [*A, b"new", *Z], [*A, b"new", *many, *Z]], in_full)


def test_a_consumer_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    path = tmp_path / "ring"
    seen = explore(
        path, attached(path, lambda ring: lambda: ring.pop_many(3)), 997, in_full=in_full
    )
    # It had taken nothing, it had taken and not released, or it had released: nothing
    # between.
    judge_taken(seen, [A + Z, A[3:] + Z], in_full)


def test_a_consumer_of_one_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    path = tmp_path / "ring"
    seen = explore(path, attached(path, lambda ring: ring.try_pop), 499, in_full=in_full)
    judge_taken(seen, [A + Z, A[1:] + Z], in_full)


def test_what_a_dead_process_had_taken_is_popped_first(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring = MessageRing(1 << 14, path=path)
    ring.push_many(A)
    in_child(lambda: len(MessageRing.attach(path).take(3)))
    time.sleep(_A_LOOK)
    assert ring.take_orphaned(1).tolist() == A[:1]
    assert [ring.try_pop() for _ in range(5)] == [*A[1:], None]
    ring._check()


def release_all(ring: MessageRing, *held: Messages) -> None:
    for messages in held:
        ring.release(messages)


def pushing(messages: list[bytes], ring: MessageRing) -> Callable[[], object]:
    return partial(ring.push_many, messages)


def test_a_release_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    path = tmp_path / "ring"

    def operation(ring: MessageRing) -> Callable[[], object]:
        first, second = ring.take(2), ring.take(1)
        return partial(release_all, ring, second, first)

    seen = explore(path, attached(path, operation), 293, in_full=in_full)
    rest = A[3:] + Z
    judge_taken(seen, [A + Z, [*A[:2], *rest], rest], in_full)


def test_the_release_of_a_part_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    path = tmp_path / "ring"

    def operation(ring: MessageRing) -> Callable[[], object]:
        first, rest = ring.split(ring.take(4), 1)
        middle, last = ring.split(rest, 2)
        return partial(release_all, ring, middle, first, last)

    seen = explore(path, attached(path, operation), 293, in_full=in_full)
    rest = A[4:] + Z
    judge_taken(seen, [A + Z, [*A[:1], *A[3:], *Z], [*A[3:], *Z], rest], in_full)


@pytest.mark.parametrize("seed", range(20))
def test_parts_that_the_dead_had_released_never_come_again(tmp_path: Path, seed: int) -> None:
    """Of takes over frames of any size, split anyhow, released in any order: what is
    left comes once, in order.
    """
    path = tmp_path / "ring"
    ring = MessageRing(1 << 16, path=path, first_seq=(1 << 32) - 20)
    rng = random.Random(seed)
    pushed = [b"%d" % i * rng.choice((1, 30)) for i in range(80)]
    at = 0
    while at < len(pushed):
        at += ring.push_many(pushed[at : at + rng.choice((1, 1, 2, 5, 20))])
    released: list[bytes] = []
    for _ in range(rng.choice((1, 2, 4))):  # each of them takes what the one before left
        reader, writer = os.pipe()

        def work(writer: int = writer, rng: random.Random = rng) -> None:
            mine = MessageRing.attach(path)
            parts = [mine.take(rng.choice((1, 3, 10, 40))) for _ in range(rng.choice((1, 3)))]
            for _ in range(rng.choice((0, 2, 10))):
                part = parts.pop(rng.randrange(len(parts)))
                parts += mine.split(part, rng.randrange(1, len(part))) if len(part) > 1 else [part]
            rng.shuffle(parts)
            for part in parts[: rng.randrange(len(parts) + 1)]:
                mine.release(part)
                os.write(writer, b"".join(message + b"\n" for message in part))

        in_child(work)
        os.close(writer)
        with open(reader, "rb") as file:
            released += file.read().split()
        rng = random.Random(rng.getrandbits(32))
        time.sleep(_A_LOOK)
    got: list[bytes] = []
    while len(messages := ring.take_orphaned(rng.choice((1, 4, None)))):
        got += messages
        ring.release(messages)
    assert got == sorted(got, key=pushed.index)
    got += drain(ring)
    assert sorted(got + released) == sorted(pushed)


def test_the_one_who_takes_after_the_dead_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    path = tmp_path / "ring"

    def operation(ring: MessageRing) -> Callable[[], object]:
        in_child(lambda: MessageRing.attach(path).take(4))
        time.sleep(_A_LOOK)
        return lambda: (ring.pop_many(2), ring.pop_many(2), ring.pop_many(2))

    seen = explore(
        path, attached(path, operation), 6007 if in_full else 9001, fine=False, in_full=in_full
    )  # through the tidying up as well: 90,000 steps
    for got in seen:
        assert len(set(got)) == len(got)
        assert set(got) >= set(Z)
        missing = len(A + Z) - len(got)
        assert missing in (0, 1, 2, 3, 4, 5), got
        assert [m for m in A if m in got] == sorted(m for m in got if m in A)


def test_two_producers_killed_in_one_hole(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    """One of them has claimed there, and the other was only about to: which one's frame
    is it, and where does it end?
    """
    path = tmp_path / "ring"

    def claimed(messages: list[bytes]) -> int:
        """After how many instructions it has claimed and not published."""
        setup = attached(path, lambda ring: lambda: ring.push_many(messages))
        low, high = 0, 20_000
        while high - low > 1:  # where it begins to be published
            middle = (low + high) // 2
            within, got = outcome(path, setup, middle)
            if within and got == A + Z:
                low = middle
            else:
                high = middle
        return low

    short, long = [b"s"], [b"l" * 100 for _ in range(4)]
    before_publishing = claimed(short)
    for first, second in ((short, long), (long, short)):
        for back in range(0, 120, 7 if in_full else 40):
            path.unlink(missing_ok=True)
            ring = MessageRing(1 << 14, path=path)
            ring.push_many(A)
            run_and_kill(
                attached(path, partial(pushing, first)),
                max(0, before_publishing - back),
            )
            # The second one's steps differ a little from the first one's; some of them
            # end between claim and publish.
            run_and_kill(
                attached(path, partial(pushing, second)),
                before_publishing - back // 2,
            )
            ring.push_many(Z)
            time.sleep(_A_LOOK)
            got = drain(ring)
            assert [m for m in got if m in A or m in Z] == A + Z
            assert all(m in A or m in Z or m in first or m in second for m in got)


def test_a_claim_of_all_the_room_that_died_is_passed(
    tmp_path: Path, steps_are_allowed: None
) -> None:
    """No message can follow the pad that it becomes, so no take passes it."""
    path = tmp_path / "ring"
    ring = MessageRing(4096, path=path)

    def setup() -> Callable[[], object]:
        for _ in range(2):
            MessageRing(4096).try_push(b"x" * 4072)
        push = MessageRing.attach(path).try_push
        return lambda: push(b"x" * 4072)

    steps_until(setup, lambda: ring.used_bytes > 0)  # and killed there, before it publishes
    assert ring.used_bytes == ring.capacity_bytes
    assert ring.push(b"after", timeout=1.0)
    assert drain(ring) == [b"after"]


def test_kills_at_random_lose_nothing(in_full: bool) -> None:
    oracle = torture(50 if in_full else 8, seed=20261123)
    assert sum(oracle.expected.values()) > (1000 if in_full else 100)


# ------------------------------------------------------------ several processes at work


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_processes_push_and_pop_at_once(tmp_path: Path, producers: int, consumers: int) -> None:
    """Exact count, no duplicates, each producer's order as each consumer sees it."""
    path, each = tmp_path / "ring", 20_000
    ring = MessageRing(1 << 16, path=path)
    program = (
        "import sys, time\n"
        "from ringbuf import MessageRing\n"
        "role, path, number, each = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])\n"
        "ring = MessageRing.attach(path)\n"
        "if role == 'produce':\n"
        "    done = 0\n"
        "    while done < each:\n"
        "        some = range(done, min(done + 50, each))\n"
        "        pushed = ring.push_many([b'%d %d' % (number, i) for i in some])\n"
        "        done += pushed\n"
        "        if not pushed: time.sleep(0.0005)\n"
        "else:\n"
        "    while True:\n"
        "        got = ring.pop_many(70).tolist()\n"
        "        if got == []: time.sleep(0.0005)\n"
        "        elif got[-1] == b'end': print(*(m.decode() for m in got[:-1]), sep='\\n'); break\n"
        "        else: print('\\n'.join(m.decode() for m in got))\n"
    )

    def start(role: str, number: int) -> subprocess.Popen[bytes]:
        with open(tmp_path / f"{role}-{number}", "wb") as out:
            return subprocess.Popen(
                [sys.executable, "-c", program, role, str(path), str(number), str(each)], stdout=out
            )

    consuming = [start("consume", i) for i in range(consumers)]
    producing = [start("produce", i) for i in range(producers)]
    for process in producing:
        assert process.wait(120) == 0
    while len(ring):
        time.sleep(0.001)
    waiting = list(consuming)
    while waiting:  # one at a time, so that none takes another's end
        assert ring.try_push(b"end")
        while len(waiting) == len(
            still := [process for process in waiting if process.poll() is None]
        ):
            time.sleep(0.001)
        waiting = still
    assert all(process.returncode == 0 for process in consuming)
    ring._check()
    total: set[tuple[int, int]] = set()
    for i in range(consumers):
        last = dict.fromkeys(range(producers), -1)
        for line in (tmp_path / f"consume-{i}").read_text().split("\n"):
            if not line:
                continue
            producer, number = map(int, line.split())
            assert number > last[producer], "a producer's order is kept"
            last[producer] = number
            assert (producer, number) not in total
            total.add((producer, number))
    assert len(total) == producers * each


@pytest.mark.single_thread
def test_a_collection_while_no_slot_is_found_does_not_wait_for_itself(tmp_path: Path) -> None:
    """On CPython 3.11 any object that is made can begin one: also the error, and what
    the error says.
    """
    path = tmp_path / "ring"
    others = [MessageRing(1 << 16, path=path) for _ in range(32)]
    for ring in others:
        ring.push(b"here")
    late = MessageRing.attach(path)
    met: list[type] = []
    busy: list[bool] = []

    def push_too(phase: str, _: object) -> None:
        if not busy:
            busy.append(True)
            try:
                late.push(b"one")
            except Exception as error:
                met.append(type(error))
            busy.clear()

    threshold = gc.get_threshold()
    gc.callbacks.append(push_too)
    gc.set_threshold(1)
    try:
        with pytest.raises(RuntimeError, match="participant slots are taken"):
            late.push(b"one")
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(push_too)
    assert set(met) == {RuntimeError}
    others[0].close()
    assert late.push(b"one")
