"""Files whose checksums are right and whose content makes no sense.

A faulty writer or an attacker leaves them. They cost what they hold, and nothing else:
no allocation of what they claim, no count below zero, no error but those documented.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpressure import FormatError
from backpressure.spill import DeadLetter, DeadLetterStore
from backpressure.spill.ledger import LEDGER_NAME
from backpressure.spill.offline.inspect import export_lane, inspect_lane
from backpressure.spill.segments import parse_segment_name, segment_name
from tests.spill.test_damage import disk_of, drain, event, files_of, segments_of
from tests.support.spill_files import BLOCK, RECORD, SEGMENT, heads_of, seal
from tests.support.spill_store import put
from tests.torture.journal import BUFFER_ID, LANE, disk_with_lane, opened

LAST = (1 << 64) - 1


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Limit memory, so that allocating what a file claims would fail everywhere."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def three_blocks() -> tuple[dict[str, bytes], str]:
    """A lane's one segment with the blocks 10 to 20, 20 to 30, 30 to 40; its name."""
    disk = disk_with_lane()
    with opened(disk) as store:
        for first in (10, 20, 30):
            put(store, first, *map(event, range(first, first + 10)))
    files = files_of(disk)
    (name,) = segments_of(files)
    return files, name


def changed(content: bytes, at: int, *fields: tuple[int, str, int]) -> bytes:
    """`content` with other values in the header at `at`, and right checksums.

    Each is given as offset, format and value.
    """
    data = bytearray(content)
    for offset, kind, value in fields:
        struct.pack_into("<" + kind, data, at + offset, value)
    seal(data, at)
    return bytes(data)


COUNT, CODEC, WIDTH, RAW = 64, 68, 69, 72
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@pytest.mark.parametrize(
    "fields",
    [
        [(RAW, "Q", 1 << 40)],  # stored as it is, and of another length than what is stored
        [(CODEC, "B", 1), (RAW, "Q", 1 << 33)],  # no frame of zstd gives so much
        [(CODEC, "B", 1), (RAW, "Q", LAST)],
        [(COUNT, "I", (1 << 32) - 1), (WIDTH, "B", 4), (RAW, "Q", (1 << 34) + 5)],
        [(COUNT, "I", 1 << 30), (CODEC, "B", 1), (RAW, "Q", 1 << 30)],
        [(24, "Q", LAST - 3)],  # numbers beyond the last one
        [(40, "Q", 1)],  # the block before ends before it began
        [(48, "Q", 1 << 50)],  # more events before it than numbers
        [(48, "Q", 3)],  # fewer than the block before had
    ],
    ids=str,
)
def test_a_block_that_claims_what_can_not_be_is_lost_alone(
    fields: list[tuple[int, str, int]],
) -> None:
    files, name = three_blocks()
    second = heads_of(files[name], BLOCK)[1]
    files[name] = changed(files[name], second, *fields)
    disk = disk_of(files)
    list(inspect_lane(LANE, 3, BUFFER_ID, disk))
    exported = [run.first_seq for run in export_lane(LANE, 3, BUFFER_ID, disk)]
    assert exported == [10, 30]
    with opened(disk) as store:
        found, lost = drain(store)
        assert sorted(found) == [*range(10, 20), *range(30, 40)]
        assert [(one.first_seq, one.end_seq, one.events) for one in lost] == [(20, 30, 10)]
        assert store.events_on_disk == 20


@pytest.mark.parametrize("claimed", [1 << 20, 1 << 27, 1 << 31])
def test_a_frame_of_zstd_that_promises_more_than_it_has_is_lost_alone(claimed: int) -> None:
    disk = disk_with_lane()
    with opened(disk) as store:
        for first in (10, 20, 30):
            put(store, first, b"x" * 100_000)
    files = files_of(disk)
    (name,) = segments_of(files)
    second = heads_of(files[name], BLOCK)[1]
    data = bytearray(files[name])
    # The frame of the lengths stays; that of the payload, behind it, says another size.
    at = data.index(ZSTD_MAGIC, data.index(ZSTD_MAGIC, second) + 1)
    data[at : at + 13] = ZSTD_MAGIC + b"\xe0" + struct.pack("<Q", claimed)
    files[name] = changed(bytes(data), second, (RAW, "Q", claimed + 4))
    with opened(disk_of(files)) as store:
        found, lost = drain(store)
        assert sorted(found) == [10, 30]
        assert [(one.first_seq, one.events) for one in lost] == [(20, 1)]


