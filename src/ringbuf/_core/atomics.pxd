"""Atomic words in raw memory: with pairs.pxd, for two words at once, the only file that
names memory orders.

A word lives wherever its control block lives (a numpy array, a mapped file), so
everything here takes a pointer. The suffix says the order, and what each is for:

    _relaxed   a value whose staleness does no harm, or that another edge already orders
    _acquire   pairs with a _release store or exchange of the same word, and makes
               visible all that was written before it
    _release   publishes everything that this thread wrote before
    _acq_rel   both: a hand-over in a chain, each link of which must see all links
               before it
    _total     _acq_rel, and in one total order with every other _total operation
"""

from libc.stdint cimport uint32_t, uint64_t
from libcpp.atomic cimport (
    atomic, memory_order_acq_rel, memory_order_acquire, memory_order_relaxed, memory_order_release,
    memory_order_seq_cst,
)

ctypedef atomic[uint64_t] word
ctypedef atomic[uint32_t] word32


cdef inline uint64_t load_relaxed(word* w) noexcept nogil:
    return w.load(memory_order_relaxed)


cdef inline uint64_t load_acquire(word* w) noexcept nogil:
    return w.load(memory_order_acquire)


cdef inline void store_relaxed(word* w, uint64_t value) noexcept nogil:
    w.store(value, memory_order_relaxed)


cdef inline void store_release(word* w, uint64_t value) noexcept nogil:
    w.store(value, memory_order_release)


cdef inline bint cas_relaxed(word* w, uint64_t* expected, uint64_t desired) noexcept nogil:
    """Compare and exchange that orders nothing but the word itself. On failure
    `expected` holds what was found.
    """
    return w.compare_exchange_weak(expected[0], desired, memory_order_relaxed, memory_order_relaxed)


cdef inline bint cas_acquire(word* w, uint64_t* expected, uint64_t desired) noexcept nogil:
    return w.compare_exchange_weak(expected[0], desired, memory_order_acquire, memory_order_relaxed)


cdef inline bint cas_release(word* w, uint64_t* expected, uint64_t desired) noexcept nogil:
    return w.compare_exchange_weak(expected[0], desired, memory_order_release, memory_order_relaxed)


cdef inline bint cas_acq_rel(word* w, uint64_t* expected, uint64_t desired) noexcept nogil:
    return w.compare_exchange_weak(expected[0], desired, memory_order_acq_rel, memory_order_acquire)


cdef inline uint64_t exchange_relaxed(word* w, uint64_t value) noexcept nogil:
    return w.exchange(value, memory_order_relaxed)


cdef inline uint64_t fetch_add_relaxed(word* w, uint64_t n) noexcept nogil:
    return w.fetch_add(n, memory_order_relaxed)


cdef inline uint64_t fetch_add_release(word* w, uint64_t n) noexcept nogil:
    return w.fetch_add(n, memory_order_release)


cdef inline uint64_t fetch_sub_acq_rel(word* w, uint64_t n) noexcept nogil:
    return w.fetch_sub(n, memory_order_acq_rel)


cdef extern from * nogil:
    """
    #include <atomic>
    static inline void ringbuf_fence_acquire(void) {
        std::atomic_thread_fence(std::memory_order_acquire);
    }
    static inline void ringbuf_fence_release(void) {
        std::atomic_thread_fence(std::memory_order_release);
    }
    """
    void fence_acquire "ringbuf_fence_acquire"()
    void fence_release "ringbuf_fence_release"()


cdef inline uint64_t load_total(word* w) noexcept nogil:
    """Acquire, and in one total order with every other _total operation."""
    return w.load(memory_order_seq_cst)


cdef inline uint64_t fetch_sub_total(word* w, uint64_t n) noexcept nogil:
    """Release and acquire, and in one total order with every other _total operation."""
    return w.fetch_sub(n, memory_order_seq_cst)


cdef inline void store_total(word* w, uint64_t value) noexcept nogil:
    """Release, and in one total order with every other _total operation."""
    w.store(value, memory_order_seq_cst)


cdef inline bint cas_total(word* w, uint64_t* expected, uint64_t desired) noexcept nogil:
    """Compare and exchange that fails only for another value, which `expected` then
    holds; release and acquire, and in one total order with every other _total
    operation.
    """
    return w.compare_exchange_strong(
        expected[0], desired, memory_order_seq_cst, memory_order_seq_cst
    )


cdef inline uint64_t exchange_total(word* w, uint64_t value) noexcept nogil:
    return w.exchange(value, memory_order_seq_cst)


cdef inline uint64_t fetch_add_total(word* w, uint64_t n) noexcept nogil:
    return w.fetch_add(n, memory_order_seq_cst)


cdef inline uint64_t fetch_or_total(word* w, uint64_t bits) noexcept nogil:
    return w.fetch_or(bits, memory_order_seq_cst)


cdef inline uint32_t load32_relaxed(word32* w) noexcept nogil:
    return w.load(memory_order_relaxed)


cdef inline uint32_t load32_total(word32* w) noexcept nogil:
    return w.load(memory_order_seq_cst)


cdef inline void store32_relaxed(word32* w, uint32_t value) noexcept nogil:
    w.store(value, memory_order_relaxed)


cdef inline void store32_total(word32* w, uint32_t value) noexcept nogil:
    w.store(value, memory_order_seq_cst)


cdef extern from * nogil:
    """
    #if defined(__SANITIZE_THREAD__)
    #define RINGBUF_TSAN 1
    #elif defined(__has_feature)
    #if __has_feature(thread_sanitizer)
    #define RINGBUF_TSAN 1
    #endif
    #endif
    #ifdef RINGBUF_TSAN
    extern "C" void AnnotateIgnoreReadsBegin(const char *file, int line);
    extern "C" void AnnotateIgnoreReadsEnd(const char *file, int line);
    extern "C" void AnnotateHappensBefore(const char *file, int line, const volatile void *at);
    extern "C" void AnnotateHappensAfter(const char *file, int line, const volatile void *at);
    static inline void ringbuf_ignore_races(bool on) {
        if (on) AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        else AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
    static inline void ringbuf_in_section(const void *lock, bool on) {
        if (on) AnnotateHappensAfter(__FILE__, __LINE__, lock);
        else AnnotateHappensBefore(__FILE__, __LINE__, lock);
    }
    #else
    static inline void ringbuf_ignore_races(bool) {}
    static inline void ringbuf_in_section(const void *, bool) {}
    #endif
    """
    # Tells ThreadSanitizer, where a critical section of CPython's begins and ends, that
    # there is a lock: the interpreter is not built with it.
    void in_section "ringbuf_in_section"(const void* lock, bint on)
    # Tells ThreadSanitizer that what is read from here on may be written meanwhile, and
    # is void if it was (C++ has no memcpy of atomic bytes for the one that writes).
    void ignore_races "ringbuf_ignore_races"(bint on)
