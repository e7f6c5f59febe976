"""Event counts: how a thread sleeps until another one, of this process or of one that
shares the memory, has done what it waits for.

A sleeper sets `waiters`, tries once more, and sleeps until `count` changes. A thread
that has published or released something loads `waiters`, and wakes if it is set.
Between its store and that load there is no fence, which would cost every push some
5 ns; instead the sleeper makes all other threads pass one (membarrier), once, before
its last try. So either they see that it waits, or it sees what they did. Where there is
no membarrier it sleeps in short pieces.

Linux: futex, which works across processes. Elsewhere: a condition variable of this
process.
"""

from libc.stdint cimport int64_t, uint32_t

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
        static const bool there =
            syscall(SYS_membarrier, RINGBUF_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
        return there;
    }

    static inline bool ringbuf_barrier(void) {
        return ringbuf_have_barrier()
            && syscall(SYS_membarrier, RINGBUF_GLOBAL_EXPEDITED, 0, 0) == 0;
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

    struct ringbuf_parking { std::mutex mutex; std::condition_variable changed; };
    static inline ringbuf_parking &ringbuf_place(void) {
        static ringbuf_parking *place = new ringbuf_parking;
        return *place;
    }

    static inline void ringbuf_wait(std::atomic<uint32_t> *count, uint32_t seen, int64_t ns) {
        std::unique_lock<std::mutex> held(ringbuf_place().mutex);
        if (count->load() == seen)
            ringbuf_place().changed.wait_for(held, std::chrono::nanoseconds(ns));
    }

    static inline void ringbuf_wake(std::atomic<uint32_t> *count) {
        { std::lock_guard<std::mutex> held(ringbuf_place().mutex); count->fetch_add(1); }
        ringbuf_place().changed.notify_all();
    }
    #endif
    static inline void ringbuf_let_settle(void) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    static inline void ringbuf_no_reordering(void) {
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    """
    # Whether all users can be made to pass a barrier. Registers this process for it,
    # the first time.
    bint have_barrier "ringbuf_have_barrier"()
    bint barrier "ringbuf_barrier"()
    # Where there is none: waits until every thread sees all stores that were made
    # before (no processor holds one back for a us).
    void let_settle "ringbuf_let_settle"()
    void futex_wait "ringbuf_wait"(word32* count, uint32_t seen, int64_t ns)
    void futex_wake "ringbuf_wake"(word32* count)
    void no_reordering "ringbuf_no_reordering"()


# In EventCount.waiters. Flags, not counts: a waiter that is killed leaves nothing
# wrong.
cdef enum:
    SLEEPERS = 1
    LISTENERS = 2            # event loops


cdef struct EventCount:
    word waiters
    word32 count
    word32 pad0
    word pad[6]


cdef inline bint wanted(EventCount* event) noexcept nogil:
    """Whether anything waits for what was just done."""
    no_reordering()
    return load_relaxed(&event.waiters) != 0


cdef inline uint32_t before_sleep(EventCount* event) noexcept nogil:
    """Say that a thread is about to sleep; returns the count. The caller has to try
    once more, and then to sleep until the count has changed.
    """
    cdef uint32_t seen = load32_total(&event.count)
    fetch_or_total(&event.waiters, SLEEPERS)
    barrier()
    return seen
