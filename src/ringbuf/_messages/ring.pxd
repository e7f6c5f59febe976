from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word
from ringbuf._messages.columns cimport Spares
from ringbuf._messages.positions cimport Frames
from ringbuf._shared.op_slots cimport FREE, OpSlot, set_state
from ringbuf._shared.participant cimport Participant
from ringbuf._shared.waiting cimport Waiting, check_open


cdef class MessageRingBase:
    cdef Frames _frames
    cdef object _memory              # the numpy array that owns what the frames point to
    cdef Participant _participant    # of a ring that processes share; else None
    cdef Spares _spares
    cdef object _owner               # of a handle: the ring
    cdef word _takes
    cdef uint64_t _unused
    cdef Waiting _waiting
    # What the ring, its handles and what they take have in common; it keeps nothing
    # alive.
    cdef object _identity


cdef class MessageRing(MessageRingBase):
    cdef word _made                  # 1: made, or being made
    cdef uint64_t _warm_until        # up to this position `warm_ahead` has prefaulted memory
    cdef object _key                 # of the checksums: the array that owns it
    cdef word _deferring             # 1: pushes leave them to `write_checksums` …
    cdef word _deferred_from         # … which is done up to here …
    cdef word _deferred_until        # … and was called when `write` was there

    cdef _allocate(self, uint64_t granules, uint64_t first_seq)
    cdef _use_file(self, file)
    cdef _handle(self, MessageRingBase handle)


cdef class MessageProducer(MessageRingBase):
    pass


cdef class MessageConsumer(MessageRingBase):
    pass


cdef int refuse_damage(MessageRingBase ring) except -1


cdef inline int64_t begin_operation(MessageRingBase ring, OpSlot** slot) except -2:
    """An op slot for one operation, and its number; of a ring of one process: none, and
    -1.
    """
    if ring._frames.shared == NULL:
        check_open(ring._waiting)
        return -1
    cdef int64_t number = ring._participant.op_slot()
    slot[0] = &ring._frames.shared.control.slots[number]
    return number


cdef inline void end_operation(MessageRingBase ring, int64_t number) noexcept:
    if number >= 0:
        set_state(&ring._frames.shared.control.slots[number], FREE)
        ring._participant.give_back(number)
