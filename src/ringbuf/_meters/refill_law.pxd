"""The refill law of a token bucket and its state: arithmetic and atomic words, no
Python objects.

Every function takes the time as an argument. "Theory of operation", "Credit" and
"Concurrency" in token_bucket.pyx say what the words mean and why a change is safe.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_acquire, fence_acquire, fence_release, load_acquire, load_relaxed,
    store_relaxed, store_release, word,
)
from ringbuf._core.timing cimport steady_ns


# What the refill law needs, published as one of two slots: see "Concurrency" in
# token_bucket.pyx.
cdef struct Law:
    word anchor_ns        # the law starts to count here …
    word anchor_tokens    # … with this many tokens issued …
    # … and this part of the next one, in units of 1 / (5**9 * 2**shift) (128 bits).
    word carry_low
    word carry_high
    word mult             # tokens per ns = mult / (5**9 * 2**shift)
    word shift
    word burst
    word unlimited        # rate == inf


# Two cache lines and the law slots; the word that every acquire changes has a line of
# its own.
cdef struct BucketState:
    word spent
    # What may be taken without reading the clock: see "Credit" in token_bucket.pyx.
    word credit
    word pad[6]
    word version          # law[version & 1] is the one in force
    # Not 0 while a thread prepares the other slot: which one, and when it began.
    word setter
    # Of a bucket in a file: the run of the kernel whose clock the law is about.
    word boot[2]
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


cdef extern from * nogil:
    """
    #include <cmath>
    #include <cstdint>

    #if defined(_MSC_VER) && !defined(__clang__)
    #include <intrin.h>
    static inline uint64_t ringbuf_mul(uint64_t a, uint64_t b, uint64_t *high) {
        return _umul128(a, b, high);
    }
    #else
    static inline uint64_t ringbuf_mul(uint64_t a, uint64_t b, uint64_t *high) {
        unsigned __int128 p = (unsigned __int128)a * b;
        *high = (uint64_t)(p >> 64);
        return (uint64_t)p;
    }
    #endif

    /* (a * b + carry) / (5**9 * 2**shift), low 64 bits; the remainder takes the place of the carry.
       shift is 9 to 105, a * b and the carry are below 2**126. */
    static inline uint64_t ringbuf_mul_div(uint64_t a, uint64_t b, unsigned shift,
                                            uint64_t *low, uint64_t *high) {
        const uint64_t d = 1953125;
        uint64_t p1, p0 = ringbuf_mul(a, b, &p1), q1, q0, t1, t0, r, quotient;
        p0 += *low;
        p1 += *high + (p0 < *low);
        if (shift < 64) { q1 = p1 >> shift; q0 = p0 >> shift | p1 << (64 - shift); }
        else { q1 = 0; q0 = p1 >> (shift - 64); }
        if (q1 == 0) { quotient = q0 / d; r = q0 % d; }
        else {
            /* d has 21 bits, so a remainder and the next 32 bits fit into one word. */
            t1 = (q1 % d) << 32 | q0 >> 32;
            t0 = (t1 % d) << 32 | (q0 & 0xffffffffu);
            quotient = (t1 / d << 32) + t0 / d;
            r = t0 % d;
        }
        if (shift < 64) {
            *low = (p0 & (((uint64_t)1 << shift) - 1)) | r << shift;
            *high = r >> (64 - shift);
        } else {
            *low = p0;
            *high = (p1 & (((uint64_t)1 << (shift - 64)) - 1)) | r << (shift - 64);
        }
        return quotient;
    }
    """
    uint64_t mul_div "ringbuf_mul_div"(uint64_t a, uint64_t b, unsigned shift,
                                       uint64_t* low, uint64_t* high)
    double frexp(double x, int* exp)
    double ldexp(double x, int exp)
    double nextafter(double x, double y)


cdef extern from *:
    """
    #define RINGBUF_MAX_RATE 1e12
    #define RINGBUF_MAX_SHIFT 105
    #define RINGBUF_MAX_TOKENS (INT64_MAX / 2)
    #define RINGBUF_CREDIT ((uint64_t)32)
    #define RINGBUF_CREDIT_SHARE 10
    #define RINGBUF_HOLDER_BITS 16
    #define RINGBUF_VERSION_SHIFT 49
    #define RINGBUF_VERSION_MASK (((uint64_t)1 << 15) - 1)
    #define RINGBUF_HAS_CREDIT ((uint64_t)1 << 48)
    #define RINGBUF_BASE_MASK (((uint64_t)1 << 48) - 1)
    """
    # Above this rate 2**63 tokens are issued within months, and the distance on the
    # line could be misjudged; inf serves there.
    const double MAX_RATE "RINGBUF_MAX_RATE"
    # A mantissa (53 bits) times any time (63 bits), and a carry (21 bits + this), stay
    # below 2**127: their sum fits into 128 bits.
    const int MAX_SHIFT "RINGBUF_MAX_SHIFT"
    # Half of the line: the most that may lie between `spent` and `issued`.
    const int64_t MAX_TOKENS "RINGBUF_MAX_TOKENS"
    # Tokens that may be taken after one reading of the clock: with 32 its 30 ns come to
    # one ns a token.
    const uint64_t CREDIT "RINGBUF_CREDIT"
    # Only a burst of 2**10 credits has one, so that what a credit may hide for a moment
    # stays below a thousandth.
    const uint64_t CREDIT_SHARE "RINGBUF_CREDIT_SHARE"
    # The low bits of `setter`: the number of the participant that holds the lock + 1.
    const uint64_t HOLDER_BITS "RINGBUF_HOLDER_BITS"
    # The credit word: law version (15 bits), a credit was left (1), `spent` at the
    # reading that left it (48).
    const uint64_t VERSION_SHIFT "RINGBUF_VERSION_SHIFT"
    const uint64_t VERSION_MASK "RINGBUF_VERSION_MASK"
    const uint64_t HAS_CREDIT "RINGBUF_HAS_CREDIT"
    const uint64_t BASE_MASK "RINGBUF_BASE_MASK"


cdef inline void read_law(BucketState* state, LawCopy* copy) noexcept nogil:
    cdef uint64_t version
    cdef Law* law
    while True:
        # Pairs with the release in `publish_law`: the slot that this version names was
        # written before.
        version = load_acquire(&state.version)
        law = &state.law[version & 1]
        copy.anchor_ns = <int64_t>load_relaxed(&law.anchor_ns)
        copy.anchor_tokens = load_relaxed(&law.anchor_tokens)
        copy.carry_low = load_relaxed(&law.carry_low)
        copy.carry_high = load_relaxed(&law.carry_high)
        copy.mult = load_relaxed(&law.mult)
        copy.shift = load_relaxed(&law.shift)
        copy.burst = load_relaxed(&law.burst)
        copy.unlimited = load_relaxed(&law.unlimited)
        # Keeps the loads above from sinking below the second load of `version`.
        fence_acquire()
        if load_relaxed(&state.version) == version:
            copy.version = version
            return


cdef inline uint64_t issued(LawCopy* law, int64_t now_ns, Rest* rest) noexcept nogil:
    """Tokens on the line at `now_ns`, and what has come in of the next one."""
    cdef uint64_t elapsed = 0
    if now_ns > law.anchor_ns:
        elapsed = <uint64_t>now_ns - <uint64_t>law.anchor_ns
    rest.low = law.carry_low
    rest.high = law.carry_high
    return law.anchor_tokens + mul_div(
        elapsed, law.mult, <unsigned>law.shift, &rest.low, &rest.high
    )


cdef inline double part_of_token(LawCopy* law, Rest* rest) noexcept nogil:
    """The rest of `issued` as a fraction of a token, 0 to 1."""
    cdef int shift = <int>law.shift
    return (ldexp(<double>rest.high, 64 - shift) + ldexp(<double>rest.low, -shift)) / 1953125.0


cdef inline double law_rate(LawCopy* law) noexcept nogil:
    """Tokens per second."""
    return INFINITY if law.unlimited else ldexp(<double>law.mult, 9 - <int>law.shift)


cdef inline void set_slope(LawCopy* law, double rate) noexcept nogil:
    """Write `rate` (tokens per second) into the law as a mantissa and a shift."""
    cdef int exponent = 0
    cdef double mantissa = 0.0 if rate == INFINITY else frexp(rate, &exponent)
    # The deepest shift also for no slope at all, because it keeps all of the carry.
    cdef int shift = MAX_SHIFT if mantissa == 0.0 else min(9 + 53 - exponent, MAX_SHIFT)
    # All 53 bits of the mantissa, unless the rate is below one token in 500,000 years.
    law.mult = <uint64_t>ldexp(mantissa, exponent + shift - 9)
    law.shift = <uint64_t>shift
    law.unlimited = rate == INFINITY


cdef inline void publish_law(BucketState* state, LawCopy* law) noexcept nogil:
    """Put a law in force. The caller alone writes the idle slot: it made the bucket, or
    holds `setter`.
    """
    cdef uint64_t version = load_relaxed(&state.version)
    cdef Law* slot = &state.law[(version + 1) & 1]
    # A reader that still copies this slot, two versions late, must see that `version`
    # has changed: pairs with the fence in read_law.
    fence_release()
    store_relaxed(&slot.anchor_ns, <uint64_t>law.anchor_ns)
    store_relaxed(&slot.anchor_tokens, law.anchor_tokens)
    store_relaxed(&slot.carry_low, law.carry_low)
    store_relaxed(&slot.carry_high, law.carry_high)
    store_relaxed(&slot.mult, law.mult)
    store_relaxed(&slot.shift, law.shift)
    store_relaxed(&slot.burst, law.burst)
    store_relaxed(&slot.unlimited, law.unlimited)
    # Pairs with the acquire in read_law.
    store_release(&state.version, version + 1)


cdef inline void rescale(Rest* rest, int deeper) noexcept nogil:
    """Express a rest in units that are 2**deeper times smaller; a negative `deeper`
    rounds down.
    """
    if deeper >= 64:
        rest.high = rest.low << (deeper - 64)
        rest.low = 0
    elif deeper > 0:
        rest.high = rest.high << deeper | rest.low >> (64 - deeper)
        rest.low <<= deeper
    elif deeper <= -64:
        rest.low = rest.high >> (-deeper - 64)
        rest.high = 0
    elif deeper < 0:
        rest.low = rest.low >> -deeper | rest.high << (64 + deeper)
        rest.high >>= -deeper


cdef inline bint try_lock(BucketState* state, uint64_t me) noexcept nogil:
    cdef uint64_t expected = 0
    # The time makes it another word each time. Pairs with the release in `unlock`: the
    # next holder sees the law before it.
    return cas_acquire(&state.setter, &expected, <uint64_t>steady_ns() << HOLDER_BITS | me)


cdef inline void unlock(BucketState* state) noexcept nogil:
    store_release(&state.setter, 0)


cdef inline bint has_credit(LawCopy* law) noexcept nogil:
    return law.burst >> CREDIT_SHARE >= CREDIT


cdef inline int64_t stock(
    BucketState* state, LawCopy* law, uint64_t line, uint64_t spent
) noexcept nogil:
    """Tokens that can be taken where `line` have been issued; negative while
    reservations are ahead of it.
    """
    cdef uint64_t used = 0, most = law.burst, credit = load_relaxed(&state.credit)
    cdef int64_t available = <int64_t>(line - spent)
    # What was taken on credit since the clock was read last may have been taken just
    # now: it is kept from the burst.
    if credit & HAS_CREDIT:
        used = min((spent - credit) & BASE_MASK, CREDIT)
        most = most - used if most > used else 0
    return min(available, <int64_t>most)


cdef inline bint is_sound(LawCopy* law) noexcept nogil:
    """Whether this can be a law at all, and be computed with."""
    if not 9 <= law.shift <= <uint64_t>MAX_SHIFT or law.mult >> 53 != 0:
        return False
    if law.burst > <uint64_t>MAX_TOKENS:
        return False
    if not law.unlimited and law_rate(law) > MAX_RATE:
        return False
    # The rest of a division by 5**9 * 2**shift.
    cdef uint64_t high = law.carry_high, low = law.carry_low, shift = law.shift
    if shift >= 64:
        return high >> (shift - 64) < 1953125
    return high >> shift == 0 and (high << (64 - shift) | low >> shift) < 1953125


cdef inline double seconds_until(LawCopy* law, int64_t now_ns, int64_t missing) noexcept nogil:
    """Seconds until `missing` more tokens will have been issued: never too short, at
    most some ns long.
    """
    cdef Rest rest
    cdef uint64_t target
    cdef double wait_ns
    cdef int64_t then, step = 1
    if missing <= 0:
        return 0.0
    if law.mult == 0:
        return INFINITY
    target = issued(law, now_ns, &rest) + <uint64_t>missing
    wait_ns = (<double>missing - part_of_token(law, &rest)) / law_rate(law) * 1e9
    if now_ns < law.anchor_ns:
        wait_ns += <double>(<uint64_t>law.anchor_ns - <uint64_t>now_ns)
    if wait_ns > 9e18 or wait_ns + <double>now_ns > 9e18:  # beyond 285 years, where int64 ns end
        return wait_ns * 1e-9
    then = now_ns + <int64_t>wait_ns
    # Rounding may have come out short by an ulp or so of the wait.
    while <int64_t>(issued(law, then, &rest) - target) < 0:
        then += step
        step *= 2
    wait_ns = <double>(then - now_ns)
    # From here on a float of seconds is too coarse for a ns.
    return nextafter(wait_ns * 1e-9, INFINITY) if wait_ns > 1e15 else wait_ns * 1e-9
