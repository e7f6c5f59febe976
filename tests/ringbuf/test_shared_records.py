"""A RingBuffer in a file: making and attaching, several processes, and what is left by
those that are killed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringbuf import MessageRing, RingBuffer, SharedFileError
from ringbuf._shared.shared_file import FORMAT
from tests.support.processes import in_child
from tests.torture.kill_records import torture
from tests.torture.step_kill import is_allowed, run_and_kill, steps_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
    pytest.mark.single_thread,
]

#: Longer than the pause between two checks for dead participants.
A_LOOK = 0.002
CAPACITY = 16


def drain(ring: RingBuffer) -> list[int]:
    """All that can be had, also from dead participants; asserts that then nothing is
    left, and no room is lost.
    """
    got: list[int] = []
    for _ in range(3):
        while numbers := ring.pop_many(3).tolist():
            got += numbers
        time.sleep(A_LOOK)
    assert ring._check() == (0, 0)
    assert len(ring) == 0
    assert ring.push_many(range(ring.capacity)) == ring.capacity, "room was lost"
    return got


# ---------------------------------------------------------------- the file


def test_two_rings_of_one_file_are_one_ring(tmp_path: Path) -> None:
    ring = RingBuffer(100, "i8", path=tmp_path / "ring")
    other = RingBuffer.attach(tmp_path / "ring")
    again = RingBuffer(128, np.int64, path=str(tmp_path / "ring"))
    assert ring.push_many(range(5)) == 5
    assert ring.try_push(5)
    assert (len(other), other.capacity, other.dtype) == (6, 128, np.dtype(np.int64))
    assert other.pop_many(1).tolist() == [0]
    assert again.try_pop() == 1
    with again.peek(2) as span:
        assert list(span) == [2, 3]
        assert ring.try_pop() == 4
    assert (ring.path, RingBuffer(4, "i8").path) == (str(tmp_path / "ring"), None)


@pytest.mark.parametrize(
    "dtype",
    [
        "i1", ">u4", "f8", "c16", "?", "S7", "U3", "V9", "M8[us]",
        np.dtype([("a", "i4"), ("b", "f8", (2, 3)), ("c", [("d", "S2"), ("e", ">i2")])]),
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
        np.dtype([(("title", "a"), "i4")]),
    ],
)  # fmt: skip
def test_the_file_knows_its_dtype(tmp_path: Path, dtype: Any) -> None:
    ring = RingBuffer(4, dtype, path=tmp_path / "ring")
    records = (
        np.frombuffer(bytes(range(1, 1 + ring.dtype.itemsize)), np.uint8)
        .view(f"V{ring.dtype.itemsize}")
        .view(ring.dtype)
    )
    if ring.dtype.kind in "U?":
        records = np.ones(1).astype(ring.dtype)
    ring.push_many(records)
    other = RingBuffer.attach(tmp_path / "ring")
    assert other.dtype == ring.dtype == np.dtype(dtype)
    assert other.pop_many().tobytes() == records.tobytes()


ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)


@pytest.mark.parametrize(
    "dtype",
    [
        ALIGNED,
        np.dtype((np.record, ALIGNED)),
        np.dtype([("inner", np.dtype((np.record, ALIGNED)), (2, 3)), ("y", ">u2")]),
        np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [4, 0]}),
        np.dtype({"names": ["a", "b"], "formats": ["i4", "i2"], "offsets": [0, 2]}),
        np.dtype({"names": ["a"], "formats": ["i4"], "offsets": [3], "itemsize": 40}),
        np.dtype({"names": [], "formats": [], "itemsize": 8}),
        np.dtype([(("a title", "a"), "i4"), ("b", "S3")]),
        np.dtype([('"\n\\é', "i4")]),
        np.dtype(">M8[25us]"),
        np.dtype("V5"),
        np.dtype("<U3"),
    ],
)
def test_the_file_knows_all_of_its_dtype(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    ring = RingBuffer(4, dtype, path=tmp_path / "ring")
    records = np.frombuffer(bytes(range(dtype.itemsize)), np.uint8).repeat(2)[: dtype.itemsize]
    records = np.concatenate([records, records]).view(dtype)
    if dtype.kind != "U":  # not every byte is a character
        assert ring.push_many(records) == 2
    found = RingBuffer.attach(tmp_path / "ring")
    assert repr(found.dtype) == repr(dtype)
    assert found.dtype == dtype
    assert found.dtype.type is dtype.type
    assert found.dtype.isalignedstruct is dtype.isalignedstruct
    assert RingBuffer(4, dtype, path=tmp_path / "ring").dtype == dtype
    if dtype.kind != "U":
        got = found.pop_many()
        assert got.tobytes() == records.tobytes()
        assert type(got[0]) is type(records[0])


def test_a_dtype_that_a_file_can_not_say_is_refused_before_there_is_one(tmp_path: Path) -> None:
    for title in ((1, 2), b"title"):
        dtype = np.dtype({"names": ["a"], "formats": ["i4"], "titles": [title]})
        with pytest.raises(TypeError, match="kept in a file"):
            RingBuffer(4, dtype, path=tmp_path / "ring")
        assert RingBuffer(4, dtype).try_push((1,))
    assert list(tmp_path.iterdir()) == []


def test_more_than_one_run_s_worth_goes_in_and_out(tmp_path: Path) -> None:
    ring = RingBuffer(1 << 15, "i8", path=tmp_path / "ring")
    numbers = np.arange(40_000)
    assert ring.push_many(numbers) == 1 << 15
    other = RingBuffer.attach(tmp_path / "ring")
    with other.peek(10_000) as span:
        assert np.array_equal(span, numbers[:10_000])
    assert ring.push_many(numbers) == 10_000
    got = other.pop_many()
    assert np.array_equal(got, np.concatenate([numbers[10_000 : 1 << 15], numbers[:10_000]]))
    assert ring._check() == (0, 0)


def test_what_was_pushed_outlives_the_ring(tmp_path: Path) -> None:
    ring = RingBuffer(8, "i8", path=tmp_path / "ring")
    ring.push_many([1, 2, 3])
    producer, block = ring.producer(), ring.peek(1)
    block.__enter__()
    del ring
    assert producer.try_push(4)
    del producer, block
    again = RingBuffer.attach(tmp_path / "ring")
    assert again.pop_many().tolist() == [1, 2, 3, 4]
    assert again._check() == (0, 0)


def test_a_foreign_or_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    RingBuffer(8, "i8", path=tmp_path / "ring")
    MessageRing(4096, path=tmp_path / "messages")
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
        "holds a MessageRing, not a RingBuffer": [(tmp_path / "messages").read_bytes()],
    }
    for message, contents in cases.items():
        for number, content in enumerate(contents):
            path = tmp_path / f"{len(content)}-{number}"
            path.write_bytes(content)
            for use in (RingBuffer.attach, lambda path: RingBuffer(8, "i8", path=path)):
                with pytest.raises(SharedFileError, match=message):
                    use(path)
            assert path.read_bytes() == content


@pytest.mark.parametrize(
    "meta",
    [
        b'{"records": 7, "dtype": "\'<i8\'"}',
        b'{"records": 8e9, "dtype": "\'<i8\'"}',
        b'{"records": 65536, "dtype": "\'<i8\'"}',
        b'{"records": 2147483648, "dtype": "\'V2147483647\'"}',
        b'{"records": 8, "dtype": "\'O\'"}',
        b'{"records": 8, "dtype": "\'V0\'"}',
        b'{"records": 8, "dtype": "__import__(\'os\')"}',
        b'{"records": 8}',
        b"{}",
        b"[]",
    ],
)
def test_a_file_that_speaks_nonsense_under_a_right_checksum_is_refused(
    tmp_path: Path, meta: bytes
) -> None:
    RingBuffer(8, "i8", path=tmp_path / "ring")
    whole = (tmp_path / "ring").read_bytes()
    head = bytearray(whole[:60])
    struct.pack_into("<I", head, 56, len(meta))
    head += meta
    (tmp_path / "bad").write_bytes(
        bytes(head + struct.pack("<I", zlib.crc32(head))).ljust(4096, b"\0") + whole[4096:]
    )
    with pytest.raises(SharedFileError, match="damaged"):
        RingBuffer.attach(tmp_path / "bad")


def test_another_capacity_or_dtype_is_refused(tmp_path: Path) -> None:
    RingBuffer(8, "i8", path=tmp_path / "ring")
    for capacity, dtype in ((16, "i8"), (8, "u8"), (8, ">i8"), (8, [("a", "i8")])):
        with pytest.raises(SharedFileError, match="a ring of 8 records of dtype int64, not of"):
            RingBuffer(capacity, dtype, path=tmp_path / "ring")
    with pytest.raises(FileNotFoundError):
        RingBuffer.attach(tmp_path / "none")


def test_no_room_on_the_disk_is_an_error_at_the_start() -> None:
    path = Path(f"/dev/shm/forebay-test-{os.getpid()}-too-large")
    with pytest.raises(OSError, match="cannot allocate"):
        RingBuffer(1 << 31, "V64", path=path)
    assert not path.exists()


def test_more_blocks_at_once_than_a_participant_has_op_slots(tmp_path: Path) -> None:
    ring = RingBuffer(256, "i8", path=tmp_path / "ring")
    ring.push_many(range(200))
    blocks = [ring.peek(1) for _ in range(200)]
    assert [int(block.__enter__()[0]) for block in blocks] == list(range(200))
    for block in blocks[::2]:
        block.__exit__(None, None, None)
    for block in blocks[1::2]:
        block.__exit__(KeyError, KeyError(), None)
    assert ring.pop_many().tolist() == list(range(1, 200, 2))
    assert drain(ring) == []


def test_blocks_that_a_forked_child_inherits_are_its_parent_s(tmp_path: Path) -> None:
    ring = RingBuffer(8, "i8", path=tmp_path / "ring")
    ring.push_many([1, 2])
    reading, writing = ring.peek(1), ring.reserve(1)
    reading.__enter__()
    writing.__enter__()[0] = 3

    def work() -> None:
        reading.__exit__(None, None, None)
        writing.__exit__(KeyError, KeyError(), None)
        ring.try_push(4)

    in_child(work)
    assert ring._check() == (1, 1)
    writing.__exit__(None, None, None)
    reading.__exit__(KeyError, KeyError(), None)
    assert drain(ring) == [1, 2, 3, 4]


# ---------------------------------------------------------------- killed processes


@pytest.fixture(scope="module")
def steps_are_allowed() -> None:
    if not is_allowed():
        pytest.skip("ptrace is not allowed here")


Operation = Callable[[RingBuffer], Callable[[], object]]
Before = Callable[[RingBuffer], object] | None


def ready(path: Path, operation: Operation) -> Callable[[], Callable[[], object]]:
    """The operation on a ring of its own first: what the linker and Python do at a
    first call would make the steps many.
    """

    def setup() -> Callable[[], object]:
        for number in range(2):
            warm = RingBuffer(CAPACITY, "i8", path=f"{path}-warm-{os.getpid()}-{number}")
            os.unlink(warm.path or "")
            warm.push_many(A)
            operation(warm)()
        ring = RingBuffer.attach(path)
        ring._take_participant_slot()
        return operation(ring)

    return setup


def outcome(
    path: Path, operation: Operation, steps: int, before: Before = None
) -> tuple[bool, Any]:
    """What the others get from the ring after a process was killed in its operation, at
    this instruction.
    """
    path.unlink(missing_ok=True)
    ring = RingBuffer(CAPACITY, "i8", path=path)
    ring.push_many(A[:3])
    ring.push_many(A[3:])
    if before is not None:
        before(ring)
    within = run_and_kill(ready(path, operation), steps)
    ring.push_many(Z)
    time.sleep(A_LOOK)
    return within, drain(ring)


def explore(
    path: Path, operation: Operation, stride: int, before: Before = None, *, in_full: bool
) -> list[list[int]]:
    """The outcomes in the order in which they come up as the kill comes later; around
    each change, of each single instruction.

    Not in full: a few of them, from another instruction on.
    """
    points: list[tuple[int, list[int]]] = []
    steps, within = 0 if in_full else stride // 2, True
    while within:
        within, got = outcome(path, operation, steps, before)
        points.append((steps, got))
        steps += stride if in_full else 5 * stride
    changes = [
        (at, then) for (at, got), (then, after) in itertools.pairwise(points) if got != after
    ]
    for low, high in changes if in_full else []:
        first = outcome(path, operation, low, before)[1]
        while high - low > 1:
            middle = (low + high) // 2
            if outcome(path, operation, middle, before)[1] == first:
                low = middle
            else:
                high = middle
        points += [
            (at, outcome(path, operation, at, before)[1]) for at in range(max(0, low - 6), low + 6)
        ]
    seen: list[list[int]] = []
    for _, got in sorted(points):
        if got not in seen:
            seen.append(got)
    return seen


def judge(seen: list[list[int]], expected: list[list[int]], in_full: bool) -> None:
    """A share of the instructions shows the first outcome and the last, and any of
    those between.
    """
    assert seen[0] == expected[0]
    assert seen[-1] == expected[-1]
    assert seen == (expected if in_full else [got for got in expected if got in seen])


def judge_taken(seen: list[list[int]], expected: list[list[int]], in_full: bool) -> None:
    """The outcomes of a killed consumer: others may have taken newer records before
    they noticed what it had left.
    """
    assert seen[-1] == expected[-1]
    kinds = [list(found) for found, _ in itertools.groupby(sorted(got) for got in seen)]
    judge(kinds, expected, in_full)


A = [0, 1, 2, 3, 4]
Z = [90, 91]


def test_a_producer_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def operation(ring: RingBuffer) -> Callable[[], object]:
        push = ring.producer().try_push
        return lambda: push(50)

    judge(
        explore(tmp_path / "ring", operation, 89, in_full=in_full), [A + Z, [*A, 50, *Z]], in_full
    )


def test_a_producer_of_an_array_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def operation(ring: RingBuffer) -> Callable[[], object]:
        array = np.arange(50, 53)
        return lambda: ring.push_many(array)

    judge(
        explore(tmp_path / "ring", operation, 89, in_full=in_full),
        [A + Z, [*A, 50, 51, 52, *Z]],
        in_full,
    )


def test_a_reservation_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def operation(ring: RingBuffer) -> Callable[[], object]:
        first, second = ring.reserve(1), ring.reserve(1)
        first.__enter__()[0] = 50
        second.__enter__()[0] = 51

        def end() -> None:
            second.__exit__(None, None, None)
            first.__exit__(KeyError, None, None)

        return end

    # The first one's hole is filled by the first participant that notices its death.
    judge(
        explore(tmp_path / "ring", operation, 499, in_full=in_full), [A + Z, [*A, 51, *Z]], in_full
    )


def test_a_consumer_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def operation(ring: RingBuffer) -> Callable[[], object]:
        pop = ring.consumer().try_pop
        return lambda: pop()

    judge_taken(
        explore(tmp_path / "ring", operation, 89, in_full=in_full), [A + Z, A[1:] + Z], in_full
    )


def test_a_consumer_of_arrays_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def operation(ring: RingBuffer) -> Callable[[], object]:
        out = np.zeros(4, np.int64)  # over the end of the first push, into the midst of the second
        return lambda: ring.pop_many(4, out)

    judge_taken(
        explore(tmp_path / "ring", operation, 499, in_full=in_full), [A + Z, A[4:] + Z], in_full
    )


def test_a_release_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def operation(ring: RingBuffer) -> Callable[[], object]:
        blocks = [ring.peek(2), ring.peek(1), ring.peek(1)]
        for block in blocks:
            block.__enter__()

        def end() -> None:
            blocks[1].__exit__(None, None, None)
            blocks[2].__exit__(KeyError, None, None)
            blocks[0].__exit__(None, None, None)

        return end

    judge_taken(
        explore(tmp_path / "ring", operation, 499, in_full=in_full),
        [A + Z, [0, 1, 3, 4, *Z], [3, 4, *Z]],
        in_full,
    )


def test_one_who_passes_what_holds_nothing_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def before(ring: RingBuffer) -> None:
        ring.pop_many()
        with pytest.raises(KeyError), ring.reserve(3):
            raise KeyError
        ring.push_many([60, 61])

    def operation(ring: RingBuffer) -> Callable[[], object]:
        pop = ring.consumer().try_pop
        return lambda: pop()

    judge_taken(
        explore(tmp_path / "ring", operation, 89, before, in_full=in_full),
        [[60, 61, *Z], [61, *Z]],
        in_full,
    )


def test_one_who_takes_from_the_dead_killed_at_any_instruction(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    def before(ring: RingBuffer) -> None:
        in_child(lambda: RingBuffer.attach(ring.path or "").peek(4).__enter__())
        time.sleep(A_LOOK)

    def operation(ring: RingBuffer) -> Callable[[], object]:
        pop = ring.consumer().try_pop
        return lambda: (pop(), pop())

    judge_taken(
        explore(tmp_path / "ring", operation, 499, before, in_full=in_full),
        [A + Z, A[1:] + Z, A[2:] + Z],
        in_full,
    )


def test_a_process_killed_while_it_tidies_up(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    """A dead process has left two takes, a release that is not finished, a hole and
    what it pushed behind that.
    """

    def leave(ring: RingBuffer) -> None:
        mine = RingBuffer.attach(ring.path or "")
        blocks = [mine.peek(1), mine.peek(1), mine.peek(3)]
        for block in blocks:
            block.__enter__()
        hole = mine.reserve(2)
        hole.__enter__()
        mine.try_push(50)
        blocks[1].__exit__(None, None, None)
        os.kill(os.getpid(), signal.SIGKILL)

    def operation(ring: RingBuffer) -> Callable[[], object]:
        in_child(lambda: leave(ring))
        time.sleep(A_LOOK)
        pop = ring.consumer().try_pop
        return lambda: pop()

    path = tmp_path / "ring"
    # Noticing dead processes takes many steps that change nothing: a sample of them.
    steps, within, seen = 0, True, []
    while within:
        within, got = outcome(path, operation, steps)
        seen.append(got)
        steps += 1499 if in_full else 30_011
    judge_taken(seen, [[0, 2, 3, 4, 50, *Z], [2, 3, 4, 50, *Z]], in_full)


def test_two_producers_killed_in_one_hole(
    tmp_path: Path, steps_are_allowed: None, in_full: bool
) -> None:
    """One was about to claim where another one did: which one's is the hole, and where
    does it end?
    """
    path = tmp_path / "ring"

    def pushing(count: int) -> Operation:
        def operation(ring: RingBuffer) -> Callable[[], object]:
            push, array = ring.producer().push_many, np.arange(50, 50 + count)
            return lambda: push(array)

        return operation

    def steps_to(count: int, done: Callable[[RingBuffer], bool]) -> int:
        """After how many instructions that can first be seen of the ring."""
        path.unlink(missing_ok=True)
        ring = RingBuffer(CAPACITY, "i8", path=path)
        return steps_until(ready(path, pushing(count)), lambda: done(ring))

    # Before the claim only an op slot shows it, and `_check` finds fault with that.
    pairs = [(1, 5), (5, 1), (2, 5), (5, 2)] if in_full else [(1, 5)]
    claimed = {
        n: steps_to(n, lambda ring: len(ring) > 0 or (in_order(ring) and ring._check() != (0, 0)))
        for n in {first for first, _ in pairs}
    }
    published = {
        n: steps_to(n, lambda ring: len(ring) > 0) for n in {second for _, second in pairs}
    }
    rng = random.Random(1)
    met = 0
    # The steps are not quite the same each time, and few lie between saying and
    # claiming: try until some have met.
    for attempt in range(160):
        first, second = rng.choice(pairs)
        path.unlink(missing_ok=True)
        ring = RingBuffer(CAPACITY, "i8", path=path)
        ring.push_many(A)

        def setup(first: int = first, second: int = second) -> Callable[[], object]:
            # An attach tidies up after dead processes, so the second one attaches
            # before the first one dies.
            operation = ready(path, pushing(second))()
            run_and_kill(ready(path, pushing(first)), claimed[first] - rng.randrange(-60, 60))
            return operation

        run_and_kill(setup, published[second] - rng.randrange(60))
        met += fault(ring) == (second, first + second)
        ring.push_many(Z)
        time.sleep(A_LOOK)
        got = drain(ring)
        assert [number for number in got if number in A + Z] == A + Z
        if met == (3 if in_full else 1) and attempt >= (10 if in_full else 0):
            break
    assert met > 0, "no attempt left both in the midst of it"


def in_order(ring: RingBuffer) -> bool:
    return fault(ring) is None


def fault(ring: RingBuffer) -> object:
    """What `_check` finds: (records claimed and not published, records that slots say
    are being pushed).
    """
    try:
        ring._check()
    except AssertionError as error:
        return error.args[0]
    return None


def test_kills_at_random_lose_nothing(in_full: bool) -> None:
    assert torture(50 if in_full else 8, seed=20261124) > (1000 if in_full else 100)
