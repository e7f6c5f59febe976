# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""An atomic token bucket.

Contract. Any number of threads, with the GIL or without it, may call every method. No
call blocks or allocates beyond its result; an acquire is lock-free (one
compare-and-exchange). A request that is refused changes nothing.

Theory of operation. Tokens lie on a line, as events do in a lane. `issued(t)` is how
many the rate has put on the line up to time t, `spent` how many have been taken from
it:

    0 ......... spent ............... issued(t)            available = min(issued(t) - spent, burst)
                [====== available ====)

`issued` is a pure function of time,

    issued(t) = anchor_tokens + floor(((t - anchor) * mult + carry) / (5**9 * 2**shift))

with mult the mantissa of the rate, a double per second = mult * 2**(9 - shift); the
rest of the division by 10**9 ns is the 5**9. So the law is exact, at whole seconds too,
and there is nothing that could drift: no sum of small steps is ever formed. `spent` is
the only word that an acquire changes. Because time only enters through `issued`, a
clock that goes backwards sees fewer tokens for a while and can not have any of them
credited twice. What lies further back than `burst` has flowed over: whoever takes next
moves `spent` up to issued(t) - burst first, and starts the law anew from a full bucket,
because the fraction of a token beyond it has flowed over too. (Kept, it would bring the
next token early: one after an idle day and another a second later, where the rate is
one a day.)

Both are 64-bit and compared by difference, so neither ever ends; only a bucket left
alone until its rate has issued 2**63 tokens (29 years at 10 billion a second) would
misjudge the distance.

Credit. Reading the clock costs more than all the rest of an acquire, so a look at it
leaves a credit behind: CREDIT tokens that are there for certain and may be taken
without another look. When those were taken is not known, so the next look counts them
as taken just then: after a pause it may find up to that many tokens less than the
burst. The credit is at most a 1024th of the burst; a smaller bucket has none, and the
`_at` twins neither use nor leave one: they are exact. A bucket with a credit also keeps
the fraction beyond a full one, which is less than one token more than rate * time +
burst.

Concurrency. A rate or burst change writes the law's idle slot and then flips `version`
(release); a reader copies the slot that `version` (acquire) names and takes the copy
only if `version` still says the same. `setter` keeps two changes from writing the idle
slot at once. An acquire that is between its look at the law and its exchange while the
law changes counts as having come before the change. A look replaces the credit word
only if it is still the one that it found, so a look that was held up can not undo what
a later one left.

Processes. A bucket in a file (path=) is the same state in memory that several processes
have mapped. An acquire changes one word by one exchange, so a process that is killed in
it has taken its tokens or has not; tokens that it took or reserved are gone, and flow
in again as any others. A change of rate or burst takes the lock `setter`, and is in
force with the one store of `version`: who is killed before that leaves the old law in
force, and a lock that the next one opens who finds it, because the seat of its holder
is free (see _shared/seat_locks.pyx). The word tells one holder from the next, so that
nobody opens another lock than the one that was asked about. A process takes its seat
with its first acquire, reserve or change, under the file's lock for tidying up. While
it holds that lock no Python code runs, so no signal's handler can find its own thread
to hold it, or raise before it is let go. A change waits for one that is under way
elsewhere, if need be until that process was stopped for too long (TimeoutError);
nothing else waits, but for a process that tidies up at that moment. What a killed
change has done by then, to settle what had flowed over, holds under the old law as
well. All processes read the same clock (CLOCK_MONOTONIC) until the machine is started
anew; the first one after that begins a new law with the tokens that are certain: those
left of what the old one began with.

