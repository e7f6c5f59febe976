"""Pairs: two words that change as one, by the processor's own compare and exchange of
16 bytes.

A position never comes again, but half of one does: a thread that sleeps between its
load of a word and its exchange must not find the same bits in it for another reason. So
what is exchanged holds the whole position, beside a word for what moves with it.

The exchange is one inline instruction (x86-64: cmpxchg16b; AArch64: caspal, or a pair
of ldaxp and stlxp), never a call of libatomic, whose locks belong to one process and
would not protect memory that several share. Where the processor has none
(PAIRS_ARE_LOCK_FREE is false) rings in memory use a lock of this process for it, and
rings in a file are refused.

A position that is loaded by itself is whole as well. All of it is acquire and release,
and in one total order with the _total operations of atomics.pxd.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport word


cdef extern from *:
    """
    #include <atomic>
    #include <cstdint>
    #if defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    #endif

    struct ringbuf_pair { uint64_t position, rest; };
    struct alignas(16) ringbuf_pair_word { std::atomic<uint64_t> position, rest; };
    static_assert(sizeof(ringbuf_pair_word) == 16, "two words and nothing else");
    static_assert(std::atomic<uint64_t>::is_always_lock_free, "each half is loaded by itself");

    /* ThreadSanitizer does not see what an instruction of ours orders. */
    #ifdef RINGBUF_TSAN /* atomics.pxd */
    extern "C" void __tsan_acquire(void *);
    extern "C" void __tsan_release(void *);
    #define RINGBUF_SAW(w) __tsan_acquire(w)
    #define RINGBUF_TELLS(w) __tsan_release(w)
    #else
    #define RINGBUF_SAW(w) ((void)0)
    #define RINGBUF_TELLS(w) ((void)0)
    #endif

    #if defined(RINGBUF_NO_WIDE_EXCHANGE)
    #define RINGBUF_WIDE 0
    #elif defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    #define RINGBUF_WIDE 1
    static inline bool ringbuf_wide_exchange(
        ringbuf_pair_word *w, ringbuf_pair *expected, ringbuf_pair desired) {
        bool done;
        __asm__ __volatile__("lock cmpxchg16b %1"
            : "=@ccz"(done), "+m"(*reinterpret_cast<char (*)[16]>(w)),
              "+a"(expected->position), "+d"(expected->rest)
            : "b"(desired.position), "c"(desired.rest)
            : "memory");
        return done;
    }
    #elif defined(__aarch64__) && defined(__ARM_FEATURE_ATOMICS)
    #define RINGBUF_WIDE 1
    static inline bool ringbuf_wide_exchange(
        ringbuf_pair_word *w, ringbuf_pair *expected, ringbuf_pair desired) {
        register uint64_t x0 __asm__("x0") = expected->position;
        register uint64_t x1 __asm__("x1") = expected->rest;
        register uint64_t x2 __asm__("x2") = desired.position;
        register uint64_t x3 __asm__("x3") = desired.rest;
        __asm__ __volatile__("caspal x0, x1, x2, x3, [%[at]]"
            : "+r"(x0), "+r"(x1) : "r"(x2), "r"(x3), [at] "r"(w) : "memory");
        bool done = x0 == expected->position && x1 == expected->rest;
        expected->position = x0;
        expected->rest = x1;
        return done;
    }
    #elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
    #define RINGBUF_WIDE 1
    static inline bool ringbuf_wide_exchange(
        ringbuf_pair_word *w, ringbuf_pair *expected, ringbuf_pair desired) {
        uint64_t position, rest, new_position, new_rest;
        uint32_t failed;
        /* What was found is stored again where it is not as expected: only a store that
           succeeds proves that both halves were loaded at one moment. */
        __asm__ __volatile__(
            "1: ldaxp %[p], %[r], [%[at]]\\n"
            "cmp %[p], %[ep]\\n"
            "ccmp %[r], %[er], #0, eq\\n"
            "csel %[np], %[dp], %[p], eq\\n"
            "csel %[nr], %[dr], %[r], eq\\n"
            "stlxp %w[failed], %[np], %[nr], [%[at]]\\n"
            "cbnz %w[failed], 1b\\n"
            : [p] "=&r"(position), [r] "=&r"(rest), [np] "=&r"(new_position), [nr] "=&r"(new_rest),
              [failed] "=&r"(failed)
            : [at] "r"(w), [ep] "r"(expected->position), [er] "r"(expected->rest),
              [dp] "r"(desired.position), [dr] "r"(desired.rest)
            : "cc", "memory");
        bool done = position == expected->position && rest == expected->rest;
        expected->position = position;
        expected->rest = rest;
        return done;
    }
    #elif defined(_M_X64) || defined(_M_ARM64)
    #define RINGBUF_WIDE 1
    static inline bool ringbuf_wide_exchange(
        ringbuf_pair_word *w, ringbuf_pair *expected, ringbuf_pair desired) {
        return _InterlockedCompareExchange128(
            reinterpret_cast<volatile long long *>(w), static_cast<long long>(desired.rest),
            static_cast<long long>(desired.position), reinterpret_cast<long long *>(expected)) != 0;
    }
    #else
    #define RINGBUF_WIDE 0
    #endif

    #if RINGBUF_WIDE
    static inline bool ringbuf_cas_pair(
        ringbuf_pair_word *w, ringbuf_pair *expected, ringbuf_pair desired) {
        RINGBUF_TELLS(w);
        bool done = ringbuf_wide_exchange(w, expected, desired);
        RINGBUF_SAW(w);
        return done;
    }

    static inline ringbuf_pair ringbuf_load_pair(ringbuf_pair_word *w) {
        ringbuf_pair seen;
        uint64_t again = w->position.load(std::memory_order_seq_cst);
        /* A position does not come again, so the rest that was loaded between two equal ones
           belongs to it. */
        do {
            seen.position = again;
            seen.rest = w->rest.load(std::memory_order_seq_cst);
            again = w->position.load(std::memory_order_seq_cst);
        } while (again != seen.position);
        return seen;
    }
    #else
    #include <thread>
    /* One of a few locks, by address: held for some loads and stores, never across a call. */
    struct ringbuf_pair_lock {
        static inline std::atomic_flag flags[64];
        std::atomic_flag &flag;
        explicit ringbuf_pair_lock(void *w)
            : flag(flags[(reinterpret_cast<uintptr_t>(w) >> 6) % 64]) {
            while (flag.test_and_set(std::memory_order_seq_cst)) std::this_thread::yield();
        }
        ~ringbuf_pair_lock() { flag.clear(std::memory_order_seq_cst); }
    };
    static inline ringbuf_pair ringbuf_load_pair(ringbuf_pair_word *w) {
        ringbuf_pair_lock held(w);
        return {
            w->position.load(std::memory_order_seq_cst), w->rest.load(std::memory_order_seq_cst)};
    }
    static inline bool ringbuf_cas_pair(
        ringbuf_pair_word *w, ringbuf_pair *expected, ringbuf_pair desired) {
        ringbuf_pair_lock held(w);
        ringbuf_pair found = {
            w->position.load(std::memory_order_seq_cst), w->rest.load(std::memory_order_seq_cst)};
        bool done = found.position == expected->position && found.rest == expected->rest;
        if (done) {
            w->rest.store(desired.rest, std::memory_order_seq_cst);
            w->position.store(desired.position, std::memory_order_seq_cst);
        }
        *expected = found;
        return done;
    }
    #endif
    """
    ctypedef struct Pair "ringbuf_pair":
        uint64_t position
        uint64_t rest
    ctypedef struct PairWord "ringbuf_pair_word":
        word position
        word rest
    const bint PAIRS_ARE_LOCK_FREE "RINGBUF_WIDE"
    # Both words as they were at one moment.
    Pair load_pair "ringbuf_load_pair"(PairWord* w) noexcept nogil
    # Fails only for another value, which `expected` then holds.
    bint cas_pair "ringbuf_cas_pair"(PairWord* w, Pair* expected, Pair desired) noexcept nogil


cdef inline Pair pair(uint64_t position, uint64_t rest) noexcept nogil:
    cdef Pair made
    made.position = position
    made.rest = rest
    return made


cdef inline bint same(Pair a, Pair b) noexcept nogil:
    return a.position == b.position and a.rest == b.rest


cdef inline bint is_before(Pair a, Pair b) noexcept nogil:
    """Whether `a` is less than `b`, by position and then by the rest."""
    return a.position < b.position or (a.position == b.position and a.rest < b.rest)
