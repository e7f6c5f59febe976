"""When a copy lets other threads run."""

cdef enum:
    NOGIL_BYTES = 256 * 1024  # copies from this size on let other threads run: they take longer than a hand-over costs
