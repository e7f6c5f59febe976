# cython: freethreading_compatible=True
"""Messages: what a ring gave out, as two columns, and the memory that they lie in.

Messages owns two columns that a ring has filled, and shows them as numpy arrays. It
does not change after it was made, so threads may share it.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.number cimport PyNumber_AsSsize_t
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from ringbuf._core.atomics cimport (
    cas_total, exchange_total, fetch_add_relaxed, fetch_sub_total, load_relaxed,
)
from ringbuf._core.buffers cimport fill_bytes
from ringbuf._core.counts cimport up_to, whole
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pinning cimport borrow_bytes, pins
from ringbuf._messages.arrow cimport lend

import numpy as np

from ringbuf._core.masked import has_masked

cdef enum:
    SPARE_BYTES = 64 * 1024  # smaller blocks come from the heap without page faults
    # As in columns.pxd: one to fill, one with the consumer, and one for the next.
    MAX_SPARES = 3

cdef object BYTES = np.dtype(np.uint8)
cdef object PLACES = np.dtype(np.int64)
cdef int64_t NOWHERE = 0  # the offsets of no messages
# In Block._users, above any number of them.
cdef uint64_t ENDED = <uint64_t>1 << 32
# The key that makes Messages and their blocks: `__new__` alone would make some of no
# memory.
cdef object OURS = object()
# One tuple for all: one for each would cost as much as all else that is made for
# Messages.
cdef tuple KEY = (OURS,)


cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX


cdef extern from *:
    """
    static inline PyObject *ringbuf_new_of(PyObject *type, PyObject *arguments) {
        return ((PyTypeObject *)type)->tp_new((PyTypeObject *)type, arguments, NULL);
    }
    """
    object new_of "ringbuf_new_of"(object kind, tuple arguments)


@cython.final
cdef class Parts:
    pass


@cython.final
cdef class Messages:
    """Messages as two columns: message i is data[offsets[i]:offsets[i + 1]].

    first_seq: the first one's sequence number. Indexing and iterating give bytes,
        slicing gives Messages that share the memory.
    """

    def __cinit__(self, key=None):
        self._offsets = &NOWHERE  # until new_messages, from_columns or _share set it
        if key is not OURS:
            raise TypeError(
                "Messages are made by MessageRing.pop_many(), MessageRing.take() and "
                "Messages.from_columns()"
            )

    @staticmethod
    def from_columns(data, offsets, first_seq=0):
        """Messages over columns that exist already, without a copy: message i is
        data[offsets[i]:offsets[i + 1]].

        data: C-contiguous numpy array of uint8, offsets: of int64, at least one,
        ascending, within data. Offsets are copied; data is not, and cannot be resized
        as long as the messages are used. Raises TypeError or ValueError.

        >>> import numpy as np
        >>> data = np.frombuffer(b"onetwo", np.uint8)
        >>> Messages.from_columns(data, np.array([0, 3, 6]), first_seq=7).tolist()
        [b'one', b'two']
        """
        cdef Messages messages
        cdef Py_buffer view
        cdef Py_ssize_t i, count
        cdef uint64_t first
        cdef bint ascending
        data = column("data", data, np.uint8)
        offsets = column("offsets", offsets, np.int64)
        number = whole(first_seq, "first_seq")
        held = pins(data)
        PyObject_GetBuffer(offsets, &view, PyBUF_SIMPLE)
        try:
            count = view.len // 8 - 1
            if count < 0:
                raise ValueError(
                    "offsets must not be empty: there is one more than there are messages"
                )
            if not 0 <= number <= <uint64_t>0xFFFFFFFFFFFFFFFF - <uint64_t>count:
                raise ValueError(f"first_seq must be from 0 to 2**64 - 1 - {count}, not {number}")
            first = number
            messages = messages_in(new_block((count + 1) * 8, None), count, first)
            memcpy(messages._offsets, view.buf, (count + 1) * 8)
        finally:
            PyBuffer_Release(&view)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        messages._data = <unsigned char*>view.buf
        messages._size = view.len
        PyBuffer_Release(&view)
        # Of the copy, which no other thread can change.
        ascending = messages._offsets[0] >= 0 and messages._offsets[count] <= messages._size
        for i in range(count):
            ascending &= messages._offsets[i] <= messages._offsets[i + 1]
        if not ascending:
            messages._offsets = &NOWHERE
            raise ValueError(f"offsets must ascend within the {messages._size:,} bytes of data")
        if messages._size > 0:
            messages._source = memoryview(data).toreadonly()
        messages._pins = held
        return messages

    def __dealloc__(self):
        # The arrays first: if they have no other user, the block is free after `leave`.
        self._data_array = self._offsets_array = self._source = None
        if self._block is not None:
            self._block.leave()

    @property
    def data(self):
        """All payloads: a read-only numpy array of uint8."""
        with cython.critical_section(self):
            if self._data_array is None:
                self._data_array = self._column_of(self._source, BYTES, self._data, self._size)
            array = self._data_array
        return array

    @property
    def offsets(self):
        """Where each message starts in `data`, and at the end where the last one ends:
        a read-only numpy array of int64.
        """
        with cython.critical_section(self):
            if self._offsets_array is None:
                self._offsets_array = self._column_of(
                    self._block, PLACES, self._offsets, self._count + 1
                )
            array = self._offsets_array
        return array

    cdef object _column_of(self, source, dtype, const void* start, Py_ssize_t count):
        """An array of what lies at `start`. It holds a read-only buffer of `source`, so
        numpy will not make the array writable either.
        """
        if source is None:
            return np.frombuffer(b"", dtype)
        cdef const unsigned char* first = self._data
        if source is self._block:
            first = self._block.start()
        return np.frombuffer(source, dtype, count, <const unsigned char*>start - first)

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
            return self._share(start, stop - start)
        i = PyNumber_AsSsize_t(index, IndexError)
        if i < 0:
            i += self._count
        if not 0 <= i < self._count:
            raise IndexError(f"message {index} of {self._count}")
        return PyBytes_FromStringAndSize(
            <char*>self._data + self._offsets[i], self._offsets[i + 1] - self._offsets[i]
        )

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self._count):
            yield PyBytes_FromStringAndSize(
                <char*>self._data + self._offsets[i], self._offsets[i + 1] - self._offsets[i]
            )

    def tolist(self):
        """The messages as a list of bytes."""
        cdef Py_ssize_t i
        return [
            PyBytes_FromStringAndSize(
                <char*>self._data + self._offsets[i], self._offsets[i + 1] - self._offsets[i]
            )
            for i in range(self._count)
        ]

    def __array__(self, dtype=None, copy=None):
        """The messages as a numpy array of bytes objects."""
        if dtype is not None and np.dtype(dtype) != np.dtype(object):
            raise TypeError(
                f"messages have no common size: their array is one of objects, not of {dtype}"
            )
        if copy is False:
            raise ValueError("an array of bytes objects is always a copy; use .data and .offsets")
        array = np.empty(self._count, dtype=object)
        array[:] = self.tolist()
        return array

    def __arrow_c_array__(self, requested_schema=None):
        """The messages as an Arrow large-binary array that shares the memory
        (`pyarrow.array(messages)`).
        """
        return lend(self, self._offsets, self._data, self._count)

    def join(self, sep=b"\n", end=b""):
        """All messages as one bytes object, with `sep` between them and `end` after the
        last.
        """
        cdef bytes separator = bytes_of(sep, "sep"), ending = bytes_of(end, "end")
        if self._count == 0:
            return b""
        cdef size_t width = len(separator)
        cdef size_t size = self.nbytes + (self._count - 1) * width + len(ending)
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, size)
        cdef char* target = PyBytes_AS_STRING(joined)
        cdef const char* between = PyBytes_AS_STRING(separator)
        # No other thread has the new object yet, so it may be written without the GIL.
        if size >= NOGIL_BYTES:
            with nogil:
                target = join_into(target, self._data, self._offsets, self._count, between, width)
        else:
            target = join_into(target, self._data, self._offsets, self._count, between, width)
        memcpy(target, PyBytes_AS_STRING(ending), len(ending))
        return joined

    def join_into(self, target, start=0, sep=b"\n"):
        """Write messages from number `start` on into a writable buffer, each followed
        by `sep`, as many as fit.

        Returns (messages, bytes written); (0, 0) where not even one fits. For sinks
        that write from one small buffer, which stays in the cache, instead of a second
        copy of all messages.
        """
        cdef Py_buffer view
        cdef bytes separator = bytes_of(sep, "sep")
        cdef Py_ssize_t first = up_to(start, "start", self._count), low, high, middle
        cdef int64_t width = len(separator), size
        cdef const char* between
        cdef char* end
        _held = pins(target)
        borrow_bytes(target, &view, True, "target")
        try:
            # The most messages that fit: their ends ascend.
            low, high = first, self._count
            while low < high:
                middle = (low + high + 1) // 2
                size = self._offsets[middle] - self._offsets[first] + (middle - first) * width
                if size <= view.len:
                    low = middle
                else:
                    high = middle - 1
            if low > first:
                between = PyBytes_AS_STRING(separator)
                if view.len >= NOGIL_BYTES:
                    with nogil:
                        end = join_into(
                            <char*>view.buf, self._data, self._offsets + first, low - first,
                            between, width
                        )
                else:
                    end = join_into(
                        <char*>view.buf, self._data, self._offsets + first, low - first, between,
                        width
                    )
                memcpy(end, between, width)
        finally:
            PyBuffer_Release(&view)
        return low - first, self._offsets[low] - self._offsets[first] + (low - first) * width

    cdef Messages _share(self, Py_ssize_t start, Py_ssize_t count):
        """Some of them, in the same memory."""
        cdef Messages messages = messages_in(self._block, count, self.first_seq + start)
        messages._offsets = self._offsets + start
        messages._data = self._data
        messages._size = self._size
        messages._source = self._source
        messages._pins = self._pins
        return messages

    def __repr__(self):
        return f"Messages({self._count} messages, {self.nbytes} bytes, first_seq={self.first_seq})"


cdef bytes bytes_of(object text, str name):
    """The text between messages, or after the last, as bytes."""
    cdef Py_buffer view
    if type(text) is bytes:
        return text
    if not PyObject_CheckBuffer(text):
        raise TypeError(
            f"{name} must be bytes, or another buffer of bytes, not {type(text).__name__}"
        )
    borrow_bytes(text, &view, False, name)
    try:
        return PyBytes_FromStringAndSize(<char*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef char* join_into(
    char* target, const unsigned char* data, const int64_t* offsets, Py_ssize_t count,
    const char* sep, size_t width
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
    cdef size_t table = (count + 1) * sizeof(int64_t)
    cdef Messages messages = messages_in(new_block(table + size, spares), count, 0)
    messages._offsets[0] = 0
    messages._data = messages._block.start() + table
    messages._size = size
    messages._source = messages._block
    return messages


cdef Messages messages_in(Block block, Py_ssize_t count, uint64_t first_seq):
    """Messages whose offsets lie at the start of the block; the caller sets the data.
    """
    cdef Messages messages = new_of(Messages, KEY)
    fetch_add_relaxed(&block._users, 1)
    messages._block = block
    messages._offsets = <int64_t*>block.start()
    messages._count = count
    messages.first_seq = first_seq
    return messages


cdef Block new_block(uint64_t size, Spares spares):
    cdef Block block = new_of(Block, KEY)
    block._chunk = spares.get(size) if spares is not None else new_chunk(size)
    block._nbytes = size
    block._spares = spares
    return block


# So that `_spares` is still there when the last buffer comes back; it refers to
# nothing.
@cython.no_gc
@cython.final
cdef class Block:
    """Memory that Messages and arrays show; counts its users, with the GIL or without
    it.

    It lends no buffer to write, nor any once the memory has gone on to `_spares`. Only
    a ring writes here, before other threads have the Messages.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a Block is made for Messages")

    def __dealloc__(self):
        PyMem_Free(self._chunk)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef uint64_t users = load_relaxed(&self._users)
        if flags & PyBUF_WRITABLE:
            raise BufferError("messages cannot be written")
        while True:
            if users & ENDED:
                raise BufferError("the messages are gone")
            if cas_total(&self._users, &users, users + 1):
                break
        buffer.obj = self
        fill_bytes(buffer, self.start(), &self._nbytes, True)

    def __releasebuffer__(self, Py_buffer* buffer):
        self.leave()

    cdef unsigned char* start(self) noexcept:
        return <unsigned char*>(self._chunk + 1)

    cdef void leave(self) noexcept:
        """One user less; after the last the memory may serve others."""
        cdef uint64_t none = 0
        if fetch_sub_total(&self._users, 1) != 1 or self._spares is None:
            return
        if cas_total(&self._users, &none, ENDED):
            self._spares.put(self._chunk)
            self._chunk = NULL


