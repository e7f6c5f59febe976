# cython: freethreading_compatible=True
"""Gathered: messages from Python objects, on their way into a ring.

Gathered checks what a caller handed over and notes where each message lies, so that the
ring copies from there; nothing is copied here. It keeps the objects alive, and their
memory in place, whatever the caller does with its list or array meanwhile. It does not
change after it was made, so threads may share it.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport (
    PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM,
)
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.gil cimport HAS_GIL
from ringbuf._core.pinning cimport pins
from ringbuf._messages.arrow cimport Lent, borrow_array, borrow_stream

import numpy as np

from ringbuf._core.masked import plain_array
from ringbuf._messages.offered import (
    check_array, check_offered, has_numpy_dtype, refuse_message,
)

cdef enum:
    # Python objects lie anywhere, so the cache has to be told what is needed next, this
    # many of them ahead. For log lines that are not in the cache add_events takes 24 ns
    # each instead of 31; for those that are it makes no difference.
    AHEAD = 16

cdef str MASKED = (
    "messages that are masked have no value: fill them (messages.filled(...)) or leave them out"
)

cdef const char* NOTHING = b""  # where messages of no bytes lie: memcpy takes no NULL


cdef extern from *:
    """
    #if defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    #define RINGBUF_PREFETCH(p) _mm_prefetch((p), _MM_HINT_T1)
    #else
    #define RINGBUF_PREFETCH(p) __builtin_prefetch((p), 0, 2)
    #endif
    /* Four cache lines: the object's head, and what a log line has. */
    static inline void ringbuf_prefetch_event(const void *object) {
        const char *p = (const char *)object;
        RINGBUF_PREFETCH(p);
        RINGBUF_PREFETCH(p + 64);
        RINGBUF_PREFETCH(p + 128);
        RINGBUF_PREFETCH(p + 192);
    }
    /* Of a longer one, what comes after these. */
    static inline void ringbuf_prefetch_rest(const char *start, size_t size) {
        for (size_t at = 192; at < size && at < 512; at += 64) RINGBUF_PREFETCH(start + at);
    }
    """
    void prefetch_event "ringbuf_prefetch_event"(const void* item) noexcept nogil
    void prefetch_rest "ringbuf_prefetch_rest"(const char* start, size_t size) noexcept nogil


cdef extern from "Python.h":
    void PyObject_GC_UnTrack(void* item)
    const Py_ssize_t PY_SSIZE_T_MAX


class MessageTooLarge(ValueError):
    """A message that never fits.

    index: which one of those that were given. nbytes: its size. limit: the ring's, in
    bytes.
    """

    def __init__(self, index, nbytes, limit):
        super().__init__(
            f"message {index} has {nbytes:,} bytes and the ring holds at most {limit:,} in one "
            "message: make the ring larger"
        )
        self.index = index
        self.nbytes = nbytes
        self.limit = limit

    def __reduce__(self):
        return type(self), (self.index, self.nbytes, self.limit), self.__dict__


@cython.final
cdef class PushProgress:
    """What the pushes of one call have brought into a ring.

    A push writes it before it returns. So what is in is known whatever comes then: a
    signal's handler that raises takes away what the push would have returned.

    pushed: messages that are in. remaining: the others; its owner may set it.
    consumed: bytes of the chunk that are in. first_seq: number of the first message,
    where any is in.
    """

    def __cinit__(self, int64_t remaining):
        self.remaining = remaining


cdef int refuse_length(size_t index, size_t nbytes, uint64_t limit) except -1:
    raise MessageTooLarge(index, nbytes, limit)


cdef const char* refuse_kind(object message) except NULL:
    refuse_message(message)
    return NULL


@cython.final
cdef class Gathered:
    """Messages from Python objects, checked, as a column of pointers; keeps the objects
    alive and their memory in place.

    Raises TypeError or ValueError for anything that `MessageRing.push_many` does not
    take.
    """

    def __cinit__(self, messages, uint64_t limit=4294967295):
        if type(messages) is list or type(messages) is tuple:
            self._gather_objects(messages, limit)
            return
        if isinstance(messages, np.ndarray):
            self._gather_array(messages, limit)
            return
        check_offered(messages)
        if has_numpy_dtype(messages):
            self._gather_array(messages, limit)
        elif hasattr(messages, "__arrow_c_array__"):
            self._gather_columns(borrow_array(messages), limit)
        elif hasattr(messages, "__arrow_c_stream__"):
            self._gather_stream(messages, limit)
        else:
            self._gather_objects(messages, limit)

    def __dealloc__(self):
        PyMem_Free(self.column.starts)

    def __len__(self):
        return self.column.count

    @property
    def nbytes(self):
        """Bytes of payload."""
        cdef uint64_t total = 0
        cdef int64_t i
        for i in range(self.column.count):
            total += self.column.lengths[i]
        return total

    cdef _allocate(self, Py_ssize_t count):
        # One block: the pointers, then the lengths.
        cdef void* block = NULL
        if count < PY_SSIZE_T_MAX // <Py_ssize_t>(sizeof(char*) + sizeof(uint32_t)):
            block = PyMem_Malloc(max(count, 1) * (sizeof(char*) + sizeof(uint32_t)))
        if block == NULL:
            raise MemoryError()
        self.column.starts = <const char**>block
        self.column.lengths = <uint32_t*>(<char*>block + count * sizeof(char*))
        self.column.count = count

    cdef _gather_objects(self, messages, uint64_t limit):
        cdef Py_ssize_t i, count
        cdef tuple items
        # A tuple of our own: the caller may change its list while the messages wait for
        # room, and a subclass may misstate its length and items.
        if (
            HAS_GIL and type(messages) is list and messages
            and self._gather_list(<list>messages, limit)
        ):
            return
        items = tuple(messages)
        count = PyTuple_GET_SIZE(items)
        self._allocate(count)
        self._keep = items
        for i in range(count):
            if i + AHEAD < count:
                prefetch_event(PyTuple_GET_ITEM(items, i + AHEAD))
            self._note(i, <object>PyTuple_GET_ITEM(items, i), limit)

    cdef bint _gather_list(self, list messages, uint64_t limit) except -1:
        """Copy and check in one pass, so that each object is fetched from memory once;
        False: a collection has changed the list.
        """
        cdef Py_ssize_t i, count = PyList_GET_SIZE(messages)
        cdef tuple items = PyTuple_New(count)
        # The collector must not find it before it is full; its items refer to nothing.
        PyObject_GC_UnTrack(<void*>items)
        if PyList_GET_SIZE(messages) != count:
            return False
        self._allocate(count)
        self._keep = items
        # Nothing in here runs Python code, so the list stays what it is.
        for i in range(count):
            if i + AHEAD < count:
                prefetch_event(PyList_GET_ITEM(messages, i + AHEAD))
            item = <object>PyList_GET_ITEM(messages, i)
            Py_INCREF(item)
            PyTuple_SET_ITEM(items, i, item)
            self._note(i, item, limit)
        return True

    cdef inline int _note(self, Py_ssize_t i, object item, uint64_t limit) except -1:
        cdef Py_ssize_t size
        cdef const char* start = text_of(item, &size)
        prefetch_rest(start, size)
        if <uint64_t>size > limit:
            raise MessageTooLarge(i, size, limit)
        self.column.starts[i] = start
        self.column.lengths[i] = <uint32_t>size
        return 0

    cdef _gather_array(self, messages, uint64_t limit):
        cdef Py_buffer view
        cdef Py_ssize_t i, size, length, count
        cdef const char* start
        cdef const char* item
        cdef bint is_padded
        array = plain_array(messages, MASKED)
        check_array(array.dtype, array.ndim)
        kind = array.dtype.kind
        if kind == "O" or kind == "T":
            self._gather_objects(array.tolist(), limit)
            return
        array = np.ascontiguousarray(array)
        count = array.size
        self._keep = array, pins(array)
        PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
        start = <const char*>view.buf if view.buf != NULL else NOTHING
        size = view.itemsize
        if size > 0:
            count = view.len // size
        PyBuffer_Release(&view)  # `pins` hold the memory
        self._allocate(count)
        is_padded = kind == "S"
        for i in range(count):
            item = start + i * size
            length = size
            # As numpy itself reads it: NULs at the end are padding, wherever they are
            # from.
            while is_padded and length > 0 and item[length - 1] == 0:
                length -= 1
            if <uint64_t>length > limit:
                raise MessageTooLarge(i, length, limit)
            self.column.starts[i] = item
            self.column.lengths[i] = <uint32_t>length

    cdef _gather_stream(self, messages, uint64_t limit):
        try:
            columns = borrow_stream(messages)
        except ImportError:
            # pandas needs another library for it, and has items all the same.
            if not hasattr(messages, "__len__"):
                raise
            self._gather_objects(messages, limit)
            return
        self._gather_columns(columns, limit)

    cdef _gather_columns(self, list columns, uint64_t limit):
        cdef Lent lent
        cdef int64_t i, size, count = 0, at = 0
        cdef const char* start
        for lent in columns:
            count += lent.array.length
        self._allocate(count)
        self._keep = columns
        for lent in columns:
            for i in range(lent.array.length):
                size = lent.place(i, &start)
                if <uint64_t>size > limit:
                    raise MessageTooLarge(at, size, limit)
                self.column.starts[at] = start if start != NULL else NOTHING
                self.column.lengths[at] = <uint32_t>size
                at += 1
