from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport word


# What the refill law needs, published as one of two slots: see "Concurrency" in
# token_bucket.pyx.
cdef struct Law:
    word anchor_ns        # the law starts to count here …
    word anchor_tokens    # … with this many tokens issued …
    word carry_low        # … and this part of the next one, in units of 1 / (5**9 * 2**shift) (128 bits)
    word carry_high
    word mult             # tokens per ns = mult / (5**9 * 2**shift)
    word shift
    word burst
    word unlimited        # rate == inf


# Two cache lines and the law slots; the word that every acquire changes has a line of
# its own.
cdef struct BucketState:
    word spent
    word credit           # what may be taken without a look at the clock: see "Credit" in token_bucket.pyx
    word pad[6]
    word version          # law[version & 1] is the one in force
    word setter           # not 0 while a thread prepares the other slot: which one, and when it began
    word boot[2]          # of a bucket in a file: the run of the kernel whose clock the law is about
    word pad2[4]
    Law law[2]


# A part of a token in 128 bits, in the units of its law.
cdef struct Rest:
    uint64_t low
    uint64_t high


# A consistent copy of a Law in plain integers.
cdef struct LawCopy:
    int64_t anchor_ns
    uint64_t anchor_tokens
    uint64_t carry_low
    uint64_t carry_high
    uint64_t mult
    uint64_t shift
    uint64_t burst
    bint unlimited
    uint64_t version


cdef class TokenBucket:
    cdef BucketState* _state
    cdef object _memory   # the numpy array that owns the state
    cdef object _file     # the SharedFile that holds it, or None
    cdef object __weakref__
    cdef word _me         # in `setter`: the seat of this process in that file + 1; 0: it has none yet

    cdef _open(self, file)
    cdef int _prepare(self) except -1
    cdef _take_seat(self)
    cdef int _free_lock(self) except -1
    cdef int64_t _take(self, int64_t now_ns, int64_t n, bint partial) noexcept nogil
    cdef int64_t _take_now(self, int64_t n, bint partial) noexcept nogil
    cdef int64_t _look(self, LawCopy* law, int64_t now_ns, int64_t n, bint partial, bint lend) noexcept nogil
    cdef double _retry_after(self, int64_t now_ns, int64_t n) noexcept nogil
    cdef _change(self, int64_t now_ns, double rate, int64_t burst)


cdef class Reservation:
    cdef TokenBucket _bucket
    cdef word _n          # tokens that a cancel may bring back
    cdef int64_t _due_ns
    cdef uint64_t _end    # the bucket's `spent` right after this reservation
    cdef readonly double delay
