from cpython.ref cimport PyObject
from libc.stdint cimport uint64_t


cdef enum FieldKind:
    FLAG      # a bool
    SIGNED
    UNSIGNED
    REAL
    OCTETS    # "S": bytes, filled up with NULs
    TEXT      # "U": code points of 4 bytes, the same
    TIME      # "M" and "m": counts of 8 bytes
    INNER     # a field that has fields itself


cdef struct Field:
    FieldKind kind
    bint swapped
    uint64_t offset
    uint64_t size
    # INNER: its TupleWriter. TIME: the dtype of a scalar that goes in as it is. The
    # writer keeps it.
    PyObject* what


cdef class TupleWriter:
    cdef Field* _fields
    cdef Py_ssize_t _count
    cdef list _kept

    cdef bint write(self, object values, unsigned char* row) except -1


cdef extern from *:
    """
    /* Whether it is a tuple that is read as it lies in memory: one of a subclass may have
       methods of its own for it, as a named tuple does not. */
    static inline int ringbuf_is_plain_tuple(PyObject *values) {
        PyTypeObject *kind = Py_TYPE(values);
        return kind == &PyTuple_Type || (PyTuple_Check(values)
            && kind->tp_as_mapping->mp_subscript == PyTuple_Type.tp_as_mapping->mp_subscript
            && kind->tp_as_mapping->mp_length == PyTuple_Type.tp_as_mapping->mp_length
            && kind->tp_as_sequence->sq_length == PyTuple_Type.tp_as_sequence->sq_length);
    }
    """
    bint is_plain_tuple "ringbuf_is_plain_tuple"(object values) noexcept


cdef TupleWriter writer_of(object dtype)
