# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""Reservation: tokens that were taken ahead of the rate, and can be given back."""

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport cas_relaxed, exchange_relaxed, load_relaxed, store_relaxed
from ringbuf._core.timing cimport checked_ns, steady_ns
from ringbuf._meters.refill_law cimport LawCopy, Rest, issued, read_law, seconds_until


@cython.final
cdef class Reservation:
    """Tokens taken ahead of time by `TokenBucket.reserve`.

    `delay`: seconds to wait before acting, from the reserve on.
    """

    def __init__(self):
        raise TypeError("made by TokenBucket.reserve()")

    def cancel(self):
        """Give the tokens back if their time has not come; returns how many came back.

        Later reservations keep their places, so only tokens that none of them builds on
        come back.
        """
        return self.cancel_at(steady_ns())

    def cancel_at(self, now_ns):
        """`cancel` at the time `now_ns`."""
        cdef int64_t now = checked_ns(now_ns)
        cdef uint64_t spent, n
        cdef int64_t refund
        if now >= self._due_ns:
            return 0
        # Of two threads that cancel at once, one gets the tokens.
        n = exchange_relaxed(&self._n, 0)
        if n == 0:
            return 0
        spent = load_relaxed(&self._state.spent)
        while True:
            # Others may have given back since, and `spent` lie before our end: never
            # more than was reserved.
            refund = <int64_t>n - max(<int64_t>(spent - load_relaxed(&self._end)), <int64_t>0)
            if refund <= 0:
                store_relaxed(&self._n, n)
                return 0
            if cas_relaxed(&self._state.spent, &spent, spent - <uint64_t>refund):
                return refund

    cdef double time_left(self, int64_t now_ns) noexcept:
        """Seconds until the tokens are there, by the rate that is in force now."""
        cdef LawCopy law
        cdef Rest rest
        if self.delay <= 0 or self.delay == INFINITY:
            return self.delay
        read_law(self._state, &law)
        if law.unlimited:
            return 0.0
        # A place on the line of tokens stays, whatever becomes of the rate.
        return seconds_until(
            &law, now_ns, <int64_t>(load_relaxed(&self._end) - issued(&law, now_ns, &rest))
        )

    def __repr__(self):
        return f"Reservation(delay={self.delay})"