cdef Chunk* new_chunk(uint64_t size) except NULL:
    cdef Chunk* chunk = NULL
    if size <= <uint64_t>PY_SSIZE_T_MAX - sizeof(Chunk):
        chunk = <Chunk*>PyMem_Malloc(sizeof(Chunk) + size)
    if chunk == NULL:
        raise MemoryError()
    chunk.size = size
    return chunk


@cython.final
cdef class Spares:
    """Memory of messages that are gone, for those to come; for any number of threads.

    A fresh block of some MB costs a page fault for every 4 KiB, which is more than
    copying into it; so the memory of Messages that have no users left is kept, and the
    next ones get it.
    """

    def __dealloc__(self):
        cdef int i
        for i in range(MAX_SPARES):
            PyMem_Free(<Chunk*>load_relaxed(&self._chunks[i]))

    cdef Chunk* get(self, uint64_t size) except NULL:
        cdef Chunk* chunk
        cdef uint64_t none
        cdef int i
        if size < SPARE_BYTES:
            return new_chunk(size)
        for i in range(MAX_SPARES):
            # This thread's alone from here on.
            chunk = <Chunk*>exchange_total(&self._chunks[i], 0)
            if chunk == NULL:
                continue
            # One that is much too large is left for others.
            if size <= chunk.size <= 4 * size:
                return chunk
            none = 0
            if not cas_total(&self._chunks[i], &none, <uint64_t>chunk):
                PyMem_Free(chunk)
        # Rounded up, so that the next ones, of nearly the same size, can use it too.
        return new_chunk((size + size // 8 + 4095) & ~<uint64_t>4095)

    cdef void put(self, Chunk* chunk) noexcept:
        cdef uint64_t none
        cdef int i
        if chunk.size >= SPARE_BYTES:
            for i in range(MAX_SPARES):
                none = 0
                if cas_total(&self._chunks[i], &none, <uint64_t>chunk):
                    return
            chunk = <Chunk*>exchange_total(
                &self._chunks[fetch_add_relaxed(&self._turn, 1) % MAX_SPARES], <uint64_t>chunk
            )
        PyMem_Free(chunk)


cdef object column(name, array, dtype):
    """A numpy array of that dtype, one dimension and no gaps, as a plain array."""
    if has_masked(array):
        raise ValueError(f"{name} must not be masked")
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name} must be a numpy array of {np.dtype(dtype)}, not {type(array).__name__}"
        )
    array = np.asarray(array)
    if array.dtype != dtype:
        raise TypeError(f"{name} must be a numpy array of {np.dtype(dtype)}, not {array.dtype}")
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous and have one dimension, not {array.ndim}")
    return array
