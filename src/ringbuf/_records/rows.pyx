# cython: freethreading_compatible=True
"""Records of a dtype of raw bytes or with fields, one at a time: the bytes of one that
is pushed, and the np.void of one that is popped, without an array for each.

In. What is of the ring's dtype lends its bytes as they are, padding included: np.void,
an array of one row or of no dimensions, and any object with a buffer whose format says
so. Whether a dtype, or a format, is the ring's is found out once and remembered; one
that differs is never taken for it, whatever its size. A tuple of plain values is
written by tuples.pyx. Everything else goes through `as_records`, which converts or
refuses.

Out. An np.void with fields is a view of an array. Those of some pops in a row share
one, each with bytes of its own, so that making the array is shared as well: nobody
writes to a row once it is handed out but its owner.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyTypeObject
from cpython.sequence cimport PySequence_GetItem
from cpython.tuple cimport PyTuple_Check
from libc.stdint cimport uint64_t
from libc.string cimport memset, strcmp

from ringbuf._core.atomics cimport in_section
from ringbuf._records.tuples cimport writer_of

import numpy as np

from ringbuf._records.convert import format_of

cdef enum:
    # An array takes as long as several views of one: by 32 rows it is little for each.
    BLOCK_ROWS = 32
    # … and a row that is kept keeps no more than this, or itself, alive.
    BLOCK_BYTES = 1024

cdef object VOID = np.void
cdef object RECORD = np.record
cdef object NDARRAY = np.ndarray
cdef object RECARRAY = np.recarray
cdef object GENERIC = np.generic
# Not the attributes: np.record and np.recarray look them up in Python code.
cdef object DTYPE_OF_VOID = np.void.dtype
cdef object DTYPE_OF_ARRAY = np.ndarray.dtype
cdef object NAMES_OF_DTYPE = np.dtype.names


cdef extern from *:
    """
    /* The attribute of an object by its descriptor, without a look-up by name: the object is of
       the type that has it, or of one derived from that. */
    static inline PyObject *ringbuf_read(PyObject *descriptor, PyObject *owner) {
        if (Py_IS_TYPE(descriptor, &PyGetSetDescr_Type)) {
            PyGetSetDef *found = ((PyGetSetDescrObject *)descriptor)->d_getset;
            return found->get(owner, found->closure);
        }
        return Py_TYPE(descriptor)->tp_descr_get(
            descriptor, owner, (PyObject *)Py_TYPE(owner));
    }

    /* Whether the object lends the buffer. Why not does not matter, unless it is no error, as
       what a signal's handler raises. */
    static inline int ringbuf_lends(PyObject *owner, Py_buffer *view, int flags) {
        if (PyObject_GetBuffer(owner, view, flags) == 0) return 1;
        if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
        PyErr_Clear();
        return 0;
    }
    """
    object read "ringbuf_read"(object descriptor, object owner)
    # Without the `__instancecheck__` that isinstance() looks for.
    bint is_a "PyObject_TypeCheck"(object one, PyTypeObject* kind) noexcept
    bint lends "ringbuf_lends"(object owner, Py_buffer* view, int flags) except -1


@cython.final
cdef class Rows:
    """The rows of one ring, or of one handle."""

    cdef Rows of_handle(self):
        """One for a handle, which shares what does not change."""
        cdef Rows rows = Rows.__new__(Rows)
        rows._dtype = self._dtype
        rows._itemsize = self._itemsize
        rows._has_fields = self._has_fields
        rows._writer = self._writer
        return rows

    # ---------------------------------------------------------------- in

    cdef bint lend(self, object record, Py_buffer* view) except -1:
        """Lend the bytes of a record of the dtype, until PyBuffer_Release; False: it is
        none, or has to be looked at by `as_records`.
        """
        kind = type(record)
        if kind is VOID or kind is RECORD:
            if not self.is_ours(read(DTYPE_OF_VOID, record)):
                return False
            PyObject_GetBuffer(record, view, PyBUF_SIMPLE)
        elif kind is NDARRAY or kind is RECARRAY:
            if not self.is_ours(read(DTYPE_OF_ARRAY, record)) or not lends(record, view, PyBUF_ND):
                return False
        else:
            return self.lend_other(record, view)
        if <uint64_t>view.len == self._itemsize and view.ndim <= 1:
            return True
        PyBuffer_Release(view)
        return False

    cdef bint is_ours(self, object dtype) except -1:
        """Whether it is the ring's dtype, or equal to it."""
        cdef bint known
        if dtype is self._dtype:
            return True
        with cython.critical_section(self):
            in_section(<void*>self, True)
            known = (
                dtype is self._equal
                and read(NAMES_OF_DTYPE, dtype) is self._equal_names
                and read(NAMES_OF_DTYPE, self._dtype) is self._own_names
            )
            in_section(<void*>self, False)
        if known:
            return True
        if dtype != self._dtype:
            return False
        with cython.critical_section(self):
            in_section(<void*>self, True)
            self._equal = dtype
            self._equal_names = read(NAMES_OF_DTYPE, dtype)
            self._own_names = read(NAMES_OF_DTYPE, self._dtype)
            in_section(<void*>self, False)
        return True

    cdef bint lend_other(self, object record, Py_buffer* view) except -1:
        """`lend`, of an object that is neither a scalar nor an array of numpy: only the
        format of its buffer tells what it holds.
        """
        # Those of a subclass may be masked, or say something else of themselves.
        if is_a(record, <PyTypeObject*>NDARRAY) or is_a(record, <PyTypeObject*>GENERIC):
            return False
        if PyTuple_Check(record):
            return False
        # Raw bytes have no format that tells them from others of that size.
        if not self._has_fields or not PyObject_CheckBuffer(record):
            return False
        if not lends(record, view, PyBUF_ND | PyBUF_FORMAT):
            return False
        try:
            if (
                <uint64_t>view.len == self._itemsize and <uint64_t>view.itemsize == self._itemsize
                and view.ndim <= 1 and view.format != NULL and self.is_format(record, view)
            ):
                return True
        except BaseException:
            PyBuffer_Release(view)
            raise
        PyBuffer_Release(view)
        return False

    cdef bint is_format(self, object record, Py_buffer* view) except -1:
        """Whether the buffer's format is the ring's dtype."""
        cdef bint known
        with cython.critical_section(self):
            in_section(<void*>self, True)
            known = (
                self._format is not None
                and strcmp(view.format, PyBytes_AS_STRING(self._format)) == 0
                and read(NAMES_OF_DTYPE, self._dtype) is self._format_names
            )
            in_section(<void*>self, False)
        if known:
            return True
        if view.format.decode("utf-8", "replace") != format_of(self._dtype):
            # Not as numpy would say it, as of a structure of ctypes.
            try:
                dtype = np.asarray(memoryview(record)).dtype
            except Exception:  # numpy cannot read it
                return False
            if dtype != self._dtype:
                return False
        with cython.critical_section(self):
            in_section(<void*>self, True)
            self._format = view.format
            self._format_names = read(NAMES_OF_DTYPE, self._dtype)
            in_section(<void*>self, False)
        return True

    cdef bint write(self, object values, unsigned char* row) except -1:
        """Write a plain tuple to `row`, which has MAX_TUPLE_BYTES; False: it is for
        `as_records`.
        """
        if self._writer is None:
            return False
        memset(row, 0, self._itemsize)
        return self._writer.write(values, row)

    # ---------------------------------------------------------------- out

    cdef object new_row(self):
        """An np.void that nothing else refers to; see `memory_of`. Other code may run
        here.
        """
        cdef Py_ssize_t place = -1
        row = block = None
        while True:
            with cython.critical_section(self):
                in_section(<void*>self, True)
                if self._unused is not None:
                    row, self._unused = self._unused, None
                elif self._next < self._count:
                    block, place = self._block, self._next
                    self._next += 1
                in_section(<void*>self, False)
            if row is not None:
                return row
            if place >= 0:
                return PySequence_GetItem(block, place)
            block = np.zeros(
                max(1, min(<uint64_t>BLOCK_ROWS, BLOCK_BYTES // self._itemsize)), self._dtype
            )
            with cython.critical_section(self):
                in_section(<void*>self, True)
                self._block, self._next, self._count = block, 0, len(block)
                in_section(<void*>self, False)

    cdef int keep(self, object row) except -1:
        """Keep a row that was not used for the next pop."""
        with cython.critical_section(self):
            in_section(<void*>self, True)
            self._unused = row
            in_section(<void*>self, False)
        return 0


cdef Rows rows_of(object dtype):
    """The Rows of a ring; None where records are not np.void."""
    cdef Rows rows
    if dtype.kind != "V":
        return None
    rows = Rows.__new__(Rows)
    rows._dtype = dtype
    rows._itemsize = dtype.itemsize
    rows._has_fields = dtype.names is not None
    if rows._itemsize <= MAX_TUPLE_BYTES:
        rows._writer = writer_of(dtype)
    return rows


cdef unsigned char* memory_of(object row) except NULL:
    """Where the bytes of a new row lie."""
    cdef Py_buffer view
    cdef unsigned char* memory
    PyObject_GetBuffer(row, &view, PyBUF_SIMPLE)
    memory = <unsigned char*>view.buf
    PyBuffer_Release(&view)
    return memory
