# cython: freethreading_compatible=True
"""The file of a RingBuffer that several processes share, and this process's part in it.

Body: control (_shared/op_slots.pxd), positions, index, records, each from a page on.
The header remembers the capacity in records and the dtype, as `describe` says it. See
_shared/shared_file.py for the file, shared_positions.pxd for how it is worked on.
"""

cimport cython
from libc.stdint cimport UINT64_MAX, int64_t, uint64_t

from ringbuf._core.atomics cimport fetch_add_relaxed, load_acquire, word
from ringbuf._core.pages cimport PAGE_BYTES, whole_pages
from ringbuf._core.pairs cimport Pair, load_pair
from ringbuf._records.positions cimport RELEASED, RunCursors, Runs, count_of, is_of, kind_of
from ringbuf._records.shared_positions cimport (
    leave_orphan, share_runs, shared_claim, shared_pass_void, shared_take, shared_waiting,
    take_orphan,
)
from ringbuf._records.validate cimport damage_of_runs
from ringbuf._shared.op_slots cimport (
    FREE, HELD, ORPHAN, PARTICIPANTS, PUSHING, SLOTS, ControlBlock, OpSlot, amount_of, help_taker,
    is_empty_orphan, kind_of_slot, set_state, used_slots,
)
from ringbuf._shared.participant cimport Participant
from ringbuf._shared.ranges cimport Range

import os
from collections import deque

import numpy as np

from ringbuf._shared.shared_file import SharedFile, SharedFileError

cdef enum:
    # After this many takes a consumer that finds something checks for dead processes:
    # what they had taken is to be taken again.
    LOOK_TAKES = 256

cdef bytes KIND = b"recs"
# This much of a new file is prefaulted: all of a ring of ordinary size.
cdef size_t WARM_BYTES = 8 << 20


def create_or_attach(path, slots, dtype):
    """The SharedFile of a ring of that capacity and dtype, made where there is none."""
    import json

    if not os.path.exists(path):
        meta = {"records": slots, "dtype": describe(dtype)}
        try:
            kept = json.loads(json.dumps(meta["dtype"]))
            whole = kept == meta["dtype"] and described(kept) == dtype
        except (TypeError, ValueError):  # a title that is no text
            whole = False
        if not whole:
            raise TypeError(
                f"dtype {dtype!r} cannot be kept in a file: {path} would not say all of it"
            )
        try:
            size = body_size(slots, dtype.itemsize)
            return SharedFile.create(
                path, KIND, meta, size, (0, b""), warm=[(0, min(size, WARM_BYTES))]
            )
        except FileExistsError:
            pass  # another process was faster
    file, found_slots, found_dtype = attach(path)
    if (found_slots, found_dtype) != (slots, dtype):
        raise SharedFileError(
            f"{file.path} is a ring of {found_slots:,} records of dtype {found_dtype}, "
            f"not of {slots:,} of dtype {dtype}: attach(path) takes it as it is"
        )
    return file


def attach(path):
    """The SharedFile of a ring that is there, its capacity in records and its dtype."""
    file = SharedFile.attach(path, KIND)
    meta = file.meta if isinstance(file.meta, dict) else {}
    slots = meta.get("records")
    if type(slots) is not int or not 2 <= slots <= 1 << 31 or slots & (slots - 1):
        raise SharedFileError(f"{file.path} is damaged: its header has {slots!r} records")
    try:
        dtype = described(meta.get("dtype"))
    except Exception:
        raise SharedFileError(
            f"{file.path} is damaged: its header has the dtype {meta.get('dtype')!r}"
        ) from None
    is_record = dtype.itemsize > 0 and not dtype.hasobject
    if not is_record or body_size(slots, dtype.itemsize) > len(file.memory):
        raise SharedFileError(
            f"{file.path} is damaged: it is too small for {slots:,} records of dtype {dtype}"
        )
    return file, slots, dtype


def describe(dtype):
    """A dtype in JSON's terms, with all that makes a difference: places, titles,
    padding, the align flag, np.record.
    """
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return {"of": describe(base), "shape": list(shape)}
    if dtype.names is None:
        return dtype.str
    return {
        "fields": [
            [name, describe(dtype.fields[name][0]), *dtype.fields[name][1:]] for name in dtype.names
        ],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
        "record": dtype.type is np.record,
    }


def described(description):
    """The dtype that `describe` was given; raises anything where it was not."""
    if isinstance(description, str):
        return np.dtype(description)
    if "of" in description:
        return np.dtype((described(description["of"]), tuple(description["shape"])))
    fields = description["fields"]
    dtype = np.dtype(
        {
            "names": [field[0] for field in fields],
            "formats": [described(field[1]) for field in fields],
            "offsets": [field[2] for field in fields],
            "titles": [field[3] if len(field) > 3 else None for field in fields],
            "itemsize": description["itemsize"],
        },
        align=description["aligned"],
    )
    return np.dtype((np.record, dtype)) if description["record"] else dtype


