"""Takes from a MessageRing: from the ring or from what a dead process had taken; their
release, and their division.

In a ring that processes share a take has an op slot from before its exchange until its
last part is released. It is handed out when `take` returns it: from then on `close` may
leave it to others (Participant.rest_take).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t

from ringbuf._core.atomics cimport (
    exchange_total, fetch_add_relaxed, fetch_sub_acq_rel, ignore_races, load_acquire, load_relaxed,
    store_relaxed, store_release,
)
from ringbuf._core.counts cimport at_most, whole
from ringbuf._core.eventcount cimport before_sleep, wanted
from ringbuf._core.nogil cimport NOGIL_BYTES
from ringbuf._core.pairs cimport Pair, cas_pair, load_pair, pair, same
from ringbuf._core.timing cimport steady_ns
from ringbuf._messages.columns cimport Messages, Parts, new_messages
from ringbuf._messages.frames cimport (
    Take, TakeSource, copy_out, find_take, get_bytes, release_messages, walk, win,
)
from ringbuf._messages.positions cimport (
    GRANULE, REWIND_GRANULES, Frame, Frames, FrameView, advance_tail, end_of, frame_at,
    release_part, rewind,
)
from ringbuf._messages.ring cimport (
    MessageRingBase, begin_operation, end_operation, refuse_damage,
)
from ringbuf._shared.op_slots cimport (
    FREE, NO_TAKER, ORPHAN, OpSlot, amount_of, kind_of_slot, make_rest, set_state, turn_of,
)
from ringbuf._shared.waiting cimport check_open, deadline_of, seconds_of

cdef enum:
    # After this many takes a consumer of a shared ring that finds something checks for
    # dead processes: what they had taken is to be taken again.
    LOOK_TAKES = 256


# ---------------------------------------------------------------- taking


# A single message, which is taken as bytes: where it was, to be released at once.
cdef struct Single:
    Take take
    int64_t number        # of its op slot, or -1


cdef inline Messages take_messages(MessageRingBase ring, int64_t most, int64_t most_bytes):
    """Take what is there within these limits; empty Messages where there is nothing."""
    taken = take_or_listen(ring, most, most_bytes, NULL)
    return <Messages>taken if taken is not None else new_messages(0, 0, ring._spares)


cdef inline object take_or_listen(
    MessageRingBase ring, int64_t most, int64_t most_bytes, Single* single
):
    """Messages, or the bytes of a single one; None where there is nothing: the
    descriptor of `fileno` hears of what comes from then on.
    """
    taken = try_take(ring, most, most_bytes, single)
    if taken is None and load_relaxed(&ring._waiting.listening):
        ring._waiting.listen()
        taken = try_take(ring, most, most_bytes, single)
        if taken is not None:
            ring._waiting.hear()
    return taken


cdef inline object try_take(
    MessageRingBase ring, int64_t most, int64_t most_bytes, Single* single
):
    if ring._frames.shared == NULL:
        check_open(ring._waiting)
        return take_first(ring, NULL, -1, most, most_bytes, single, NULL)
    return take_by_slot(ring, False, most, most_bytes, single)


cdef inline Messages take_orphaned(MessageRingBase ring, int64_t most, int64_t most_bytes):
    """Take only what dead processes had taken."""
    taken = None
    check_open(ring._waiting)
    if ring._frames.shared != NULL:
        taken = take_by_slot(ring, True, most, most_bytes, NULL)
    return <Messages>taken if taken is not None else new_messages(0, 0, ring._spares)


cdef inline object take_by_slot(
    MessageRingBase ring, bint orphaned, int64_t most, int64_t most_bytes, Single* single
):
    """`try_take` from a shared ring, or `take_orphaned`; None: nothing."""
    cdef bint forked = True
    taken = None
    while forked:
        forked = False
        taken = take_by_new_slot(ring, orphaned, most, most_bytes, single, &forked)
    return taken


cdef inline object take_by_new_slot(
    MessageRingBase ring, bint orphaned, int64_t most, int64_t most_bytes, Single* single,
    bint* forked
):
    """forked: this is a forked child, and the parent began the operation, by a slot of
    its own. Nothing was taken.
    """
    taken = None
    cdef OpSlot* slot = NULL
    cdef int64_t number = begin_operation(ring, &slot)
    cdef uint64_t epoch = ring._participant.epoch
    try:
        if orphaned:
            ring._participant.notice_dead(True)
            taken = take_orphan(ring, slot, number, most, most_bytes, single, forked)
        else:
            store_relaxed(&ring._takes, load_relaxed(&ring._takes) + 1)
            if load_relaxed(&ring._takes) % LOOK_TAKES == 0:
                ring._participant.notice_dead(False)
            taken = take_first(ring, slot, number, most, most_bytes, single, forked)
            if taken is None and not forked[0] and ring._participant.notice_dead(False):
                taken = take_first(ring, slot, number, most, most_bytes, single, forked)
    finally:
        if taken is None and epoch == ring._participant.epoch:
            end_operation(ring, number)
    return taken


cdef inline object take_first(
    MessageRingBase ring, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes,
    Single* single, bint* forked
):
    """What a dead process had taken; else what waits in the ring; else None."""
    cdef TakeSource source
    if slot != NULL:
        taken = take_orphan(ring, slot, number, most, most_bytes, single, forked)
        if taken is not None or forked[0]:
            return taken
    source.word = &ring._frames.cursors.read
    source.number = 0
    return take_from(ring, &source, slot, number, most, most_bytes, single, forked)


cdef inline object take_orphan(
    MessageRingBase ring, OpSlot* slot, int64_t number, int64_t most, int64_t most_bytes,
    Single* single, bint* forked
):
    cdef TakeSource source
    cdef uint64_t orphan = 0, last = UINT64_MAX
    cdef Pair remaining
    cdef OpSlot* dead
    while ring._participant.next_orphan(&orphan):
        dead = &ring._frames.shared.control.slots[orphan]
        source.word = &dead.left
        source.number = orphan + 1
        source.after = &dead.after
        remaining = load_pair(source.word)
        taken = take_from(ring, &source, slot, number, most, most_bytes, single, forked)
        if taken is not None or forked[0]:
            return taken
        # Others may have taken it. If none has, nothing of it can be taken: go on with
        # what waits.
        if orphan == last and same(load_pair(source.word), remaining):
            return None
        last = orphan
    return None


cdef inline object take_from(
    MessageRingBase ring, TakeSource* source, OpSlot* slot, int64_t number, int64_t most,
    int64_t most_bytes, Single* single, bint* forked
):
    cdef Take take
    cdef Messages messages = None
    cdef unsigned char* data
    cdef int64_t* offsets
    cdef int64_t[2] ends
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
        if single != NULL:
            taken = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>take.bytes)
            data, offsets = <unsigned char*>PyBytes_AS_STRING(taken), ends
        else:
            taken = messages = new_messages(take.count, take.bytes, ring._spares)
            data, offsets = messages._data, messages._offsets
        # Which may have begun a collection, and that may fork.
        if slot != NULL and ring._participant.epoch != epoch:
            forked[0] = True
            return None
        if not win(&ring._frames, slot, source, &take):
            continue
        if take.bytes >= NOGIL_BYTES:
            with nogil:
                copied = copy_out(&ring._frames, &take, data, offsets)
        else:
            copied = copy_out(&ring._frames, &take, data, offsets)
        if not copied:
            refuse_damage(ring)
        if single != NULL:
            single.take = take
            single.number = number
            return taken
        messages.first_seq = take.first_seq
        messages._position = take.position
        messages._place = take.place
        messages._slot = number
        messages._epoch = epoch
        messages._ring = ring._identity
        store_release(&messages._held, True)
        return messages
    return None


cdef inline object pop_one(MessageRingBase ring):
    """See MessageRing.try_pop."""
    cdef Single single
    cdef bint found
    if ring._frames.shared == NULL:
        message = pop_first(ring)
        if message is not None:
            return message
    message = take_or_listen(ring, 1, INT64_MAX, &single)
    if message is None:
        return None
    # No Python code has run since it was taken.
    found = release_messages(&ring._frames, single.take.position, single.take.place, 1)
    finish_take(ring, single.number)
    if wanted(&ring._frames.cursors.room):
        ring._waiting.call(&ring._frames.cursors.room)
    if not found:
        refuse_damage(ring)
    return message


cdef inline object pop_first(MessageRingBase ring):
    """Take and release the message that is next to be read, of a ring in memory; None:
    there is none, or getting it is more than that.

    The same steps as of any take and release, with one look at the frame instead of
    four.
    """
    cdef Frames* f = &ring._frames
    cdef FrameView view
    cdef Pair read, next
    cdef uint64_t place, start = 0, end = 0, offset
    cdef bint found
    check_open(ring._waiting)
    read = load_pair(&f.cursors.read)
    place = amount_of(read.rest)
    # As in find_take: void, unless the exchange below succeeds.
    ignore_races(True)
    found = frame_at(f, read.position, &view) and place < view.count
    if found:
        start = end_of(f, &view, place - 1) if place > 0 else 0
        end = end_of(f, &view, place)
    ignore_races(False)
    if not found or not start <= end <= view.payload or end - start >= NOGIL_BYTES:
        return None
    # Allocated before the exchange: if memory runs out, nothing has been taken.
    message = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(end - start))
    next = pair(read.position, make_rest(place + 1, NO_TAKER, turn_of(read.rest)))
    if place + 1 == view.count:
        next = pair(read.position + view.granules, make_rest(0, NO_TAKER, turn_of(read.rest)))
    if not cas_pair(&f.cursors.read, &read, next):
        return None
    offset = view.position * GRANULE + sizeof(Frame) + start
    if view.count > 1:
        offset += view.count * sizeof(uint32_t)
    get_bytes(f, PyBytes_AS_STRING(message), offset, end - start)
    release_part(f, &view, place, 1)
    advance_tail(f)
    rewind(f, NULL, REWIND_GRANULES)
    if wanted(&f.cursors.room):
        ring._waiting.call(&f.cursors.room)
    return message


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
        finish_take(ring, messages._slot)
    else:
        # The slot is of the whole take: until its last part is released it serves for
        # nothing else. The thread that releases the last part is the last to use it.
        if messages._slot >= 0:
            ring._participant.rest_take(messages._slot)
        if fetch_sub_acq_rel(&messages._parts.unreleased, 1) == 1:
            # Left to others meanwhile, it is free all the same: they find nothing in
            # it.
            if messages._slot < 0 or ring._participant.resume_take(messages._slot):
                finish_take(ring, messages._slot)
    if wanted(&ring._frames.cursors.room):
        ring._waiting.call(&ring._frames.cursors.room)
    if not found:
        refuse_damage(ring)
    return 0


cdef inline int finish_take(MessageRingBase ring, int64_t number) noexcept:
    """All of a take is released; `number`: of its op slot, or -1."""
    cdef OpSlot* slot = NULL
    if number >= 0:
        slot = &ring._frames.shared.control.slots[number]
        set_state(slot, FREE)
    rewind(&ring._frames, slot, REWIND_GRANULES)
    if number >= 0:
        ring._participant.give_back(number)
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
