"""When a copy lets other threads run."""

cdef enum:
    # Copies from this size on let other threads run: they take longer than a hand-over
    # costs.
    NOGIL_BYTES = 256 * 1024