def body_size(slots, itemsize):
    """Bytes; in Python's ints, which do not overflow."""
    index = -(-slots * 8 // PAGE_BYTES) * PAGE_BYTES
    head = whole_pages(sizeof(ControlBlock)) + whole_pages(sizeof(RunCursors))
    return head + index + slots * itemsize


cdef const char* judge(void* ring, Range* ranges) noexcept nogil:
    return damage_of_runs(<Runs*>ring, ranges)


@cython.final
cdef class SharedRuns:
    """A ring's part in its file; one for a ring and all its handles. Any number of
    threads may use it.
    """

    def __init__(self, file, uint64_t slots, uint64_t itemsize):
        self.memory = np.frombuffer(file.memory, np.uint8)
        cdef size_t address = self.memory.ctypes.data
        self.given = deque()
        self.participant = Participant(file)
        self.participant.control = <ControlBlock*>address
        address += whole_pages(sizeof(ControlBlock))
        self.runs.cursors = <RunCursors*>address
        address += whole_pages(sizeof(RunCursors))
        self.runs.index = <word*>address
        address += whole_pages(slots * sizeof(word))
        self.runs.data = <unsigned char*>address
        self.runs.mask = slots - 1
        self.runs.itemsize = itemsize
        self.runs.alone = False
        share_runs(&self.runs, &self.participant.ring, self.participant.control)
        self.participant._join(judge)

    cdef int64_t begin(self, OpSlot** slot) except -1:
        """An op slot for one operation, and its number; it goes back by `end`."""
        cdef int64_t number = self.participant.op_slot()
        slot[0] = &self.participant.control.slots[number]
        return number

    cdef void end(self, int64_t number) noexcept:
        self.participant.give_back(number)

    cdef int return_taken(self, OpSlot* slot, int64_t number, uint64_t position) except -1:
        """Give back what was taken, for any consumer to take."""
        leave_orphan(self.participant.control, slot, position)
        self.participant.rest_take(number)
        self.given.append((self.participant.epoch, number))
        return 0

    cdef int sweep(self) except -1:
        """Free the slots of blocks that gave back, as far as all of it has been taken
        again.
        """
        cdef OpSlot* slot
        cdef int64_t number
        for _ in range(len(self.given)):
            try:
                epoch, number = self.given.popleft()
            except IndexError:
                return 0  # another thread does the same
            if epoch != self.participant.epoch:
                continue  # our parent's, from before a fork
            slot = &self.participant.control.slots[number]
            if not self.participant.resume_take(number):
                continue  # the ring is closed: it was left to others
            if is_empty_orphan(slot):
                help_taker(self.participant.control, number + 1, load_pair(&slot.left))
                set_state(slot, FREE)
                self.participant.give_back(number)
            else:
                self.participant.rest_take(number)
                self.given.append((epoch, number))
        return 0

    cdef uint64_t claim(
        self, OpSlot* slot, word* seen, uint64_t most, bint contiguous, uint64_t* position
    ) except? 0xFFFFFFFF:
        cdef uint64_t count
        while True:
            count = shared_claim(&self.runs, seen, slot, most, contiguous, position)
            if count > 0:
                return count
            if not (shared_pass_void(&self.runs, slot) or self.participant.notice_dead(False)):
                return 0

    cdef uint64_t take(
        self, OpSlot* slot, uint64_t most, bint contiguous, uint64_t* position
    ) except? 0xFFFFFFFF:
        """What blocks and dead processes gave back; else what waits in the ring."""
        if fetch_add_relaxed(&self.takes, 1) % LOOK_TAKES == LOOK_TAKES - 1:
            self.participant.notice_dead(False)
        if len(self.given) > 0:
            self.sweep()
        cdef uint64_t count = self.try_take(slot, most, contiguous, position)
        if count == 0 and self.participant.notice_dead(False):
            count = self.try_take(slot, most, contiguous, position)
        return count

    cdef uint64_t try_take(
        self, OpSlot* slot, uint64_t most, bint contiguous, uint64_t* position
    ) noexcept:
        cdef uint64_t orphan = 0, last = UINT64_MAX, count
        while self.participant.next_orphan(&orphan):
            count = take_orphan(&self.runs, slot, orphan, most, contiguous, position)
            if count > 0:
                return count
            # Others were faster. If it is there again, go on with what waits, so that
            # this ends.
            if orphan == last:
                break
            last = orphan
        return shared_take(&self.runs, slot, most, contiguous, position)

    cdef uint64_t waiting(self) noexcept:
        return shared_waiting(&self.runs)

    cdef object check(self):
        """RingBuffer._check. Every process that took part is at rest, or gone and
        noticed.
        """
        cdef Runs* r = &self.runs
        cdef Pair read = load_pair(&r.cursors.read)
        cdef uint64_t tail = load_acquire(&r.cursors.tail)
        cdef uint64_t write = load_acquire(&r.cursors.write.position)
        cdef uint64_t at = read.position, end = at + amount_of(read.rest), position, tag
        cdef uint64_t participant, i, kind
        cdef uint64_t out = 0, taken = 0, left = 0, reserved = 0, pushing = 0
        cdef OpSlot* slot
        assert tail <= at <= end <= write <= tail + r.mask + 1, (tail, at, end, write)
        tag = load_acquire(&r.index[tail & r.mask])
        assert tail == at or not is_of(r, tag, tail) or kind_of(tag) != RELEASED, (
            "a range that was released is not freed"
        )
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
        for participant in range(<uint64_t>PARTICIPANTS):
            for i in range(used_slots(r.shared.control, participant)):
                slot = &r.shared.control.slots[participant * SLOTS + i]
                kind = kind_of_slot(slot)
                position = load_acquire(&slot.after.position)
                if kind == HELD:
                    taken += position - load_acquire(&slot.before.position)
                elif kind == ORPHAN:
                    left += position - load_acquire(&slot.left.position)
                elif kind == PUSHING:
                    pushing += position - load_acquire(&slot.before.position)
                else:
                    assert kind == FREE, "a take is not finished"
        assert out == taken + left, (out, taken, left)
        assert reserved == pushing, (reserved, pushing)
        return reserved, taken
