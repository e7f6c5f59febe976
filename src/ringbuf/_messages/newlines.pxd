"""Newlines of a chunk: where its lines end, and their bytes without the newlines.

Both work on the lines of one frame, told by their ends: end i is where line i ends once
all newlines before it are gone. So the ends are the table of the frame as it is, line i
lies in the chunk at ends[i - 1] + i, and the last end is the size of the payload.

Vector code, chosen at run time: a compare gives a bit for each byte that is a newline,
and the bits' places are the ends. AVX-512 (VBMI2) then squeezes the newlines out of 64
bytes by one instruction; AVX2 and NEON copy line by line, in whole vectors. All ways
give the same bytes; PLAIN is `memchr` and `memcpy` for each line.

Bounds. No load reaches beyond the chunk, not even within a page, and no store beyond
the room that the caller owns; within these a copy may overshoot the end of a line, as
the next line is written after it. What `find_lines` saw may be gone when the bytes are
copied, if the caller lets others change the chunk: then the events hold what was there
at either moment, and the bounds hold all the same.
"""

from libc.stdint cimport uint32_t

cdef extern from * nogil:
    """
    #include <cstddef>
    #include <cstdint>
    #include <cstring>

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    #define RINGBUF_LINES_X86 1
    #elif defined(__AARCH64EL__) && defined(__GNUC__)
    #include <arm_neon.h>
    #define RINGBUF_LINES_ARM 1
    #endif

    enum {
        RINGBUF_PLAIN,
        RINGBUF_AVX2,
        RINGBUF_AVX512,
        RINGBUF_NEON,
        /* How far vector code goes before it looks whether it has ends enough (bytes). */
        RINGBUF_STRIDE = 1024,
        /* Newlines in a stride from which on the next one is taken for dense. */
        RINGBUF_DENSE = 7,
        /* Ends that may be written beyond those that are asked for. */
        RINGBUF_SPARE_ENDS = RINGBUF_STRIDE + 4
    };

    /* Newlines in n bytes. Written so that compilers make vector code of the inner loop:
       the counter is one byte wide, and cleared before it can overflow. */
    static inline size_t ringbuf_count_newlines(const char *p, size_t n) {
        size_t total = 0, i = 0;
        while (n - i >= 240) {
            uint8_t part = 0;
            for (size_t j = 0; j < 240; j++) part += p[i + j] == '\\n';
            total += part;
            i += 240;
        }
        for (; i < n; i++) total += p[i] == '\\n';
        return total;
    }

    /* The last newline in n bytes, or NULL; by vector code as well. */
    static inline const char *ringbuf_last_newline(const char *p, size_t n) {
        while (n >= 64) {
            uint8_t any = 0;
            for (size_t j = 0; j < 64; j++) any |= p[n - 64 + j] == '\\n';
            if (any) break;
            n -= 64;
        }
        for (; n > 0; n--)
            if (p[n - 1] == '\\n') return p + n - 1;
        return NULL;
    }

    /* ------------------------------------------------ the ends of lines */

    static inline size_t ringbuf_find_plain(
        const char *p, size_t n, uint32_t *ends, size_t most, size_t i, size_t k) {
        while (i < n && k < most) {
            const char *newline = (const char *)memchr(p + i, '\\n', n - i);
            if (newline == NULL) break;
            i = (size_t)(newline - p);
            ends[k] = (uint32_t)(i - k);
            k++;
            i++;
        }
        return k;
    }

    #ifdef RINGBUF_LINES_X86
    #define RINGBUF_BITS __attribute__((target("bmi,popcnt"))) static inline
    #define RINGBUF_FIRST_BIT(bits) ((uint32_t)_tzcnt_u64(bits))
    #else
    #define RINGBUF_BITS static inline
    #define RINGBUF_FIRST_BIT(bits) ((uint32_t)__builtin_ctzll((bits) | (uint64_t)1 << 63))
    #endif

    #if defined(RINGBUF_LINES_X86) || defined(RINGBUF_LINES_ARM)
    /* Note the ends of the 64 bytes at i, a bit for each newline; returns how many ends
       there are then. A branch for each bit could not be foreseen, and costs more than
       all else. So the first end is always written, and where lines are short the first
       four. */
    RINGBUF_BITS size_t ringbuf_note_few(uint64_t bits, size_t i, uint32_t *ends, size_t k) {
        ends[k] = (uint32_t)(i - k) + RINGBUF_FIRST_BIT(bits);
        k += bits != 0;
        bits &= bits - 1;
        if (__builtin_expect(bits != 0, 0)) {
            do {
                ends[k] = (uint32_t)(i - k) + RINGBUF_FIRST_BIT(bits);
                k++;
                bits &= bits - 1;
            } while (bits != 0);
        }
        return k;
    }

    RINGBUF_BITS size_t ringbuf_note_many(uint64_t bits, size_t i, uint32_t *ends, size_t k) {
        size_t count = (size_t)__builtin_popcountll(bits), j = 0;
        do {
            for (size_t stop = j + 4; j < stop; j++, bits &= bits - 1)
                ends[k + j] = (uint32_t)(i - k - j) + RINGBUF_FIRST_BIT(bits);
        } while (__builtin_expect(j < count, 0));
        return k + count;
    }

    /* Where to look next whether there are ends enough. */
    static inline size_t ringbuf_stride_end(size_t n, size_t i) {
        return n - i < RINGBUF_STRIDE ? n : i + RINGBUF_STRIDE;
    }

    /* One way of finding ends. A macro, so that BITS and what notes the bits are inlined:
       they are only into a function of the same target. */
    #define RINGBUF_FIND(NAME, BITS, TARGET)                                                     \\
    TARGET static inline size_t NAME(const char *p, size_t n, uint32_t *ends, size_t most) {     \\
        size_t i = 0, k = 0, stop, before;                                                       \\
        for (bool dense = false; n - i >= 64 && k < most; dense = k - before >= RINGBUF_DENSE) { \\
            stop = ringbuf_stride_end(n, i);                                                     \\
            before = k;                                                                          \\
            if (dense)                                                                           \\
                for (; stop - i >= 64; i += 64) k = ringbuf_note_many(BITS(p + i), i, ends, k);  \\
            else                                                                                 \\
                for (; stop - i >= 64; i += 64) k = ringbuf_note_few(BITS(p + i), i, ends, k);   \\
        }                                                                                        \\
        return ringbuf_find_plain(p, n, ends, most, i, k);                                       \\
    }
    #endif

    #ifdef RINGBUF_LINES_X86
    __attribute__((target("avx2"))) static inline uint64_t ringbuf_bits_avx2(const char *p) {
        const __m256i newline = _mm256_set1_epi8('\\n');
        __m256i low = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)p), newline);
        __m256i high = _mm256_cmpeq_epi8(_mm256_loadu_si256((const __m256i *)(p + 32)), newline);
        return (uint32_t)_mm256_movemask_epi8(low) |
               (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32;
    }

    RINGBUF_FIND(ringbuf_find_avx2, ringbuf_bits_avx2, __attribute__((target("avx2,bmi,popcnt"))))

    #define RINGBUF_TARGET_512 target("avx512f,avx512bw,avx512vbmi2,bmi,popcnt")

    __attribute__((RINGBUF_TARGET_512)) static inline uint64_t ringbuf_bits_avx512(const char *p) {
        return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(p), _mm512_set1_epi8('\\n'));
    }

    RINGBUF_FIND(ringbuf_find_avx512, ringbuf_bits_avx512, __attribute__((RINGBUF_TARGET_512)))
    #endif

    #ifdef RINGBUF_LINES_ARM
    static inline uint64_t ringbuf_bits_neon(const char *p) {
        static const uint8_t weights[8] = {1, 2, 4, 8, 16, 32, 64, 128};
        const uint8x16_t weight = vcombine_u8(vld1_u8(weights), vld1_u8(weights));
        const uint8x16_t newline = vdupq_n_u8('\\n');
        const uint8_t *at = (const uint8_t *)p;
        uint8x16_t a = vandq_u8(vceqq_u8(vld1q_u8(at), newline), weight);
        uint8x16_t b = vandq_u8(vceqq_u8(vld1q_u8(at + 16), newline), weight);
        uint8x16_t c = vandq_u8(vceqq_u8(vld1q_u8(at + 32), newline), weight);
        uint8x16_t d = vandq_u8(vceqq_u8(vld1q_u8(at + 48), newline), weight);
        /* Sums of neighbours, three times: eight bytes become one. */
        uint8x16_t sums = vpaddq_u8(vpaddq_u8(a, b), vpaddq_u8(c, d));
        return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(sums, sums)), 0);
    }

    RINGBUF_FIND(ringbuf_find_neon, ringbuf_bits_neon, )
    #endif

    /* The ends of the lines that end by a newline within n bytes, at most `most` of them;
       returns how many. `ends` has room for RINGBUF_SPARE_ENDS more. */
    static inline size_t ringbuf_find_lines(
        int way, const char *p, size_t n, uint32_t *ends, size_t most) {
        size_t found;
        switch (way) {
    #ifdef RINGBUF_LINES_X86
        case RINGBUF_AVX512: found = ringbuf_find_avx512(p, n, ends, most); break;
        case RINGBUF_AVX2: found = ringbuf_find_avx2(p, n, ends, most); break;
    #endif
    #ifdef RINGBUF_LINES_ARM
        case RINGBUF_NEON: found = ringbuf_find_neon(p, n, ends, most); break;
    #endif
        default: found = ringbuf_find_plain(p, n, ends, most, 0, 0);
        }
        return found < most ? found : most;
    }

    /* ------------------------------------------------ the bytes of lines */

    /* Copy the lines from number i on, each exactly. */
    static inline void ringbuf_copy_plain(
        unsigned char *to, const char *p, const uint32_t *ends, size_t count, size_t i) {
        for (size_t start = i > 0 ? ends[i - 1] : 0; i < count; start = ends[i], i++)
            memcpy(to + start, p + start + i, ends[i] - start);
    }

    /* How many of the lines can be copied in whole vectors of `width` bytes: no load
       beyond the n bytes at hand, no store beyond the room. */
    static inline size_t ringbuf_count_inside(
        size_t room, size_t n, const uint32_t *ends, size_t count, size_t width) {
        while (count > 0 && ((size_t)ends[count - 1] + count - 1 + width > n ||
                             (size_t)ends[count - 1] + width > room))
            count--;
        return count;
    }

    #ifdef RINGBUF_LINES_X86
    __attribute__((target("avx2"))) static inline void ringbuf_copy_avx2(
        unsigned char *to, size_t room, const char *p, size_t n, const uint32_t *ends,
        size_t count) {
        enum { WIDTH = 32 };
        size_t inside = ringbuf_count_inside(room, n, ends, count, WIDTH), start = 0;
        for (size_t i = 0; i < inside; i++) {
            const char *line = p + start + i;
            size_t size = ends[i] - start;
            for (size_t j = 0; j < size; j += WIDTH)
                _mm256_storeu_si256(
                    (__m256i *)(to + start + j), _mm256_loadu_si256((const __m256i *)(line + j)));
            start = ends[i];
        }
        ringbuf_copy_plain(to, p, ends, count, inside);
    }

    static inline uint64_t ringbuf_low_bits(size_t n) {
        return n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0;
    }

    /* Copy n bytes but for newlines; returns how many went into the room. */
    __attribute__((RINGBUF_TARGET_512)) static inline size_t ringbuf_squeeze_avx512(
        unsigned char *to, size_t room, const char *p, size_t n) {
        const __m512i newline = _mm512_set1_epi8('\\n');
        size_t i = 0, size = 0;
        for (; n - i >= 64 && room - size >= 64; i += 64) {
            __m512i bytes = _mm512_loadu_si512(p + i);
            uint64_t kept = ~_mm512_cmpeq_epi8_mask(bytes, newline);
            _mm512_storeu_si512(to + size, _mm512_maskz_compress_epi8(kept, bytes));
            size += (size_t)__builtin_popcountll(kept);
        }
        for (; i < n; i += 64) {
            uint64_t there = ringbuf_low_bits(n - i);
            __m512i bytes = _mm512_maskz_loadu_epi8(there, p + i);
            uint64_t kept = there & ~_mm512_cmpeq_epi8_mask(bytes, newline);
            size_t count = (size_t)__builtin_popcountll(kept);
            if (count > room - size) break;
            _mm512_mask_storeu_epi8(
                to + size, ringbuf_low_bits(count), _mm512_maskz_compress_epi8(kept, bytes));
            size += count;
        }
        return size;
    }

    static inline void ringbuf_copy_avx512(
        unsigned char *to, size_t room, const char *p, const uint32_t *ends, size_t count) {
        size_t payload = ends[count - 1];
        /* Other than found: the chunk was changed in between. */
        if (ringbuf_squeeze_avx512(to, room, p, payload + count - 1) != payload)
            ringbuf_copy_plain(to, p, ends, count, 0);
    }
    #endif

    #ifdef RINGBUF_LINES_ARM
    static inline void ringbuf_copy_neon(
        unsigned char *to, size_t room, const char *p, size_t n, const uint32_t *ends,
        size_t count) {
        enum { WIDTH = 16 };
        size_t inside = ringbuf_count_inside(room, n, ends, count, WIDTH), start = 0;
        for (size_t i = 0; i < inside; i++) {
            const uint8_t *line = (const uint8_t *)p + start + i;
            size_t size = ends[i] - start;
            for (size_t j = 0; j < size; j += WIDTH) vst1q_u8(to + start + j, vld1q_u8(line + j));
            start = ends[i];
        }
        ringbuf_copy_plain(to, p, ends, count, inside);
    }
    #endif

    /* Copy `count` lines, at least one, without their newlines. room: bytes that are the
       caller's from `to` on, no fewer than the last end. n: bytes of the chunk from p on,
       no fewer than the lines take up. */
    static inline void ringbuf_copy_lines(
        int way, unsigned char *to, size_t room, const char *p, size_t n, const uint32_t *ends,
        size_t count) {
        /* One line has no newline within: memcpy does it best. */
        switch (count > 1 ? way : RINGBUF_PLAIN) {
    #ifdef RINGBUF_LINES_X86
        case RINGBUF_AVX512: ringbuf_copy_avx512(to, room, p, ends, count); break;
        case RINGBUF_AVX2: ringbuf_copy_avx2(to, room, p, n, ends, count); break;
    #endif
    #ifdef RINGBUF_LINES_ARM
        case RINGBUF_NEON: ringbuf_copy_neon(to, room, p, n, ends, count); break;
    #endif
        default: ringbuf_copy_plain(to, p, ends, count, 0);
        }
    }

    /* ------------------------------------------------ the ways */

    static inline int ringbuf_has_way(int way) {
        switch (way) {
    #ifdef RINGBUF_LINES_X86
        case RINGBUF_AVX512:
            return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi2") &&
                   __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt");
        case RINGBUF_AVX2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("popcnt");
    #endif
    #ifdef RINGBUF_LINES_ARM
        case RINGBUF_NEON: return 1;
    #endif
        default: return way == RINGBUF_PLAIN;
        }
    }

    static inline int ringbuf_best_line_way(void) {
        for (int way = RINGBUF_NEON; way > RINGBUF_PLAIN; way--)
            if (ringbuf_has_way(way)) return way;
        return RINGBUF_PLAIN;
    }
    """
    cdef enum:
        SPARE_ENDS "RINGBUF_SPARE_ENDS"

    size_t count_newlines "ringbuf_count_newlines"(const char* p, size_t n) noexcept
    const char* last_newline "ringbuf_last_newline"(const char* p, size_t n) noexcept
    size_t find_lines "ringbuf_find_lines"(
        int way, const char* p, size_t n, uint32_t* ends, size_t most
    ) noexcept
    void copy_lines "ringbuf_copy_lines"(
        int way, unsigned char* to, size_t room, const char* p, size_t n, const uint32_t* ends,
        size_t count
    ) noexcept
    bint has_line_way "ringbuf_has_way"(int way) noexcept
    int best_line_way "ringbuf_best_line_way"() noexcept
