# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""An atomic token bucket.

Contract. Any number of threads, with the GIL or without it, may call every method. No
call but `acquire` (token_wait.pyx) and a change of the law blocks, and none allocates
beyond its result; a `try_acquire` is lock-free (one compare-and-exchange, and one more
where it reads the clock). A request that is refused changes nothing.

Theory of operation. Tokens lie on a line, as events do in a lane. `issued(t)` is how
many the rate has put on the line up to time t, `spent` how many have been taken from
it:

    0 ......... spent ............... issued(t)
                [====== available ====)    available = min(issued(t) - spent, burst)

`issued` is a pure function of time,

    issued(t) = anchor_tokens + floor(((t - anchor) * mult + carry) / (5**9 * 2**shift))

with mult the mantissa of the rate, a double per second = mult * 2**(9 - shift); the
rest of the division by 10**9 ns is the 5**9. So the law is exact, at whole seconds too,
and nothing can drift: no sum of small steps is ever formed. `spent` is the only word
that an acquire changes. Because time only enters through `issued`, a clock that goes
backwards sees fewer tokens for a while, and none is credited twice. What lies further
back than `burst` has overflowed: the next acquire moves `spent` up to
issued(t) - burst first, and starts the law anew from a full bucket, because the
fraction of a token beyond it has overflowed too. (Kept, it would bring the next token
early: one after an idle day and another a second later, where the rate is one a day.)

Both are 64-bit and compared by difference, so neither ever ends; only a bucket left
alone until its rate has issued 2**63 tokens (29 years at 10 billion a second) would
misjudge the distance.

Credit. Reading the clock costs more than all the rest of an acquire, so an acquire that
reads it leaves a credit behind: CREDIT tokens that are there for certain and may be
taken without another reading. When those were taken is not known, so the next reading
counts them as taken just then: after a pause it may find up to that many tokens less
than the burst. The credit is at most a 1024th of the burst; a smaller bucket has none,
and the `_at` twins neither use nor leave one: they are exact. A bucket with a credit
also keeps the fraction beyond a full one, which is less than one token more than
rate * time + burst.

Concurrency. A rate or burst change writes the law's idle slot and then flips `version`
(release); a reader copies the slot that `version` (acquire) names and takes the copy
only if `version` still says the same. `setter` keeps two changes from writing the idle
slot at once. An acquire that is between its copy of the law and its exchange while the
law changes counts as having come before the change. The credit word is replaced only if
it is still the one that was found, so an acquire that was held up cannot undo what a
later one left.

Processes. A bucket in a file (path=) is the same state in memory that several processes
have mapped; bucket_file.pyx says what a killed process leaves. A change waits for one
that is under way elsewhere, until that process has been stopped for CHANGE_SECONDS
(TimeoutError). Nothing else waits, but for a process that tidies up at that moment.

