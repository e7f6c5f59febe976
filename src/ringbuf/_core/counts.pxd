"""Counts and quantities as callers give them. A bool or a text is a mistake, of a count
a float too; the error names it.
"""

from cpython.number cimport PyNumber_Index
from libc.stdint cimport INT64_MAX, int64_t, uint64_t


cdef inline object whole(object number, str name):
    """`number` as an int."""
    if type(number) is int:
        return number
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise TypeError(f"{name} must be an int, not {type(number).__name__}")
    return PyNumber_Index(number)


cdef inline double real(object number, str name) except? -1:
    """`number`, a number of any kind that is one of reals, as a double."""
    if isinstance(number, float) or type(number) is int:
        return number
    is_number = hasattr(number, "__float__") or hasattr(number, "__index__")
    # numpy would make floats of its bools, texts, times and complex numbers as well.
    kind = getattr(getattr(number, "dtype", None), "kind", "f")
    if not is_number or isinstance(number, (bool, str, bytes, bytearray)) or kind not in "iuf":
        raise TypeError(f"{name} must be a number, not {type(number).__name__}")
    return float(number)


cdef inline object positive(object number, str name):
    """`number` as an int that is at least 1."""
    number = whole(number, name)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number


cdef inline uint64_t up_to(object number, str name, uint64_t most) except? 0xFFFFFFFF:
    """`number` as an int from 0 to `most`."""
    number = whole(number, name)
    if not 0 <= number <= most:
        raise ValueError(f"{name} must be from 0 to {most:,}, not {number:,}")
    return number


cdef inline int64_t at_most(object most, str name) except -1:
    """The most that there may be of something: at least 1, or None for no limit."""
    if most is None:
        return INT64_MAX
    number = whole(most, name)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, or None for no limit, not {number}")
    return INT64_MAX if number > INT64_MAX else number
