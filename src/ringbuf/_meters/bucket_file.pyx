# cython: freethreading_compatible=True
"""The file of a TokenBucket that several processes share: making it, attaching to it,
and the participant slots.

The body is one BucketState (refill_law.pxd), which all processes have mapped.

Killed processes. An acquire changes one word by one exchange, so a process that is
killed in it has taken its tokens or has not. Tokens that it took or reserved are gone;
they flow in again as any others. A change of rate or burst takes the lock `setter` and
is in force with the one store of `version`: a process that is killed before that leaves
the old law in force, and the lock taken. The next process that finds the lock frees it
when the slot of its holder is free (_shared/participant_locks.pyx). Each holder writes
another word, so an exchange frees only the lock that was asked about. What a killed
change had settled by then holds under the old law as well.

Participant slots. A process takes one with its first acquire, reserve or change, under
the file's lock for tidying up. While it holds that lock no Python code runs: no
signal's handler can wait for its own thread, or raise before the lock is released.

Reboots. All processes read the same clock (CLOCK_MONOTONIC) until the machine starts
again. The first one after that begins a new law with the tokens that are certain: those
left of what the old law began with.
"""

from libc.stdint cimport int64_t, uint64_t

from ringbuf._core.atomics cimport (
    cas_acquire, load_acquire, load_relaxed, store_relaxed, store_release, word,
)
from ringbuf._core.timing cimport steady_ns
from ringbuf._meters.refill_law cimport (
    HOLDER_BITS, BucketState, LawCopy, is_sound, publish_law, read_law,
)
from ringbuf._shared.participant_locks cimport ParticipantLocks

import os
import time

import numpy as np

from ringbuf._shared import shared_file
from ringbuf._shared.shared_file import SharedFile, SharedFileError

# How long (seconds) to wait for another process that tidies up, which takes some us,
# but may be stopped.
TIDYING_SECONDS = 10.0

cdef bytes KIND = b"tokn"

cdef enum:
    # Processes that can use one file; HOLDER_BITS hold the number of one of them + 1.
    PARTICIPANTS = 1024

# What a try under the lock for tidying up comes to; a negative one is an errno.
cdef enum:
    LOCKED = 0    # another process has the lock: nothing was done
    DONE = 1
    ALL_TAKEN = 2


# ---------------------------------------------------------------- making and attaching


cdef object create_file(path, BucketState* state):
    """The SharedFile of a new bucket in this state; None where there is a file already.
    """
    cdef uint64_t[2] boot
    read_boot(boot)
    put_boot(state, boot)
    if os.path.exists(path):
        return None
    content = (<unsigned char*>state)[:sizeof(BucketState)]
    try:
        return SharedFile.create(path, KIND, {}, sizeof(BucketState), (0, content))
    except FileExistsError:
        return None  # another process was faster


cdef object attach_file(path):
    """The SharedFile of a bucket that is there."""
    return SharedFile.attach(path, KIND)


cdef object map_state(object file, BucketState** state):
    """Point `state` to the body of the file, and return the array that keeps it mapped.
    SharedFileError if it is damaged.
    """
    memory = np.frombuffer(file.memory, np.uint8)
    cdef size_t address = memory.ctypes.data
    cdef LawCopy law
    cdef uint64_t[2] boot
    cdef int outcome
    cdef int64_t deadline = 0
    state[0] = <BucketState*>address
    if len(memory) < <Py_ssize_t>sizeof(BucketState):
        raise SharedFileError(f"{file.path} is damaged: it is too small for a bucket")
    read_law(state[0], &law)
    if not is_sound(&law):
        raise SharedFileError(f"{file.path} is damaged: no bucket has such a law")
    read_boot(boot)
    while (outcome := try_begin_anew(file.locks, state[0], boot)) != DONE:
        deadline = wait_to_tidy(file, outcome, deadline)
    return memory


cdef void watch_forks(object file, word* me) noexcept:
    """Let a forked child have no participant slot: `me` becomes 0 there. NULL: no more.
    """
    (<ParticipantLocks>file.locks).watch(me, NULL)


# ---------------------------------------------------------------- the run of the kernel


cdef int read_boot(uint64_t* boot) except -1:
    """What tells this run of the kernel from every other, as two words."""
    number = shared_file.boot_id()
    boot[0] = int.from_bytes(number[:8], "little")
    boot[1] = int.from_bytes(number[8:], "little")
    return 0


