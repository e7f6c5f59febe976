"""Memory of numpy that starts where a cache line does."""

cdef inline size_t aligned(object memory) except 0:
    """The first address in an array of bytes at which a cache line starts."""
    cdef size_t address = memory.ctypes.data
    return (address + 63) & ~<size_t>63
