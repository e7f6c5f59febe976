"""Whether the GIL orders the threads of this process."""

cdef extern from *:
    """
    /* Decided when this is built, not asked at run time: an interpreter built without a GIL
       turns one on and off as it imports modules. */
    #ifdef Py_GIL_DISABLED
    #define RINGBUF_HAS_GIL 0
    #else
    #define RINGBUF_HAS_GIL 1
    #endif
    """
    const bint HAS_GIL "RINGBUF_HAS_GIL"
