# cython: freethreading_compatible=True
"""Messages as columns, outside of a ring: `Gathered` on the way in, `Messages` on the way out.

Gathered checks what Python handed over and notes where each message lies, so that the ring copies from there; nothing is
copied here. It owns what it points to, whatever its callers do with their list or array meanwhile. Messages owns two numpy
arrays that a ring has filled. Neither changes after it was made, so threads may share them.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_Check
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ringbuf._core.gil cimport HAS_GIL
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._messages.arrow cimport Borrowed, borrow, lend, offset_at

import numpy as np

from ringbuf._core.pinning import pins

cdef enum:
    # Python objects lie anywhere, so the cache has to be told what is needed next, this many of them ahead. For log lines that
    # are not in the cache add_events takes 24 ns each instead of 31, for those that are it makes no difference.
    AHEAD = 16
    SPARE_BYTES = 64 * 1024  # smaller blocks come from the heap without page faults
    MAX_SPARES = 3           # one being filled, one with the consumer, and one for the next

cdef int64_t NOWHERE = 0  # the offsets of no messages


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
    const Py_ssize_t PY_SSIZE_T_MAX
    Py_ssize_t Py_REFCNT(object)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


class MessageTooLarge(ValueError):
    """A message that never fits: its `index` in what was given, its size `nbytes`, and the ring's `limit` in bytes."""

    def __init__(self, index, nbytes, limit):
        super().__init__(
            f"message {index} has {nbytes:,} bytes and the ring holds at most {limit:,} in one message: make the ring larger"
        )
        self.index = index
        self.nbytes = nbytes
        self.limit = limit


@cython.final
cdef class Gathered:
    """Messages from Python objects, checked, as a column of pointers; keeps the objects, and their memory where it is.

    Raises TypeError or ValueError for anything that `MessageRing.push_many` does not take.
    """

    def __cinit__(self, messages, uint64_t limit=4294967295):
        if isinstance(messages, (bytes, bytearray, memoryview, str)):
            raise TypeError(f"messages must be a sequence of bytes or str, not one {type(messages).__name__}: give [message]")
        if isinstance(messages, np.ndarray):
            self._gather_array(messages, limit)
            return
        if hasattr(messages, "__arrow_c_array__"):
            self._gather_arrow(messages, limit)
            return
        if not hasattr(messages, "__len__"):
            raise TypeError(f"messages must be a sequence of bytes or str, not {type(messages).__name__}: give list(...)")
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
        cdef Py_ssize_t i, size
        cdef const char* start
        # Our own: a list is the caller's, who may change it while its messages wait for room. Also whatever a subclass says of
        # its length and items, this is what it has. (An array of pointers, with a reference for each, takes as long.)
        cdef tuple items = tuple(messages)
        cdef Py_ssize_t count = PyTuple_GET_SIZE(items)
        self._allocate(count)
        self._keep = items
        for i in range(count):
            if i + AHEAD < count:
                prefetch_event(PyTuple_GET_ITEM(items, i + AHEAD))
            start = text_of(<object>PyTuple_GET_ITEM(items, i), &size)
            prefetch_rest(start, size)
            if <uint64_t>size > limit:
                raise MessageTooLarge(i, size, limit)
            self.column.starts[i] = start
            self.column.lengths[i] = <uint32_t>size

    cdef _gather_array(self, messages, uint64_t limit):
        cdef Py_buffer view
        cdef Py_ssize_t i, size, count
        cdef const char* start
        if isinstance(messages, np.ma.MaskedArray) and np.ma.is_masked(messages):
            raise ValueError("messages that are masked have no value: fill them (messages.filled(...)) or leave them out")
        array = np.asarray(messages)  # what a subclass says of itself is not asked
        if array.ndim != 1:
            raise ValueError(f"a numpy array of messages must have one dimension, not {array.ndim}")
        if array.dtype.hasobject:
            raise TypeError("a numpy array of objects has no bytes of its own: give a list of bytes or str")
        if array.dtype.kind == "U":
            raise TypeError("a numpy array of str holds UTF-32: give array.tolist(), or np.char.encode(array, 'utf-8')")
        array = np.ascontiguousarray(array)
        count = array.size
        self._keep = array, pins(array)
        PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
        start = <const char*>view.buf
        size = view.itemsize
        if size > 0:
            count = view.len // size
        PyBuffer_Release(&view)  # `pins` hold the memory
        if <uint64_t>size > limit:
            raise MessageTooLarge(0, size, limit)
        self._allocate(count)
        for i in range(count):
            self.column.starts[i] = start + i * size
            self.column.lengths[i] = <uint32_t>size

    cdef _gather_arrow(self, array, uint64_t limit):
        cdef Borrowed column
        cdef int64_t i, start = 0, end
        self._keep = borrow(array, &column)
        self._allocate(column.count)
        if column.count > 0:
            start = offset_at(&column, 0)
        for i in range(column.count):
            end = offset_at(&column, i + 1)
            if not 0 <= start <= end:
                raise ValueError(f"the offsets of the Arrow array do not ascend: message {i} is from {start} to {end}")
            if <uint64_t>(end - start) > limit:
                raise MessageTooLarge(i, end - start, limit)
            if start < end and column.data == NULL:
                raise ValueError(f"the Arrow array has no data, and message {i} has {end - start} bytes")
            self.column.starts[i] = column.data + start
            self.column.lengths[i] = <uint32_t>(end - start)
            start = end


