# cython: freethreading_compatible=True
"""A tuple of plain values as the bytes of a record with fields, without numpy.

It writes only what goes in without a question, and then what `as_records` would make of
it, byte for byte: ints that fit, floats, bools, bytes and str that are not too long,
times in the unit of the field, tuples for fields that have fields themselves. For all
else, and for all that is to be refused, it says so and leaves it to `as_records`: there
is one place that converts and one that refuses.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_AsDouble, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.number cimport PyNumber_Index
from cpython.ref cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_CheckExact, PyUnicode_GET_LENGTH, PyUnicode_READ_CHAR
from libc.math cimport isinf
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import numpy as np

# By their exact types: a subclass, as timedelta64 is one of int64's base, may mean
# something else by its number.
cdef frozenset NUMPY_INTS = frozenset(np.dtype(code).type for code in "bBhHiIlLqQ")
cdef object FLOAT64 = np.float64
cdef object FLOAT32 = np.float32
cdef object TRUE = np.True_
cdef object FALSE = np.False_
cdef dict KINDS = {
    "b": FLAG, "i": SIGNED, "u": UNSIGNED, "f": REAL, "S": OCTETS, "U": TEXT, "M": TIME, "m": TIME,
}


cdef extern from *:
    """
    /* The low `size` bytes of a word, in native order or the other; the target need not be
       aligned. */
    static inline void ringbuf_put_word(
        unsigned char *target, uint64_t size, uint64_t bits, int swapped) {
        unsigned char bytes[8];
        switch (size) {
        case 8: memcpy(bytes, &bits, 8); break;
        case 4: { uint32_t word = (uint32_t)bits; memcpy(bytes, &word, 4); break; }
        case 2: { uint16_t word = (uint16_t)bits; memcpy(bytes, &word, 2); break; }
        default: bytes[0] = (unsigned char)bits;
        }
        if (!swapped) memcpy(target, bytes, size);
        else for (uint64_t i = 0; i < size; i++) target[i] = bytes[size - 1 - i];
    }
    """
    void put_word "ringbuf_put_word"(
        unsigned char* target, uint64_t size, uint64_t bits, bint swapped
    ) noexcept
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object number) except? 0xFFFFFFFFFFFFFFFF


@cython.final
cdef class TupleWriter:
    """The fields of a dtype, and how to write each."""

    def __dealloc__(self):
        PyMem_Free(self._fields)

    cdef bint write(self, object values, unsigned char* row) except -1:
        """Write a plain tuple into zeroed memory; False: it is for `as_records`, and
        what was written is void.
        """
        cdef Py_ssize_t i
        if PyTuple_GET_SIZE(values) != self._count:
            return False
        for i in range(self._count):
            if not put(&self._fields[i], <object>PyTuple_GET_ITEM(values, i), row):
                return False
        return True


cdef TupleWriter writer_of(object dtype):
    """The writer for a dtype with fields; None where a field is of a kind that only
    numpy writes.
    """
    cdef TupleWriter writer = TupleWriter.__new__(TupleWriter)
    cdef Field* field
    cdef Py_ssize_t i
    if dtype.names is None:
        return None
    writer._kept = []
    writer._fields = <Field*>PyMem_Calloc(max(1, len(dtype.names)), sizeof(Field))
    if writer._fields == NULL:
        raise MemoryError()
    writer._count = len(dtype.names)
    for i in range(writer._count):
        field = &writer._fields[i]
        inner, offset = dtype.fields[dtype.names[i]][:2]
        field.offset = offset
        field.size = inner.itemsize
        field.swapped = not inner.isnative
        what = None
        if inner.names is not None:
            if inner.kind != "V":
                return None  # a number and its fields at once
            field.kind = INNER
            what = writer_of(inner)
            if what is None:
                return None
        elif inner.kind in KINDS and not (inner.kind == "f" and inner.itemsize not in (4, 8)):
            field.kind = KINDS[inner.kind]
            what = inner.newbyteorder("=") if field.kind == TIME else None
        else:
            return None
        writer._kept.append(what)
        field.what = <PyObject*>what
    return writer


cdef bint put(Field* field, object value, unsigned char* row) except -1:
    """Write one value into its place in the row; False: it is for `as_records`."""
    cdef unsigned char* target = row + field.offset
    cdef uint64_t bits = 0
    if field.kind == SIGNED or field.kind == UNSIGNED:
        if not int_bits(field, value, &bits):
            return False
    elif field.kind == REAL:
        if not float_bits(field, value, &bits):
            return False
    elif field.kind == OCTETS:
        return put_octets(field, value, target)
    elif field.kind == FLAG:
        if value is not True and value is not False and value is not TRUE and value is not FALSE:
            return False
        bits = value is True or value is TRUE
    elif field.kind == TEXT:
        return put_text(field, value, target)
    elif field.kind == TIME:
        if not time_bits(field, value, &bits):
            return False
    else:
        if not is_plain_tuple(value):
            return False
        return (<TupleWriter>field.what).write(value, target)
    put_word(target, field.size, bits, field.swapped)
    return True


cdef bint whole(object value, int64_t* number, int* overflow) except -1:
    """Whether it is an int of Python or numpy, and which, as far as 64 bits hold it."""
    if not PyLong_CheckExact(value) and value is not True and value is not False:
        if type(value) not in NUMPY_INTS:
            return False
        value = PyNumber_Index(value)
    number[0] = PyLong_AsLongLongAndOverflow(value, overflow)
    return True


cdef bint int_bits(Field* field, object value, uint64_t* bits) except -1:
    cdef int64_t number = 0
    cdef int overflow = 0, unused = 64 - 8 * <int>field.size
    if not whole(value, &number, &overflow):
        return False
    bits[0] = <uint64_t>number
    if overflow != 0:
        if overflow < 0 or field.kind == SIGNED or unused != 0:
            return False
        value = PyNumber_Index(value)
        if value.bit_length() != 64:
            return False
        bits[0] = PyLong_AsUnsignedLongLong(value)
        return True
    if field.kind == SIGNED:
        return <int64_t>(bits[0] << unused) >> unused == number
    return number >= 0 and bits[0] << unused >> unused == bits[0]


cdef bint float_bits(Field* field, object value, uint64_t* bits) except -1:
    cdef double wide = 0
    cdef float narrow = 0
    cdef uint32_t word
    cdef int64_t number = 0
    cdef int overflow = 0
    if PyFloat_CheckExact(value) or type(value) is FLOAT64:
        wide = PyFloat_AS_DOUBLE(value)
        narrow = <float>wide
    elif type(value) is FLOAT32:
        wide = PyFloat_AsDouble(value)
        narrow = <float>wide
    elif value is True or value is False or not whole(value, &number, &overflow) or overflow != 0:
        return False
    else:
        # Each rounds once.
        wide = <double>number
        narrow = <float>number
    if field.size == 8:
        memcpy(bits, &wide, sizeof(wide))
        return True
    if isinf(narrow) and not isinf(wide):
        return False
    memcpy(&word, &narrow, sizeof(narrow))
    bits[0] = word
    return True


cdef bint put_octets(Field* field, object value, unsigned char* target) noexcept:
    cdef uint64_t size
    if not PyBytes_CheckExact(value):
        return False
    size = PyBytes_GET_SIZE(value)
    if size > field.size or (size > 0 and PyBytes_AS_STRING(value)[size - 1] == 0):
        return False
    memcpy(target, PyBytes_AS_STRING(value), size)
    memset(target + size, 0, field.size - size)
    return True


cdef bint put_text(Field* field, object value, unsigned char* target) noexcept:
    cdef Py_ssize_t i, size
    if not PyUnicode_CheckExact(value):
        return False
    size = PyUnicode_GET_LENGTH(value)
    if <uint64_t>size * 4 > field.size or (size > 0 and PyUnicode_READ_CHAR(value, size - 1) == 0):
        return False
    for i in range(size):
        put_word(target + 4 * i, 4, PyUnicode_READ_CHAR(value, i), field.swapped)
    memset(target + 4 * size, 0, field.size - 4 * size)
    return True


cdef bint time_bits(Field* field, object value, uint64_t* bits) except -1:
    """The count of a scalar of numpy in the unit of the field."""
    cdef Py_buffer view
    cdef bint found
    dtype = <object>field.what
    if type(value) is not dtype.type or value.dtype != dtype:
        return False
    PyObject_GetBuffer(value, &view, PyBUF_SIMPLE)
    found = view.len == sizeof(uint64_t)
    if found:
        memcpy(bits, view.buf, sizeof(uint64_t))
    PyBuffer_Release(&view)
    return found
