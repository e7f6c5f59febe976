"""Takes from a MessageRing: from the ring or from what a dead process had taken; their
release, and their division.

In a ring that processes share a take has an op slot from before its exchange until its
last part is released. It is handed out when `take` returns it: from then on `close` may
leave it to others (Participant.rest_take).
"""

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport (
    exchange_total, fetch_add_relaxed, fetch_sub_acq_rel, load_acquire, load_relaxed, store_relaxed,
    store_release,
)
from ringbuf._core.counts cimport at_most, whole
from ringbuf._core.eventcount cimport before_sleep, wanted
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pairs cimport Pair, load_pair, same
from ringbuf._core.timing cimport steady_ns
from ringbuf._messages.columns cimport Messages, Parts, new_messages
from ringbuf._messages.frames cimport (
    Take, TakeSource, copy_out, find_take, release_messages, walk, win,
)
from ringbuf._messages.positions cimport REWIND_GRANULES, rewind
from ringbuf._messages.ring cimport (
    MessageRingBase, begin_operation, end_operation, refuse_damage,
)
from ringbuf._shared.op_slots cimport FREE, ORPHAN, OpSlot, kind_of_slot, set_state
from ringbuf._shared.waiting cimport check_open, deadline_of, seconds_of

cdef enum:
    # After this many takes a consumer of a shared ring that finds something checks for
    # dead processes: what they had taken is to be taken again.
    LOOK_TAKES = 256


# ---------------------------------------------------------------- taking


cdef inline Messages take_messages(MessageRingBase ring, int64_t most, int64_t most_bytes):
    """Take what is there within these limits; empty Messages where there is nothing."""
    cdef Messages messages = try_take(ring, most, most_bytes)
    if messages is None and load_relaxed(&ring._waiting.listening):
        ring._waiting.listen()
        messages = try_take(ring, most, most_bytes)
        if messages is not None:
            ring._waiting.hear()
    return messages if messages is not None else new_messages(0, 0, ring._spares)


cdef inline Messages try_take(MessageRingBase ring, int64_t most, int64_t most_bytes):
    if ring._frames.shared == NULL:
        check_open(ring._waiting)
        return take_first(ring, NULL, -1, most, most_bytes, NULL)
    return take_by_slot(ring, False, most, most_bytes)


cdef inline Messages take_orphaned(MessageRingBase ring, int64_t most, int64_t most_bytes):
    """Take only what dead processes had taken."""
    cdef Messages messages = None
    check_open(ring._waiting)
    if ring._frames.shared != NULL:
        messages = take_by_slot(ring, True, most, most_bytes)
    return messages if messages is not None else new_messages(0, 0, ring._spares)


cdef inline Messages take_by_slot(
    MessageRingBase ring, bint orphaned, int64_t most, int64_t most_bytes
):
    """`try_take` from a shared ring, or `take_orphaned`; None: nothing."""
    cdef Messages messages
    cdef bint forked = True
    while forked:
        forked = False
        messages = take_by_new_slot(ring, orphaned, most, most_bytes, &forked)
    return messages


cdef inline Messages take_by_new_slot(
    MessageRingBase ring, bint orphaned, int64_t most, int64_t most_bytes, bint* forked
):
    """forked: this is a forked child, and the parent began the operation, by a slot of
    its own. Nothing was taken.
    """
    cdef Messages messages = None
    cdef OpSlot* slot = NULL
    cdef int64_t number = begin_operation(ring, &slot)
    cdef uint64_t epoch = ring._participant.epoch
    try:
        if orphaned:
            ring._participant.notice_dead(True)
            messages = take_orphan(ring, slot, number, most, most_bytes, forked)
        else:
            store_relaxed(&ring._takes, load_relaxed(&ring._takes) + 1)
            if load_relaxed(&ring._takes) % LOOK_TAKES == 0:
                ring._participant.notice_dead(False)
            messages = take_first(ring, slot, number, most, most_bytes, forked)
            if messages is None and not forked[0] and ring._participant.notice_dead(False):
                messages = take_first(ring, slot, number, most, most_bytes, forked)
    finally:
        if messages is None and epoch == ring._participant.epoch:
            end_operation(ring, number)
    return messages


