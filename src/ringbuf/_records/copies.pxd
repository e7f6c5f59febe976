"""Records copied into the memory of a ring and out of it."""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._records.positions cimport Runs


cdef inline void copy_in(
    Runs* r, uint64_t position, uint64_t count, const unsigned char* source
) noexcept:
    """Copy records in, without the GIL where that pays, over the end of the memory to
    its start.
    """
    cdef uint64_t slot = position & r.mask, first = min(count, r.mask + 1 - slot)
    copy(r.data + slot * r.itemsize, source, first * r.itemsize)
    copy(r.data, source + first * r.itemsize, (count - first) * r.itemsize)


cdef inline void copy_out(
    Runs* r, uint64_t position, uint64_t count, unsigned char* target
) noexcept:
    """Copy records out, in the same way."""
    cdef uint64_t slot = position & r.mask, first = min(count, r.mask + 1 - slot)
    copy(target, r.data + slot * r.itemsize, first * r.itemsize)
    copy(target + first * r.itemsize, r.data, (count - first) * r.itemsize)


cdef inline void copy(unsigned char* target, const unsigned char* source, uint64_t size) noexcept:
    if size >= NOGIL_BYTES:
        with nogil:
            memcpy(target, source, size)
    else:
        memcpy(target, source, size)
