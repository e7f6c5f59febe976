# cython: freethreading_compatible=True
"""Participant: one process's part in a shared ring: its seats and slots, and its watch over the others.

All threads of the process that use one ring object share one Participant; slots go from hand to hand without a lock. See
op_slots.pxd for what a slot is and shared_file.py for what a seat is.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from ringbuf._core.atomics cimport cas_acq_rel, load_acquire, load_relaxed, store_relaxed, store_release
from ringbuf._core.eventcount cimport have_barrier
from ringbuf._core.pairs cimport Pair, is_before, load_pair
from ringbuf._core.timing cimport steady_ns
from ringbuf._shared.op_slots cimport (
    ORPHAN, SEATS, SLOTS, Slot, is_clean, is_empty_orphan, kind_of_slot, place_in, used_slots,
)
from ringbuf._shared.ranges cimport MOST_RANGES, Range
from ringbuf._shared.shared_ring cimport tidy_up

import time
import weakref

from ringbuf._shared.shared_file import SharedFileError

cdef extern from *:
    """
    #include <bit>
    #include <cstdint>
    static inline int ringbuf_lowest_bit(uint64_t bits) { return std::countr_zero(bits); }
    """
    int lowest_bit "ringbuf_lowest_bit"(uint64_t bits) noexcept nogil

cdef enum:
    # How often (ns) those who find nothing to do look for the dead: a thousandth of a core at most, measured at 1 us a look.
    LOOK_NS = 1000000
    # How long (ns) to wait for a seat while somebody else tidies up.
    JOIN_NS = 10000000000


@cython.final
cdef class Participant:
    """Made by a ring for its file; not for others."""

    def __init__(self, file):
        self.file = file

    cdef _join(self, Judge judge):
        """Take part: tidy up after all who died, and take a seat. SharedFileError if what is there makes no sense."""
        self._judge = judge
        store_relaxed(&self._seen_deaths, UINT64_MAX)
        have_barrier()  # so that those who wait need not wait longer than what this process does
        me = weakref.ref(self)

        def forked():
            participant = me()
            if participant is not None:
                participant._start_over()

        self.file.on_fork = forked
        self._take_seat()

    def _start_over(self):
        """In a forked child: what this process seemed to hold is its parent's."""
        self.epoch += 1
        store_relaxed(&self._seats, 0)
        store_relaxed(&self._seen_deaths, UINT64_MAX)
        self._take_seat()

    def _take_seat(self):
        cdef int64_t deadline = steady_ns() + JOIN_NS
        while True:
            with self.file.recovery() as alone:
                if alone:
                    self._check_whole()
                    self._look()
                    seat = self.file.take_seat(i for i in range(SEATS) if is_clean(self.desk, i))
                    if seat is None:
                        raise RuntimeError(
                            f"{self.file.path}: all {SEATS} seats are taken, by processes or by batches of {SLOTS} operations: "
                            "release what was taken, or let fewer processes attach"
                        )
                    store_release(&self._free[seat], UINT64_MAX)
                    store_release(&self._seats, load_relaxed(&self._seats) | <uint64_t>1 << <int>seat)
                    return
            if steady_ns() > deadline:
                raise TimeoutError(f"{self.file.path}: another process has been tidying up for {JOIN_NS // 10**9} s")
            time.sleep(0.001)

    def first_seat(self):
        """One of the seats that are ours."""
        return lowest_bit(load_acquire(&self._seats))

    # ---------------------------------------------------------------- slots

    cdef int64_t slot(self) except -1:
        """The number of a slot for one operation; give it back. Takes another seat where all of ours are full."""
        cdef int64_t number = self._free_slot()
        while number < 0:
            self._take_seat()
            number = self._free_slot()
        return number

    cdef int64_t _free_slot(self) noexcept nogil:
        cdef uint64_t seats = load_acquire(&self._seats), bits, used
        cdef int seat, bit
        while seats != 0:
            seat = lowest_bit(seats)
            bits = load_relaxed(&self._free[seat])
            while bits != 0:
                bit = lowest_bit(bits)
                if cas_acq_rel(&self._free[seat], &bits, bits & ~(<uint64_t>1 << bit)):
                    used = load_relaxed(&self.desk.seats[seat].used)
                    while used <= <uint64_t>bit:
                        if cas_acq_rel(&self.desk.seats[seat].used, &used, bit + 1):
                            break
                    return seat * SLOTS + bit
            seats &= seats - 1
        return -1

    cdef void give_back(self, int64_t number) noexcept nogil:
        """The operation is over; its slot says FREE."""
        cdef uint64_t bits = load_relaxed(&self._free[number // SLOTS])
        while not cas_acq_rel(&self._free[number // SLOTS], &bits, bits | <uint64_t>1 << (number % SLOTS)):
            pass

    # ---------------------------------------------------------------- the others

    cdef bint notice(self, bint now) except -1:
        """Look whether somebody died and left something, unless that was done just now; whether things have changed."""
        cdef int64_t time_ns = steady_ns()
        if time_ns < <int64_t>load_relaxed(&self._next_look_ns) and not now:
            return False
        store_relaxed(&self._next_look_ns, time_ns + LOOK_NS)
        cdef bint[SEATS] dead
        if not self._find_dead(dead):
            return False
        with self.file.recovery() as alone:
            if not alone:
                return False
            return self._look()

    cdef _check_whole(self):
        """Unless others have found it whole and work on it."""
        cdef const char* damage
        cdef Range* ranges
        if any(self.file.is_taken(seat) for seat in range(SEATS)):
            return
        ranges = <Range*>PyMem_Malloc(MOST_RANGES * sizeof(Range))
        if ranges == NULL:
            raise MemoryError()
        with nogil:
            damage = self._judge(self.ring.ring, ranges)
        PyMem_Free(ranges)
        if damage != NULL:
            raise SharedFileError(f"{self.file.path} is damaged: {damage.decode()}")

    cdef bint _find_dead(self, bint* dead) except -1:
        """Which seats nobody has, and whether one of them was left in disorder."""
        cdef bint disorder = False
        cdef uint64_t seat
        for seat in range(SEATS):
            dead[seat] = not is_clean(self.desk, seat) and not self.file.is_taken(seat)
            disorder = disorder or dead[seat]
        return disorder

    cdef bint _look(self) except -1:
        """Tidy up, as the only one who does."""
        cdef bint[SEATS] dead
        if not self._find_dead(dead):
            return False
        cdef bint alone = not any(self.file.is_taken(seat) for seat in range(SEATS))
        with nogil:
            tidy_up(&self.ring, dead, alone)
        return True

    cdef bint next_orphan(self, uint64_t* number) noexcept nogil:
        """The slot of the oldest take whose process died and of which something is left; False: none."""
        cdef uint64_t deaths = load_acquire(&self.desk.deaths), seat, i
        cdef Pair start, oldest
        cdef Slot* slot
        cdef bint found = False
        if deaths == load_relaxed(&self._seen_deaths):
            return False
        for seat in range(SEATS):
            for i in range(used_slots(self.desk, seat)):
                slot = &self.desk.slots[seat * SLOTS + i]
                if kind_of_slot(slot) != ORPHAN or is_empty_orphan(slot):
                    continue
                start = place_in(load_pair(&slot.left))
                if not found or is_before(start, oldest):
                    oldest = start
                    number[0] = seat * SLOTS + i
                    found = True
        if not found:
            store_relaxed(&self._seen_deaths, deaths)
        return found
