"""The disk format: version 1 is read and written as golden files and layout say."""

from __future__ import annotations

import struct
import uuid
import zlib

from backpressure.spill import BufferDirectory, DeadLetterStore, Run, SpillStore
from backpressure.testing import CrashingFileSystem
from tests.golden.make_spill_v1 import CONFIG, EVENTS, GOLDEN, LETTER, START, files_of, make


def golden() -> dict[str, bytes]:
    return {
        str(path.relative_to(GOLDEN)): path.read_bytes()
        for path in sorted(GOLDEN.rglob("*"))
        if path.is_file()
    }


def test_version_1_is_read() -> None:
    disk = CrashingFileSystem()
    for name in ("/golden", "/golden/lane-1", "/golden/lane-2", "/golden/dead-letters"):
        disk.mkdir(name)
    for path, content in golden().items():
        disk.write_file(f"/golden/{path}", content)
    expected = dict(enumerate(EVENTS[:50], START)) | dict(enumerate(EVENTS[50:], START + 100))
    for seq in (*range(START, START + 2), *range(START + 10, START + 15)):
        del expected[seq]
    with BufferDirectory("/golden", disk) as directory:
        for lane in (1, 2):
            with SpillStore(
                directory.lane(f"lane-{lane}"), lane, directory.buffer_id, CONFIG, disk
            ) as store:
                found: dict[int, bytes] = {}
                seq = 0
                while (run := store.read(seq, 1000, 1 << 20)) is not None:
                    assert isinstance(run, Run)
                    assert run.time_ns == (
                        1_700_000_000_000_000_000 if run.first_seq < START + 100 else 0
                    )
                    found.update(enumerate(run.messages(), run.first_seq))
                    seq = run.end_seq
                assert found == expected
                assert store.events_on_disk == len(expected)
                assert store.first_seq == START + 2
        letters = DeadLetterStore(directory.lane("dead-letters"), directory.buffer_id, CONFIG, disk)
        (letter,) = letters.letters()
        assert (letter.event, letter.error, letter.attempts, letter.seq) == (
            b"poison",
            LETTER.error,
            5,
            77,
        )
        letters.close()


def test_version_1_is_written() -> None:
    """To the byte, but for what a later zstd may compress otherwise."""
    was = golden()
    made = files_of(make())
    assert made.keys() == was.keys()
    same = [
        path
        for path in was
        if path == "manifest" or path.startswith("lane-1/") or path.endswith("/acked")
    ]
    assert len(same) >= 6
    for path in same:
        assert made[path] == was[path], path


def test_the_layout_is_what_the_format_files_say() -> None:
    """Read with nothing but the offsets in the docstrings."""
    files = golden()
    lane = sorted(path for path in files if path.startswith("lane-1/") and path.endswith(".seg"))
    buffer_id = uuid.UUID(bytes=files["manifest"][12:28])
    events: dict[int, bytes] = {}
    rank = 0
    for serial, path in enumerate(lane):
        content = files[path]
        magic, version, size, number = struct.unpack_from("<8sHHI", content, 0)
        assert (magic, version, size, number) == (b"PNSTKSEG", 1, 96, 1)
        assert content[16:32] == buffer_id.bytes
        its_serial, base, salt = struct.unpack_from("<QQ8s", content, 32)
        assert path == f"lane-1/{serial:016x}-{base:016x}-{salt.hex()}.seg"
        assert its_serial == serial
        assert struct.unpack_from("<Q", content, 72) == (rank,)
        assert struct.unpack_from("<I", content, 92) == (zlib.crc32(content[:92]),)
        at = 96
        while at < len(content):
            assert content[at : at + 8] == b"PNSTKBLK"
            assert content[at + 8 : at + 16] == salt
            (
                position,
                first,
                _,
                end,
                before,
                _,
                count,
                codec,
                width,
                zero,
                raw,
                stored,
                body,
                head,
            ) = struct.unpack_from("<QQQQQQIBBHQQII", content, at + 16)
            assert (position, before, codec, zero, raw) == (at, rank, 0, 0, stored)
            assert head == zlib.crc32(content[at : at + 92])
            padded = at + 96 + (stored + 7) // 8 * 8
            assert body == zlib.crc32(content[at : at + 88] + content[at + 96 : padded])
            start = at + 96 + count * width
            for index in range(count):
                length = int.from_bytes(
                    content[at + 96 + index * width : at + 96 + (index + 1) * width], "little"
                )
                events[first + index] = content[start : start + length]
                start += length
            assert start == at + 96 + stored
            assert not any(content[start:padded])
            assert end <= first
            rank += count
            at = padded
    assert list(events.values()) == EVENTS
    assert rank == len(EVENTS)
