# cython: freethreading_compatible=True
"""One event a call: a push into a lane's ring that was admitted beforehand.

    Entrance.enter ──> Purse ──> MessageRing     (no Python in between)
          │              ↑
          └── fill ──────┘ ── arrived

Who admits events is not known here. It puts some dozens of admissions into a Purse, and
an entrance uses them up; `fill` is called when none is left. `arrived` is called after
a push when somebody may have to be woken, when the gate is shut, and else every few
milliseconds: in between there is nothing that it would do. All that is not plain
success (no admission, a full ring, an event that is none, a gate that is shut) is
answered with False, and nothing has changed: the caller decides and counts.

Any number of threads may use one entrance, with the GIL or without it. A thread that
has taken an admission out of a purse either uses it or puts it back.

Sleepers. Whoever sleeps is in the set or the list of its wakeup before it looks at the
ring for the last time; an entrance pushes before it looks into these. With a GIL one of
the two sees the other. Without it `settle_stores`, between the sleeper's entry and its
look, sees to that.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.list cimport PyList_GET_SIZE
from cpython.long cimport PyLong_Check
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_relaxed, exchange_relaxed, fetch_add_relaxed, load_relaxed, store_relaxed, store_total,
    word,
)
from ringbuf._core.counts cimport up_to
from ringbuf._core.eventcount cimport barrier, have_barrier, let_settle, no_reordering, wanted
from ringbuf._core.gil cimport HAS_GIL
from ringbuf._messages.frames cimport push_column
from ringbuf._messages.gathered cimport Column
from ringbuf._messages.positions cimport largest_message
from ringbuf._messages.pushing cimport push_now
from ringbuf._messages.ring cimport MessageRing
from ringbuf._shared.waiting cimport OPEN

from ringbuf._core.not_given import NOT_GIVEN as _NOT_GIVEN


cdef object NOT_GIVEN = _NOT_GIVEN


cdef extern from "Python.h":
    Py_ssize_t PySet_GET_SIZE(object)
    bint PyBool_Check(object)
    long PyLong_AsLongAndOverflow(object number, int* overflow)
    # NULL, and not by an exception of Cython's: it is cleared here.
    const char* utf8_of "PyUnicode_AsUTF8AndSize"(object text, Py_ssize_t* size)


cdef extern from * nogil:
    """
    #include <chrono>
    #include <cstdint>
    #include <time.h>
    #if defined(CLOCK_MONOTONIC_COARSE)
    /* Cheaper than the exact clock; right to a tick of the kernel, 1 to 10 ms. */
    static inline int64_t ringbuf_coarse_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    #else
    static inline int64_t ringbuf_coarse_ns(void) {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(
            std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    #endif
    """
    int64_t coarse_ns "ringbuf_coarse_ns"()


def settle_stores():
    """Where no GIL orders them: every other thread sees what this one has stored, or
    has stored what this one sees from here on.
    """
    if HAS_GIL:
        return
    if not (have_barrier() and barrier()):
        let_settle()


@cython.final
cdef class Gate:
    """Whether a buffer takes events: shut once, and for good."""

    def shut(self):
        """From here on every event that comes in is told of, or is not let in."""
        store_total(&self._shut, 1)
        settle_stores()

    @property
    def is_shut(self):
        """Whether it was shut."""
        return load_relaxed(&self._shut) != 0

    def __reduce__(self):
        raise TypeError("a Gate is live shared state and cannot be copied or pickled")


@cython.final
cdef class Purse:
    """Admissions of events to come, and how many were used so far."""

    @property
    def unused(self):
        """Admissions that are left."""
        return load_relaxed(&self._unused)

    def put(self, n):
        """Add `n` admissions, from 0 to 2**32."""
        fetch_add_relaxed(&self._unused, up_to(n, "n", 1 << 32))

    def take_unused(self):
        """Take out all that are left; returns how many."""
        return exchange_relaxed(&self._unused, 0)

    @property
    def used(self):
        """How many were used since the start."""
        return load_relaxed(&self._used)

    def __reduce__(self):
        raise TypeError("a Purse is live shared state and cannot be copied or pickled")


cdef inline bint spend(Purse purse) noexcept:
    """Take one admission out."""
    cdef uint64_t left = load_relaxed(&purse._unused)
    if HAS_GIL:
        if left != 0:
            store_relaxed(&purse._unused, left - 1)
        return left != 0
    while left != 0:
        if cas_relaxed(&purse._unused, &left, left - 1):
            return True
    return False


cdef inline void add_one(word* count) noexcept:
    if HAS_GIL:
        store_relaxed(count, load_relaxed(count) + 1)
    else:
        fetch_add_relaxed(count, 1)


cdef inline bint is_timeout(timeout) except -1:
    """Whether this is plainly a timeout: else the slow way tells."""
    if timeout is NOT_GIVEN or timeout is None:
        return True
    if PyFloat_CheckExact(timeout):
        return PyFloat_AS_DOUBLE(timeout) >= 0.0
    return type(timeout) is int and timeout >= 0


cdef class Entrance:
    """The way of single events into one lane.

    ring: the lane's. fill(): puts admissions into the purse, if there are any to be
    had. arrived(seq): the event of that number, and those before it, have come in.
    ready, hold: of two wakeups that consumers sleep on, the set of the threads that
    sleep and the list of the listeners. pace: `arrived` is called that often at least,
    in seconds; 0.0: after each event.
    """

    def __cinit__(self, *args, **kwargs):
        self._gate, self._purse = Gate(), Purse()
        store_relaxed(&self._gate._shut, 1)  # of no use until it is opened
        self._sleepers, self._held = set(), set()
        self._listeners, self._held_listeners = [], []

    def _open(
        self, MessageRing ring not None, Gate gate not None, Purse purse not None, fill, arrived,
        tuple ready not None, tuple hold not None, double pace,
    ):
        """What the class's docstring says; once, before it is used."""
        if self._ring is not None:
            raise TypeError("an entrance is opened once")
        self._sleepers, self._listeners = ready
        self._held, self._held_listeners = hold
        self._fill, self._arrived = fill, arrived
        self._pace_ns = <int64_t>(pace * 1e9)
        self._purse, self._ring, self._gate = purse, ring, gate

    def _close(self):
        """From now on it lets nothing in."""
        store_relaxed(&self._closed, 1)

    def try_add(self, event):
        """Add one event, if that takes no decision; False: nothing has changed, not
        even a count.
        """
        return self.enter(event)

    def add(self, event, timeout=NOT_GIVEN):
        """Add one event; False: it was refused, and counted. As `add_event` of the
        buffer.
        """
        if is_timeout(timeout) and self.enter(event):
            return True
        return self._add_slowly(event, timeout)

    def _add_slowly(self, event, timeout):
        raise TypeError("this is no way into a buffer: BufferManager.producer() makes one")

    cdef bint _refill(self) except -1:
        if self._ring is None or load_relaxed(&self._gate._shut) != 0:
            return False
        self._fill()
        return spend(self._purse)

    cdef bint enter(self, event) except -1:
        cdef Column column
        cdef const char* start
        cdef uint32_t length
        cdef uint64_t seq = 0
        cdef int64_t now
        cdef Py_ssize_t size
        if load_relaxed(&self._gate._shut) != 0 or load_relaxed(&self._closed) != 0:
            return False
        if PyBytes_CheckExact(event):
            start, size = PyBytes_AS_STRING(event), PyBytes_GET_SIZE(event)
        elif PyUnicode_CheckExact(event):
            start = utf8_of(event, &size)
            if start == NULL:
                PyErr_Clear()
                return False
        else:
            return False
        if <uint64_t>size > largest_message(&self._ring._frames):
            return False
        if not spend(self._purse) and not self._refill():
            return False
        length = <uint32_t>size
        column.starts = &start
        column.lengths = &length
        column.count = 1
        if not self._push(&column, &seq):
            add_one(&self._purse._unused)
            return False
        add_one(&self._purse._used)
        # After the push, as the head of this file says.
        no_reordering()
        now = coarse_ns()
        if (
            now >= <int64_t>load_relaxed(&self._look_at_ns)
            or PySet_GET_SIZE(self._sleepers) != 0
            or PyList_GET_SIZE(self._listeners) != 0
            or PySet_GET_SIZE(self._held) != 0
            or PyList_GET_SIZE(self._held_listeners) != 0
            or load_relaxed(&self._gate._shut) != 0
        ):
            store_relaxed(&self._look_at_ns, <uint64_t>(now + self._pace_ns))
            self._arrived(seq)
        return True

    cdef bint _push(self, Column* column, uint64_t* seq) except -1:
        """Push one message, if the ring has room and is open."""
        cdef MessageRing ring = self._ring
        if ring._frames.shared != NULL:
            try:
                return push_now(ring, column, seq) == 1
            except ValueError:
                return False  # closed meanwhile
        if load_relaxed(&ring._waiting.closed) != OPEN:
            return False
        if push_column(&ring._frames, NULL, column, seq) != 1:
            return False
        if wanted(&ring._frames.cursors.messages):
            ring._waiting.call(&ring._frames.cursors.messages)
        return True

    def __reduce__(self):
        raise TypeError("an Entrance is live shared state and cannot be copied or pickled")


cdef class Entrances:
    """`add_event` of a buffer: an entrance for each priority."""

    def _open_entrances(self, tuple by_priority not None, Entrance default not None):
        """by_priority: the most urgent first. default: for events that are given none.
        """
        for entrance in by_priority:
            if not isinstance(entrance, Entrance):
                raise TypeError("by_priority must be entrances")
        self._by_priority, self._default = by_priority, default

    def add_event(self, event, priority=None, timeout=NOT_GIVEN):
        """Offer one event: whether it was accepted; False: it was refused, and counted.

        event: bytes or str (which is kept as UTF-8). priority, timeout, errors: as for
        `add_events`. In the common case one call of compiled code.

        For threads of an interpreter without a GIL: a `producer()` each is faster.
        """
        if is_timeout(timeout) and self._enter(event, priority):
            return True
        return self._add_slowly(event, priority, timeout)

    def _try_add(self, event, priority=None):
        """Add one event, if that takes no decision; False: nothing has changed."""
        return self._enter(event, priority)

    cdef bint _enter(self, event, priority) except -1:
        cdef Entrance entrance = self._default
        cdef Py_ssize_t p
        cdef int overflow = 0
        if priority is not None:
            if not PyLong_Check(priority) or PyBool_Check(priority):
                return False
            p = PyLong_AsLongAndOverflow(priority, &overflow)
            if self._by_priority is None or not 0 < p <= len(self._by_priority):
                return False  # where it overflows, p is -1
            entrance = <Entrance>self._by_priority[p - 1]
        return entrance is not None and entrance.enter(event)

    def _add_slowly(self, event, priority, timeout):
        raise TypeError("these are no ways into a buffer: BufferManager has add_event")

    def __reduce__(self):
        raise TypeError(f"a {type(self).__name__} is live shared state and cannot be copied")
