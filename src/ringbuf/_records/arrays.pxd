from libc.stdint cimport uint64_t

from ringbuf._records.base cimport RecordRingBase


cdef object records_of(RecordRingBase ring, object records)
cdef object record_of(RecordRingBase ring, object record)
cdef object checked_out(RecordRingBase ring, object out)
cdef object new_array(RecordRingBase ring, uint64_t count)