Sources: the single word of state is the idea of GCRA (ATM Forum, 1996) and of folly's
TokenBucket; tokens in whole numbers on a line instead of a theoretical arrival time are
our own, because an arrival time in integer ns is wrong by 1 % at 30 M/s.
"""

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_acquire, cas_relaxed, exchange_relaxed, fence_acquire, fence_release, load_acquire, load_relaxed,
    store_relaxed, store_release,
)
from ringbuf._core.counts cimport real, whole
from ringbuf._core.timing cimport checked_count, checked_ns, steady_ns

import os
import time

import numpy as np

from ringbuf._shared import shared_file
from ringbuf._shared.seat_locks cimport SeatLocks
from ringbuf._shared.shared_file import SharedFile, SharedFileError


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


# Above this, 2**63 tokens are issued within months and the distance on the line could
# be misjudged; inf serves there.
cdef double MAX_RATE = 1e12
# A mantissa (53 bits) times any time (63 bits), and a carry (21 bits + this), stay
# below 2**127: their sum fits into 128 bits.
cdef int MAX_SHIFT = 105
# Half of the line: what may lie between `spent` and `issued` at most.
cdef int64_t MAX_TOKENS = INT64_MAX // 2
# Tokens that may be taken after one look at the clock: with 32 a look's 30 ns come to
# one a token.
cdef uint64_t CREDIT = 32
# Only a burst of 2**10 credits has one, so that what a credit may hide for a moment
# stays below a thousandth.
cdef uint64_t CREDIT_SHARE = 10
# How long (seconds) a change waits for another one, which takes a us, but may be of a
# process that is stopped.
CHANGE_SECONDS = 10.0
# How long (seconds) to wait for another process that tidies up, which takes some us,
# but may be stopped.
TIDYING_SECONDS = 10.0
# So often it looks before it lets others run.
cdef int SPINS = 1000
# Processes that use one file, and the bits that hold the number of one of them + 1.
cdef int SEATS = 1024
cdef int SEAT_BITS = 16
cdef bytes KIND = b"tokn"
# The credit word: law version (15 bits), a credit was left (1), `spent` at that look
# (48).
cdef uint64_t VERSION_SHIFT = 49
cdef uint64_t VERSION_MASK = (<uint64_t>1 << 15) - 1
cdef uint64_t HAS_CREDIT = <uint64_t>1 << 48
cdef uint64_t BASE_MASK = (<uint64_t>1 << 48) - 1


cdef inline void read_law(BucketState* state, LawCopy* copy) noexcept nogil:
    cdef uint64_t version
    cdef Law* law
    while True:
        # Pairs with the release in `publish`: the slot that this version names was
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
        # Keeps the loads above from sinking below the second look at `version`.
        fence_acquire()
        if load_relaxed(&state.version) == version:
            copy.version = version
            return


cdef inline uint64_t issued(LawCopy* law, int64_t now_ns, Rest* rest) noexcept nogil:
    cdef uint64_t elapsed = <uint64_t>now_ns - <uint64_t>law.anchor_ns if now_ns > law.anchor_ns else 0
    rest.low = law.carry_low
    rest.high = law.carry_high
    return law.anchor_tokens + mul_div(elapsed, law.mult, <unsigned>law.shift, &rest.low, &rest.high)


cdef inline double part_of_token(LawCopy* law, Rest* rest) noexcept nogil:
    """The rest of `issued` as a fraction of a token, 0 to 1."""
    cdef int shift = <int>law.shift
    return (ldexp(<double>rest.high, 64 - shift) + ldexp(<double>rest.low, -shift)) / 1953125.0


cdef inline double law_rate(LawCopy* law) noexcept nogil:
    """Tokens per second."""
    return INFINITY if law.unlimited else ldexp(<double>law.mult, 9 - <int>law.shift)


cdef void set_slope(LawCopy* law, double rate) noexcept nogil:
    """Write `rate` (tokens per second) into the law as a mantissa and a shift."""
    cdef int exponent = 0
    cdef double mantissa = 0.0 if rate == INFINITY else frexp(rate, &exponent)
    # The deepest shift also for no slope at all, because it keeps all of the carry.
    cdef int shift = MAX_SHIFT if mantissa == 0.0 else min(9 + 53 - exponent, MAX_SHIFT)
    # All 53 bits of the mantissa, unless the rate is below one token in 500,000 years.
    law.mult = <uint64_t>ldexp(mantissa, exponent + shift - 9)
    law.shift = <uint64_t>shift
    law.unlimited = rate == INFINITY


cdef void publish_law(BucketState* state, LawCopy* law) noexcept nogil:
    """Put a law in force. The caller is alone with the idle slot: it made the bucket,
    or holds `setter`.
    """
    cdef uint64_t version = load_relaxed(&state.version)
    cdef Law* slot = &state.law[(version + 1) & 1]
    # A reader that still copies this slot, two versions late, must see `version`
    # changed: pairs with the fence in read_law.
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
    # next setter sees the law before it.
    return cas_acquire(&state.setter, &expected, <uint64_t>steady_ns() << SEAT_BITS | me)


cdef inline void unlock(BucketState* state) noexcept nogil:
    store_release(&state.setter, 0)


cdef void settle_law(BucketState* state, int64_t now_ns, LawCopy* slope, int64_t burst) noexcept nogil:
    cdef LawCopy law
    cdef Rest rest
    cdef uint64_t line, spent, credit
    cdef int64_t available
    cdef int shift
    cdef bint full
    read_law(state, &law)
    shift = <int>law.shift
    line = issued(&law, now_ns, &rest)
    # Settle the overflow under the old burst: a larger one must not bring it back. An
    # unlimited bucket kept no count, and settles as a full one.
    credit = load_relaxed(&state.credit)
    spent = load_relaxed(&state.spent)
    while True:
        available = <int64_t>law.burst if law.unlimited else stock(state, &law, line, spent)
        if cas_relaxed(&state.spent, &spent, line - <uint64_t>available):
            break
    # A credit ends here; what someone takes on it who is just about to counts from here
    # on. (No law in force from now on has this version.)
    if credit & HAS_CREDIT:
        cas_relaxed(&state.credit, &credit, (
            (law.version - 1) << VERSION_SHIFT | HAS_CREDIT | ((line - <uint64_t>available) & BASE_MASK)
        ))
    full = available == <int64_t>law.burst
    law.anchor_tokens = line
    if now_ns > law.anchor_ns:
        law.anchor_ns = now_ns
    if slope != NULL:
        law.mult = slope.mult
        law.shift = slope.shift
        law.unlimited = slope.unlimited
    if burst >= 0:
        law.burst = <uint64_t>burst
    # What has come in of the next token goes on under the new law, in units of the new
    # shift; a full bucket takes none.
    law.carry_low = law.carry_high = 0
    if not full:
        rescale(&rest, <int>law.shift - shift)
        law.carry_low = rest.low
        law.carry_high = rest.high
    publish_law(state, &law)


cdef void drop_overflow(BucketState* state, LawCopy* law, int64_t now_ns, uint64_t me) noexcept nogil:
    """If the bucket is full and more, let the law start anew from a full one, and `law`
    be that law.
    """
    cdef Rest rest
    cdef uint64_t line = issued(law, now_ns, &rest)
    # In a file the difference may be anything: a debt is no more than that.
    cdef int64_t over = max(<int64_t>(line - load_relaxed(&state.spent)), <int64_t>-1) - <int64_t>law.burst
    # Without the lock somebody else does this or changes the law; then this call comes
    # before the change.
    if (over > 0 or over == 0 and rest.low | rest.high != 0) and try_lock(state, me):
        settle_law(state, now_ns, NULL, -1)
        unlock(state)
        read_law(state, law)


cdef bint is_sound(LawCopy* law) noexcept nogil:
    """Whether this can be a law at all, and be computed with."""
    if not 9 <= law.shift <= <uint64_t>MAX_SHIFT or law.mult >> 53 != 0 or law.burst > <uint64_t>MAX_TOKENS:
        return False
    if not law.unlimited and law_rate(law) > MAX_RATE:
        return False
    # The rest of a division by 5**9 * 2**shift.
    cdef uint64_t high = law.carry_high, low = law.carry_low, shift = law.shift
    if shift >= 64:
        return high >> (shift - 64) < 1953125
    return high >> shift == 0 and (high << (64 - shift) | low >> shift) < 1953125


cdef int read_boot(uint64_t* boot) except -1:
    """What tells this run of the kernel from every other, as two words."""
    number = shared_file.boot_id()
    boot[0] = int.from_bytes(number[:8], "little")
    boot[1] = int.from_bytes(number[8:], "little")
    return 0


cdef void put_boot(BucketState* state, const uint64_t* boot) noexcept nogil:
    store_relaxed(&state.boot[0], boot[0])
    store_release(&state.boot[1], boot[1])


cdef void begin_anew(BucketState* state, const uint64_t* boot) noexcept nogil:
    """If the clock has begun anew with the kernel, let the law do so too. The caller is
    the only one who does this.
    """
    cdef LawCopy law
    cdef int64_t left
    if load_acquire(&state.boot[1]) == boot[1] and load_relaxed(&state.boot[0]) == boot[0]:
        return
    read_law(state, &law)
    left = <int64_t>(law.anchor_tokens - load_relaxed(&state.spent))
    # Whoever held it is of another run.
    store_relaxed(&state.setter, 0)
    store_relaxed(&state.credit, 0)
    store_relaxed(&state.spent, law.anchor_tokens - <uint64_t>max(<int64_t>0, min(left, <int64_t>law.burst)))
    law.anchor_ns = steady_ns()
    law.carry_low = law.carry_high = 0
    publish_law(state, &law)
    put_boot(state, boot)


# What a try under the lock for tidying up comes to; a negative one is an errno.
cdef enum:
    LOCKED = 0    # another process has the lock: nothing was done
    DONE = 1
    NO_SEAT = 2


cdef int try_begin_anew(SeatLocks locks, BucketState* state, const uint64_t* boot) noexcept nogil:
    """`begin_anew` under the lock."""
    cdef int begun = locks.begin_tidying()
    if begun > 0:
        begin_anew(state, boot)
        locks.end_tidying()
    return begun


cdef int try_take_seat(SeatLocks locks, BucketState* state, word* me) noexcept nogil:
    """Take a seat under the lock, if there is none yet, and let `me` say which."""
    cdef int begun = locks.begin_tidying()
    if begun > 0:
        if load_acquire(me) == 0:  # else another thread, or a signal's handler, was faster
            begun = take_seat(locks, state, me)
        locks.end_tidying()
    return begun


cdef int take_seat(SeatLocks locks, BucketState* state, word* me) noexcept nogil:
    cdef uint64_t setter
    cdef int seat, taken
    for seat in range(SEATS):
        taken = locks.take(seat)
        if taken < 0:
            return taken
        if taken == 0:
            continue
        # A lock that speaks of this seat is of one who had it before, and has died.
        setter = load_acquire(&state.setter)
        if setter & ((<uint64_t>1 << SEAT_BITS) - 1) == <uint64_t>(seat + 1):
            cas_acquire(&state.setter, &setter, 0)
        store_release(me, <uint64_t>(seat + 1))
        return DONE
    return NO_SEAT


cdef bint is_taken(SeatLocks locks, int seat) noexcept nogil:
    """See SeatLocks; the type of an attribute of `file` is known to a parameter only.
    """
    return locks.is_taken(seat)


cdef int64_t wait_to_tidy(object file, int outcome, int64_t deadline) except 0:
    """After a try that came to LOCKED, or to an errno, which is raised; `deadline` is 0
    at the first. Returns the deadline.
    """
    if outcome < 0:
        raise OSError(-outcome, os.strerror(-outcome), file.path)
    if deadline == 0:
        deadline = steady_ns() + <int64_t>(TIDYING_SECONDS * 1e9)
    elif steady_ns() > deadline:
        raise TimeoutError(f"{file.path}: another process has been tidying up for {TIDYING_SECONDS:.0f} s: is it stopped?")
    time.sleep(0.001)
    return deadline


cdef double checked_rate(object rate) except -1.0:
    cdef double value = real(rate, "rate")
    if not (0.0 <= value <= MAX_RATE or value == INFINITY):
        raise ValueError(f"rate must be from 0 to {MAX_RATE:.0e} tokens per second, or inf, not {rate!r}")
    return value


cdef inline bint has_credit(LawCopy* law) noexcept nogil:
    return law.burst >> CREDIT_SHARE >= CREDIT


cdef inline int64_t stock(BucketState* state, LawCopy* law, uint64_t line, uint64_t spent) noexcept nogil:
    """Tokens that can be taken where `line` have been issued; negative while
    reservations are ahead of it.
    """
    cdef uint64_t used = 0, most = law.burst, credit = load_relaxed(&state.credit)
    cdef int64_t available = <int64_t>(line - spent)
    # What was taken on credit since the last look may have been taken just now, and is
    # kept from the burst.
    if credit & HAS_CREDIT:
        used = min((spent - credit) & BASE_MASK, CREDIT)
        most = most - used if most > used else 0
    return min(available, <int64_t>most)


cdef int64_t checked_burst(object burst) except -1:
    value = whole(burst, "burst")
    if not 0 <= value <= MAX_TOKENS:
        raise ValueError(f"burst must be from 0 to {MAX_TOKENS} tokens, not {value}")
    return value


cdef int64_t checked_initial(object initial_tokens, int64_t burst) except -1:
    value = whole(initial_tokens, "initial_tokens")
    if not 0 <= value <= burst:
        raise ValueError(f"initial_tokens must be from 0 to burst ({burst}), not {value}")
    return value


@cython.no_gc  # so that `_file` is still there when it is deallocated; nothing that it refers to can refer back
@cython.final
cdef class TokenBucket:
    """A token bucket: `rate` tokens per second flow in, at most `burst` are kept, an
    acquire takes some out.

    rate: tokens per second, 0 to 1e12, or inf. With 0 only `initial_tokens` are ever
        granted; with inf everything is, whatever the burst.
    burst: the most tokens that can be taken at one moment. With 0 nothing is ever
        granted.
    initial_tokens: how many are there at the start; None means `burst`.
    path: a file for the bucket, which other processes can use at the same time (Linux).
        It is made or, where it is there already, attached to, if its rate and burst are
        these: else SharedFileError. A process takes one of the 1,024 seats with its
        first acquire, reserve or change, and raises RuntimeError there if all are
        taken; a forked child opens the file anew with its first, and raises OSError if
        it can not. What failed so can be tried again. Making the file shorter kills all
        who use it (SIGBUS).

    Over any span of time no more is granted than rate * time + burst (and one token,
    where the burst is over 32,767 and the clock is the bucket's own). Every method that
    asks for the time has a twin ending in `_at` that takes it (int ns, from any fixed
    start). Use one kind or the other on a bucket: the two share no origin. A bucket
    that is only used through the `_at` twins starts at the constructor's `now_ns`.

    >>> bucket = TokenBucket(rate=10, burst=5, now_ns=0)
    >>> bucket.acquire_up_to_at(0, 8)
    5
    >>> bucket.try_acquire_at(0)
    False
    >>> bucket.retry_after_at(0)
    0.1
    >>> bucket.try_acquire_at(100_000_000)
    True
    """

    def __cinit__(self, rate, burst, *, initial_tokens=None, now_ns=None, path=None):
        cdef LawCopy law
        cdef uint64_t[2] boot
        store_relaxed(&self._me, 1)
        # `attach` puts an open file in the place of the rate.
        if isinstance(rate, SharedFile):
            self._open(rate)
            return
        set_slope(&law, checked_rate(rate))
        law.burst = checked_burst(burst)
        law.anchor_tokens = law.burst if initial_tokens is None else checked_initial(initial_tokens, <int64_t>law.burst)
        law.anchor_ns = steady_ns() if now_ns is None else checked_ns(now_ns)
        law.carry_low = law.carry_high = 0
        # One cache line more than needed, so that the state can start on one.
        self._memory = np.zeros(sizeof(BucketState) + 64, dtype=np.uint8)
        cdef size_t address = self._memory.ctypes.data
        self._state = <BucketState*>((address + 63) & ~<size_t>63)
        publish_law(self._state, &law)
        if path is None:
            return
        read_boot(boot)
        put_boot(self._state, boot)
        file = None
        if not os.path.exists(path):
            state = (<unsigned char*>self._state)[:sizeof(BucketState)]
            try:
                file = SharedFile.create(path, KIND, {}, sizeof(BucketState), (0, state))
            except FileExistsError:
                pass  # another process was faster
        if file is not None:
            self._open(file)
            return
        self._open(SharedFile.attach(path, KIND))
        if self.rate != law_rate(&law) or self.burst != <int64_t>law.burst:
            raise SharedFileError(
                f"{self.path} is a bucket of rate {self.rate} and burst {self.burst}, not {law_rate(&law)} and {law.burst}: "
                "attach(path) takes it as it is, and set_rate() and set_burst() change it"
            )

    @staticmethod
    def attach(path):
        """Open the bucket that another process, or an earlier run, made in this file.

        Raises FileNotFoundError, and SharedFileError for a file that is not a
        TokenBucket's, damaged, or of another version.
        """
        return TokenBucket(SharedFile.attach(path, KIND), 0)

    def __dealloc__(self):
        if self._file is not None:
            (<SeatLocks>self._file.locks).watch(NULL, NULL)

    cdef _open(self, file):
        """Use the state in this file."""
        memory = np.frombuffer(file.memory, np.uint8)
        cdef size_t address = memory.ctypes.data
        cdef BucketState* state = <BucketState*>address
        cdef LawCopy law
        cdef uint64_t[2] boot
        cdef int outcome
        cdef int64_t deadline = 0
        if len(memory) < <Py_ssize_t>sizeof(BucketState):
            raise SharedFileError(f"{file.path} is damaged: it is too small for a bucket")
        read_law(state, &law)
        if not is_sound(&law):
            raise SharedFileError(f"{file.path} is damaged: no bucket has such a law")
        read_boot(boot)
        while (outcome := try_begin_anew(file.locks, state, boot)) != DONE:
            deadline = wait_to_tidy(file, outcome, deadline)
        self._memory = memory
        self._state = state
        store_relaxed(&self._me, 0)
        self._file = file
        (<SeatLocks>file.locks).watch(&self._me, NULL)

    cdef int _prepare(self) except -1:
        """See `prepare`."""
        if load_relaxed(&self._me) == 0:
            self._take_seat()
        if load_relaxed(&self._state.setter) != 0:
            self._free_lock()
        return 0

    cdef _take_seat(self):
        cdef int outcome
        cdef int64_t deadline = 0
        self._file.reopen()
        while (outcome := try_take_seat(self._file.locks, self._state, &self._me)) != DONE:
            if outcome == NO_SEAT:
                raise RuntimeError(
                    f"{self._file.path}: {SEATS} processes use this bucket already, and there is no room for more"
                )
            deadline = wait_to_tidy(self._file, outcome, deadline)

    cdef int _free_lock(self) except -1:
        """Open the lock of a change if its holder has died."""
        cdef uint64_t setter = load_acquire(&self._state.setter)
        if self._file is None or setter == 0:
            return 0
        cdef uint64_t holder = setter & ((1 << SEAT_BITS) - 1)
        if holder == load_relaxed(&self._me) or is_taken(self._file.locks, <int>holder - 1):
            return 0
        # Fails if the holder was alive after all, and has gone on.
        cas_acquire(&self._state.setter, &setter, 0)
        return 0

    @property
    def path(self):
        """The file that it shares with other processes, or None."""
        return None if self._file is None else self._file.path

    cdef int64_t _take(self, int64_t now_ns, int64_t n, bint partial) noexcept nogil:
        """Take n tokens, or with `partial` as many of them as there are; returns how
        many were taken.
        """
        cdef LawCopy law
        read_law(self._state, &law)
        if law.unlimited:
            return n
        if n > 0 and (partial or n <= <int64_t>law.burst):
            drop_overflow(self._state, &law, now_ns, load_relaxed(&self._me))
        return self._look(&law, now_ns, n, partial, False)

    cdef int64_t _take_now(self, int64_t n, bint partial) noexcept nogil:
        """`_take` at the present time, on credit where there is some."""
        cdef LawCopy law
        cdef uint64_t spent = load_relaxed(&self._state.spent)
        cdef uint64_t credit = load_relaxed(&self._state.credit)
        # Only a credit left under the law in force counts: a change of rate or burst
        # takes effect at once.
        if (
            credit & HAS_CREDIT
            and credit >> VERSION_SHIFT == load_relaxed(&self._state.version) & VERSION_MASK
            and ((spent - credit) & BASE_MASK) + <uint64_t>n <= CREDIT
            and cas_relaxed(&self._state.spent, &spent, spent + <uint64_t>n)
        ):
            return n
        cdef int64_t now_ns
        while True:
            read_law(self._state, &law)
            if law.unlimited:
                return n
            now_ns = steady_ns()
            # A law that ended before this reading of the clock does not say what has
            # been issued by then.
            if load_acquire(&self._state.version) == law.version:
                if not has_credit(&law):
                    drop_overflow(self._state, &law, now_ns, load_relaxed(&self._me))
                return self._look(&law, now_ns, n, partial, True)

    cdef int64_t _look(self, LawCopy* law, int64_t now_ns, int64_t n, bint partial, bint lend) noexcept nogil:
        """Take tokens by the law at `now_ns`; with `lend`, leave a credit if enough for
        one remains.
        """
        cdef Rest rest
        cdef uint64_t before, line = issued(law, now_ns, &rest)
        cdef uint64_t credit = load_relaxed(&self._state.credit)
        cdef uint64_t spent = load_relaxed(&self._state.spent)
        cdef int64_t available, taken
        while True:
            available = stock(self._state, law, line, spent)
            taken = n if available >= n else available if partial and available > 0 else 0
            before = spent
            # A refusal changes nothing; but a look that lends settles what has flowed
            # over, and its clock can not go back. Relaxed: the word guards nothing but
            # itself.
            if taken > 0 or lend:
                spent = line - <uint64_t>available + <uint64_t>taken
            if spent == before or cas_relaxed(&self._state.spent, &before, spent):
                break
            spent = before
        if lend:
            cas_relaxed(&self._state.credit, &credit, (
                law.version << VERSION_SHIFT | (spent & BASE_MASK)
                | (HAS_CREDIT if has_credit(law) and available - taken >= <int64_t>CREDIT else 0)
            ))
        return taken

    cdef double _retry_after(self, int64_t now_ns, int64_t n) noexcept nogil:
        cdef LawCopy law
        cdef Rest rest
        cdef uint64_t line
        read_law(self._state, &law)
        if law.unlimited or n == 0:
            return 0.0
        if n > <int64_t>law.burst:
            return INFINITY
        line = issued(&law, now_ns, &rest)
        # No reservation goes further ahead; what does, is damaged.
        n -= max(stock(self._state, &law, line, load_relaxed(&self._state.spent)), -MAX_TOKENS)
        return seconds_until(&law, now_ns, n)

    def try_acquire(self, n=1):
        """Take `n` tokens now and return True, or change nothing and return False."""
        cdef int64_t count = checked_count(n)
        prepare(self)
        return self._take_now(count, False) == count

    def try_acquire_at(self, now_ns, n=1):
        """`try_acquire` at the time `now_ns`."""
        cdef int64_t count = checked_count(n)
        prepare(self)
        return self._take(checked_ns(now_ns), count, False) == count

    def acquire_up_to(self, n):
        """Take as many of `n` tokens as there are now; returns how many (0 to n)."""
        prepare(self)
        return self._take_now(checked_count(n), True)

    def acquire_up_to_at(self, now_ns, n):
        """`acquire_up_to` at the time `now_ns`."""
        prepare(self)
        return self._take(checked_ns(now_ns), checked_count(n), True)

    def retry_after(self, n=1):
        """Seconds until `n` tokens could be taken if nobody else takes any; inf where
        that can never be.
        """
        return self._retry_after(steady_ns(), checked_count(n))

    def retry_after_at(self, now_ns, n=1):
        """`retry_after` at the time `now_ns`."""
        return self._retry_after(checked_ns(now_ns), checked_count(n))

    def reserve(self, n=1):
        """Take `n` tokens now even if they are still to come; the Reservation's `delay`
        is the wait for them.

        Where n exceeds the burst, or the rate is 0 and too few are there, nothing is
        taken, `delay` is inf.
        """
        return self.reserve_at(steady_ns(), n)

    def reserve_at(self, now_ns, n=1):
        """`reserve` at the time `now_ns`."""
        cdef int64_t now = checked_ns(now_ns)
        cdef int64_t count = checked_count(n)
        cdef LawCopy law
        cdef Rest rest
        cdef uint64_t line, spent
        cdef int64_t available
        cdef double delay
        cdef Reservation reservation = Reservation.__new__(Reservation)
        prepare(self)
        reservation._bucket = self
        read_law(self._state, &law)
        if law.unlimited or count == 0:
            return reservation
        if count <= <int64_t>law.burst:
            drop_overflow(self._state, &law, now, load_relaxed(&self._me))
        line = issued(&law, now, &rest)
        spent = load_relaxed(&self._state.spent)
        while True:
            available = stock(self._state, &law, line, spent)
            # (A sum that can not overflow, wherever a damaged `spent` is.)
            if count > <int64_t>law.burst or available < count - MAX_TOKENS:
                reservation.delay = INFINITY
                return reservation
            delay = seconds_until(&law, now, count - available)
            if delay == INFINITY:
                reservation.delay = INFINITY
                return reservation
            if cas_relaxed(&self._state.spent, &spent, line - <uint64_t>available + <uint64_t>count):
                reservation.delay = delay
                store_relaxed(&reservation._n, <uint64_t>count)
                reservation._end = line - <uint64_t>available + <uint64_t>count
                # Beyond 127 years the sum may leave int64: such a reservation never
                # comes due. Before them the wait alone may: it is added without a sign.
                reservation._due_ns = (
                    INT64_MAX if delay * 1e9 + now > 9e18 else <int64_t>(<uint64_t>now + <uint64_t>(delay * 1e9))
                )
                return reservation

    def give_back(self, n):
        """Return `n` tokens that were acquired and not used; returns how many came
        back, up to the burst.

        While reservations are ahead of the rate their holders have been told when to
        go, so only what exceeds that debt can come back.
        """
        return self.give_back_at(steady_ns(), n)

    def give_back_at(self, now_ns, n):
        """`give_back` at the time `now_ns`."""
        cdef int64_t now = checked_ns(now_ns)
        cdef int64_t count = checked_count(n)
        cdef LawCopy law
        cdef Rest rest
        cdef uint64_t line, spent
        cdef int64_t available, refund
        read_law(self._state, &law)
        if law.unlimited:
            return count
        line = issued(&law, now, &rest)
        spent = load_relaxed(&self._state.spent)
        while True:
            available = stock(self._state, &law, line, spent)
            refund = min(count, <int64_t>law.burst - available) if available >= 0 else count + available
            if refund <= 0:
                return 0
            if cas_relaxed(&self._state.spent, &spent, spent - <uint64_t>refund):
                return refund

    def set_rate(self, rate):
        """Change the rate (tokens per second); what has flowed in until now did so at
        the old one.
        """
        self.set_rate_at(steady_ns(), rate)

    def set_rate_at(self, now_ns, rate):
        """`set_rate` at the time `now_ns`."""
        self._change(checked_ns(now_ns), checked_rate(rate), -1)

    def set_burst(self, burst):
        """Change the burst; what had flowed over the old one does not come back."""
        self.set_burst_at(steady_ns(), burst)

    def set_burst_at(self, now_ns, burst):
        """`set_burst` at the time `now_ns`."""
        self._change(checked_ns(now_ns), -1.0, checked_burst(burst))

    cdef _change(self, int64_t now_ns, double rate, int64_t burst):
        """Settle at `now_ns`, then go on with the new rate and burst; a negative one
        stays as it is.
        """
        cdef LawCopy slope
        if rate >= 0:
            set_slope(&slope, rate)
        prepare(self)
        cdef int64_t deadline = 0
        cdef int tries = 0
        # Nobody lets go of the GIL between try_lock and unlock: with it, who waits here
        # waits for another process.
        while not try_lock(self._state, load_relaxed(&self._me)):
            self._free_lock()
            tries += 1
            if tries % SPINS != 0:
                continue
            if deadline == 0:
                deadline = steady_ns() + <int64_t>(CHANGE_SECONDS * 1e9)
            elif steady_ns() > deadline:
                raise TimeoutError(
                    f"another change of this bucket has been under way for {CHANGE_SECONDS:.0f} s: "
                    "is its process stopped? Nothing has been changed"
                )
            time.sleep(0.001)
        settle_law(self._state, now_ns, &slope if rate >= 0 else NULL, burst)
        unlock(self._state)

    @property
    def rate(self):
        """Tokens per second."""
        cdef LawCopy law
        read_law(self._state, &law)
        return law_rate(&law)

    @property
    def burst(self):
        """The most tokens that can be taken at one moment."""
        cdef LawCopy law
        read_law(self._state, &law)
        return <int64_t>law.burst

    @property
    def tokens(self):
        """Tokens there are now, as a float; negative while reservations are ahead of
        the rate, inf at inf.
        """
        return self.tokens_at(steady_ns())

    def tokens_at(self, now_ns):
        """`tokens` at the time `now_ns`."""
        cdef int64_t now = checked_ns(now_ns)
        cdef LawCopy law
        cdef Rest rest
        cdef uint64_t line
        read_law(self._state, &law)
        if law.unlimited:
            return INFINITY
        line = issued(&law, now, &rest)
        cdef int64_t available = stock(self._state, &law, line, load_relaxed(&self._state.spent))
        return min(<double>available + part_of_token(&law, &rest), <double>law.burst)

    def _nothing(self, n=1):
        """Do nothing: what calling a compiled method costs, as the yardstick for
        `try_acquire`.
        """
        return True

    def __repr__(self):
        return f"TokenBucket(rate={self.rate}, burst={self.burst}, tokens={self.tokens:.1f})"

    def __reduce__(self):
        raise TypeError("a TokenBucket is live shared state and can not be copied or pickled")


cdef inline int prepare(TokenBucket bucket) except -1:
    """Before what may have to change the law: have a seat to do that from, and open a
    dead process's lock.
    """
    if load_relaxed(&bucket._me) == 0 or load_relaxed(&bucket._state.setter) != 0:
        bucket._prepare()
    return 0


@cython.final
cdef class Reservation:
    """Tokens taken ahead of time by `TokenBucket.reserve`.

    `delay`: seconds to wait before acting, from the reserve on.
    """

    def __init__(self):
        raise TypeError("made by TokenBucket.reserve()")

    def cancel(self):
        """Give the tokens back if their time has not come; returns how many came back.

        What others reserved afterwards keeps its place, so only what they did not build
        on comes back.
        """
        return self.cancel_at(steady_ns())

    def cancel_at(self, now_ns):
        """`cancel` at the time `now_ns`."""
        cdef int64_t now = checked_ns(now_ns)
        cdef uint64_t spent, n
        cdef int64_t refund
        if now >= self._due_ns:
            return 0
        # Of two threads that cancel at once, one gets the tokens.
        n = exchange_relaxed(&self._n, 0)
        if n == 0:
            return 0
        spent = load_relaxed(&self._bucket._state.spent)
        while True:
            # Others may have given back since, and `spent` lie before our end: never
            # more than was reserved.
            refund = <int64_t>n - max(<int64_t>(spent - self._end), <int64_t>0)
            if refund <= 0:
                store_relaxed(&self._n, n)
                return 0
            if cas_relaxed(&self._bucket._state.spent, &spent, spent - <uint64_t>refund):
                return refund

    def __repr__(self):
        return f"Reservation(delay={self.delay})"


cdef double seconds_until(LawCopy* law, int64_t now_ns, int64_t missing) noexcept nogil:
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
