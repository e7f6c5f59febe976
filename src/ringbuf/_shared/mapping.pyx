# cython: freethreading_compatible=True
"""A file in memory, which needs no descriptor to stay there.

The standard library's `mmap` keeps a copy of the descriptor (before CPython 3.13), and
closes that number when it goes, which may be another file's by then: code that makes a
daemon closes every descriptor that it finds.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo

import os

cdef extern from * nogil:
    """
    #include <cerrno>
    #include <cstddef>
    #if defined(__linux__)
    #include <sys/mman.h>
    static void *ringbuf_map_file(int fd, size_t size) {
        void *at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        return at == MAP_FAILED ? nullptr : at;
    }
    static void ringbuf_unmap(void *at, size_t size) { munmap(at, size); }
    #else
    static void *ringbuf_map_file(int, size_t) { errno = ENOSYS; return nullptr; }
    static void ringbuf_unmap(void *, size_t) {}
    #endif
    static int ringbuf_errno(void) { return errno; }
    """
    void* map_file "ringbuf_map_file"(int fd, size_t size)
    void unmap "ringbuf_unmap"(void* at, size_t size)
    int last_error "ringbuf_errno"()


@cython.final
cdef class Mapping:
    """The first `size` bytes of an open file, shared, as a buffer that can be written;
    it goes with the buffer's last user.
    """

    cdef void* _at
    cdef Py_ssize_t _size

    def __cinit__(self, int fd, Py_ssize_t size):
        if size <= 0:
            raise ValueError(f"size must be above 0, not {size}")
        self._at = map_file(fd, size)
        if self._at == NULL:
            error = last_error()
            raise OSError(error, os.strerror(error))
        self._size = size

    def __dealloc__(self):
        if self._at != NULL:
            unmap(self._at, self._size)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self._at, self._size, 0, flags)

    def __reduce__(self):
        raise TypeError("a Mapping belongs to one process and cannot be copied or pickled")
