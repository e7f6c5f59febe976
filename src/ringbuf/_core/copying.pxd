"""Copies of many bytes that take the same time wherever the bytes lie.

For these glibc's memcpy uses `rep movsb`, whose speed on AMD's Zen 3 and 4 depends on
where both blocks lie within their pages, and is many times lower where the target lies
1 to 15 bytes behind the source. Payloads come after tables of their lengths, and so lie
anywhere. Vectors of 16 bytes, which every x86-64 has, are as fast everywhere.
"""

cdef extern from * nogil:
    """
    #include <cstddef>
    #include <cstdint>
    #include <cstring>

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    #define RINGBUF_COPY_VECTORS 1
    #endif

    /* The blocks must not overlap. */
    static inline void ringbuf_copy_many(void *to, const void *from, size_t n) {
    #ifdef RINGBUF_COPY_VECTORS
        /* glibc takes `rep movsb` from 2 KiB on at the earliest. */
        if (n >= 2048) {
            unsigned char *target = (unsigned char *)to;
            const unsigned char *source = (const unsigned char *)from;
            /* Up to where the target is aligned. */
            size_t start = (size_t)(-(uintptr_t)target & 15);
            _mm_storeu_si128((__m128i *)target, _mm_loadu_si128((const __m128i *)source));
            for (size_t i = start; i + 64 <= n; i += 64, start = i) {
                __m128i a = _mm_loadu_si128((const __m128i *)(source + i));
                __m128i b = _mm_loadu_si128((const __m128i *)(source + i + 16));
                __m128i c = _mm_loadu_si128((const __m128i *)(source + i + 32));
                __m128i d = _mm_loadu_si128((const __m128i *)(source + i + 48));
                _mm_store_si128((__m128i *)(target + i), a);
                _mm_store_si128((__m128i *)(target + i + 16), b);
                _mm_store_si128((__m128i *)(target + i + 32), c);
                _mm_store_si128((__m128i *)(target + i + 48), d);
            }
            memcpy(target + start, source + start, n - start);
            return;
        }
    #endif
        memcpy(to, from, n);
    }
    """
    void copy_many "ringbuf_copy_many"(void* to, const void* source, size_t n) noexcept
