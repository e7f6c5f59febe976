"""Checksums of frames: how a frame in a file proves, after power loss, that it is whole
and belongs where it lies.

After power loss each page of a file may be an old one or a new one, and a page may be
torn between its sectors. A frame with checksums says enough of itself to be found
without index or positions, and to be told from everything that only looks like a frame:

    header    first number, count, payload | mark | check: 32 bits over the first three
              and the granule that it lies on
    ...       ends, payloads, zeros up to the trailer
    trailer   the last 16 bytes of the last granule: position, the whole one, which the
              header's granule has the low bits of | checksum: 64 bits over all granules
              of the frame, with zeros for itself and for what changes later, the marks

A push may leave the checksum for later: see deferred_checksums.pxd.

Both are keyed with random numbers from the file's header. So what a payload holds is
never taken for a frame by chance or by design. A program that can read the file may put
a true copy of an older frame into a payload, but its position gives it away: where two
such frames overlap, the one with the higher position was written over the other.

The hash. Over whole stripes of 64 bytes, in eight lanes of 64 bits; for word i of
stripe s of a block

    keyed      = word ^ key[8 s + i]
    product[i] += low half of keyed * high half of keyed
    sum[i]     += word

and at the end of a block (32 stripes, or what is left) lane[i] = product[i] + sum[i ^
1]: the neighbour's sum sees a difference also where a factor is zero. Between blocks
each lane is scrambled, one to one: lane = (lane ^ lane >> 47 ^ key[256 + i]) * P. In
the end the lanes are folded by 128-bit products. This is how XXH3 (Yann Collet)
accumulates, but that the whole secret is random, and what it adds are the products of
NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, 1999).
tests/ringbuf/test_ring_salvage.py has it once more, in Python. Measured over 256 KiB on
a Zen core: 53 GB/s with AVX2, 32 with SSE2, 11 without either; three streams of CRC32C
reach 26, a hash of 128-bit products 23 (bench/results/2026-11-25-checksums.md).
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from * nogil:
    """
    #include <cstddef>
    #include <cstdint>
    #include <cstring>

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    #define RINGBUF_CHECKSUM_X86 1
    #elif defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    #endif

    enum {
        RINGBUF_STRIPE = 64,
        RINGBUF_LANES = 8,
        RINGBUF_BLOCK = 32, /* stripes */
        /* Where in the key, in words, its parts begin; each stripe of a block has eight words. */
        RINGBUF_SCRAMBLE = RINGBUF_BLOCK * RINGBUF_LANES,
        RINGBUF_START = RINGBUF_SCRAMBLE + RINGBUF_LANES,
        RINGBUF_FOLD = RINGBUF_START + RINGBUF_LANES,
        RINGBUF_HEADER = RINGBUF_FOLD + RINGBUF_LANES,
        RINGBUF_KEY_WORDS = RINGBUF_HEADER + 2
    };

    /* Odd, and no wider than 32 bits, as vector units multiply no wider. */
    static const uint64_t RINGBUF_P = 0x9E3779B1u;

    struct ringbuf_hash {
        uint64_t lane[RINGBUF_LANES];
        uint64_t sum[RINGBUF_LANES];
        size_t in_block;
    };

    static inline uint64_t ringbuf_avalanche(uint64_t h) {
        h ^= h >> 33;
        h *= 0xFF51AFD7ED558CCDu;
        h ^= h >> 33;
        h *= 0xC4CEB9FE1A85EC53u;
        return h ^ h >> 33;
    }

    static inline uint64_t ringbuf_fold(uint64_t a, uint64_t b) {
    #if defined(_MSC_VER) && !defined(__clang__)
        uint64_t high, low = _umul128(a, b, &high);
        return low ^ high;
    #else
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    #endif
    }

    static inline void ringbuf_end_block(struct ringbuf_hash *h) {
        for (int i = 0; i < RINGBUF_LANES; i++) h->lane[i] += h->sum[i ^ 1];
        for (int i = 0; i < RINGBUF_LANES; i++) h->sum[i] = 0;
        h->in_block = 0;
    }

    /* Add n stripes. The three ways give the same; the vectors stay in registers from block to
       block. */
    static inline void ringbuf_add_plain(
        struct ringbuf_hash *h, const uint64_t *key, const unsigned char *data, size_t n) {
        for (; n > 0; n--, data += RINGBUF_STRIPE) {
            if (h->in_block == RINGBUF_BLOCK) {
                ringbuf_end_block(h);
                for (int i = 0; i < RINGBUF_LANES; i++) {
                    uint64_t lane = h->lane[i];
                    h->lane[i] = (lane ^ lane >> 47 ^ key[RINGBUF_SCRAMBLE + i]) * RINGBUF_P;
                }
            }
            for (int i = 0; i < RINGBUF_LANES; i++) {
                uint64_t word, keyed;
                memcpy(&word, data + i * sizeof word, sizeof word);
                keyed = word ^ key[h->in_block * RINGBUF_LANES + i];
                h->lane[i] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
                h->sum[i] += word;
            }
            h->in_block++;
        }
    }

    #ifdef RINGBUF_CHECKSUM_X86
    static inline void ringbuf_add_sse2(
        struct ringbuf_hash *h, const uint64_t *key, const unsigned char *data, size_t n) {
        enum { VECTORS = 4 };
        const __m128i prime = _mm_set1_epi64x((long long)RINGBUF_P);
        __m128i lane[VECTORS], sum[VECTORS];
        size_t at = h->in_block;
        for (int i = 0; i < VECTORS; i++) {
            lane[i] = _mm_loadu_si128((const __m128i *)h->lane + i);
            sum[i] = _mm_loadu_si128((const __m128i *)h->sum + i);
        }
        while (n > 0) {
            if (at == RINGBUF_BLOCK) {
                for (int i = 0; i < VECTORS; i++) {
                    __m128i v = _mm_add_epi64(lane[i], _mm_shuffle_epi32(sum[i], 0x4E));
                    v = _mm_xor_si128(v, _mm_srli_epi64(v, 47));
                    v = _mm_xor_si128(
                        v, _mm_loadu_si128((const __m128i *)(key + RINGBUF_SCRAMBLE) + i));
                    __m128i high = _mm_mul_epu32(_mm_srli_epi64(v, 32), prime);
                    lane[i] = _mm_add_epi64(_mm_mul_epu32(v, prime), _mm_slli_epi64(high, 32));
                    sum[i] = _mm_setzero_si128();
                }
                at = 0;
            }
            size_t end = n < RINGBUF_BLOCK - at ? at + n : RINGBUF_BLOCK;
            n -= end - at;
            for (; at < end; at++, data += RINGBUF_STRIPE)
                for (int i = 0; i < VECTORS; i++) {
                    __m128i word = _mm_loadu_si128((const __m128i *)data + i);
                    __m128i keyed = _mm_xor_si128(
                        word, _mm_loadu_si128((const __m128i *)(key + at * RINGBUF_LANES) + i));
                    lane[i] = _mm_add_epi64(
                        lane[i], _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32)));
                    sum[i] = _mm_add_epi64(sum[i], word);
                }
        }
        h->in_block = at;
        for (int i = 0; i < VECTORS; i++) {
            _mm_storeu_si128((__m128i *)h->lane + i, lane[i]);
            _mm_storeu_si128((__m128i *)h->sum + i, sum[i]);
        }
    }

    __attribute__((target("avx2"))) static inline void ringbuf_add_avx2(
        struct ringbuf_hash *h, const uint64_t *key, const unsigned char *data, size_t n) {
        enum { VECTORS = 2 };
        const __m256i prime = _mm256_set1_epi64x((long long)RINGBUF_P);
        __m256i lane[VECTORS], sum[VECTORS];
        size_t at = h->in_block;
        for (int i = 0; i < VECTORS; i++) {
            lane[i] = _mm256_loadu_si256((const __m256i *)h->lane + i);
            sum[i] = _mm256_loadu_si256((const __m256i *)h->sum + i);
        }
        while (n > 0) {
            if (at == RINGBUF_BLOCK) {
                for (int i = 0; i < VECTORS; i++) {
                    __m256i v = _mm256_add_epi64(lane[i], _mm256_shuffle_epi32(sum[i], 0x4E));
                    v = _mm256_xor_si256(v, _mm256_srli_epi64(v, 47));
                    v = _mm256_xor_si256(
                        v, _mm256_loadu_si256((const __m256i *)(key + RINGBUF_SCRAMBLE) + i));
                    __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), prime);
                    lane[i] = _mm256_add_epi64(
                        _mm256_mul_epu32(v, prime), _mm256_slli_epi64(high, 32));
                    sum[i] = _mm256_setzero_si256();
                }
                at = 0;
            }
            size_t end = n < RINGBUF_BLOCK - at ? at + n : RINGBUF_BLOCK;
            n -= end - at;
            for (; at < end; at++, data += RINGBUF_STRIPE)
                for (int i = 0; i < VECTORS; i++) {
                    __m256i word = _mm256_loadu_si256((const __m256i *)data + i);
                    __m256i keyed = _mm256_xor_si256(
                        word, _mm256_loadu_si256((const __m256i *)(key + at * RINGBUF_LANES) + i));
                    lane[i] = _mm256_add_epi64(
                        lane[i], _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
                    sum[i] = _mm256_add_epi64(sum[i], word);
                }
        }
        h->in_block = at;
        for (int i = 0; i < VECTORS; i++) {
            _mm256_storeu_si256((__m256i *)h->lane + i, lane[i]);
            _mm256_storeu_si256((__m256i *)h->sum + i, sum[i]);
        }
    }
    #endif

    /* The best way here: 0 plainly, 1 with SSE2, 2 with AVX2. */
    static inline int ringbuf_best_way(void) {
    #ifdef RINGBUF_CHECKSUM_X86
        return __builtin_cpu_supports("avx2") ? 2 : 1;
    #else
        return 0;
    #endif
    }

    static inline void ringbuf_hash_start(struct ringbuf_hash *h, const uint64_t *key) {
        for (int i = 0; i < RINGBUF_LANES; i++) {
            h->lane[i] = key[RINGBUF_START + i];
            h->sum[i] = 0;
        }
        h->in_block = 0;
    }

    /* n bytes, a whole number of stripes. */
    static inline void ringbuf_hash_add(
        struct ringbuf_hash *h, const uint64_t *key, const unsigned char *data, size_t n, int way) {
    #ifdef RINGBUF_CHECKSUM_X86
        if (way == 2)
            ringbuf_add_avx2(h, key, data, n / RINGBUF_STRIPE);
        else if (way == 1)
            ringbuf_add_sse2(h, key, data, n / RINGBUF_STRIPE);
        else
    #endif
            ringbuf_add_plain(h, key, data, n / RINGBUF_STRIPE);
    }

    static inline uint64_t ringbuf_hash_end(struct ringbuf_hash *h, const uint64_t *key) {
        uint64_t result = 0;
        ringbuf_end_block(h);
        key += RINGBUF_FOLD;
        for (int i = 0; i < RINGBUF_LANES; i += 2)
            result += ringbuf_fold(h->lane[i] ^ key[i], h->lane[i + 1] ^ key[i + 1]);
        return ringbuf_avalanche(result);
    }
    """
    cdef enum:
        STRIPE_BYTES "RINGBUF_STRIPE"
        KEY_WORDS "RINGBUF_KEY_WORDS"
        HEADER_WORD "RINGBUF_HEADER"

    struct ringbuf_hash:
        pass

    int best_way "ringbuf_best_way"() noexcept
    uint64_t fold "ringbuf_fold"(uint64_t a, uint64_t b) noexcept
    uint64_t avalanche "ringbuf_avalanche"(uint64_t h) noexcept
    void hash_start "ringbuf_hash_start"(ringbuf_hash* h, const uint64_t* key) noexcept
    void hash_add "ringbuf_hash_add"(
        ringbuf_hash* h, const uint64_t* key, const unsigned char* data, size_t n, int way
    ) noexcept
    uint64_t hash_end "ringbuf_hash_end"(ringbuf_hash* h, const uint64_t* key) noexcept


cdef enum:
    SECRET_BYTES = 32     # in the file's header
    TRAILER_BYTES = 16


cdef struct Trailer:
    uint64_t position
    uint64_t checksum


cdef inline uint32_t header_check(
    const uint64_t* key, uint64_t first_seq, uint32_t count, uint32_t payload, uint64_t granule
) noexcept nogil:
    """`granule`: where in the memory, not on the line."""
    cdef uint64_t lengths = <uint64_t>count << 32 | payload
    return <uint32_t>avalanche(
        fold(first_seq ^ key[HEADER_WORD], lengths ^ key[HEADER_WORD + 1]) + granule
    )


cdef inline uint64_t pending_checksum(const uint64_t* key, uint64_t position) noexcept nogil:
    """What stands in the trailer of a frame at `position` before its checksum."""
    return avalanche(fold(position ^ key[HEADER_WORD + 1], key[HEADER_WORD]))
