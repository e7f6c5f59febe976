# cython: freethreading_compatible=True
"""Arrow columns of bytes, by the PyCapsule interface: `__arrow_c_array__` and
`__arrow_c_stream__` in, `__arrow_c_array__` out.

In: binary and string, their large forms and their views, of any library; rows that are
null are refused, because a message has a value. An array or a stream is moved out of
its capsule, so it cannot be released as long as it is used, and each capsule serves
once. A stream is read to its end at once, without the GIL: its arrays are all there, or
none is used. Out: large binary, whose 64-bit offsets are what `Messages` has already.
Nothing is copied in either direction.

All that the structures themselves say is checked. They do not say how long the buffers
of offsets and of views are, nor, with offsets, the data: the lender has to see to it
that they hold what the array says.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cdef int64_t MOST = <int64_t>1 << 48  # more than any memory holds

cdef enum:
    MOST_BUFFERS = 0x7FFFFFFF  # the number of one lies in 32 bits, with a sign
    VIEW_BYTES = 16
    INLINE_BYTES = 12          # a view has that many of its own, behind its length

cdef object OURS = object()  # what makes a Lent

cdef const char* SCHEMA = "arrow_schema"
cdef const char* ARRAY = "arrow_array"
cdef const char* STREAM = "arrow_array_stream"


@cython.no_gc
@cython.final
cdef class Lent:
    """An array that was moved out of its capsule or its stream, as the interfaces have
    it; released with this object.
    """

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a Lent is made of an Arrow capsule")

    def __dealloc__(self):
        if self.array.release != NULL:
            self.array.release(&self.array)

    cdef int64_t place(self, int64_t i, const char** start) except -1:
        """Where message `i` of this column lies: sets `start` (NULL where it has no
        bytes and there is no data), returns its size.
        """
        cdef int64_t low, high
        cdef const char* data
        if self.layout == VIEWS:
            return self._place_view(i, start)
        data = <const char*>self.array.buffers[2]
        low = self._offset(self.array.offset + i)
        high = self._offset(self.array.offset + i + 1)
        if not 0 <= low <= high:
            raise ValueError(
                f"the offsets of the Arrow array do not ascend: message {self.first + i} is from "
                f"{low} to {high}"
            )
        if low < high and data == NULL:
            raise ValueError(
                f"the Arrow array has no data, and message {self.first + i} has {high - low} bytes"
            )
        start[0] = data + low if data != NULL else NULL
        return high - low

    cdef int64_t _offset(self, int64_t i) noexcept:
        # Aligned or not.
        cdef const char* offsets = <const char*>self.array.buffers[1]
        cdef int32_t narrow
        cdef int64_t wide
        if self.layout == OFFSETS_64:
            memcpy(&wide, offsets + i * 8, 8)
            return wide
        memcpy(&narrow, offsets + i * 4, 4)
        return narrow

    cdef int64_t _place_view(self, int64_t i, const char** start) except -1:
        # length, then the bytes; or length, prefix, number of the buffer, offset in it.
        cdef const char* view = <const char*>self.array.buffers[1]
        cdef int64_t buffers = self.array.n_buffers - 3, size = -1
        cdef const char* sizes = <const char*>self.array.buffers[self.array.n_buffers - 1]
        cdef const char* data = NULL
        cdef int32_t[4] words
        view += (self.array.offset + i) * VIEW_BYTES
        memcpy(words, view, VIEW_BYTES)
        if 0 <= words[0] <= INLINE_BYTES:
            start[0] = view + 4
            return words[0]
        if 0 <= words[2] < buffers and sizes != NULL:
            data = <const char*>self.array.buffers[2 + words[2]]
            memcpy(&size, sizes + words[2] * <int64_t>8, 8)
        if (
            words[0] < 0 or words[3] < 0 or data == NULL
            or <int64_t>words[3] + words[0] > size
        ):
            raise ValueError(
                f"message {self.first + i} of the Arrow array has {words[0]} bytes from {words[3]} "
                f"on in buffer {words[2]}, which are not there"
            )
        start[0] = data + words[3]
        return words[0]


@cython.no_gc
@cython.final
cdef class LentStream:
    """A stream that was moved out of its capsule; released with this object."""

    cdef ArrowArrayStream stream

    def __cinit__(self, key=None):
        if key is not OURS:
            raise TypeError("a LentStream is made of an Arrow capsule")

    def __dealloc__(self):
        # It may wait for threads that need the GIL.
        if self.stream.release != NULL:
            with nogil:
                self.stream.release(&self.stream)


cdef list borrow_array(object source):
    """The column of anything with `__arrow_c_array__`, as a list of one."""
    capsules = source.__arrow_c_array__()
    if (
        type(capsules) is not tuple or len(capsules) != 2
        or not PyCapsule_IsValid(capsules[0], SCHEMA) or not PyCapsule_IsValid(capsules[1], ARRAY)
    ):
        raise TypeError(
            f"__arrow_c_array__() of a {type(source).__name__} must return an arrow_schema and an "
            "arrow_array capsule"
        )
    cdef Layout layout = layout_of(<ArrowSchema*>PyCapsule_GetPointer(capsules[0], SCHEMA))
    cdef Lent lent = move_array(capsules[1])
    lent.layout = layout
    check(lent)
    return [lent]


cdef list borrow_stream(object source):
    """The columns of anything with `__arrow_c_stream__`, to the end of the stream."""
    capsule = source.__arrow_c_stream__()
    if not PyCapsule_IsValid(capsule, STREAM):
        raise TypeError(
            f"__arrow_c_stream__() of a {type(source).__name__} must return an arrow_array_stream "
            "capsule"
        )
    cdef LentStream lent_stream = move_stream(capsule)
    cdef ArrowArrayStream* stream = &lent_stream.stream
    cdef ArrowSchema schema
    cdef Layout layout
    cdef Lent lent
    cdef int64_t count = 0
    cdef int code
    cdef list columns = []
    memset(&schema, 0, sizeof(schema))
    with nogil:
        code = stream.get_schema(stream, &schema)
    if code != 0:
        raise stream_error(stream, code, count)
    try:
        layout = layout_of(&schema)
    finally:
        if schema.release != NULL:
            schema.release(&schema)
    while True:
        lent = Lent.__new__(Lent, OURS)
        with nogil:
            code = stream.get_next(stream, &lent.array)
        if code != 0:
            lent.array.release = NULL  # nothing was given
            raise stream_error(stream, code, count)
        if lent.array.release == NULL:
            return columns
        lent.layout = layout
        lent.first = count
        check(lent)
        count += lent.array.length
        if lent.array.length > 0:
            columns.append(lent)
        if count >= MOST:
            raise ValueError(f"an Arrow stream of more than {MOST} messages cannot be")
        PyErr_CheckSignals()


cdef object stream_error(ArrowArrayStream* stream, int code, int64_t count):
    cdef const char* text = NULL
    if stream.get_last_error != NULL:
        text = stream.get_last_error(stream)
    why = (<bytes>text).decode("utf-8", "replace") if text != NULL else f"error {code}"
    return ValueError(
        f"the Arrow stream failed after {count} messages, and none of them was taken: {why}"
    )


cdef Lent move_array(capsule):
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


cdef LentStream move_stream(capsule):
    """As `move_array`, of a stream."""
    cdef LentStream lent = LentStream.__new__(LentStream, OURS)
    cdef ArrowArrayStream* stream = <ArrowArrayStream*>PyCapsule_GetPointer(capsule, STREAM)
    with cython.critical_section(capsule):
        lent.stream = stream[0]
        stream.release = NULL
    if lent.stream.release == NULL:
        raise ValueError("the Arrow stream was consumed or released already: export it anew")
    if lent.stream.get_schema == NULL or lent.stream.get_next == NULL:
        raise ValueError("the Arrow stream lacks the functions that read it")
    return lent


cdef Layout layout_of(const ArrowSchema* schema) except *:
    if schema.release == NULL or schema.format == NULL:
        raise ValueError("the Arrow schema was consumed or released already: export the array anew")
    cdef bytes kind = schema.format
    if schema.dictionary != NULL:
        raise TypeError(
            "an Arrow array of messages must be binary or string, and not dictionary-encoded: cast "
            "it"
        )
    if kind == b"z" or kind == b"u":
        return OFFSETS_32
    if kind == b"Z" or kind == b"U":
        return OFFSETS_64
    if kind == b"vz" or kind == b"vu":
        return VIEWS
    if kind == b"+s":
        raise TypeError(
            "messages must be one Arrow column of binary or string, not a table or an array of "
            'structs: give one of its columns, as table["message"], or of a reader '
            'reader.read_all()["message"]'
        )
    raise TypeError(
        "an Arrow array of messages must be binary or string, not of format "
        f"{kind.decode('utf-8', 'replace')!r}: cast it"
    )


cdef int check(Lent lent) except -1:
    cdef const ArrowArray* array = &lent.array
    cdef const unsigned char* valid
    cdef int64_t i
    # So that no sum below, nor a place in the widest buffer, overflows.
    if not 0 <= array.length < MOST or not 0 <= array.offset < MOST:
        raise ValueError(
            f"an Arrow array of {array.length} messages from number {array.offset} on cannot be"
        )
    if array.n_buffers < 3 or array.buffers == NULL or array.n_buffers > (
        MOST_BUFFERS if lent.layout == VIEWS else 3
    ):
        has = "3 buffers (validity, offsets, data)"
        if lent.layout == VIEWS:
            has = "at least 3 buffers (validity, views, data if any, sizes)"
        raise ValueError(f"an Arrow array of messages has {has}, not {array.n_buffers}")
    if array.length > 0 and array.buffers[1] == NULL:
        what = "views" if lent.layout == VIEWS else "offsets"
        raise ValueError(f"the Arrow array has messages and no {what}")
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
                    f"message {lent.first + i - array.offset} is null: drop the nulls, or fill them"
                )
    return 0


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