cdef void put_boot(BucketState* state, const uint64_t* boot) noexcept nogil:
    store_relaxed(&state.boot[0], boot[0])
    store_release(&state.boot[1], boot[1])


cdef int try_begin_anew(
    ParticipantLocks locks, BucketState* state, const uint64_t* boot
) noexcept nogil:
    """`begin_anew` under the lock."""
    cdef int begun = locks.begin_tidying()
    if begun > 0:
        begin_anew(state, boot)
        locks.end_tidying()
    return begun


cdef void begin_anew(BucketState* state, const uint64_t* boot) noexcept nogil:
    """If the clock has begun anew with the kernel, let the law do so too. The caller
    holds the lock for tidying up.
    """
    cdef LawCopy law
    cdef int64_t remaining
    if load_acquire(&state.boot[1]) == boot[1] and load_relaxed(&state.boot[0]) == boot[0]:
        return
    read_law(state, &law)
    remaining = <int64_t>(law.anchor_tokens - load_relaxed(&state.spent))
    remaining = max(<int64_t>0, min(remaining, <int64_t>law.burst))
    # A holder is of another run.
    store_relaxed(&state.setter, 0)
    store_relaxed(&state.credit, 0)
    store_relaxed(&state.spent, law.anchor_tokens - <uint64_t>remaining)
    law.anchor_ns = steady_ns()
    law.carry_low = law.carry_high = 0
    publish_law(state, &law)
    put_boot(state, boot)


# ---------------------------------------------------------------- participant slots


cdef int take_participant_slot(object file, BucketState* state, word* me) except -1:
    """Let `me` be the number of a slot of this process + 1, taken if it is 0."""
    cdef int outcome
    cdef int64_t deadline = 0
    file.reopen()
    while (outcome := try_take_slot(file.locks, state, me)) != DONE:
        if outcome == ALL_TAKEN:
            raise RuntimeError(
                f"{file.path}: {PARTICIPANTS} processes use this bucket already, "
                "and there is no room for more"
            )
        deadline = wait_to_tidy(file, outcome, deadline)
    return 0


cdef int try_take_slot(ParticipantLocks locks, BucketState* state, word* me) noexcept nogil:
    """Take a slot under the lock, unless there is one."""
    cdef int begun = locks.begin_tidying()
    if begun > 0:
        if load_acquire(me) == 0:  # else another thread, or a signal's handler, was faster
            begun = take_free_slot(locks, state, me)
        locks.end_tidying()
    return begun


cdef int take_free_slot(ParticipantLocks locks, BucketState* state, word* me) noexcept nogil:
    cdef uint64_t setter
    cdef int participant, taken
    for participant in range(PARTICIPANTS):
        taken = locks.take(participant)
        if taken < 0:
            return taken
        if taken == 0:
            continue
        # A lock with this number is of a process that had the slot before, and died.
        setter = load_acquire(&state.setter)
        if setter & ((<uint64_t>1 << HOLDER_BITS) - 1) == <uint64_t>(participant + 1):
            cas_acquire(&state.setter, &setter, 0)
        store_release(me, <uint64_t>(participant + 1))
        return DONE
    return ALL_TAKEN


cdef int free_lock(object file, BucketState* state, word* me) except -1:
    """Free the lock of a change if its holder has died."""
    cdef uint64_t setter = load_acquire(&state.setter)
    cdef uint64_t holder = setter & ((<uint64_t>1 << HOLDER_BITS) - 1)
    if setter == 0 or holder == load_relaxed(me) or is_taken(file.locks, <int>holder - 1):
        return 0
    # Fails if the holder was alive after all, and has gone on.
    cas_acquire(&state.setter, &setter, 0)
    return 0


cdef bint is_taken(ParticipantLocks locks, int participant) noexcept nogil:
    """See ParticipantLocks; only a parameter gives an attribute of `file` its type."""
    return locks.is_taken(participant)


cdef int64_t wait_to_tidy(object file, int outcome, int64_t deadline) except 0:
    """After a try that came to LOCKED, or to an errno, which is raised; `deadline` is 0
    at the first. Returns the deadline.
    """
    if outcome < 0:
        raise OSError(-outcome, os.strerror(-outcome), file.path)
    if deadline == 0:
        deadline = steady_ns() + <int64_t>(TIDYING_SECONDS * 1e9)
    elif steady_ns() > deadline:
        raise TimeoutError(
            f"{file.path}: another process has been tidying up for {TIDYING_SECONDS:.0f} s: "
            "is it stopped?"
        )
    time.sleep(0.001)
    return deadline
