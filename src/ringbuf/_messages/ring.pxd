from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._messages.columns cimport Column, Messages, Spares
from ringbuf._messages.frames cimport TakeSource
from ringbuf._messages.positions cimport Frames
from ringbuf._shared.op_slots cimport OpSlot
from ringbuf._shared.participant cimport Participant
from ringbuf._shared.waiting cimport Waiting


cdef class MessageRingBase:
    cdef Frames _frames
    cdef object _memory              # the numpy array that owns what the frames point to
    cdef Participant _participant    # of a ring that processes share; else None
    cdef Spares _spares
    cdef object _owner               # of a handle: the ring
    cdef word _takes
    cdef uint64_t _unused
    cdef Waiting _waiting
    cdef object _identity            # what the ring, its handles and what they take have in common; keeps nothing alive

    cdef int64_t _push(self, Column* column, uint64_t* first_seq) except -1
    cdef int64_t _push_lines(
        self, const char* chunk, size_t size, bint final, int64_t max_lines, size_t* consumed, uint64_t* first_seq
    ) except -1
    cdef Messages _take(self, int64_t most, int64_t most_bytes)
    cdef Messages _take_now(self, int64_t most, int64_t most_bytes)
    cdef Messages _take_orphaned(self, int64_t most, int64_t most_bytes)
    cdef Messages _take_by_slot(self, bint orphaned, int64_t most, int64_t most_bytes)
    cdef Messages _take_orphan(self, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes)
    cdef Messages _take_from(self, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes)
    cdef Messages _take_one(self, TakeSource* source, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes)
    cdef Messages _rest(self, Messages messages)
    cdef int _release(self, Messages messages, bint rests) except -1
    cdef int _finish(self, Messages messages) noexcept
    cdef int _refuse_abandoned(self) except -1
    cdef _split(self, Messages messages, count)
    cdef int _check_ours(self, Messages messages) except -1
    cdef int _raise_damaged(self) except -1
    cdef object _where(self)
    cdef int64_t _begin(self, OpSlot** slot) except -2
    cdef void _end(self, int64_t number) noexcept


cdef class MessageRing(MessageRingBase):
    cdef word _made                  # 1: once and for all, as far as it went well
    cdef uint64_t _warm_until        # the position up to which `warm_ahead` has made memory ready
    cdef object _key                 # of sealed frames: the array that owns it

    cdef _allocate(self, uint64_t granules, uint64_t first_seq)
    cdef _open(self, file)
    cdef _handle(self, MessageRingBase handle)


cdef class MessageProducer(MessageRingBase):
    pass


cdef class MessageConsumer(MessageRingBase):
    pass