cdef const char* text_of(object message, Py_ssize_t* size) except NULL:
    """The bytes of a bytes or str; they live as long as the object does."""
    if PyBytes_Check(message):
        size[0] = PyBytes_GET_SIZE(message)
        return PyBytes_AS_STRING(message)
    if PyUnicode_Check(message):
        return PyUnicode_AsUTF8AndSize(message, size)
    raise TypeError(f"a message must be bytes or str, not {type(message).__name__}")


@cython.final
cdef class Parts:
    pass


@cython.final
cdef class Messages:
    """Messages as two columns: message i is data[offsets[i]:offsets[i + 1]].

    data: uint8, all payloads. offsets: int64, one more than there are messages. first_seq: the first one's sequence number.
    Indexing and iterating give bytes, slicing gives Messages that share the memory.
    """

    def __cinit__(self):
        self._offsets = &NOWHERE  # until new_messages or share_messages have more to say

    def __init__(self):
        raise TypeError("Messages are made by MessageRing.pop_many(), MessageRing.take() and Messages.from_columns()")

    @staticmethod
    def from_columns(data, offsets, first_seq=0):
        """Messages over columns that exist already, without a copy: message i is data[offsets[i]:offsets[i + 1]].

        data: C-contiguous numpy array of uint8, offsets: of int64, at least one, ascending, within data. Neither may be changed
        or resized afterwards. Raises TypeError or ValueError.

        >>> import numpy as np
        >>> Messages.from_columns(np.frombuffer(b"onetwo", np.uint8), np.array([0, 3, 6]), first_seq=7).tolist()
        [b'one', b'two']
        """
        cdef Py_ssize_t i, count
        cdef const int64_t* places
        cdef int64_t size
        cdef bint ascending
        check_column("data", data, np.uint8)
        check_column("offsets", offsets, np.int64)
        if not len(offsets):
            raise ValueError("offsets must not be empty: there is one more than there are messages")
        count = len(offsets) - 1
        size = len(data)
        if not 0 <= first_seq <= <uint64_t>0xFFFFFFFFFFFFFFFF - <uint64_t>count:
            raise ValueError(f"first_seq must be from 0 to 2**64 - 1 - {count}, not {first_seq}")
        places = <const int64_t*>address_of(offsets)
        ascending = places[0] >= 0 and places[count] <= size
        for i in range(count):
            ascending &= places[i] <= places[i + 1]
        if not ascending:
            raise ValueError(f"offsets must ascend within the {size:,} bytes of data")
        return share_messages(data, offsets, count, first_seq)

    def __dealloc__(self):
        # Nobody but the view in `data` and this object refers to the memory, and nobody but this object to the view: then no
        # array, slice or export of it is left anywhere. Without the GIL a count of references proves nothing.
        if self._spares is not None and HAS_GIL and Py_REFCNT(self.data) == 1 and Py_REFCNT(self._memory) == 2:
            self.data = None
            self._spares.put(self._memory)

    def __len__(self):
        return self._count

    @property
    def nbytes(self):
        """Bytes of payload."""
        return self._offsets[self._count] - self._offsets[0]

    def __getitem__(self, index):
        cdef Py_ssize_t i, start, stop, step
        if isinstance(index, slice):
            start, stop, step = index.indices(self._count)
            if step != 1:
                raise ValueError("Messages can be sliced in steps of 1 only")
            stop = max(start, stop)
            return share_messages(self.data, self.offsets[start:stop + 1], stop - start, self.first_seq + start)
        i = index
        if i < 0:
            i += self._count
        if not 0 <= i < self._count:
            raise IndexError(f"message {index} of {self._count}")
        return PyBytes_FromStringAndSize(<char*>self._data + self._offsets[i], self._offsets[i + 1] - self._offsets[i])

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self._count):
            yield PyBytes_FromStringAndSize(<char*>self._data + self._offsets[i], self._offsets[i + 1] - self._offsets[i])

    def tolist(self):
        """The messages as a list of bytes."""
        cdef Py_ssize_t i
        return [
            PyBytes_FromStringAndSize(<char*>self._data + self._offsets[i], self._offsets[i + 1] - self._offsets[i])
            for i in range(self._count)
        ]

    def __array__(self, dtype=None, copy=None):
        """The messages as a numpy array of bytes objects."""
        if dtype is not None and np.dtype(dtype) != np.dtype(object):
            raise TypeError(f"messages have no common size: their array is one of objects, not of {dtype}")
        if copy is False:
            raise ValueError("an array of bytes objects is always a copy; use .data and .offsets")
        array = np.empty(self._count, dtype=object)
        array[:] = self.tolist()
        return array

    def __arrow_c_array__(self, requested_schema=None):
        """The messages as an Arrow large-binary array that shares the memory (`pyarrow.array(messages)`)."""
        return lend((self.data, self.offsets), self._offsets, self._data, self._count)

    def join(self, sep=b"\n", end=b""):
        """All messages as one bytes object, with `sep` between them and `end` after the last."""
        cdef bytes separator = bytes(sep), ending = bytes(end)
        if self._count == 0:
            return b""
        cdef size_t width = len(separator)
        cdef size_t size = self.nbytes + (self._count - 1) * width + len(ending)
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, size)
        cdef char* target = PyBytes_AS_STRING(joined)
        cdef const char* between = PyBytes_AS_STRING(separator)
        # Nobody else has seen the new object yet, so it may be written without the GIL.
        if size >= NOGIL_BYTES:
            with nogil:
                target = join_into(target, self._data, self._offsets, self._count, between, width)
        else:
            target = join_into(target, self._data, self._offsets, self._count, between, width)
        memcpy(target, PyBytes_AS_STRING(ending), len(ending))
        return joined

    def join_into(self, target, Py_ssize_t start=0, sep=b"\n"):
        """Write messages from number `start` on into a writable buffer, each followed by `sep`, as many as fit.

        Returns (messages, bytes written); (0, 0) where not even one fits. For sinks that write out of one small buffer, which
        stays in the cache, rather than out of a second copy of it all.
        """
        cdef Py_buffer view
        cdef bytes separator = bytes(sep)
        cdef Py_ssize_t low, high, middle
        cdef int64_t width = len(separator)
        cdef const char* between
        cdef char* end
        if not 0 <= start <= self._count:
            raise ValueError(f"start must be from 0 to {self._count}, not {start}")
        _held = pins(target)
        PyObject_GetBuffer(target, &view, PyBUF_WRITABLE)
        try:
            # The most messages that fit: their ends ascend.
            low, high = start, self._count
            while low < high:
                middle = (low + high + 1) // 2
                if self._offsets[middle] - self._offsets[start] + (middle - start) * width <= view.len:
                    low = middle
                else:
                    high = middle - 1
            if low > start:
                between = PyBytes_AS_STRING(separator)
                if view.len >= NOGIL_BYTES:
                    with nogil:
                        end = join_into(<char*>view.buf, self._data, self._offsets + start, low - start, between, width)
                else:
                    end = join_into(<char*>view.buf, self._data, self._offsets + start, low - start, between, width)
                memcpy(end, between, width)
        finally:
            PyBuffer_Release(&view)
        return low - start, self._offsets[low] - self._offsets[start] + (low - start) * width

    def __repr__(self):
        return f"Messages({self._count} messages, {self.nbytes} bytes, first_seq={self.first_seq})"