def test_a_block_of_numbers_that_the_lane_never_came_to_is_not_delivered() -> None:
    files, name = three_blocks()
    second = heads_of(files[name], BLOCK)[1]
    files[name] = changed(files[name], second, (24, "Q", 1000))
    with opened(disk_of(files)) as store:
        found, lost = drain(store)
        assert set(found) <= {*range(10, 20), *range(30, 40)}
        assert sum(one.events for one in lost) + len(found) == 30
        for seq in found:
            store.ack(seq, 1)
        assert store.events_on_disk == 0
        store._check()


def two_segments() -> tuple[dict[str, bytes], list[str]]:
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 10, *map(event, range(10, 20)))
        store._writer.begin_segment(20)
        put(store, 20, *map(event, range(20, 30)))
    files = files_of(disk)
    return files, segments_of(files)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "fields",
    [
        [(56, "Q", 8), (64, "Q", 9), (72, "Q", 9)],
        [(72, "Q", 1 << 60)],
        [(64, "Q", LAST), (72, "Q", LAST)],
        [(56, "Q", LAST)],
    ],
    ids=str,
)
def test_a_segment_whose_link_has_no_sense_costs_the_events_before_it_at_most(
    which: int, fields: list[tuple[int, str, int]]
) -> None:
    files, names = two_segments()
    files[names[which]] = changed(files[names[which]], 0, *fields)
    with opened(disk_of(files)) as store:
        assert store.events_on_disk >= 0
        found, lost = drain(store)
        assert set(range(20, 30)) <= set(found)
        assert all(text == event(seq) for seq, text in found.items())
        assert store.events_on_disk >= 0
        store._check()
        assert sum(one.events for one in lost) <= 20


def test_the_last_number_that_a_file_can_have_is_refused() -> None:
    files, names = two_segments()
    _, base, salt = parse_segment_name(names[1]) or (0, 0, b"")
    name = segment_name(LAST, base, salt)
    files[name] = changed(files.pop(names[1]), 0, (32, "Q", LAST))
    with pytest.raises(FormatError, match="move it aside"):
        opened(disk_of(files))


PREFIX, RANK, RANGES, FIRST_RANGE = 40, 48, 80, 96


def with_record() -> tuple[dict[str, bytes], int]:
    """Numbers 0 to 40, of which 0 to 5 and 10 to 15 are acked.

    Also where the newer slot of the record is.
    """
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 0, *map(event, range(40)))
        store.ack(0, 5)
        store.ack(10, 5)
    files = files_of(disk)
    content = files[LEDGER_NAME]
    at = max(heads_of(content, RECORD), key=lambda at: struct.unpack_from("<Q", content, at + 32))
    # One slot speaks, so that it is the one that is changed.
    files[LEDGER_NAME] = content[at : at + 512]
    return files, 0


def ranges(*given: tuple[int, int, int]) -> list[tuple[int, str, int]]:
    fields = [(RANGES, "I", len(given))]
    for number, one in enumerate(given):
        fields += [(FIRST_RANGE + 24 * number + 8 * i, "Q", one[i]) for i in range(3)]
    return fields