cdef inline Messages take_first(
    MessageRingBase ring, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes,
    bint* forked
):
    """What a dead process had taken; else what waits in the ring; else None."""
    cdef TakeSource source
    cdef Messages messages = take_orphan(ring, slot, number, most, most_bytes, forked)
    if messages is not None or (slot != NULL and forked[0]):
        return messages
    source.word = &ring._frames.cursors.read
    source.number = 0
    return take_from(ring, &source, slot, number, most, most_bytes, forked)


cdef inline Messages take_orphan(
    MessageRingBase ring, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes,
    bint* forked
):
    cdef TakeSource source
    cdef uint64_t orphan = 0, last = UINT64_MAX
    cdef Pair remaining
    cdef Messages messages
    cdef OpSlot* dead
    while ring._frames.shared != NULL and ring._participant.next_orphan(&orphan):
        dead = &ring._frames.shared.control.slots[orphan]
        source.word = &dead.left
        source.number = orphan + 1
        source.after = &dead.after
        remaining = load_pair(source.word)
        messages = take_from(ring, &source, slot, number, most, most_bytes, forked)
        if messages is not None or forked[0]:
            return messages
        # Others may have taken it. If none has, nothing of it can be taken: go on with
        # what waits.
        if orphan == last and same(load_pair(source.word), remaining):
            return None
        last = orphan
    return None


cdef inline Messages take_from(
    MessageRingBase ring, TakeSource* source, OpSlot* slot, int64_t number, int64_t most,
    int64_t most_bytes, bint* forked
):
    cdef Take take
    cdef Messages messages
    cdef bint copied
    cdef uint64_t epoch = ring._participant.epoch if slot != NULL else 0
    while find_take(&ring._frames, source, most, most_bytes, &take):
        # An ORPHAN that others have emptied may be another operation's slot by now:
        # then what was found belongs to that.
        if (
            source.number != 0
            and kind_of_slot(&ring._frames.shared.control.slots[source.number - 1]) != ORPHAN
        ):
            return None
        # Allocated before the exchange: if memory runs out, nothing has been taken.
        messages = new_messages(take.count, take.bytes, ring._spares)
        # Which may have begun a collection, and that may fork.
        if slot != NULL and ring._participant.epoch != epoch:
            forked[0] = True
            return None
        if not win(&ring._frames, slot, source, &take):
            continue
        if take.bytes >= NOGIL_BYTES:
            with nogil:
                copied = copy_out(&ring._frames, &take, messages._data, messages._offsets)
        else:
            copied = copy_out(&ring._frames, &take, messages._data, messages._offsets)
        if not copied:
            refuse_damage(ring)
        messages.first_seq = take.first_seq
        messages._position = take.position
        messages._place = take.place
        messages._slot = number
        messages._epoch = epoch
        messages._ring = ring._identity
        store_release(&messages._held, True)
        return messages
    return None


cdef inline Messages pop_some(
    MessageRingBase ring, object max_messages, object max_bytes, object timeout
):
    """See MessageRing.pop_many."""
    cdef double seconds = seconds_of(timeout)
    cdef int64_t most = at_most(max_messages, "max_messages")
    cdef int64_t most_bytes = at_most(max_bytes, "max_bytes"), deadline
    cdef Messages messages = take_messages(ring, most, most_bytes)
    cdef uint32_t seen
    if messages._count == 0 and seconds > 0:
        deadline = deadline_of(seconds)
        while True:
            seen = before_sleep(&ring._frames.cursors.messages)
            messages = take_messages(ring, most, most_bytes)
            if messages._count > 0 or steady_ns() >= deadline:
                break
            ring._waiting.sleep(&ring._frames.cursors.messages, seen, deadline)
    release_taken(ring, messages, False)
    return messages


# ------------------------------------------------------------ handing out and releasing