cdef char* join_into(
    char* target, const unsigned char* data, const int64_t* offsets, Py_ssize_t count, const char* sep, size_t width
) noexcept nogil:
    cdef Py_ssize_t i
    cdef size_t size
    for i in range(count):
        if i > 0:
            if width == 1:
                target[0] = sep[0]
            else:
                memcpy(target, sep, width)
            target += width
        size = offsets[i + 1] - offsets[i]
        memcpy(target, data + offsets[i], size)
        target += size
    return target


cdef Messages new_messages(uint64_t count, uint64_t size, Spares spares):
    """Messages with columns of that size, to be filled."""
    cdef Messages messages
    if count == 0:
        return share_messages(np.empty(0, np.uint8), np.zeros(1, np.int64), 0, 0)
    memory = spares.get(size)
    messages = share_messages(memory[:size], np.empty(count + 1, np.int64), count, 0)
    messages._memory = memory
    messages._spares = spares
    return messages


@cython.final
cdef class Spares:
    """Memory of messages that are gone, for those to come.

    A fresh block of some MB costs a page fault for every 4 KiB, which is more than copying into it; so the block of Messages
    that nobody refers to any more is kept, and the next ones get it.
    """

    def __cinit__(self):
        self._blocks = []

    cdef object get(self, uint64_t size):
        cdef Py_ssize_t i
        blocks = self._blocks
        if size < SPARE_BYTES or not HAS_GIL:
            return np.empty(size, np.uint8)
        for i in range(len(blocks)):
            # One that is much too large is for others.
            if size <= <uint64_t>len(blocks[i]) <= 4 * size:
                return blocks.pop(i)
        # Rounded up, so that the next ones, of nearly the same size, can have it as well.
        return np.empty((size + size // 8 + 4095) & ~<uint64_t>4095, np.uint8)

    cdef void put(self, memory):
        if len(self._blocks) >= MAX_SPARES:
            self._blocks.pop(0)
        self._blocks.append(memory)


cdef Messages share_messages(data, offsets, Py_ssize_t count, uint64_t first_seq):
    cdef Messages messages = Messages.__new__(Messages)
    messages.data = data
    messages.offsets = offsets
    messages._data = <unsigned char*>address_of(data)
    messages._offsets = <int64_t*>address_of(offsets)
    messages._count = count
    messages.first_seq = first_seq
    return messages


cdef check_column(name, array, dtype):
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        raise TypeError(f"{name} must be a numpy array of {np.dtype(dtype)}, not {getattr(array, 'dtype', type(array).__name__)}")
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous and have one dimension, not {array.ndim}")


cdef size_t address_of(array) except? 1:
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    cdef size_t address = <size_t>view.buf
    # The array itself is kept, so its memory stays; ours is never resized.
    PyBuffer_Release(&view)
    return address
