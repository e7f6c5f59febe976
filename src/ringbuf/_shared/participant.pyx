# cython: freethreading_compatible=True
"""Participant: one process's part in a shared ring: its participant slots and op slots,
and its watch over the other participants.

All threads of the process that use one ring object share one Participant; op slots go
from thread to thread without a lock. See op_slots.pxd for what an op slot is and
participant_locks.pyx for what a participant slot is.

Participant slots are taken at need. To attach, a process tidies up and checks that the
ring is whole, under the lock for tidying up; from then on it attends. It takes no slot,
and changes nothing in the ring, until its first operation. So while no participant slot
is taken no process works on the ring, however many attend, and it can be validated.

A fork leaves the child without a slot (see ParticipantLocks.watch): its first operation
takes one, and tidies up then, as the first of any process does. `epoch` says that what
was begun before belongs to the parent.

Closing. `close` takes all op slots out of use: those that are free, and those of takes
that rest, which are offered to others from then on. An operation under way in another
thread, and a block that is open, keep the participant slot until they give their op
slot back; then the participant slot is left. So no process ever gets the slot of a
participant that still works.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.errno cimport ENOMEM
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_acq_rel, cas_total, exchange_total, fetch_add_total, fetch_or_total, fetch_sub_total,
    load_acquire, load_relaxed, load_total, store_relaxed, store_release, store_total, word,
)
from ringbuf._core.eventcount cimport have_barrier
from ringbuf._core.pairs cimport PAIRS_ARE_LOCK_FREE, Pair, is_before, load_pair
from ringbuf._core.timing cimport steady_ns
from ringbuf._shared.op_slots cimport (
    ORPHAN, PARTICIPANTS, SLOTS, OpSlot, is_clean, is_empty_orphan, kind_of_slot, place_in,
    used_slots,
)
from ringbuf._shared.ranges cimport MOST_RANGES, Range
from ringbuf._shared.shared_ring cimport tidy_up

import os
import time

from ringbuf._shared.shared_file import SharedFileError

cdef extern from *:
    """
    #include <bit>
    #include <cstdint>
    static inline int ringbuf_lowest_bit(uint64_t bits) { return std::countr_zero(bits); }
    """
    int lowest_bit "ringbuf_lowest_bit"(uint64_t bits) noexcept nogil

cdef enum:
    # How often (ns) an operation that finds nothing checks for dead participants: a
    # thousandth of a core at most, at 1 us a check (measured).
    LOOK_NS = 1000000
    # How long (ns) to wait for a slot while another process tidies up.
    JOIN_NS = 10000000000
    # In `error` of _take_participant_slot, beside errnos.
    ALL_TAKEN = -1

# In _at_work: close() has left this take to others.
cdef uint64_t ABANDONED = <uint64_t>1 << 63


# So that `locks` is still there when it is deallocated; nothing that it refers to can
# refer back.
@cython.no_gc
@cython.final
cdef class Participant:
    """One for a ring of a file and all its handles; made by the ring."""

    def __init__(self, file):
        self.file = file

    def __dealloc__(self):
        if self.locks is not None:
            self.locks.watch(NULL, NULL)
        for participant in range(PARTICIPANTS):
            PyMem_Free(self._at_work[participant])

    cdef _join(self, Judge judge):
        """Take part: tidy up after all that died. SharedFileError if the ring is
        damaged.
        """
        if not PAIRS_ARE_LOCK_FREE:
            raise NotImplementedError(
                f"{self.file.path}: a ring in a file needs a processor that exchanges 16 bytes at "
                "once: use a ring without a path"
            )
        self._judge = judge
        store_relaxed(&self._seen_deaths, UINT64_MAX)
        have_barrier()  # registers this process: its waiting operations rely on that
        self._attend()

    cdef _attend(self):
        cdef bint taken
        cdef const char* damage = NULL
        cdef Range* ranges = <Range*>PyMem_Malloc(MOST_RANGES * sizeof(Range))
        if ranges == NULL:
            raise MemoryError()
        self.locks = self.file.locks
        self.locks.watch(&self._own, &self.epoch)
        try:
            self._begin_tidying()
            with nogil:
                # Where a slot is taken, others have found the ring whole and work on
                # it. Where none is, no process works on it, and none can begin until
                # this is done.
                taken = self._is_any_taken()
                if not taken:
                    damage = self._judge(self.ring.ring, ranges)
                if damage == NULL:
                    self._tidy_up(not taken and not self.locks.others_attend())
                    self.locks.attend()
                self.locks.end_tidying()
        finally:
            PyMem_Free(ranges)
        if damage != NULL:
            raise SharedFileError(f"{self.file.path} is damaged: {damage.decode()}")

    cdef int _begin_tidying(self) except -1:
        """Until `end_tidying` no other process tidies up or takes a slot.

        No Python code may run until then: a collection, or a signal's handler, that
        uses the ring would wait for its own thread.
        """
        cdef int64_t deadline = steady_ns() + JOIN_NS
        cdef int begun
        while True:
            begun = self.locks.begin_tidying()
            if begun > 0:
                return 0
            if load_total(&self._closing):
                raise ValueError("the ring is closed")
            if begun < 0:
                raise OSError(-begun, os.strerror(-begun), self.file.path)
            if steady_ns() > deadline:
                raise TimeoutError(
                    f"{self.file.path}: another process has been tidying up for {JOIN_NS // 10**9} "
                    "s"
                )
            time.sleep(0.001)

    # ---------------------------------------------------------------- op slots

    cdef int64_t op_slot(self) except -1:
        """The number of an op slot for one operation; give it back. Takes another
        participant slot where all of ours are full.

        Raises ValueError where the ring is closed, RuntimeError where all participant
        slots are taken, and OSError where a forked child cannot open the file; a later
        call tries again.
        """
        cdef int64_t number = self._free_op_slot()
        while number < 0:
            number = self._op_slot_of_another()
        return number

    cdef int64_t _free_op_slot(self) noexcept nogil:
        cdef uint64_t ours = load_acquire(&self._own), bits, used
        cdef word* slots_used
        cdef int participant, bit
        while ours != 0:
            participant = lowest_bit(ours)
            bits = load_relaxed(&self._free[participant])
            while bits != 0:
                bit = lowest_bit(bits)
                if cas_acq_rel(&self._free[participant], &bits, bits & ~(<uint64_t>1 << bit)):
                    slots_used = &self.control.participants[participant].used
                    used = load_relaxed(slots_used)
                    while used <= <uint64_t>bit:
                        if cas_acq_rel(slots_used, &used, bit + 1):
                            break
                    return participant * SLOTS + bit
            ours &= ours - 1
        return -1

    cdef int64_t _op_slot_of_another(self) except -2:
        """An op slot, of a new participant slot if no other thread has taken one
        meanwhile; -1: others were faster.
        """
        cdef int64_t number
        cdef int error = 0
        if load_total(&self._closing):
            raise ValueError("the ring is closed")
        self.file.reopen()
        self._begin_tidying()
        number = self._free_op_slot()
        if number < 0:
            number = self._take_participant_slot(&error)
        self.locks.end_tidying()
        if load_total(&self._closing):
            # `close` may not have seen this participant slot.
            if number >= 0:
                self.give_back(number)
            with nogil:
                self._leave()
            raise ValueError("the ring is closed")
        if error == ENOMEM:
            raise MemoryError()
        if error > 0:
            raise OSError(error, os.strerror(error), self.file.path)
        if error == ALL_TAKEN:
            raise RuntimeError(
                f"{self.file.path}: all {PARTICIPANTS} participant slots are taken, by processes "
                f"or by batches of {SLOTS} operations: release what was taken, or let fewer "
                "processes attach"
            )
        return number

    cdef int64_t _take_participant_slot(self, int* error) noexcept:
        """Tidy up and take a participant slot, under the lock for tidying up; returns
        an op slot of it.

        -1: there is none, and `error` says why, by an errno or ALL_TAKEN; or others
        were faster.
        """
        cdef int participant, taken
        cdef uint64_t i
        cdef word* at_work
        with nogil:
            self._tidy_up(False)
            self.locks.attend()
        for participant in range(PARTICIPANTS):
            if not is_clean(self.control, participant):
                continue
            if self._at_work[participant] == NULL:
                self._at_work[participant] = <word*>PyMem_Calloc(SLOTS, sizeof(word))
                if self._at_work[participant] == NULL:
                    error[0] = ENOMEM
                    return -1
            taken = self.locks.take(participant)
            if taken < 0:
                error[0] = -taken
                return -1
            if taken == 0:
                continue
            at_work = self._at_work[participant]
            for i in range(<uint64_t>SLOTS):
                store_relaxed(&at_work[i], 1)
            store_relaxed(&self._seen_deaths, UINT64_MAX)
            store_release(&self._free[participant], UINT64_MAX)
            fetch_or_total(&self._own, <uint64_t>1 << participant)
            return self._free_op_slot()
        error[0] = ALL_TAKEN
        return -1

    cdef int own_number(self) except -1:
        """The number of a participant slot of ours; taken if there is none yet."""
        cdef int64_t number
        while load_acquire(&self._own) == 0:
            number = self.op_slot()
            self.give_back(number)
        return lowest_bit(load_acquire(&self._own))

    cdef void give_back(self, int64_t number) noexcept nogil:
        """The operation is over; its op slot says FREE."""
        cdef word* free = &self._free[number // SLOTS]
        cdef uint64_t bits = load_relaxed(free)
        while not cas_total(free, &bits, bits | <uint64_t>1 << (number % SLOTS)):
            pass
        if load_total(&self._closing):
            self._leave()

    # A take keeps its op slot when its operation is over: it rests, and `close` may
    # leave it to others. What is done with it later, its release for one, is work
    # again. The count of a slot that does not rest, and of a free one, is 1.

    cdef void rest_take(self, int64_t number) noexcept nogil:
        """The thread that works on this take is done for now."""
        fetch_sub_total(&self._at_work[number // SLOTS][number % SLOTS], 1)
        if load_total(&self._closing):
            self._leave()

    cdef bint resume_take(self, int64_t number) noexcept nogil:
        """Work on a take that rests; False: `close` has left it to others."""
        return fetch_add_total(&self._at_work[number // SLOTS][number % SLOTS], 1) & ABANDONED == 0

    # ---------------------------------------------------------------- the end

    cdef void close(self) noexcept nogil:
        """Leave all participant slots; one that an operation under way still needs,
        when that has ended.
        """
        store_total(&self._closing, 1)
        self._leave()

    cdef void _leave(self) noexcept nogil:
        """Take the op slots that are not in use out of use; leave if that is all of
        them. Several threads may be here at once.
        """
        cdef uint64_t ours = exchange_total(&self._own, 0), participant, i, bits, none
        cdef bint all_out = True
        ours |= fetch_or_total(&self._leaving, ours)
        for participant in range(<uint64_t>PARTICIPANTS):
            if not ours >> participant & 1:
                continue
            # The free ones: no operation finds one here any more.
            bits = exchange_total(&self._free[participant], 0)
            bits |= fetch_or_total(&self._out_of_use[participant], bits)
            for i in range(<uint64_t>SLOTS):
                none = 0
                if bits >> i & 1:
                    continue
                if cas_total(&self._at_work[participant][i], &none, ABANDONED):
                    fetch_or_total(&self._out_of_use[participant], <uint64_t>1 << i)
            # Of several threads, the last one to add to these sees all of them.
            if load_total(&self._out_of_use[participant]) != UINT64_MAX:
                all_out = False
        if all_out:
            self.locks.close()

    # -------------------------------------------------------- the other participants

    cdef bint notice_dead(self, bint now) noexcept:
        """Tidy up after dead participants, if there are any; returns whether anything
        changed. `now`: even if that was done within LOOK_NS.

        No Python code runs here, so no signal's handler does: some operations are done
        in part when they come here.
        """
        cdef int64_t time_ns = steady_ns()
        cdef bint[PARTICIPANTS] dead
        cdef bint changed
        if time_ns < <int64_t>load_relaxed(&self._next_look_ns) and not now:
            return False
        store_relaxed(&self._next_look_ns, time_ns + LOOK_NS)
        if not self._find_dead(dead) or self.locks.begin_tidying() <= 0:
            return False
        with nogil:
            changed = self._tidy_up(False)
            self.locks.end_tidying()
        return changed

    cdef bint _is_any_taken(self) noexcept nogil:
        cdef int participant
        for participant in range(PARTICIPANTS):
            if self.locks.is_taken(participant):
                return True
        return False

    cdef bint _find_dead(self, bint* dead) noexcept nogil:
        """Which participants have died and left something, and whether any has."""
        cdef bint any_dead = False
        cdef int participant
        for participant in range(PARTICIPANTS):
            dead[participant] = (
                not is_clean(self.control, participant) and not self.locks.is_taken(participant)
            )
            any_dead = any_dead or dead[participant]
        return any_dead

    cdef bint _tidy_up(self, bint alone) noexcept nogil:
        """Tidy up, under the lock for it.

        alone: no other process attends or can begin to, and this one has just attached.
        """
        cdef bint[PARTICIPANTS] dead
        if not self._find_dead(dead):
            return False
        tidy_up(&self.ring, dead, alone)
        return True

    cdef bint next_orphan(self, uint64_t* number) noexcept nogil:
        """The op slot of the oldest take whose process died and of which something is
        left; False: none.
        """
        cdef uint64_t deaths = load_acquire(&self.control.deaths), participant, i
        cdef Pair start, oldest
        cdef OpSlot* slot
        cdef bint found = False
        if deaths == load_relaxed(&self._seen_deaths):
            return False
        for participant in range(PARTICIPANTS):
            for i in range(used_slots(self.control, participant)):
                slot = &self.control.slots[participant * SLOTS + i]
                if kind_of_slot(slot) != ORPHAN or is_empty_orphan(slot):
                    continue
                start = place_in(load_pair(&slot.left))
                if not found or is_before(start, oldest):
                    oldest = start
                    number[0] = participant * SLOTS + i
                    found = True
        if not found:
            store_relaxed(&self._seen_deaths, deaths)
        return found
