"""Plain numbers as the bytes of a record and back, without numpy: for dtypes of up to 8 bytes in native order.

What a dtype can not hold as it is, is refused: an int out of range or a finite float that would become infinite by OverflowError;
a float for an integer, an int for a bool, and all that is no number by TypeError. A float32 rounds. numpy's scalars count as the
Python numbers that they stand for.
"""

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.long cimport PyLong_AsDouble, PyLong_Check
from libc.math cimport isinf
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from *:
    """
    /* Most ints in one look; the others by PyLong_As… */
    static inline int penstock_small_int(PyObject *number, long long *value) {
    #if PY_VERSION_HEX >= 0x030C0000
        if (PyLong_CheckExact(number) && PyUnstable_Long_IsCompact((PyLongObject *)number)) {
            *value = PyUnstable_Long_CompactValue((PyLongObject *)number);
            return 1;
        }
    #endif
        return 0;
    }
    """
    bint small_int "penstock_small_int"(object number, long long* value)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object number) except? 0xFFFFFFFFFFFFFFFF


cdef enum Kind:
    BY_NUMPY              # none of these: through an array of one record
    BOOL
    SIGNED
    UNSIGNED
    FLOAT


cdef inline Kind kind_of_dtype(dtype):
    if not dtype.isnative or dtype.itemsize > 8 or (dtype.kind == "f" and dtype.itemsize < 4):
        return BY_NUMPY
    return {"b": BOOL, "i": SIGNED, "u": UNSIGNED, "f": FLOAT}.get(dtype.kind, BY_NUMPY)


cdef inline int to_bits(Kind kind, uint64_t itemsize, object record, uint64_t* bits) except -1:
    """The record in the low bytes of `bits`."""
    cdef long long small
    cdef double number
    cdef int unused = 64 - 8 * <int>itemsize
    if kind == SIGNED and small_int(record, &small) and <int64_t>(<uint64_t>small << unused) >> unused == small:
        bits[0] = <uint64_t>small
        return 0
    if kind == FLOAT and unused == 0 and PyFloat_Check(record):
        number = PyFloat_AS_DOUBLE(record)
        memcpy(bits, &number, sizeof(number))
        return 0
    return to_bits_checked(kind, itemsize, record, bits)


cdef inline int to_bits_checked(Kind kind, uint64_t itemsize, object record, uint64_t* bits) except -1:
    cdef int overflow = 0, unused = 64 - 8 * <int>itemsize
    cdef int64_t number = 0
    cdef double wide
    cdef float narrow
    if not PyLong_Check(record) and not PyFloat_Check(record) and getattr(record, "shape", None) == ():
        record = record.item()
    if kind == BOOL and isinstance(record, bool):
        bits[0] = record is True
        return 0
    if kind == FLOAT and (PyFloat_Check(record) or PyLong_Check(record)):
        wide = PyFloat_AS_DOUBLE(record) if PyFloat_Check(record) else PyLong_AsDouble(record)
        if unused == 0:
            memcpy(bits, &wide, sizeof(wide))
            return 0
        narrow = <float>wide
        if isinf(narrow) and not isinf(wide):
            raise OverflowError(f"{record!r} is out of range for {name_of(kind, itemsize)}")
        bits[0] = 0
        memcpy(bits, &narrow, sizeof(narrow))
        return 0
    if kind not in (SIGNED, UNSIGNED) or not PyLong_Check(record):
        raise TypeError(f"{record!r} is no record of dtype {name_of(kind, itemsize)}")
    number = PyLong_AsLongLongAndOverflow(record, &overflow)
    if kind == UNSIGNED and unused == 0 and overflow > 0 and record.bit_length() == 64:
        bits[0] = PyLong_AsUnsignedLongLong(record)
        return 0
    if kind == UNSIGNED and (number < 0 or <uint64_t>number << unused >> unused != <uint64_t>number):
        overflow = 1
    if kind == SIGNED and <int64_t>(<uint64_t>number << unused) >> unused != number:
        overflow = 1
    if overflow:
        raise OverflowError(f"{record!r} is out of range for {name_of(kind, itemsize)}")
    bits[0] = <uint64_t>number
    return 0


cdef inline str name_of(Kind kind, uint64_t itemsize):
    if kind == BOOL:
        return "bool"
    return f"{'int' if kind == SIGNED else 'uint' if kind == UNSIGNED else 'float'}{8 * itemsize}"


cdef inline object from_bits(Kind kind, uint64_t itemsize, uint64_t bits):
    """A Python int, float or bool of the low bytes of `bits`."""
    cdef int unused = 64 - 8 * <int>itemsize
    cdef double wide
    cdef float narrow
    if kind == SIGNED:
        return <int64_t>(bits << unused) >> unused
    if kind == UNSIGNED:
        return bits
    if kind == BOOL:
        return bits != 0
    if unused == 0:
        memcpy(&wide, &bits, sizeof(wide))
        return wide
    memcpy(&narrow, &bits, sizeof(narrow))
    return narrow


# By widths, so that the order of the bytes in a word does not matter.


cdef inline void put_bits(unsigned char* target, uint64_t itemsize, uint64_t bits) noexcept nogil:
    if itemsize == 8:
        (<uint64_t*>target)[0] = bits
    elif itemsize == 4:
        (<uint32_t*>target)[0] = <uint32_t>bits
    elif itemsize == 2:
        (<uint16_t*>target)[0] = <uint16_t>bits
    else:
        target[0] = <uint8_t>bits


cdef inline uint64_t get_bits(const unsigned char* source, uint64_t itemsize) noexcept nogil:
    if itemsize == 8:
        return (<const uint64_t*>source)[0]
    if itemsize == 4:
        return (<const uint32_t*>source)[0]
    if itemsize == 2:
        return (<const uint16_t*>source)[0]
    return source[0]
