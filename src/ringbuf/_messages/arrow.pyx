# cython: freethreading_compatible=True
"""Arrow columns of bytes, by the PyCapsule interface: `__arrow_c_array__` in and out.

In: binary, string and their large forms, of any library; rows that are null are
refused, because a message has a value. An array is moved out of its capsule, so it
cannot be released as long as it is used, and each capsule serves once. Out: large
binary, whose 64-bit offsets are what `Messages` has already. Nothing is copied in
either direction.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef int64_t MOST = <int64_t>1 << 48  # more than any memory holds

cdef object OURS = object()  # what makes a Lent

cdef const char* SCHEMA = "arrow_schema"
cdef const char* ARRAY = "arrow_array"


@cython.no_gc
@cython.final
cdef class Lent:
    """An array that was moved out of its capsule, as the interface has it; released with
    this object.
    """

    cdef ArrowArray array

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a Lent is made of an Arrow capsule")

    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)


cdef object borrow(object array, Borrowed* column):
    """Fill `column` from anything with `__arrow_c_array__`; returns what to keep while
    it is used.

    All that the structures themselves say is checked. They do not say how long their
    buffers are: the lender has to see to it that each offset is there and lies within
    the data.
    """
    capsules = array.__arrow_c_array__()
    if (
        type(capsules) is not tuple or len(capsules) != 2
        or not PyCapsule_IsValid(capsules[0], SCHEMA) or not PyCapsule_IsValid(capsules[1], ARRAY)
    ):
        raise TypeError(
            f"__arrow_c_array__() of a {type(array).__name__} must return an arrow_schema and an "
            "arrow_array capsule"
        )
    cdef ArrowSchema* schema = <ArrowSchema*>PyCapsule_GetPointer(capsules[0], SCHEMA)
    if schema.release == NULL or schema.format == NULL:
        raise ValueError("the Arrow schema was consumed or released already: export the array anew")
    cdef bytes kind = schema.format
    if kind not in (b"z", b"u", b"Z", b"U") or schema.dictionary != NULL:
        raise TypeError(
            "an Arrow array of messages must be binary or string, not of format "
            f"{kind.decode('utf-8', 'replace')!r}: cast it"
        )
    cdef Lent lent = move(capsules[1])
    check(&lent.array)
    column.count = lent.array.length
    column.wide = kind in (b"Z", b"U")
    column.offsets = NULL
    if column.count > 0:
        column.offsets = <const char*>lent.array.buffers[1]
        column.offsets += lent.array.offset * (8 if column.wide else 4)
    column.data = <const char*>lent.array.buffers[2]
    return lent


cdef Lent move(capsule):
    """Take the array out of its capsule, so that no other code can release it;
    ValueError where some has.
    """
    cdef Lent lent = Lent.__new__(Lent, OURS)
    cdef ArrowArray* array = <ArrowArray*>PyCapsule_GetPointer(capsule, ARRAY)
    # Of two threads without a GIL one moves it.
    with cython.critical_section(capsule):
        lent.array = array[0]
        array.release = NULL
    if lent.array.release == NULL:
        raise ValueError("the Arrow array was consumed or released already: export it anew")
    return lent


cdef int check(const ArrowArray* array) except -1:
    cdef const unsigned char* valid
    cdef int64_t i
    # So that no sum below, nor a place in the widest buffer, overflows.
    if not 0 <= array.length < MOST or not 0 <= array.offset < MOST:
        raise ValueError(
            f"an Arrow array of {array.length} messages from number {array.offset} on cannot be"
        )
    if array.n_buffers != 3 or array.buffers == NULL:
        raise ValueError(
            "an Arrow array of messages has 3 buffers (validity, offsets, data), not "
            f"{array.n_buffers}"
        )
    if array.length > 0 and array.buffers[1] == NULL:
        raise ValueError("the Arrow array has messages and no offsets")
    valid = <const unsigned char*>array.buffers[0]
    if valid == NULL and array.null_count > 0:
        raise ValueError(
            f"the Arrow array has {array.null_count} nulls and does not say which: drop the nulls, "
            "or fill them"
        )
    if valid != NULL and array.null_count != 0:
        for i in range(array.offset, array.offset + array.length):
            if not valid[i >> 3] >> (i & 7) & 1:
                raise ValueError(
                    f"message {i - array.offset} is null: drop the nulls, or fill them"
                )
    return 0


cdef int64_t offset_at(const Borrowed* column, int64_t i) noexcept:
    cdef int32_t narrow
    cdef int64_t wide
    if column.wide:
        memcpy(&wide, column.offsets + i * 8, 8)
        return wide
    memcpy(&narrow, column.offsets + i * 4, 4)
    return narrow


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
    # The last holder of the array may be a thread without the GIL.
    with gil:
        Py_DECREF(<object>array.private_data)


cdef void drop_schema(object capsule) noexcept:
    cdef ArrowSchema* schema
    if PyCapsule_IsValid(capsule, SCHEMA):
        schema = <ArrowSchema*>PyCapsule_GetPointer(capsule, SCHEMA)
        # Not released: it was not moved out of the capsule.
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
