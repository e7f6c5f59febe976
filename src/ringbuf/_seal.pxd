"""Seals: how a frame in a file proves, after power loss, that it is whole and belongs where it lies.

After power loss each page of a file may be an old one or a new one, and a page may be torn between its sectors. A sealed frame
says enough of itself to be found without index or positions, and to be told from everything that only looks like a frame:

    header    first number, count, payload | mark | check: 32 bits over the first three and the granule that it lies on
    ...       ends, payloads, zeros up to the trailer
    trailer   position: the whole one, which the header's granule has the low bits of | seal: 64 bits over all granules of the frame,
              with zeros for what changes later, the marks, and for itself. The last 16 bytes of the last granule.

Both are keyed with random numbers from the file's header. So what a payload holds is never taken for a frame by chance or by
design; who can read the file may put a true copy of an older frame into a payload, and gives it away by its position: where two
sealed frames overlap, the one with the higher position was written over the other.

The hash. Over whole stripes of 64 bytes, in eight lanes of 64 bits; for word i of stripe s of a block

    keyed = word ^ key[s + i]        product[i] += low half of keyed * high half of keyed        sum[i] += word

and at the end of a block (32 stripes, or what is left) lane[i] = product[i] + sum[i ^ 1]: the neighbour's sum sees a difference
also where a factor is zero. Between blocks each lane is scrambled, one to one: lane = (lane ^ lane >> 47 ^ key[40 + i]) * P.
In the end the lanes are folded by 128-bit products. This is how XXH3 (Yann Collet) accumulates, but that the whole secret is
random, and what it adds are the products of NH (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, 1999).
tests/test_ring_salvage.py has it once more, in Python. Measured over 256 KiB on a Zen core: 39 GB/s with AVX2, 27 with SSE2, 9
without either; three streams of CRC32C reach 24, a hash of 128-bit products 23, memcpy 43.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from * nogil:
    """
    #include <cstddef>
    #include <cstdint>
    #include <cstring>

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    #define PENSTOCK_SEAL_X86 1
    #elif defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    #endif

    enum {
        PENSTOCK_STRIPE = 64,
        PENSTOCK_LANES = 8,
        PENSTOCK_BLOCK = 32, /* stripes */
        PENSTOCK_KEY_WORDS = 66
    };

    static const uint64_t PENSTOCK_P32 = 0x9E3779B1u; /* odd, and no wider than 32 bits, as vector units multiply no wider */

    struct penstock_hash {
        uint64_t lane[PENSTOCK_LANES];
        uint64_t sum[PENSTOCK_LANES];
        unsigned in_block;
    };

    static inline uint64_t penstock_word(const unsigned char *p) {
        uint64_t word;
        memcpy(&word, p, sizeof word);
        return word;
    }

    static inline uint64_t penstock_avalanche(uint64_t h) {
        h ^= h >> 33;
        h *= 0xFF51AFD7ED558CCDu;
        h ^= h >> 33;
        h *= 0xC4CEB9FE1A85EC53u;
        return h ^ h >> 33;
    }

    static inline uint64_t penstock_fold(uint64_t a, uint64_t b) {
    #if defined(_MSC_VER) && !defined(__clang__)
        uint64_t high, low = _umul128(a, b, &high);
        return low ^ high;
    #else
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    #endif
    }

    /* Add n stripes of one block; `key` is that of the first of them. */
    static inline void penstock_stripes_plain(
        uint64_t *lane, uint64_t *sum, const uint64_t *key, const unsigned char *data, size_t n) {
        for (size_t s = 0; s < n; s++)
            for (int i = 0; i < PENSTOCK_LANES; i++) {
                uint64_t word = penstock_word(data + s * PENSTOCK_STRIPE + i * 8), keyed = word ^ key[s + i];
                lane[i] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
                sum[i] += word;
            }
    }

    #ifdef PENSTOCK_SEAL_X86
    static inline void penstock_stripes_sse2(
        uint64_t *lane, uint64_t *sum, const uint64_t *key, const unsigned char *data, size_t n) {
        __m128i a[4], b[4];
        for (int i = 0; i < 4; i++) {
            a[i] = _mm_loadu_si128((const __m128i *)lane + i);
            b[i] = _mm_loadu_si128((const __m128i *)sum + i);
        }
        for (size_t s = 0; s < n; s++)
            for (int i = 0; i < 4; i++) {
                __m128i word = _mm_loadu_si128((const __m128i *)(data + s * PENSTOCK_STRIPE) + i);
                __m128i keyed = _mm_xor_si128(word, _mm_loadu_si128((const __m128i *)(key + s) + i));
                a[i] = _mm_add_epi64(a[i], _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32)));
                b[i] = _mm_add_epi64(b[i], word);
            }
        for (int i = 0; i < 4; i++) {
            _mm_storeu_si128((__m128i *)lane + i, a[i]);
            _mm_storeu_si128((__m128i *)sum + i, b[i]);
        }
    }

    __attribute__((target("avx2"))) static inline void penstock_stripes_avx2(
        uint64_t *lane, uint64_t *sum, const uint64_t *key, const unsigned char *data, size_t n) {
        __m256i a[2], b[2];
        for (int i = 0; i < 2; i++) {
            a[i] = _mm256_loadu_si256((const __m256i *)lane + i);
            b[i] = _mm256_loadu_si256((const __m256i *)sum + i);
        }
        for (size_t s = 0; s < n; s++)
            for (int i = 0; i < 2; i++) {
                __m256i word = _mm256_loadu_si256((const __m256i *)(data + s * PENSTOCK_STRIPE) + i);
                __m256i keyed = _mm256_xor_si256(word, _mm256_loadu_si256((const __m256i *)(key + s) + i));
                a[i] = _mm256_add_epi64(a[i], _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
                b[i] = _mm256_add_epi64(b[i], word);
            }
        for (int i = 0; i < 2; i++) {
            _mm256_storeu_si256((__m256i *)lane + i, a[i]);
            _mm256_storeu_si256((__m256i *)sum + i, b[i]);
        }
    }
    #endif

    /* How the stripes are added: 0 plainly, 1 with SSE2, 2 with AVX2. All give the same. */
    static inline int penstock_best_way(void) {
    #ifdef PENSTOCK_SEAL_X86
        return __builtin_cpu_supports("avx2") ? 2 : 1;
    #else
        return 0;
    #endif
    }

    static inline void penstock_hash_start(struct penstock_hash *h, const uint64_t *key) {
        for (int i = 0; i < PENSTOCK_LANES; i++) {
            h->lane[i] = key[48 + i];
            h->sum[i] = 0;
        }
        h->in_block = 0;
    }

    static inline void penstock_end_block(struct penstock_hash *h) {
        for (int i = 0; i < PENSTOCK_LANES; i++) h->lane[i] += h->sum[i ^ 1];
        for (int i = 0; i < PENSTOCK_LANES; i++) h->sum[i] = 0;
        h->in_block = 0;
    }

    /* n bytes, a whole number of stripes. */
    static inline void penstock_hash_add(
        struct penstock_hash *h, const uint64_t *key, const unsigned char *data, size_t n, int way) {
        while (n > 0) {
            if (h->in_block == PENSTOCK_BLOCK) {
                penstock_end_block(h);
                for (int i = 0; i < PENSTOCK_LANES; i++) {
                    uint64_t lane = h->lane[i];
                    h->lane[i] = (lane ^ lane >> 47 ^ key[40 + i]) * PENSTOCK_P32;
                }
            }
            size_t stripes = n / PENSTOCK_STRIPE;
            if (stripes > PENSTOCK_BLOCK - h->in_block) stripes = PENSTOCK_BLOCK - h->in_block;
    #ifdef PENSTOCK_SEAL_X86
            if (way == 2)
                penstock_stripes_avx2(h->lane, h->sum, key + h->in_block, data, stripes);
            else if (way == 1)
                penstock_stripes_sse2(h->lane, h->sum, key + h->in_block, data, stripes);
            else
    #endif
                penstock_stripes_plain(h->lane, h->sum, key + h->in_block, data, stripes);
            h->in_block += (unsigned)stripes;
            data += stripes * PENSTOCK_STRIPE;
            n -= stripes * PENSTOCK_STRIPE;
        }
    }

    static inline uint64_t penstock_hash_end(struct penstock_hash *h, const uint64_t *key) {
        penstock_end_block(h);
        uint64_t result = 0;
        for (int i = 0; i < PENSTOCK_LANES; i += 2)
            result += penstock_fold(h->lane[i] ^ key[56 + i], h->lane[i + 1] ^ key[57 + i]);
        return penstock_avalanche(result);
    }
    """
    cdef enum:
        STRIPE_BYTES "PENSTOCK_STRIPE"
        KEY_WORDS "PENSTOCK_KEY_WORDS"

    struct penstock_hash:
        pass

    int best_way "penstock_best_way"() noexcept
    uint64_t fold "penstock_fold"(uint64_t a, uint64_t b) noexcept
    uint64_t avalanche "penstock_avalanche"(uint64_t h) noexcept
    void hash_start "penstock_hash_start"(penstock_hash* h, const uint64_t* key) noexcept
    void hash_add "penstock_hash_add"(penstock_hash* h, const uint64_t* key, const unsigned char* data, size_t n, int way) noexcept
    uint64_t hash_end "penstock_hash_end"(penstock_hash* h, const uint64_t* key) noexcept


cdef enum:
    SECRET_BYTES = 32     # in the file's header
    TRAILER_BYTES = 16


# A file's key, made of the secret in its header.
cdef struct Key:
    uint64_t words[KEY_WORDS]
    int way


cdef struct Trailer:
    uint64_t position
    uint64_t seal


cdef inline uint32_t header_check(
    const Key* key, uint64_t first_seq, uint32_t count, uint32_t payload, uint64_t granule
) noexcept nogil:
    """`granule`: where in the memory, not on the line."""
    return <uint32_t>avalanche(fold(first_seq ^ key.words[64], (<uint64_t>count << 32 | payload) ^ key.words[65]) + granule)


cdef inline void set_key(Key* key, const unsigned char* expanded) noexcept nogil:
    """`expanded`: KEY_WORDS words, which layout_of in _messages.pyx makes of a file's secret."""
    memcpy(key.words, expanded, sizeof(key.words))
    key.way = best_way()
