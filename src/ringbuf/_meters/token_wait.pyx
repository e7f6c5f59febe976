# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""TokenWait: one acquire that waits for its tokens.

It keeps its place by a reservation, so those who wait are served in the order in which
they came, and a `try_acquire` does not overtake them. A place is taken only if its time
comes before the deadline, and whatever ends the wait without the tokens gives it back.

    line ...... [ A ][ B, gives up ][ R ][ C ] spent
    line ...... [ A ][ C ] spent    [ R ]

Then those who came later and wait in this process move up by its tokens, as does the
end of the line, so none is lost. A Reservation, and a wait in another process, has been
told its time and keeps it (R): who comes later may be served before it, and delays it
by nothing. For a place at p is safe where no more than p tokens were taken by those who
came before it, wherever their places are; that stays so for all who move, since one of
those took less, and for all who do not.

A place whose time has come overflows as the bucket does: a burst later, nothing of it
is left to give back. So all is as if whoever gives up had never come.

A caller steps, and sleeps for as long as the step says; a thread by `run`, a coroutine
by itself. No sleep is longer than LOOK_SECONDS, because the rate and the place can
change meanwhile, here or in another process: each step looks where both are by now. A
signal's handler runs between a thread's steps, and may raise.
"""

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport cas_relaxed, in_section, load_relaxed, store_relaxed, word
from ringbuf._core.timing cimport checked_count, checked_ns, steady_ns
from ringbuf._meters.refill_law cimport LawCopy, Rest, issued, read_law
from ringbuf._meters.reservation cimport Reservation
from ringbuf._meters.token_bucket cimport TokenBucket
from ringbuf._shared.participant_locks cimport fork_count
from ringbuf._shared.waiting cimport deadline_of, seconds_of

import time

# The longest sleep between two looks at the line: what a change of the rate is late at
# most.
LOOK_SECONDS = 0.02

cdef double LONGEST_SLEEP = LOOK_SECONDS
# What a step says of a wait that is over.
cdef double HAS_TOKENS = 0.0, IS_LATE = -1.0


@cython.no_gc
@cython.final
cdef class TokenWait:
    """A wait for `n` tokens of `bucket`, for one thread or task.

    deadline_ns: on the clock of the steps. None: `timeout` seconds from now on.

    Raises ValueError where n exceeds the burst.
    """

    def __cinit__(self, TokenBucket bucket not None, n=1, timeout=None, *, deadline_ns=None):
        self._bucket = bucket
        self._n = checked_count(n)
        self._deadline_ns = (
            deadline_of(seconds_of(timeout)) if deadline_ns is None else checked_ns(deadline_ns)
        )
        self._refuse_excess()

    def _refuse_excess(self):
        # One of rate inf grants everything.
        if self._n > self._bucket.burst and self._bucket.rate < INFINITY:
            raise ValueError(
                f"n is {self._n} and the burst {self._bucket.burst}: so many tokens are never "
                "there at one moment; acquire fewer, or set_burst()"
            )

    def step(self):
        """Go on: seconds to sleep until the next step, or 0.0 (the tokens are taken) or
        -1.0 (the deadline has passed and nothing is taken).
        """
        return self._step(steady_ns())

    def step_at(self, now_ns):
        """`step` at the time `now_ns`."""
        return self._step(checked_ns(now_ns))

    def end(self):
        """Give back the place if the tokens were not taken; for whoever stops stepping.
        """
        self._give_up(steady_ns())

    def end_at(self, now_ns):
        """`end` at the time `now_ns`."""
        self._give_up(checked_ns(now_ns))

    def __dealloc__(self):
        if self._place is not None:
            self._give_up(steady_ns())

    def run(self):
        """Step and sleep to the end: whether the tokens are taken."""
        cdef double seconds
        try:
            while True:
                seconds = self._step(steady_ns())
                if seconds <= 0:
                    return seconds == HAS_TOKENS
                time.sleep(seconds)
        finally:
            self.end()

    cdef double _step(self, int64_t now_ns) except? -2:
        cdef double left, sleep = (<double>self._deadline_ns - <double>now_ns) * 1e-9
        if self._is_done:
            return HAS_TOKENS
        if self._place is None:
            left = self._bucket._retry_after(now_ns, self._n)
            if left <= 0 or left <= sleep:
                left = self._join(now_ns)
                # Others may have come in between: then it is as if it had not been.
                if left > 0 and not left <= sleep:
                    self._give_up(now_ns)
            elif left == INFINITY:
                self._refuse_excess()
        else:
            left = self._place.time_left(now_ns)
        if left <= 0:
            self._leave()
            self._is_done = True
            return HAS_TOKENS
        if sleep <= 0:
            self._give_up(now_ns)
            return IS_LATE
        return max(min(left, sleep, LONGEST_SLEEP), 1e-9)

    # A critical section runs no Python code, and so is whole with a GIL too.

    cdef double _join(self, int64_t now_ns) except? -2:
        """Take the tokens now or a place in the line; seconds until they are there."""
        cdef Reservation place
        cdef TokenBucket bucket = self._bucket
        with cython.critical_section(bucket):
            # Whoever comes next has its place, and moves up, behind this one.
            place = bucket.reserve_at(now_ns, self._n)
            if 0 < place.delay < INFINITY:
                in_section(<void*>bucket, True)
                bucket._waits.push_back(&place._end)
                in_section(<void*>bucket, False)
        if 0 < place.delay < INFINITY:
            self._place = place
            self._forks = fork_count()
        return place.delay

    cdef void _leave(self) noexcept:
        """With the tokens."""
        if self._place is not None:
            with cython.critical_section(self._bucket):
                in_section(<void*>self._bucket, True)
                take_out(self._bucket, &self._place._end)
                in_section(<void*>self._bucket, False)
            self._place = None

    cdef void _give_up(self, int64_t now_ns) noexcept:
        """Without them."""
        cdef TokenBucket bucket = self._bucket
        cdef LawCopy law
        cdef Rest rest
        cdef uint64_t spent
        cdef int64_t overdue, back = self._n
        cdef size_t behind
        if self._place is None:
            return
        with cython.critical_section(bucket):
            in_section(<void*>bucket, True)
            behind = take_out(bucket, &self._place._end)
            read_law(bucket._state, &law)
            overdue = <int64_t>(issued(&law, now_ns, &rest) - load_relaxed(&self._place._end))
            if overdue > 0:
                back = min(back, max(<int64_t>law.burst - overdue, <int64_t>0))
            # In a forked child, a place in a file is still the parent's.
            if bucket._file is None or self._forks == fork_count():
                while behind < bucket._waits.size():
                    move_up(bucket._waits[behind], <uint64_t>back)
                    behind += 1
                # Last: nobody gets in between.
                spent = load_relaxed(&bucket._state.spent)
                while not cas_relaxed(&bucket._state.spent, &spent, spent - <uint64_t>back):
                    pass
            in_section(<void*>bucket, False)
        self._place = None


cdef inline size_t take_out(TokenBucket bucket, word* end) noexcept:
    """Take a place out of the line; the index of the next one behind it."""
    cdef size_t index = 0
    while bucket._waits[index] != end:
        index += 1
    bucket._waits.erase(bucket._waits.begin() + index)
    return index


cdef inline void move_up(word* end, uint64_t tokens) noexcept:
    store_relaxed(end, load_relaxed(end) - tokens)