cdef inline Messages hand_out(MessageRingBase ring, Messages messages):
    """Hand out what was taken: from here on a `close` leaves it to others."""
    if load_acquire(&messages._held) and messages._slot >= 0:
        ring._participant.rest_take(messages._slot)
    return messages


cdef inline int release_taken(
    MessageRingBase ring, Messages messages, bint handed_out
) except -1:
    cdef bint found
    if handed_out:
        check_open(ring._waiting)
    check_ours(ring, messages)
    # Of two that release the same messages, one does.
    if not exchange_total(&messages._held, False):
        return 0
    if handed_out and messages._slot >= 0 and not ring._participant.resume_take(messages._slot):
        refuse_abandoned()
    found = release_messages(
        &ring._frames, messages._position, messages._place, messages._count
    )
    if messages._parts is None:
        finish_take(ring, messages)
    else:
        # The slot is of the whole take: until its last part is released it serves for
        # nothing else. The thread that releases the last part is the last to use it.
        if messages._slot >= 0:
            ring._participant.rest_take(messages._slot)
        if fetch_sub_acq_rel(&messages._parts.unreleased, 1) == 1:
            # Left to others meanwhile, it is free all the same: they find nothing in
            # it.
            if messages._slot < 0 or ring._participant.resume_take(messages._slot):
                finish_take(ring, messages)
    if wanted(&ring._frames.cursors.room):
        ring._waiting.call(&ring._frames.cursors.room)
    if not found:
        refuse_damage(ring)
    return 0


cdef inline int finish_take(MessageRingBase ring, Messages messages) noexcept:
    """All of a take is released."""
    cdef OpSlot* slot = NULL
    if messages._slot >= 0:
        slot = &ring._frames.shared.control.slots[messages._slot]
        set_state(slot, FREE)
    rewind(&ring._frames, slot, REWIND_GRANULES)
    if messages._slot >= 0:
        ring._participant.give_back(messages._slot)
    return 0


cdef inline object split_taken(MessageRingBase ring, Messages messages, object count):
    """See MessageRing.split."""
    cdef Messages first, rest
    cdef Parts parts
    cdef bint found
    check_open(ring._waiting)
    count = whole(count, "count")
    check_ours(ring, messages)
    if not load_acquire(&messages._held):
        raise ValueError("only what take() returned and was not released can be split")
    if not 0 < count < messages._count:
        raise ValueError(
            f"count must be from 1 to {messages._count - 1}, so that both parts have messages, "
            f"not {count}"
        )
    first, rest, parts = messages[:count], messages[count:], messages._parts
    first._position = rest._position = messages._position
    first._place = rest._place = messages._place
    if parts is None:
        parts = Parts()
        store_relaxed(&parts.unreleased, 1)
    # Of two that split or release the same messages, one does.
    if not exchange_total(&messages._held, False):
        raise ValueError("another thread has released or split these messages")
    if messages._slot >= 0 and not ring._participant.resume_take(messages._slot):
        refuse_abandoned()
    found = walk(&ring._frames, &rest._position, &rest._place, count)
    if messages._slot >= 0:
        ring._participant.rest_take(messages._slot)
    if not found:
        refuse_damage(ring)
    fetch_add_relaxed(&parts.unreleased, 1)
    first._slot = rest._slot = messages._slot
    first._epoch = rest._epoch = messages._epoch
    first._parts = rest._parts = parts
    first._ring = rest._ring = messages._ring
    store_release(&first._held, True)
    store_release(&rest._held, True)
    return first, rest


cdef inline int check_ours(MessageRingBase ring, Messages messages) except -1:
    """Refuse what another ring took, and what was taken before a fork."""
    if not load_acquire(&messages._held):
        return 0
    if messages._ring is not ring._identity:
        raise ValueError(
            "these messages were taken from another ring: only that one can release or split them"
        )
    if ring._participant is not None and messages._epoch != ring._participant.epoch:
        raise RuntimeError(
            "these messages were taken before a fork, and belong to the parent process"
        )
    return 0


cdef inline int refuse_abandoned() except -1:
    raise ValueError(
        "the ring is closed: what was taken and not released before that is for others"
    )
