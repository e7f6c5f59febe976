"""Bells: how a thread sleeps until another one, of this process or of one that shares
the memory, has done something for it.

A sleeper says that it waits, looks once more whether it still has to, and sleeps until
the bell's count changes. A thread that has published or released something looks at
`waiters`, and rings if it is set. Between its store and that look there is no fence,
which would cost every push some 5 ns; instead the sleeper makes all others pass one
(membarrier), once, before its last look. So either they see that it waits, or it sees
what they did. Where there is no membarrier it sleeps in short pieces.

Linux: futex, which works across processes. Elsewhere: a condition variable of this
process.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport fetch_or_total, load32_total, load_relaxed, word, word32

cdef extern from * nogil:
    """
    #include <atomic>
    #include <cerrno>
    #include <chrono>
    #include <climits>
    #include <cstdint>
    #include <thread>
    #if defined(__linux__)
    #include <linux/futex.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    enum { RINGBUF_GLOBAL_EXPEDITED = 2, RINGBUF_REGISTER_GLOBAL_EXPEDITED = 4 };

    /* Registers this process, once; a forked child is registered as its parent was. */
    static inline bool ringbuf_have_barrier(void) {
        static const bool there = syscall(SYS_membarrier, RINGBUF_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
        return there;
    }

    static inline bool ringbuf_barrier(void) {
        return ringbuf_have_barrier() && syscall(SYS_membarrier, RINGBUF_GLOBAL_EXPEDITED, 0, 0) == 0;
    }

    static inline void ringbuf_wait(std::atomic<uint32_t> *count, uint32_t seen, int64_t ns) {
        struct timespec left = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
        syscall(SYS_futex, count, FUTEX_WAIT, seen, &left, nullptr, 0);
    }

    static inline void ringbuf_wake(std::atomic<uint32_t> *count) {
        count->fetch_add(1, std::memory_order_seq_cst);
        syscall(SYS_futex, count, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    }
    #else
    #include <condition_variable>
    #include <mutex>

    static inline bool ringbuf_have_barrier(void) { return false; }
    static inline bool ringbuf_barrier(void) { return false; }

    struct ringbuf_parking { std::mutex mutex; std::condition_variable bell; };
    static inline ringbuf_parking &ringbuf_place(void) { static ringbuf_parking *place = new ringbuf_parking; return *place; }

    static inline void ringbuf_wait(std::atomic<uint32_t> *count, uint32_t seen, int64_t ns) {
        std::unique_lock<std::mutex> held(ringbuf_place().mutex);
        if (count->load() == seen) ringbuf_place().bell.wait_for(held, std::chrono::nanoseconds(ns));
    }

    static inline void ringbuf_wake(std::atomic<uint32_t> *count) {
        { std::lock_guard<std::mutex> held(ringbuf_place().mutex); count->fetch_add(1); }
        ringbuf_place().bell.notify_all();
    }
    #endif
    static inline void ringbuf_let_settle(void) { std::this_thread::sleep_for(std::chrono::microseconds(50)); }
    static inline void ringbuf_no_reordering(void) { std::atomic_signal_fence(std::memory_order_seq_cst); }
    """
    # Whether all users can be made to pass a barrier. A process is, from the first time
    # that it asks this.
    bint have_barrier "ringbuf_have_barrier"()
    bint barrier "ringbuf_barrier"()
    # Where there is none: until every store that was made before is there for all to
    # see (no processor holds one back for a us).
    void let_settle "ringbuf_let_settle"()
    void futex_wait "ringbuf_wait"(word32* count, uint32_t seen, int64_t ns)
    void futex_wake "ringbuf_wake"(word32* count)
    void no_reordering "ringbuf_no_reordering"()


# In EventCount.waiters. Flags and no numbers, so that it is no matter if one who waits
# is killed.
cdef enum:
    SLEEPERS = 1
    LISTENERS = 2            # event loops


cdef struct EventCount:
    word waiters
    word32 count
    word32 pad0
    word pad[6]


cdef inline bint wanted(EventCount* bell) noexcept nogil:
    """Whether anybody waits for what was just done."""
    no_reordering()
    return load_relaxed(&bell.waiters) != 0


cdef inline uint32_t before_sleep(EventCount* bell) noexcept nogil:
    """Say that a thread is about to sleep; it has to look once more, and then to sleep
    until the count is another one.
    """
    cdef uint32_t seen = load32_total(&bell.count)
    fetch_or_total(&bell.waiters, SLEEPERS)
    barrier()
    return seen
