from ringbuf._core.atomics cimport word
from ringbuf._meters.refill_law cimport BucketState


cdef object create_file(path, BucketState* state)
cdef object attach_file(path)
cdef object map_state(object file, BucketState** state)
cdef void watch_forks(object file, word* me) noexcept
cdef int take_participant_slot(object file, BucketState* state, word* me) except -1
cdef int free_lock(object file, BucketState* state, word* me) except -1
