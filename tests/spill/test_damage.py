"""Damage: every byte flipped, every length cut, every file gone.

At most one block is lost, counted exactly, once.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from backpressure.base.errors import DiskFailed, FormatError
from backpressure.spill import BufferDirectory, Lost, Run, SpillStore
from backpressure.spill.blocks import BLOCK_HEADER_BYTES, BLOCK_MAGIC
from backpressure.spill.ledger import LEDGER_NAME
from backpressure.spill.offline.inspect import BlockState, export_lane, inspect_lane, repair_lane
from backpressure.spill.segments import SEGMENT_HEADER_BYTES
from backpressure.testing import CrashingFileSystem, FaultyFileSystem
from tests.torture.journal import BUFFER_ID, LANE, columns, disk_with_lane, opened

Blocks = list[tuple[int, int]]  # (first, end) of each block


def event(seq: int) -> bytes:
    return b"event %d " % seq + bytes(seq % 7) * 3


def files_of(disk: CrashingFileSystem) -> dict[str, bytes]:
    return {name: disk.read_file(f"{LANE}/{name}") for name in disk.listdir(LANE)}


def disk_of(files: dict[str, bytes]) -> CrashingFileSystem:
    disk = disk_with_lane()
    for name, content in files.items():
        disk.write_file(f"{LANE}/{name}", content)
    return disk


def segments_of(files: dict[str, bytes]) -> list[str]:
    return sorted(name for name in files if name.endswith(".seg"))


@pytest.fixture(scope="module")
def lane() -> tuple[dict[str, bytes], Blocks]:
    """Three segments of four blocks, raw and compressed in turn.

    Gaps lie between blocks and between segments.
    """
    disk = disk_with_lane()
    blocks = []
    store = opened(disk)
    seq = 5
    for number in range(12):
        if number % 4 == 0 and number:
            store._writer.begin_segment(seq)
        count = 3 + number % 3
        store.append(
            seq,
            *columns([event(seq + index) for index in range(count)]),
            pressure=float(number % 2),
        )
        blocks.append((seq, seq + count))
        seq += count + (number % 3 == 0) * 2
    store.close()
    return files_of(disk), blocks


def drain(store: SpillStore) -> tuple[dict[int, bytes], list[Lost]]:
    found: dict[int, bytes] = {}
    lost: list[Lost] = []
    seq = 0
    while (answer := store.read(seq, 100, 100_000)) is not None:
        if isinstance(answer, Lost):
            lost.append(answer)
        else:
            assert answer.first_seq >= seq
            found.update(enumerate(answer.messages(), answer.first_seq))
            seq = answer.end_seq
    return found, lost


def everything(blocks: Blocks) -> dict[int, bytes]:
    return {seq: event(seq) for first, end in blocks for seq in range(first, end)}


def check(
    files: dict[str, bytes], blocks: Blocks, most_blocks: int
) -> tuple[list[Lost], CrashingFileSystem]:
    """Open and drain: only whole blocks are lost, reported exactly, once.

    A reopened store knows of it.
    """
    disk = disk_of(files)
    with opened(disk) as store:
        found, lost = drain(store)
        expected = everything(blocks)
        gone = [block for block in blocks if block[0] not in found]
        assert found == {
            seq: text for seq, text in expected.items() if not any(a <= seq < b for a, b in gone)
        }
        assert len(gone) <= most_blocks
        assert (
            sum(one.events for one in lost)
            == sum(end - first for first, end in gone)
            == store.stats().lost_events
        )
        if len(gone) == 1:
            assert [(one.first_seq, one.end_seq) for one in lost] == gone
        for one in lost:
            assert any(one.first_seq <= first and end <= one.end_seq for first, end in gone)
        assert drain(store) == (found, []), "reported twice"
        assert store.events_on_disk == len(found)
        noticed = lost or store.stats().damaged_headers or store.stats().torn_bytes
        store.sync_acks()
        assert noticed
    with opened(disk) as store:
        assert drain(store) == (found, []), "reported again after a restart"
    return lost, disk


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "newest"])
def test_every_flipped_byte_costs_one_block_at_most(
    lane: tuple[dict[str, bytes], Blocks], which: int, in_full: bool
) -> None:
    files, blocks = lane
    name = segments_of(files)[which]
    content = files[name]
    assert len(content) < 2500
    for at in range(0, len(content), 1 if in_full else 17):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        lost, _ = check(
            {**files, name: bytes(damaged)},
            blocks,
            most_blocks=0 if at < SEGMENT_HEADER_BYTES else 1,
        )
        assert bool(lost) == (at >= SEGMENT_HEADER_BYTES)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "middle", "newest"])
def test_every_cut_costs_what_it_cuts(
    lane: tuple[dict[str, bytes], Blocks], which: int, in_full: bool
) -> None:
    files, blocks = lane
    name = segments_of(files)[which]
    for size in range(0, len(files[name]), 1 if in_full else 17):
        lost, _ = check({**files, name: files[name][:size]}, blocks, most_blocks=4)
        first_lost = min(one.first_seq for one in lost)
        assert first_lost >= blocks[4 * which][0], "a block of another file"


def test_a_segment_that_is_gone_is_lost_exactly(lane: tuple[dict[str, bytes], Blocks]) -> None:
    files, blocks = lane
    disk = disk_of(files)
    with opened(disk) as store:
        disk.unlink(f"{LANE}/{segments_of(files)[1]}")
        found, lost = drain(store)
    assert [one.events for one in lost] == [sum(end - first for first, end in blocks[4:8])]
    assert (lost[0].first_seq, lost[0].end_seq) == (blocks[4][0], blocks[7][1])
    assert len(found) == len(everything(blocks)) - lost[0].events


def test_every_flipped_byte_of_the_ack_record_costs_redelivery_only(
    lane: tuple[dict[str, bytes], Blocks],
    in_full: bool,
) -> None:
    files, blocks = lane
    disk = disk_of(files)
    with opened(disk) as store:
        store.ack(*run_at(store, 0))
        store.ack(*run_at(store, blocks[3][0]))
    files = files_of(disk)
    for at in range(0, len(files[LEDGER_NAME]), 1 if in_full else 17):
        damaged = bytearray(files[LEDGER_NAME])
        damaged[at] ^= 0xFF
        with opened(disk_of({**files, LEDGER_NAME: bytes(damaged)})) as store:
            found, lost = drain(store)
            assert not lost
            assert found == {seq: text for seq, text in everything(blocks).items() if seq in found}
            assert len(found) >= len(everything(blocks)) - 6
            assert store.events_on_disk == len(found)
            assert store.end_seq == blocks[-1][1]


def run_at(store: SpillStore, seq: int) -> tuple[int, int]:
    run = store.read(seq, 3, 1000)
    assert isinstance(run, Run)
    return run.first_seq, len(run)


def test_flipped_bytes_of_the_manifest_change_nothing() -> None:
    disk = CrashingFileSystem()
    with BufferDirectory("/buffer", disk) as directory:
        buffer_id = directory.buffer_id
        with SpillStore(directory.lane("lane-1"), 1, buffer_id, None, disk) as store:
            store.append(0, *columns([b"one"]))
    content = disk.read_file("/buffer/manifest")
    for at in range(len(content)):
        disk.write_file(
            "/buffer/manifest", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        )
        with BufferDirectory("/buffer", disk) as directory:
            assert directory.buffer_id == buffer_id
    # Both copies, and no file at all: the segments know.
    for content in (b"", bytes(1024)):
        disk.write_file("/buffer/manifest", content)
        with BufferDirectory("/buffer", disk) as directory:
            assert directory.buffer_id == buffer_id


# ---------------------------------------------------------------- hostile payloads


def hostile_payloads(content: bytes) -> Iterator[bytes]:
    """Events that hold what a segment holds, at every alignment.

    Headers, whole blocks, and the file itself.
    """
    for shift in range(8):
        yield bytes(shift) + content
    yield BLOCK_MAGIC * 20
    yield content[SEGMENT_HEADER_BYTES:]


def test_a_payload_is_never_taken_for_a_header(lane: tuple[dict[str, bytes], Blocks]) -> None:
    disk = disk_with_lane()
    store = opened(disk)
    seq = 0
    # Raw, so that the bytes lie in the file as they are; of the very file they go into,
    # as far as it is written.
    for _ in range(3):
        written = segments_of(files_of(disk))
        content = disk.read_file(f"{LANE}/{written[-1]}") if written else b"".join(lane[0].values())
        for payload in hostile_payloads(content[:1500]):
            store.append(seq, *columns([payload]), pressure=1.0)
            seq += 1
    store.close()
    files = files_of(disk)
    # With a header broken, the search for the next one goes right through the payload.
    for name in segments_of(files):
        content = files[name]
        for at in places_of(content):
            damaged = bytearray(content)
            damaged[at + 20] ^= 0xFF
            broken = disk_of({**files, name: bytes(damaged)})
            with opened(broken) as store:
                found, lost = drain(store)
                assert len(found) == seq - 1
                assert [one.events for one in lost] == [1]


def places_of(content: bytes) -> list[int]:
    """Where the blocks of a segment begin."""
    places = []
    at = SEGMENT_HEADER_BYTES
    while at < len(content):
        places.append(at)
        at += (
            BLOCK_HEADER_BYTES + (int.from_bytes(content[at + 80 : at + 88], "little") + 7) // 8 * 8
        )
    return places


@pytest.mark.parametrize(
    ("from_segment", "from_block", "to_block"),
    [(0, 2, 0), (0, 0, 2), (1, 0, 0), (1, 1, 1), (2, 3, 3)],
)
def test_a_sound_header_at_another_place_is_no_header(
    lane: tuple[dict[str, bytes], Blocks], from_segment: int, from_block: int, to_block: int
) -> None:
    """A disk writes to the wrong place, in the same file or in another.

    Position and salt show it. One block is lost.
    """
    files, blocks = lane
    names = segments_of(files)
    source, target = files[names[from_segment]], bytearray(files[names[0]])
    start = places_of(source)[from_block]
    at = places_of(bytes(target))[to_block]
    target[at : at + BLOCK_HEADER_BYTES] = source[start : start + BLOCK_HEADER_BYTES]
    lost, _ = check({**files, names[0]: bytes(target)}, blocks, most_blocks=1)
    assert [(one.first_seq, one.end_seq) for one in lost] == [blocks[to_block]]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("change", ["version", "buffer", "lane", "name", "record"])
def test_what_is_not_ours_is_refused_and_left_untouched(
    lane: tuple[dict[str, bytes], Blocks], change: str
) -> None:
    import zlib

    files = dict(lane[0])
    name = segments_of(files)[1]
    if change == "name":
        files[name.replace("0", "1", 1)] = files.pop(name)
    elif change == "record":
        raw = bytearray(files[LEDGER_NAME])
        raw[8:10] = (2).to_bytes(2, "little")
        raw[92:96] = zlib.crc32(raw[:92]).to_bytes(4, "little")
        files[LEDGER_NAME] = bytes(raw)
    else:
        raw = bytearray(files[name])
        at = {"version": 8, "buffer": 16, "lane": 12}[change]
        raw[at] = 2 if change == "version" else raw[at] ^ 1
        raw[92:96] = zlib.crc32(raw[:92]).to_bytes(4, "little")
        files[name] = bytes(raw)
    disk = disk_of(files)
    with pytest.raises(FormatError, match=r"version 2|belongs to|was 0"):
        opened(disk)
    assert files_of(disk) == files
    assert disk.open_descriptors == 0


# ---------------------------------------------------------------- unreadable


@pytest.mark.parametrize("error", [errno.EIO, errno.EBADMSG])
def test_a_passing_read_error_costs_nothing(
    lane: tuple[dict[str, bytes], Blocks], error: int
) -> None:
    files, blocks = lane
    for at in range(1, 12):
        faulty = FaultyFileSystem(disk_of(files), fail_at=at, error=error, only={"pread"})
        with opened(faulty) as store:
            found, lost = drain(store)
            assert found == everything(blocks)
            assert lost == []


def test_a_disk_that_reads_nothing_any_more_loses_all_and_goes_on(
    lane: tuple[dict[str, bytes], Blocks],
) -> None:
    files, blocks = lane
    faulty = FaultyFileSystem(disk_of(files), fail_at=1 << 30, sticky=True, only={"pread"})
    with opened(faulty) as store:
        faulty.fail_at = 1
        found, lost = drain(store)
        assert not found
        assert sum(one.events for one in lost) == len(everything(blocks))
        store.append(store.end_seq, *columns([b"after"]))
        faulty.fail_at = 1 << 30
        assert drain(store)[0] == {store.end_seq - 1: b"after"}


def test_another_error_is_not_taken_for_damage(lane: tuple[dict[str, bytes], Blocks]) -> None:
    files, blocks = lane
    faulty = FaultyFileSystem(
        disk_of(files), fail_at=1 << 30, error=errno.ENOMEM, sticky=True, only={"pread", "open"}
    )
    with opened(faulty) as store:
        faulty.fail_at = 1
        with pytest.raises(DiskFailed) as refused:
            store.read(0, 1, 1)
        assert refused.value.errno == errno.ENOMEM
        assert refused.value.retry_after > 0
        faulty.fail_at = 1 << 30
        assert drain(store) == (everything(blocks), [])


# ---------------------------------------------------------------- repair


def test_a_damaged_file_is_kept_aside_when_all_in_it_is_settled(
    lane: tuple[dict[str, bytes], Blocks],
) -> None:
    files, _ = lane
    name = segments_of(files)[0]
    damaged = bytearray(files[name])
    damaged[300] ^= 1
    disk = disk_of({**files, name: bytes(damaged)})
    with opened(disk) as store:
        found, lost = drain(store)
        assert len(lost) == 1
        for seq in found:
            store.ack(seq, 1)
        stats = store.stats()
        assert (stats.quarantined_segments, stats.quarantined_bytes) == (1, len(damaged))
        assert disk.read_file(f"{LANE}/{name}.damaged") == bytes(damaged)
        assert segments_of(files_of(disk)) != segments_of(files), "the sound ones are deleted"
    with opened(disk) as store:
        assert store.stats().quarantined_segments == 1


def test_inspect_export_repair(lane: tuple[dict[str, bytes], Blocks]) -> None:
    files, blocks = lane
    name, _, newest = segments_of(files)
    damaged = bytearray(files[name])
    second = damaged.index(BLOCK_MAGIC, SEGMENT_HEADER_BYTES + 8)
    damaged[second + 100] ^= 1  # its body
    third = damaged.index(BLOCK_MAGIC, second + 8)
    damaged[third + 30] ^= 1  # its header
    files = {**files, name: bytes(damaged), newest: files[newest] + b"torn"}
    disk = disk_of(files)

    def inspect() -> list[list[BlockState]]:
        return [
            [block.state for block in one.blocks] for one in inspect_lane(LANE, 3, BUFFER_ID, disk)
        ]

    good = BlockState.GOOD
    assert inspect() == [
        [good, BlockState.DAMAGED, BlockState.GARBAGE, good],
        [good] * 4,
        [good] * 4 + [BlockState.TORN],
    ]
    expected = {
        seq: text
        for seq, text in everything(blocks).items()
        if not blocks[1][0] <= seq < blocks[2][1]
    }
    exported = {
        seq: text
        for run in export_lane(LANE, 3, BUFFER_ID, disk)
        for seq, text in enumerate(run.messages(), run.first_seq)
    }
    assert exported == expected
    assert files_of(disk) == files, "a look changes nothing"

    assert [report.path for report in repair_lane(LANE, 3, BUFFER_ID, disk)] == [f"{LANE}/{name}"]
    assert inspect() == [[good] * 2, [good] * 4, [good] * 4 + [BlockState.TORN]]
    assert files_of(disk)[f"{name}.damaged"] == bytes(damaged)
    with opened(disk) as store:
        found, lost = drain(store)
        assert found == expected
        assert (
            sum(one.events for one in lost)
            == blocks[1][1] - blocks[1][0] + blocks[2][1] - blocks[2][0]
        )
    assert disk.open_descriptors == 0


@pytest.mark.parametrize("calls", [{"pread"}, {"open", "pread"}])
def test_what_a_consumer_holds_is_not_lost_when_its_file_can_not_be_read_any_more(
    lane: tuple[dict[str, bytes], Blocks], calls: set[str]
) -> None:
    files, blocks = lane
    faulty = FaultyFileSystem(disk_of(files), fail_at=1 << 30, sticky=True, only=calls)
    with opened(faulty) as store:
        held = [
            run_at(store, blocks[0][0]),
            run_at(store, blocks[4][0]),
            run_at(store, blocks[8][0]),
        ]
        faulty.fail_at = 1
        store._reader._opened[max(store._reader._opened)].file._window = b""
        lost = []
        seq = held[0][0] + held[0][1]
        while (answer := store.read(seq, 100, 100_000)) is not None:
            if isinstance(answer, Lost):
                lost.append(answer)
                seq = answer.end_seq
            else:
                seq = answer.end_seq
        assert lost
        assert all(held[0][0] + held[0][1] <= one.first_seq for one in lost)
        store.ack(*held[0])
        assert store.stats().acked_events == held[0][1]
