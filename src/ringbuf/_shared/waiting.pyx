# cython: freethreading_compatible=True
"""Waiting: how the users of one ring wait for each other, as threads that sleep and as event loops that listen.

For those who do not wait it costs one look at a bell (`wanted`) after what they did; all that is here happens only then.

    sleep    seen = before_sleep(bell); try once more; if it is still in vain: sleep(bell, seen, deadline); and again.
    listen   a pop that finds nothing while an event loop listens: listen(); try once more; if it now finds something: hear().

Where processes share a ring, one of them may be killed between doing something and saying so. So nobody there waits for long
without looking himself: a sleeper SHORT_SLEEP_NS, an event loop LISTEN_NS, after which its descriptor is readable as if somebody
had called. Each look is a try, which finds also what the dead have left.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport exchange_total, fetch_or_total, store_relaxed, store_total
from ringbuf._core.eventcount cimport LISTENERS, SLEEPERS, Bell, barrier, futex_wait, futex_wake, have_barrier, let_settle
from ringbuf._core.timing cimport steady_ns
from ringbuf._shared.op_slots cimport SEATS
from ringbuf._shared.participant cimport Participant

import os

from ringbuf._core.ready_fd import ReadyFd
from ringbuf._core.ready_fd import call as call_ear

cdef extern from * nogil:
    """
    #include <cstdint>
    #if defined(_WIN32)
    #include <io.h>
    static inline void ringbuf_poke(int fd) { uint64_t one = 1; (void)_write(fd, &one, sizeof one); }
    #else
    #include <unistd.h>
    /* Full, it is readable already. */
    static inline void ringbuf_poke(int fd) { uint64_t one = 1; if (write(fd, &one, sizeof one) < 0) return; }
    #endif
    #if defined(__linux__)
    #include <sys/timerfd.h>

    static inline int ringbuf_make_timer(void) { return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC); }

    /* Not readable any more, until so much later. */
    static inline void ringbuf_set_timer(int timer, int64_t ns) {
        struct itimerspec when = {{0, 0}, {(time_t)(ns / 1000000000), (long)(ns % 1000000000)}};
        timerfd_settime(timer, 0, &when, nullptr);
    }
    #else
    static inline int ringbuf_make_timer(void) { return -1; }
    static inline void ringbuf_set_timer(int, int64_t) {}
    #endif
    """
    void poke "ringbuf_poke"(int fd)
    int make_timer "ringbuf_make_timer"()
    void set_timer "ringbuf_set_timer"(int timer, int64_t ns)

cdef enum:
    SHORT_SLEEP_NS = 10000000  # a look for the dead then costs a thousandth of a core
    LISTEN_NS = 50000000       # an event loop's own round is some 20 us: less than a two-thousandth
    # A signal that comes just before the sleep does not end it; its handler is late by no more than this.
    LONG_SLEEP_NS = 1000000000

# None: for ever; but no clock goes that far.
cdef int64_t FOREVER_NS = INT64_MAX // 2
# Seconds (31 years) that are no different from for ever.
cdef double LONGEST = 1e9


cdef class Waiting:
    """Made by a ring; not for others."""

    cdef int sleep(self, Bell* bell, uint32_t seen, int64_t deadline_ns) except -1:
        """Sleep until the bell has been rung since its count was `seen`, or until the deadline; it may be less."""
        cdef int64_t most = min(deadline_ns - steady_ns(), <int64_t>LONG_SLEEP_NS)
        if self.participant is not None or not have_barrier():
            most = min(most, <int64_t>SHORT_SLEEP_NS)
        if most > 0:
            with nogil:
                futex_wait(&bell.count, seen, most)
        PyErr_CheckSignals()
        return 0

    cdef int call(self, Bell* bell) except -1:
        """Wake those who sleep, and tell the event loops that listen."""
        cdef uint64_t seat, nonce, waiters = exchange_total(&bell.waiters, 0)
        if waiters & SLEEPERS:
            futex_wake(&bell.count)
        if not waiters & LISTENERS:
            return 0
        if self.participant is None:
            return self.hear()
        for seat in range(<uint64_t>SEATS):
            nonce = exchange_total(&self.participant.desk.seats[seat].listens, 0)
            if nonce != 0:
                call_ear(self.participant.file.uuid, nonce)
        return 0

    cdef int fileno(self) except -1:
        """What event loops listen to. It is readable at first: the pop that finds nothing makes it wait."""
        ear = self._ear()
        if ear is None:
            if self.participant is None:
                ear = ReadyFd(os.getpid())
            else:
                ear = ReadyFd(
                    self.participant.epoch, self.participant.file.uuid, self.participant.first_seat(), make_timer()
                )
            self.ears.append(ear)
            ear = self.ears[0]  # another thread may have been faster
            store_relaxed(&self.listening, 1)
            self.hear()
        return ear.fd

    cdef int listen(self) except -1:
        """Nothing was there: ask to be called when there is. The caller has to look once more."""
        ear = self._ear()
        if ear is None:
            return 0
        ear.clear()
        if self.participant is not None:
            set_timer(ear.timer, LISTEN_NS)
            store_total(&self.participant.desk.seats[<uint64_t>ear.seat].listens, <uint64_t>ear.nonce)
        fetch_or_total(&self.filled.waiters, LISTENERS)
        if not barrier():
            let_settle()
        return 0

    cdef int hear(self) except -1:
        """Make the descriptor readable. It runs no Python code: no signal's handler comes between a pop and its result."""
        ear = self._ear()
        if ear is None:
            return 0
        if self.participant is None:
            poke(ear.writer)
        else:
            set_timer(ear.timer, 1)
        return 0

    cdef object _ear(self):
        """The ReadyFd of this process, if there is one; in a forked child what it inherited is its parent's."""
        ears = self.ears
        if not ears:
            return None
        ear = ears[0]
        if ear.epoch != (os.getpid() if self.participant is None else self.participant.epoch):
            ears.clear()
            store_relaxed(&self.listening, 0)
            return None
        return ear


cdef Waiting new_waiting(Bell* filled, object memory, Participant participant):
    cdef Waiting waiting = Waiting.__new__(Waiting)
    waiting.filled = filled
    waiting.memory = memory
    waiting.participant = participant
    waiting.ears = []
    return waiting


cdef double seconds_of(object timeout) except -1:
    """A timeout as seconds, infinite for None; ValueError for what is none. For the first thing that a method with one does."""
    if type(timeout) is float and <double>timeout >= 0:
        return timeout
    if timeout is None:
        return INFINITY
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds from 0 on, or None for no limit, not {timeout!r}")
    return min(timeout, LONGEST)  # an int may be larger than any double


cdef int64_t deadline_of(double seconds) noexcept:
    """When that many seconds from now are over, on the steady clock in ns."""
    if seconds >= LONGEST:
        return FOREVER_NS
    return steady_ns() + <int64_t>(seconds * 1e9)
