from libc.stdint cimport uint64_t

from ringbuf._records.base cimport RecordRingBase


cdef class RingBuffer(RecordRingBase):
    cdef object _allocate(self, uint64_t slots)


cdef class Producer(RecordRingBase):
    pass


cdef class Consumer(RecordRingBase):
    pass
