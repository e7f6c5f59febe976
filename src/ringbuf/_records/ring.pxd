from libc.stdint cimport uint64_t

from ringbuf._records.base cimport Face


cdef class RingBuffer(Face):
    cdef object _allocate(self, uint64_t slots)


cdef class Producer(Face):
    pass


cdef class Consumer(Face):
    pass
