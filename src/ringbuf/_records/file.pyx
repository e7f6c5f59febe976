# cython: freethreading_compatible=True
"""The file of a RingBuffer that several processes share, and this process's part in it.

Body: desk (seats and slots), positions, index, records, each from a page on. The header remembers the capacity in records and the
dtype, in numpy's own notation for the head of a .npy file. See _shared/shared_file.py for the file, _shared/op_slots.pxd and
shared_positions.pxd for how it is worked on.
"""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport fetch_add_relaxed, load_acquire, word
from ringbuf._records.positions cimport RELEASED, RunCursors, Runs, count_of, is_of, kind_of, position_of
from ringbuf._records.shared_positions cimport (
    is_empty_orphan, known_of, offer, shared_claim, shared_pass_void, shared_take, shared_waiting, take_orphan, tidy_runs,
)
from ringbuf._records.validate cimport damage_of_runs
from ringbuf._shared.op_slots cimport (
    FREE, HELD, ORPHAN, PUSHING, SEATS, SLOTS, Desk, Slot, help_taker, kind_of_state, set_state, used_slots,
)
from ringbuf._shared.participant cimport Participant

import ast
import os
from collections import deque

import numpy as np

from ringbuf._shared.shared_file import SharedFile, SharedFileError

cdef enum:
    # So often a consumer looks for the dead while it finds something: what they had taken is to be taken again.
    LOOK_TAKES = 256

cdef bytes KIND = b"recs"
# So much of a new file is ready from the start: all of a ring of ordinary size.
cdef size_t WARM_BYTES = 8 << 20
cdef size_t PAGE = 4096


cdef inline size_t pages(size_t size) noexcept:
    return (size + PAGE - 1) & ~(PAGE - 1)


def create_or_attach(path, slots, dtype):
    """The SharedFile of a ring of that many records of that dtype, made if it is not there."""
    if not os.path.exists(path):
        meta = {"records": slots, "dtype": repr(np.lib.format.dtype_to_descr(dtype))}
        try:
            size = body_size(slots, dtype.itemsize)
            return SharedFile.create(path, KIND, meta, size, SEATS, (0, b""), warm=[(0, min(size, WARM_BYTES))])
        except FileExistsError:
            pass  # another process was faster
    file, found_slots, found_dtype = attach(path)
    if (found_slots, found_dtype) != (slots, dtype):
        raise SharedFileError(
            f"{file.path} is a ring of {found_slots:,} records of dtype {found_dtype}, not of {slots:,} of dtype {dtype}: "
            "attach(path) takes it as it is"
        )
    return file


def attach(path):
    """The SharedFile of a ring that is there, its capacity in records and its dtype."""
    file = SharedFile.attach(path, KIND, SEATS)
    meta = file.meta if isinstance(file.meta, dict) else {}
    slots = meta.get("records")
    if type(slots) is not int or not 2 <= slots <= 1 << 31 or slots & (slots - 1):
        raise SharedFileError(f"{file.path} is damaged: it speaks of {slots!r} records")
    try:
        dtype = np.lib.format.descr_to_dtype(ast.literal_eval(meta.get("dtype")))
    except Exception:
        raise SharedFileError(f"{file.path} is damaged: it speaks of the dtype {meta.get('dtype')!r}") from None
    if dtype.itemsize == 0 or dtype.hasobject or body_size(slots, dtype.itemsize) > len(file.memory):
        raise SharedFileError(f"{file.path} is damaged: it is too small for {slots:,} records of dtype {dtype}")
    return file, slots, dtype