@pytest.mark.parametrize(
    "fields",
    [
        ranges((10, 20, 10), (15, 25, 10)),  # twice settled
        ranges((20, 25, 5), (10, 15, 5)),  # in disorder
        ranges((10, 15, 500)),  # more events than numbers
        ranges((15, 10, 5)),  # back to front
        ranges((3, 15, 5)),  # below what is settled anyway
        [(32, "Q", LAST)],  # no generation comes after it
        [(RANK, "Q", 1 << 40)],
        [
            (RANK, "Q", 1 << 40),
            (PREFIX, "Q", 1 << 40),
            (72, "Q", 1 << 40),
        ],  # a durable link that makes no sense
    ],
    ids=str,
)
def test_an_ack_record_that_has_no_sense_costs_redelivery_only(
    fields: list[tuple[int, str, int]],
) -> None:
    files, at = with_record()
    files[LEDGER_NAME] = changed(files[LEDGER_NAME], at, *fields)
    with opened(disk_of(files)) as store:
        assert store.events_on_disk == 40
        found, lost = drain(store)
        assert (sorted(found), lost) == (list(range(40)), [])
        store.ack(0, 40)
        assert store.events_on_disk == 0
        assert store.sync_acks()


def test_a_record_of_more_events_than_were_ever_stored_is_not_believed() -> None:
    files, at = with_record()
    # Of itself it has sense: 39 events below 39. The lane, whose blocks lie about,
    # stored 40 below 40, and 5 of a range more.
    files[LEDGER_NAME] = changed(
        files[LEDGER_NAME], at, (PREFIX, "Q", 34), (RANK, "Q", 34), *ranges((35, 40, 5))
    )
    files = {
        name: lying(content) if name.endswith(".seg") else content
        for name, content in files.items()
    }
    with opened(disk_of(files)) as store:
        assert store.events_on_disk >= 0
        drain(store)
        store._check()


def lying(content: bytes) -> bytes:
    """Every block, and the segment, claim half the events stored before."""
    for at in (*heads_of(content, SEGMENT), *heads_of(content, BLOCK)):
        offset = 72 if at == 0 else 48
        (rank,) = struct.unpack_from("<Q", content, at + offset)
        first, end = struct.unpack_from("<QQ", content, at + offset - 16)
        if rank // 2 >= end - first:
            content = changed(content, at, (offset, "Q", rank // 2))
    return content


def test_what_was_acked_within_a_loss_is_not_lost_as_well() -> None:
    """Nothing is crafted here.

    Two blocks are damaged, some of one is acked, and a gap lies between them.
    """
    disk = disk_with_lane()
    with opened(disk) as store:
        put(store, 10, *map(event, range(10, 20)))
        put(store, 20, *map(event, range(20, 30)))
        put(store, 80, *map(event, range(80, 90)))  # behind fifty numbers that carry nothing
        put(store, 90, *map(event, range(90, 100)))
        store.ack(84, 6)
    files = files_of(disk)
    (name,) = segments_of(files)
    data = bytearray(files[name])
    for at in heads_of(data, BLOCK)[1:3]:
        data[at + 30] ^= 1
    files[name] = bytes(data)
    with opened(disk_of(files)) as store:
        found, lost = drain(store)
        assert sorted(found) == [*range(10, 20), *range(90, 100)]
        assert sum(one.events for one in lost) == 14
        assert store.events_on_disk == 20
        store._check()


def test_what_is_no_dead_letter_is_shown_as_its_bytes_and_can_be_purged() -> None:
    disk = disk_with_lane()
    letters = DeadLetterStore(LANE, BUFFER_ID, fs=disk)
    letters.add([DeadLetter(event=b"e", error="x", attempts=1, priority=2, seq=7, time_ns=0)])
    head = struct.Struct("<BBHIQQI")
    odd = [
        b"",
        b"\x01short",
        head.pack(2, 1, 0, 1, 7, 0, 0) + b"of a later version",
        head.pack(1, 1, 0, 1, 7, 0, 1 << 31) + b"an error text that is not there",
        head.pack(1, 9, 0, 1, 7, 0, 0) + b"of no priority",
    ]
    put(letters._store, 1, *odd)
    found = list(letters.letters())
    assert [one.event for one in found] == [b"e", *odd]
    assert all("no dead letter" in one.error and 1 <= one.priority <= 5 for one in found[1:])
    assert letters.purge(found[1:]) == len(odd)
    assert [one.event for one in letters.letters()] == [b"e"]
