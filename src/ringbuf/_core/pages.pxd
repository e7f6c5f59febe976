"""Pages of a mapped file, prefaulted before they are written to.

The first write to a page of a mapped file costs a fault: 2 us and more where the page
was never used, or was written back to the disk since. Asking for many at once costs the
same, but a thread that has time can do it (MADV_POPULATE_WRITE, Linux 5.14). The
content stays what it is, so other threads may use it meanwhile. Elsewhere, and where it
is refused, nothing is done.
"""

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #include <cstddef>
    #if defined(__linux__)
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    static inline void ringbuf_populate(void *start, size_t size) {
        (void)madvise(start, size, MADV_POPULATE_WRITE);
    }
    #else
    static inline void ringbuf_populate(void *, size_t) {}
    #endif
    """
    void populate "ringbuf_populate"(void* start, size_t size)

cdef enum:
    PAGE_BYTES = 4096


cdef inline size_t whole_pages(size_t size) noexcept:
    """`size`, rounded up to whole pages."""
    return (size + PAGE_BYTES - 1) & ~<size_t>(PAGE_BYTES - 1)


cdef inline void prefault(
    unsigned char* memory, uint64_t size, uint64_t start, uint64_t end
) noexcept nogil:
    """Prefault from offset `start` to `end` of a memory of `size` bytes, which goes on
    at its beginning where it ends.
    """
    cdef uint64_t first = start % size, rest
    if end - start > size - first:
        rest = end - start - (size - first)
        populate(memory, min(rest + PAGE_BYTES - 1, size) & ~<uint64_t>(PAGE_BYTES - 1))
        end = start + (size - first)
    end = min(first + (end - start) + PAGE_BYTES - 1, size) & ~<uint64_t>(PAGE_BYTES - 1)
    first &= ~<uint64_t>(PAGE_BYTES - 1)
    if end > first:
        populate(memory + first, end - first)