def body_size(slots, itemsize):
    """Bytes; in Python's ints, which do not overflow."""
    return pages(sizeof(Desk)) + pages(sizeof(RunCursors)) + -(-slots * 8 // PAGE) * PAGE + slots * itemsize


cdef void tidy(void* ring, const bint* dead, bint alone) noexcept nogil:
    tidy_runs(<Runs*>ring, dead)


cdef const char* judge(void* ring) noexcept nogil:
    return damage_of_runs(<Runs*>ring)


@cython.final
cdef class SharedRuns:
    """A ring's part in its file; one for a ring and all its handles. Any number of threads may use it."""

    def __init__(self, file, uint64_t slots, uint64_t itemsize):
        self.memory = np.frombuffer(file.memory, np.uint8)
        cdef size_t address = self.memory.ctypes.data
        self.given = deque()
        self.participant = Participant(file)
        self.participant.desk = self.runs.desk = <Desk*>address
        address += pages(sizeof(Desk))
        self.runs.cursors = <RunCursors*>address
        address += pages(sizeof(RunCursors))
        self.runs.index = <word*>address
        address += pages(slots * sizeof(word))
        self.runs.data = <unsigned char*>address
        self.runs.mask = slots - 1
        self.runs.itemsize = itemsize
        self.runs.alone = False
        self.participant._join(&self.runs, tidy, judge)

    cdef int64_t begin(self, Slot** slot) except -1:
        """A slot for one operation, and its number; it goes back by `end`."""
        cdef int64_t number = self.participant.slot()
        slot[0] = &self.runs.desk.slots[number]
        return number

    cdef void end(self, int64_t number) noexcept:
        self.participant.give_back(number)

    cdef int return_taken(self, Slot* slot, int64_t number, uint64_t position) except -1:
        """Give back what was taken, for anybody to take."""
        offer(&self.runs, slot, position)
        self.participant.rest(number)
        self.given.append((self.participant.epoch, number))
        return 0

    cdef int sweep(self) except -1:
        """Free the slots of blocks that gave back, as far as all of it has been taken again."""
        cdef Slot* slot
        cdef int64_t number
        for _ in range(len(self.given)):
            try:
                epoch, number = self.given.popleft()
            except IndexError:
                return 0  # another thread does the same
            if epoch != self.participant.epoch:
                continue  # our parent's, from before a fork
            slot = &self.runs.desk.slots[number]
            if not self.participant.resume(number):
                continue  # the ring is closed, and the block with others
            if is_empty_orphan(slot):
                help_taker(self.runs.desk, number + 1, load_acquire(&slot.before))
                set_state(slot, FREE)
                self.participant.give_back(number)
            else:
                self.participant.rest(number)
                self.given.append((epoch, number))
        return 0

    cdef uint64_t claim(self, Slot* slot, word* seen, uint64_t most, bint contiguous, uint64_t* position) except? 0xFFFFFFFF:
        cdef uint64_t count
        while True:
            count = shared_claim(&self.runs, seen, slot, most, contiguous, position)
            if count > 0 or not (shared_pass_void(&self.runs, slot) or self.participant.notice(False)):
                return count

    cdef uint64_t take(self, Slot* slot, uint64_t most, bint contiguous, uint64_t* position) except? 0xFFFFFFFF:
        """What blocks and dead processes gave back; else what waits in the ring."""
        if fetch_add_relaxed(&self.takes, 1) % LOOK_TAKES == LOOK_TAKES - 1:
            self.participant.notice(False)
        if len(self.given) > 0:
            self.sweep()
        cdef uint64_t count = self.take_now(slot, most, contiguous, position)
        if count == 0 and self.participant.notice(False):
            count = self.take_now(slot, most, contiguous, position)
        return count

    cdef uint64_t take_now(self, Slot* slot, uint64_t most, bint contiguous, uint64_t* position) noexcept:
        cdef uint64_t orphan = 0, count
        while self.participant.next_orphan(&orphan):
            count = take_orphan(&self.runs, slot, orphan, most, contiguous, position)
            if count > 0:
                return count
        return shared_take(&self.runs, slot, most, contiguous, position)

    cdef uint64_t waiting(self) noexcept:
        return shared_waiting(&self.runs)

    cdef object check(self):
        """RingBuffer._check. Every process that took part is at rest, or gone and noticed."""
        cdef Runs* r = &self.runs
        cdef uint64_t tail = load_acquire(&r.cursors.tail), read = load_acquire(&r.cursors.read)
        cdef uint64_t write = load_acquire(&r.cursors.write)
        cdef uint64_t at = position_of(r, read), end = at + known_of(read), position, tag, seat, i, kind
        cdef uint64_t out = 0, taken = 0, left = 0, reserved = 0, pushing = 0
        cdef Slot* slot
        assert tail <= at <= end <= write <= tail + r.mask + 1, (tail, at, end, write)
        tag = load_acquire(&r.index[tail & r.mask])
        assert tail == at or not is_of(r, tag, tail) or kind_of(tag) != RELEASED, "a range that nobody needs is not freed"
        position = tail
        while position < at:
            tag = load_acquire(&r.index[position & r.mask])
            if is_of(r, tag, position) and kind_of(tag) == RELEASED:
                position += count_of(r, tag)
            else:
                position += 1
                out += 1
        assert position == at, "a range goes on behind `read`"
        position = end
        while position < write:
            tag = load_acquire(&r.index[position & r.mask])
            if is_of(r, tag, position):
                assert kind_of(tag) != RELEASED, "a range was released before it was taken"
                position += count_of(r, tag)
            else:
                position += 1
                reserved += 1
        assert position == write, "a run goes on behind `write`"
        for seat in range(<uint64_t>SEATS):
            for i in range(used_slots(r.desk, seat)):
                slot = &r.desk.slots[seat * SLOTS + i]
                kind = kind_of_state(load_acquire(&slot.state))
                position = load_acquire(&slot.before) >> 32
                if kind == HELD:
                    taken += <uint32_t>((load_acquire(&slot.after) >> 32) - position)
                elif kind == ORPHAN:
                    left += <uint32_t>((load_acquire(&slot.after) >> 32) - position)
                elif kind == PUSHING:
                    pushing += load_acquire(&slot.size)
                else:
                    assert kind == FREE, "a take is not finished"
        assert out == taken + left, (out, taken, left)
        assert reserved == pushing, (reserved, pushing)
        return reserved, taken
