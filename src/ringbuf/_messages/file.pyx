# cython: freethreading_compatible=True
"""The file of a MessageRing that several processes share: making it, attaching to it,
and what its header remembers.

Body: control (_shared/op_slots.pxd), positions, index, data, each from a page on; see
`layout` in file_positions.pyx. The header remembers the capacity in granules and, of a
ring with checksums, the secret that their key is made of.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memset

from ringbuf._core.atomics cimport store_relaxed
from ringbuf._messages.frame_checksum cimport KEY_WORDS, SECRET_BYTES
from ringbuf._messages.positions cimport (
    GRANULE, MAX_GRANULES, MIN_GRANULES, REWIND_GRANULES, Cursors, place_cursors,
)

import os
import re

import numpy as np

from ringbuf._messages.file_positions import layout
from ringbuf._shared.shared_file import SharedFile, SharedFileError

cdef enum:
    # This much of a new file is prefaulted, and no more than an eighth of it: what a
    # spike needs at first, until `warm_ahead` comes. Five lanes of it take 15 (and more
    # where the disk is busy) of the 100 ms that a directory may take …
    WARM_GRANULES = 128 * 1024  # 8 MiB
    # … and what a ring lives in whose consumers keep up: the way until it goes back,
    # and a frame.
    HOT_GRANULES = REWIND_GRANULES + 4 * 1024

KIND = b"msgs"


def create_or_attach(str path, uint64_t granules, uint64_t first_seq, bint checksums):
    """The SharedFile of a ring of that capacity, made where there is none."""
    _, index, data, size = layout(granules)
    cdef size_t first = min(granules // 8, <uint64_t>WARM_GRANULES)
    hot = data, data + min(granules, <uint64_t>HOT_GRANULES) * GRANULE
    warm = (index, index + first * 8), (hot[1], data + first * GRANULE)
    if not os.path.exists(path):
        meta = {"granules": granules}
        if checksums:
            meta["secret"] = os.urandom(SECRET_BYTES).hex()
        try:
            start = first_positions(granules, first_seq)
            return SharedFile.create(path, KIND, meta, size, start, hot, warm, durable=checksums)
        except FileExistsError:
            pass  # another process was faster
    file = SharedFile.attach(path, KIND)
    found, _ = read_meta(file.path, file.meta, len(file.memory))
    if found != granules:
        raise SharedFileError(
            f"{file.path} is a ring of {found * GRANULE:,} bytes, not {granules * GRANULE:,}: "
            "attach(path) takes it as it is"
        )
    return file


def attach(path):
    """The SharedFile of a ring that is there."""
    return SharedFile.attach(path, KIND)


cdef object first_positions(uint64_t granules, uint64_t first_seq):
    """Where, and as what bytes, the positions of a new ring lie in its body."""
    cdef Cursors cursors
    memset(<void*>&cursors, 0, sizeof(Cursors))
    place_cursors(&cursors, granules, first_seq)
    store_relaxed(&cursors.stored_mirror, ~<uint64_t>0)
    return layout(granules)[0], (<unsigned char*>&cursors)[:sizeof(Cursors)]


def read_meta(path, meta, body_bytes):
    """What a header remembers: the capacity in granules, and the key of the checksums,
    or None. SharedFileError if it is damaged.
    """
    granules, secret, key = meta.get("granules"), meta.get("secret"), None
    is_size = isinstance(granules, int) and MIN_GRANULES <= granules <= MAX_GRANULES
    if not is_size or granules & (granules - 1):
        raise SharedFileError(f"{path} is damaged: its header has {granules!r} granules")
    if body_bytes < layout(granules)[3]:
        raise SharedFileError(f"{path} is damaged: it is too small for {granules} granules")
    if secret is not None:
        pattern = f"[0-9a-f]{{{2 * SECRET_BYTES}}}"
        if not isinstance(secret, str) or not re.fullmatch(pattern, secret):
            raise SharedFileError(
                f"{path} is damaged: it has checksums, and its secret is not {SECRET_BYTES} bytes"
            )
        import hashlib  # which loads OpenSSL

        key = aligned(hashlib.shake_256(bytes.fromhex(secret)).digest(KEY_WORDS * 8))
    return granules, key


def aligned(content):
    """A copy of some bytes that starts on a cache line, so that no vector of a key lies
    in two.
    """
    memory = np.empty(len(content) + GRANULE, np.uint8)
    start = -memory.ctypes.data % GRANULE
    memory[start:start + len(content)] = np.frombuffer(content, np.uint8)
    return memory[start:start + len(content)]