Sources: the single word of state is the idea of GCRA (ATM Forum, 1996) and of folly's
TokenBucket; tokens in whole numbers on a line instead of a theoretical arrival time are
our own, because an arrival time in integer ns is wrong by 1 % at 30 M/s.
"""

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from ringbuf._core.atomics cimport cas_relaxed, load_acquire, load_relaxed, store_relaxed
from ringbuf._core.counts cimport real, whole
from ringbuf._core.timing cimport checked_count, checked_ns, steady_ns
from ringbuf._meters.bucket_file cimport (
    attach_file, create_file, free_lock, map_state, take_participant_slot, watch_forks,
)
from ringbuf._meters.refill_law cimport (
    BASE_MASK, CREDIT, HAS_CREDIT, MAX_RATE, MAX_TOKENS, VERSION_MASK, VERSION_SHIFT, BucketState,
    LawCopy, Rest, has_credit, issued, law_rate, part_of_token, publish_law, read_law, rescale,
    seconds_until, set_slope, stock, try_lock, unlock,
)
from ringbuf._meters.reservation cimport Reservation
from ringbuf._shared.waiting cimport seconds_of

import time

import numpy as np

from ringbuf._shared.shared_file import SharedFile, SharedFileError

# How long (seconds) a change waits for another one, which takes a us, but may be of a
# process that is stopped.
CHANGE_SECONDS = 10.0

cdef enum:
    SPINS = 1000  # tries for the lock between two sleeps


cdef double checked_rate(object rate) except -1.0:
    cdef double value = real(rate, "rate")
    if not (0.0 <= value <= MAX_RATE or value == INFINITY):
        raise ValueError(
            f"rate must be from 0 to {MAX_RATE:.0e} tokens per second, or inf, not {rate!r}"
        )
    return value


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


# So that `_file` is still there when it is deallocated; nothing that it refers to can
# refer back.
@cython.no_gc
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
        these: else SharedFileError. A process takes one of the 1,024 participant slots
        with its first acquire, reserve or change, and raises RuntimeError there if all
        are taken; a forked child opens the file anew with its first, and raises OSError
        if it cannot. A call that failed so can be tried again. Making the file shorter
        kills all processes that use it (SIGBUS).

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
        store_relaxed(&self._me, 1)
        # `attach` puts an open file in the place of the rate.
        if isinstance(rate, SharedFile):
            self._use_file(rate)
            return
        set_slope(&law, checked_rate(rate))
        law.burst = checked_burst(burst)
        law.anchor_tokens = law.burst
        if initial_tokens is not None:
            law.anchor_tokens = checked_initial(initial_tokens, <int64_t>law.burst)
        law.anchor_ns = steady_ns() if now_ns is None else checked_ns(now_ns)
        law.carry_low = law.carry_high = 0
        # One cache line more than needed, so that the state can start on one.
        self._memory = np.zeros(sizeof(BucketState) + 64, dtype=np.uint8)
        cdef size_t address = self._memory.ctypes.data
        self._state = <BucketState*>((address + 63) & ~<size_t>63)
        publish_law(self._state, &law)
        if path is None:
            return
        file = create_file(path, self._state)
        if file is not None:
            self._use_file(file)
            return
        self._use_file(attach_file(path))
        if self.rate != law_rate(&law) or self.burst != <int64_t>law.burst:
            raise SharedFileError(
                f"{self.path} is a bucket of rate {self.rate} and burst {self.burst}, "
                f"not {law_rate(&law)} and {law.burst}: attach(path) takes it as it is, "
                "and set_rate() and set_burst() change it"
            )

    @staticmethod
    def attach(path):
        """Open the bucket that another process, or an earlier run, made in this file.

        Raises FileNotFoundError, and SharedFileError for a file that is not a
        TokenBucket's, damaged, or of another version.
        """
        return TokenBucket(attach_file(path), 0)

    def __dealloc__(self):
        if self._file is not None:
            watch_forks(self._file, NULL)

    cdef _use_file(self, file):
        """Use the state in this file."""
        cdef BucketState* state
        memory = map_state(file, &state)
        self._memory = memory
        self._state = state
        store_relaxed(&self._me, 0)
        self._file = file
        watch_forks(file, &self._me)

    cdef int _prepare(self) except -1:
        """See `prepare`."""
        if load_relaxed(&self._me) == 0:
            take_participant_slot(self._file, self._state, &self._me)
        if load_relaxed(&self._state.setter) != 0 and self._file is not None:
            free_lock(self._file, self._state, &self._me)
        return 0

    @property
    def path(self):
        """The file that it shares with other processes, or None."""
        return None if self._file is None else self._file.path

    cdef int64_t _acquire_at(self, int64_t now_ns, int64_t n, bint partial) noexcept nogil:
        """Take n tokens, or with `partial` as many of them as there are; returns how
        many were taken.
        """
        cdef LawCopy law
        read_law(self._state, &law)
        if law.unlimited:
            return n
        if n > 0 and (partial or n <= <int64_t>law.burst):
            drop_overflow(self._state, &law, now_ns, load_relaxed(&self._me))
        return self._acquire_by_law(&law, now_ns, n, partial, False)

    cdef int64_t _acquire_now(self, int64_t n, bint partial) noexcept nogil:
        """`_acquire_at` at the present time, on credit where there is some."""
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
                return self._acquire_by_law(&law, now_ns, n, partial, True)

    cdef int64_t _acquire_by_law(
        self, LawCopy* law, int64_t now_ns, int64_t n, bint partial, bint lend
    ) noexcept nogil:
        """Take tokens by the law at `now_ns`; with `lend`, leave a credit if enough
        tokens for one remain.
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
            # A refusal changes nothing; but with `lend` what has overflowed is settled,
            # as the clock of that kind of call cannot go back. Relaxed: the word guards
            # nothing but itself.
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
        # No reservation goes further ahead than MAX_TOKENS; a file that does is
        # damaged.
        n -= max(stock(self._state, &law, line, load_relaxed(&self._state.spent)), -MAX_TOKENS)
        return seconds_until(&law, now_ns, n)

    def try_acquire(self, n=1):
        """Take `n` tokens now and return True, or change nothing and return False."""
        cdef int64_t count = checked_count(n)
        prepare(self)
        return self._acquire_now(count, False) == count

    def try_acquire_at(self, now_ns, n=1):
        """`try_acquire` at the time `now_ns`."""
        cdef int64_t count = checked_count(n)
        prepare(self)
        return self._acquire_at(checked_ns(now_ns), count, False) == count

    def acquire(self, n=1, timeout=None):
        """Take `n` tokens, and wait for them up to `timeout` seconds: True, or False
        where they do not come in time, and then nothing is taken.

        timeout: 0 never waits; None waits as long as needed, where the rate is 0 until
            it is changed.

        Those who wait are served in the order in which they came, threads and
        coroutines (`aio.acquire`) alike; a `try_acquire` does not overtake them. The
        GIL is released meanwhile. A signal's handler runs and may raise: then nothing
        is taken either, and those who came later and wait move up, within 20 ms, as if
        this one had never come. (A Reservation, and a wait in another process, keeps
        its time, and who comes later may be served before it.) A change of the rate
        counts for those who wait too, within 20 ms; a changed burst for those who come.

        Raises ValueError where n exceeds the burst: so many never come.

        >>> bucket = TokenBucket(rate=1, burst=5)
        >>> bucket.acquire(5), bucket.acquire(timeout=0)
        (True, False)
        """
        cdef double seconds = seconds_of(timeout)
        cdef int64_t count = checked_count(n)
        prepare(self)
        if self._acquire_now(count, False) == count:
            return True
        # Not above: it needs this module.
        from ringbuf._meters.token_wait import TokenWait

        return TokenWait(self, count, seconds).run()

    @property
    def aio(self):
        """The same for coroutines: `await bucket.aio.acquire(n=1, timeout=None)`."""
        from ringbuf._meters.async_bucket import AsyncBucket

        return AsyncBucket(self)

    def acquire_up_to(self, n):
        """Take as many of `n` tokens as there are now; returns how many (0 to n)."""
        prepare(self)
        return self._acquire_now(checked_count(n), True)

    def acquire_up_to_at(self, now_ns, n):
        """`acquire_up_to` at the time `now_ns`."""
        prepare(self)
        return self._acquire_at(checked_ns(now_ns), checked_count(n), True)

    def retry_after(self, n=1):
        """Seconds until `n` tokens could be taken if no other caller takes any; inf
        where that can never be.
        """
        return self._retry_after(steady_ns(), checked_count(n))

    def retry_after_at(self, now_ns, n=1):
        """`retry_after` at the time `now_ns`."""
        return self._retry_after(checked_ns(now_ns), checked_count(n))

    def reserve(self, n=1):
        """Take `n` tokens now even if they are still to come; the Reservation's `delay`
        is the wait for them.

        Where n exceeds the burst, or the rate is 0 and too few are there, nothing is
        taken and `delay` is inf.
        """
        return self.reserve_at(steady_ns(), n)

    def reserve_at(self, now_ns, n=1):
        """`reserve` at the time `now_ns`."""
        cdef int64_t now = checked_ns(now_ns)
        cdef int64_t count = checked_count(n)
        cdef LawCopy law
        cdef Rest rest
        cdef uint64_t line, spent, end
        cdef int64_t available
        cdef double delay
        cdef Reservation reservation = Reservation.__new__(Reservation)
        prepare(self)
        reservation._bucket = self
        reservation._state = self._state
        read_law(self._state, &law)
        if law.unlimited or count == 0:
            return reservation
        if count <= <int64_t>law.burst:
            drop_overflow(self._state, &law, now, load_relaxed(&self._me))
        line = issued(&law, now, &rest)
        spent = load_relaxed(&self._state.spent)
        while True:
            available = stock(self._state, &law, line, spent)
            # (A sum that cannot overflow, wherever a damaged `spent` is.)
            if count > <int64_t>law.burst or available < count - MAX_TOKENS:
                reservation.delay = INFINITY
                return reservation
            delay = seconds_until(&law, now, count - available)
            if delay == INFINITY:
                reservation.delay = INFINITY
                return reservation
            end = line - <uint64_t>available + <uint64_t>count
            if cas_relaxed(&self._state.spent, &spent, end):
                reservation.delay = delay
                store_relaxed(&reservation._n, <uint64_t>count)
                store_relaxed(&reservation._end, end)
                # Beyond 127 years the sum may leave int64: such a reservation never
                # comes due. Before them the wait alone may: it is added without a sign.
                reservation._due_ns = INT64_MAX
                if delay * 1e9 + now <= 9e18:
                    reservation._due_ns = <int64_t>(<uint64_t>now + <uint64_t>(delay * 1e9))
                return reservation

    def give_back(self, n):
        """Return `n` tokens that were acquired and not used; returns how many came
        back, up to the burst.

        While reservations are ahead of the rate their holders have been told when to
        act, so only what exceeds that debt can come back.
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
            refund = count + available
            if available >= 0:
                refund = min(count, <int64_t>law.burst - available)
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
        self._change_law(checked_ns(now_ns), checked_rate(rate), -1)

    def set_burst(self, burst):
        """Change the burst; what had overflowed the old one does not come back."""
        self.set_burst_at(steady_ns(), burst)

    def set_burst_at(self, now_ns, burst):
        """`set_burst` at the time `now_ns`."""
        self._change_law(checked_ns(now_ns), -1.0, checked_burst(burst))

    cdef _change_law(self, int64_t now_ns, double rate, int64_t burst):
        """Settle at `now_ns`, then go on with the new rate and burst; a negative one
        stays as it is.
        """
        cdef LawCopy slope
        if rate >= 0:
            set_slope(&slope, rate)
        prepare(self)
        cdef int64_t deadline = 0
        cdef int tries = 0
        # The GIL is not released between try_lock and unlock: with a GIL, this waits
        # for another process only.
        while not try_lock(self._state, load_relaxed(&self._me)):
            if self._file is not None:
                free_lock(self._file, self._state, &self._me)
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
        raise TypeError("a TokenBucket is live shared state and cannot be copied or pickled")


# Not inline, and so not in refill_law.pxd: in the body of an acquire they would cost
# every one something, and few acquires need them.


cdef void settle_law(
    BucketState* state, int64_t now_ns, LawCopy* slope, int64_t burst
) noexcept nogil:
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
    # unlimited bucket keeps no count, and settles as a full one.
    credit = load_relaxed(&state.credit)
    spent = load_relaxed(&state.spent)
    while True:
        available = <int64_t>law.burst if law.unlimited else stock(state, &law, line, spent)
        if cas_relaxed(&state.spent, &spent, line - <uint64_t>available):
            break
    # The credit ends here; what an acquire under way still takes on it counts from here
    # on. (No law in force from now on has this version.)
    if credit & HAS_CREDIT:
        cas_relaxed(&state.credit, &credit, (
            (law.version - 1) << VERSION_SHIFT | HAS_CREDIT
            | ((line - <uint64_t>available) & BASE_MASK)
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


cdef void drop_overflow(
    BucketState* state, LawCopy* law, int64_t now_ns, uint64_t me
) noexcept nogil:
    """If the bucket has overflowed, let the law start anew from a full one, and copy it
    into `law`.
    """
    cdef Rest rest
    cdef uint64_t line = issued(law, now_ns, &rest)
    # In a damaged file the difference may be anything: -1 stands for every debt.
    cdef int64_t ahead = max(<int64_t>(line - load_relaxed(&state.spent)), <int64_t>-1)
    cdef int64_t over = ahead - <int64_t>law.burst
    # If another thread has the lock, it does this or changes the law; then this call
    # comes before the change.
    if (over > 0 or over == 0 and rest.low | rest.high != 0) and try_lock(state, me):
        settle_law(state, now_ns, NULL, -1)
        unlock(state)
        read_law(state, law)


cdef inline int prepare(TokenBucket bucket) except -1:
    """Before a call that may have to change the law: have a participant slot, and free
    the lock of a process that died.
    """
    if load_relaxed(&bucket._me) == 0 or load_relaxed(&bucket._state.setter) != 0:
        bucket._prepare()
    return 0
