# cython: freethreading_compatible=True
"""Arrow columns of bytes, by the PyCapsule interface: `__arrow_c_array__` in and out.

In: binary, string and their large forms, of any library; rows that are null are refused, because an event is bytes or is not.
Out: large binary, whose 64-bit offsets are what `Messages` has already. Nothing is copied in either direction.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

cdef const char* SCHEMA = "arrow_schema"
cdef const char* ARRAY = "arrow_array"


cdef object borrow(object array, Borrowed* column):
    """Fill `column` from anything with `__arrow_c_array__`; returns what to keep while it is used."""
    schema_capsule, array_capsule = array.__arrow_c_array__()
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(schema_capsule, SCHEMA)
    cdef ArrowArray* lent = <ArrowArray*>PyCapsule_GetPointer(array_capsule, ARRAY)
    cdef bytes kind = schema.format
    cdef const unsigned char* valid
    cdef int64_t i
    if kind not in (b"z", b"u", b"Z", b"U"):
        raise TypeError(f"an Arrow array of messages must be binary or string, not of format {kind.decode()!r}: cast it")
    valid = <const unsigned char*>lent.buffers[0]
    if lent.null_count != 0 and valid != NULL:
        for i in range(lent.offset, lent.offset + lent.length):
            if not valid[i >> 3] >> (i & 7) & 1:
                raise ValueError(f"message {i - lent.offset} is null: drop the nulls, or fill them")
    column.count = lent.length
    column.narrow = NULL
    column.wide = NULL
    if lent.length > 0:
        if kind in (b"z", b"u"):
            column.narrow = <const int*>lent.buffers[1] + lent.offset
        else:
            column.wide = <const int64_t*>lent.buffers[1] + lent.offset
    column.data = <const char*>lent.buffers[2]
    return array_capsule


cdef tuple lend(object owner, const void* offsets, const void* data, int64_t count):
    """The capsules of a large-binary array over memory that `owner` keeps."""
    cdef ArrowSchema* schema = <ArrowSchema*>calloc(1, sizeof(ArrowSchema))
    cdef ArrowArray* array = <ArrowArray*>calloc(1, sizeof(ArrowArray))
    cdef const void** buffers = <const void**>calloc(3, sizeof(void*))
    if schema == NULL or array == NULL or buffers == NULL:
        free(schema)
        free(array)
        free(buffers)
        raise MemoryError()
    schema.format = "Z"
    schema.name = ""
    schema.release = release_schema
    buffers[1] = offsets
    buffers[2] = data
    array.length = count
    array.n_buffers = 3
    array.buffers = buffers
    array.release = release_array
    array.private_data = <void*>owner
    Py_INCREF(owner)
    return PyCapsule_New(schema, SCHEMA, drop_schema), PyCapsule_New(array, ARRAY, drop_array)


cdef void release_schema(ArrowSchema* schema) noexcept nogil:
    schema.release = NULL


cdef void release_array(ArrowArray* array) noexcept nogil:
    free(array.buffers)
    array.release = NULL
    # Whoever holds the array last may be a thread without the GIL.
    with gil:
        Py_DECREF(<object>array.private_data)


cdef void drop_schema(object capsule) noexcept:
    cdef ArrowSchema* schema
    if PyCapsule_IsValid(capsule, SCHEMA):
        schema = <ArrowSchema*>PyCapsule_GetPointer(capsule, SCHEMA)
        # Not released: nobody has moved it out of the capsule.
        if schema.release != NULL:
            schema.release(schema)
        free(schema)


cdef void drop_array(object capsule) noexcept:
    cdef ArrowArray* array
    if PyCapsule_IsValid(capsule, ARRAY):
        array = <ArrowArray*>PyCapsule_GetPointer(capsule, ARRAY)
        if array.release != NULL:
            array.release(array)
        free(array)
