"""Plain numbers as the bytes of a record and back, without numpy: for dtypes of up to 8
bytes in native order.

What a dtype cannot hold as it is is refused: an int out of range, or a finite float
that would become infinite, by OverflowError; a float for an integer, an int for a bool,
and all that is no number, by TypeError. A float32 rounds. numpy's scalars count as the
Python numbers that they stand for.
"""

from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check, PyFloat_CheckExact
from cpython.long cimport PyLong_AsDouble, PyLong_Check
from cpython.ref cimport PyObject
from libc.math cimport isinf
from libc.stdint cimport (
    int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy


cdef extern from *:
    """
    /* Most ints by one test; the others by PyLong_As… */
    static inline int ringbuf_small_int(PyObject *number, long long *value) {
    #if PY_VERSION_HEX >= 0x030C0000
        if (PyLong_CheckExact(number) && PyUnstable_Long_IsCompact((PyLongObject *)number)) {
            *value = PyUnstable_Long_CompactValue((PyLongObject *)number);
            return 1;
        }
    #endif
        return 0;
    }

    /* An int for `value`; writes it into one of two spares that has no other reference, as
       enumerate() does with its pairs: an int to make and one to free are a fifth of what a
       push and a pop cost (measured: 180 of 800 instructions). With two, a caller may keep the
       last one while it gets the next. Only where the layout of an int is known and a reference
       count tells the whole truth: elsewhere it is made as usual. */
    static inline PyObject *ringbuf_int_of(int64_t value, PyObject **spares) {
    #if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030F0000 \\
        && !defined(Py_GIL_DISABLED) && PYLONG_BITS_IN_DIGIT == 30
        if (value < -5 || value > 256) {  /* those in between are the interpreter's own */
            uint64_t size = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
            PyObject *number = spares[0];
            if (number == NULL || Py_REFCNT(number) != 1) {
                number = spares[1];
                if (number == NULL || Py_REFCNT(number) != 1) {
                    number = PyLong_FromLongLong(INT64_MAX);  /* room for any */
                    if (number == NULL) return NULL;
                    Py_XDECREF(spares[1]);
                    spares[1] = spares[0];
                    spares[0] = number;
                }
            }
            Py_INCREF(number);
            _PyLongValue *raw = &((PyLongObject *)number)->long_value;
            raw->ob_digit[0] = (digit)(size & PyLong_MASK);
            raw->lv_tag = (uintptr_t)1 << _PyLong_NON_SIZE_BITS | (value < 0 ? 2 : 0);
            if (size > PyLong_MASK) {
                raw->ob_digit[1] = (digit)(size >> 30 & PyLong_MASK);
                raw->ob_digit[2] = (digit)(size >> 60);
                raw->lv_tag += (uintptr_t)(size >> 60 ? 2 : 1) << _PyLong_NON_SIZE_BITS;
            }
            return number;
        }
    #endif
        return PyLong_FromLongLong(value);
    }
    """
    bint small_int "ringbuf_small_int"(object number, long long* value)
    object int_of "ringbuf_int_of"(int64_t value, PyObject** spares)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object number) except? 0xFFFFFFFFFFFFFFFF


cdef enum Kind:
    BY_NUMPY              # none of these: through an array of one record, or as Rows
    BOOL
    SIGNED
    UNSIGNED
    FLOAT


# How one record goes in and out in one step; last, the numbers of 8 bytes that most
# often are one machine word in a Python object too.
cdef enum Quick:
    BY_STEPS              # not in one step
    QUICK_ROW             # of the ring's Rows
    QUICK_INT
    QUICK_FLOAT


cdef inline Quick quick_of(Kind kind, uint64_t itemsize) noexcept:
    if itemsize != 8:
        return BY_STEPS
    return QUICK_INT if kind == SIGNED else QUICK_FLOAT if kind == FLOAT else BY_STEPS


cdef inline bint quick_bits(Quick quick, object record, uint64_t* bits) noexcept:
    """Whether the record is a number that goes in as it is, and its bytes."""
    cdef long long small
    cdef double number
    if quick == QUICK_INT:
        if not small_int(record, &small):
            return False
        bits[0] = <uint64_t>small
        return True
    if not PyFloat_CheckExact(record):
        return False
    number = PyFloat_AS_DOUBLE(record)
    memcpy(bits, &number, sizeof(number))
    return True


cdef inline object from_quick(Quick quick, uint64_t bits, PyObject** spares):
    cdef double wide
    if quick == QUICK_INT:
        return int_of(<int64_t>bits, spares)
    memcpy(&wide, &bits, sizeof(wide))
    return wide


cdef inline Kind kind_of_dtype(dtype):
    if not dtype.isnative or dtype.itemsize > 8 or (dtype.kind == "f" and dtype.itemsize < 4):
        return BY_NUMPY
    return {"b": BOOL, "i": SIGNED, "u": UNSIGNED, "f": FLOAT}.get(dtype.kind, BY_NUMPY)


cdef inline int to_bits(Kind kind, uint64_t itemsize, object record, uint64_t* bits) except -1:
    """The record in the low bytes of `bits`."""
    cdef long long small
    cdef double number
    cdef int unused = 64 - 8 * <int>itemsize
    if (
        kind == SIGNED and small_int(record, &small)
        and <int64_t>(<uint64_t>small << unused) >> unused == small
    ):
        bits[0] = <uint64_t>small
        return 0
    if kind == FLOAT and unused == 0 and PyFloat_Check(record):
        number = PyFloat_AS_DOUBLE(record)
        memcpy(bits, &number, sizeof(number))
        return 0
    return to_bits_checked(kind, itemsize, record, bits)


cdef inline int to_bits_checked(
    Kind kind, uint64_t itemsize, object record, uint64_t* bits
) except -1:
    cdef int overflow = 0, unused = 64 - 8 * <int>itemsize
    cdef int64_t number = 0
    cdef double wide
    cdef float narrow
    if (
        not PyLong_Check(record) and not PyFloat_Check(record)
        and getattr(record, "shape", None) == ()
    ):
        if getattr(record, "mask", False):
            raise ValueError("a record that is masked has no value: fill it, or leave it out")
        record = wide_float(record) if kind == FLOAT else record.item()
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
    if kind == UNSIGNED and (
        number < 0 or <uint64_t>number << unused >> unused != <uint64_t>number
    ):
        overflow = 1
    if kind == SIGNED and <int64_t>(<uint64_t>number << unused) >> unused != number:
        overflow = 1
    if overflow:
        raise OverflowError(f"{record!r} is out of range for {name_of(kind, itemsize)}")
    bits[0] = <uint64_t>number
    return 0


cdef inline object wide_float(object record):
    """What a numpy scalar stands for; a longdouble, for which Python has no type, as a
    float.
    """
    number = record.item()
    if getattr(getattr(number, "dtype", None), "kind", "") != "f":
        return number
    wide = float(number)
    if isinf(wide) and number != wide:
        raise OverflowError(f"{number!r} is out of range for float64")
    return wide


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
