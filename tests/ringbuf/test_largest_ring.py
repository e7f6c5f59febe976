"""A ring of the largest capacity that there is, full to its last granule: in a file
that is nearly all holes.

The words that say where things are, are written here as if 64 GiB had been pushed; a
pad stands for most of it.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import zlib
from pathlib import Path

import pytest

from ringbuf import MessageRing, RingBuffer, SharedFileError
from ringbuf._messages.file_positions import layout

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="path= needs Linux"),
    pytest.mark.platform,
]

PAGE = 4096
MOST_GRANULES = 1 << 30


def write_nearly_full(path: Path, granules: int) -> None:
    """One message of one granule, a pad, and room for two granules."""
    MessageRing(4096, path=path).close()
    head = bytearray(path.read_bytes()[:PAGE])
    path.unlink()
    header = struct.Struct("<8s I 4s Q 16s 16s I")
    magic, version, kind, _, uuid, boot, _ = header.unpack_from(head)
    cursors, index, data, end = layout(granules)
    meta = json.dumps({"granules": granules}).encode()
    text = header.pack(magic, version, kind, PAGE + end, uuid, boot, len(meta)) + meta
    text += struct.pack("<I", zlib.crc32(text))
    pad = granules - 2 - 1
    with open(path, "xb") as file:
        file.truncate(PAGE + end)

        def put(offset: int, *words: int) -> None:
            os.pwrite(file.fileno(), struct.pack(f"<{len(words)}Q", *words), PAGE + offset)

        os.pwrite(file.fileno(), text, 0)
        put(cursors, granules + 1 + pad, 1)  # write: position, next number
        put(cursors + 64, granules, 0)  # read
        put(cursors + 128, granules, 0, 0, (1 << 64) - 1)  # tail; sequence and its mirror
        put(index, granules, granules | (pad - 1))  # tags: lap and length
        put(data, 0, 5 << 32 | 1)  # a frame's head: first number; count, bytes
        os.pwrite(file.fileno(), b"first", PAGE + data + 24)
        put(data + 64, 1, 0)
        if file.seek(0, os.SEEK_END) != PAGE + end or os.fstat(file.fileno()).st_blocks > 1 << 11:
            pytest.skip("this file system makes no holes")


def test_the_largest_ring_is_full_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    try:
        write_nearly_full(path, MOST_GRANULES)
    except OSError as error:
        pytest.skip(f"a file of 72 GiB cannot be made here: {error}")
    ring = MessageRing.attach(path)
    assert ring.capacity_bytes == MOST_GRANULES * 64
    assert ring.capacity_bytes - ring.used_bytes == 2 * 64
    assert [ring.try_push(b"push %d" % i) for i in range(4)] == [True, True, False, False]
    assert ring.used_bytes == ring.capacity_bytes
    assert len(ring) == ring.count() == 3
    got = ring.take(1)
    assert got.tolist() == [b"first"]
    assert not ring.try_push(b"taken and not released")
    ring.release(got)
    assert ring.try_push(b"once more")
    got = ring.pop_many()
    assert (got.tolist(), got.first_seq) == ([b"push 0", b"push 1", b"once more"], 1)
    ring._check()
    assert ring.used_bytes == 0
    ring.close()


def test_a_larger_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="capacity_bytes must be from 1 to 68,719,476,736"):
        MessageRing(MOST_GRANULES * 64 + 1)
    with pytest.raises(ValueError, match="capacity must be from 1 to 2,147,483,648"):
        RingBuffer((1 << 31) + 1, "i1")
    path = tmp_path / "ring"
    try:
        write_nearly_full(path, 2 * MOST_GRANULES)
    except OSError as error:
        pytest.skip(f"a file of 144 GiB cannot be made here: {error}")
    for use in (MessageRing.attach, MessageRing.look):
        with pytest.raises(SharedFileError, match=r"2147483648 granules"):
            use(path)
