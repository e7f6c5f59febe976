"""What the timed classes share: the clock, and the checks of a time and of a count."""

from libc.stdint cimport INT64_MAX, int64_t

from ringbuf._core.counts cimport whole


cdef extern from * nogil:
    """
    #include <chrono>
    #include <cstdint>

    static inline int64_t ringbuf_now_ns(void) {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(
            std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    """
    # The monotonic clock: the `now_ns` of every method without `_at`.
    int64_t steady_ns "ringbuf_now_ns"()


cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object n, int* overflow) except? -1
    # Not Cython's own conversion, which would take a float (of seconds, by mistake) and
    # cut it.
    int64_t checked_ns "PyLong_AsLongLong"(object now_ns) except? -1


cdef inline int64_t checked_count(object n) except -1:
    """`n` as a count that another can be added to within int64, or an error that says
    what one is.
    """
    cdef int overflow = 0
    cdef long long value
    value = PyLong_AsLongLongAndOverflow(whole(n, "n"), &overflow)
    if overflow != 0 or not 0 <= value <= INT64_MAX // 2:
        raise ValueError(f"n must be from 0 to {INT64_MAX // 2}, not {n}")
    return value
