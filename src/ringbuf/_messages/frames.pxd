"""What is in frames: messages on their way into the memory of a ring, and out of it.

    frame    Frame header (24 bytes) | ends, uint32 each, left out for a single message | payloads, end to end | trailer

The trailer, zeros up to the last 16 bytes of the frame's last granule and those, is there in a ring with sealed frames only: see
frame_checksum.pxd. One push of many messages makes one frame, so that what a message costs is a length and a copy, and the
positions, the tag and the marks are paid for once a frame. A frame starts on a granule and may run over the end of the
memory back to its start.

Nothing here touches Python objects; see positions.pxd for positions, ordering and progress.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ringbuf._core.atomics cimport (
    cas_acq_rel, load32_relaxed, load_acquire, store32_relaxed, word, word32,
)
from ringbuf._messages.columns cimport Column
from ringbuf._messages.frame_checksum cimport TRAILER_BYTES, Trailer, hash_add, hash_end, hash_start, header_check, ringbuf_hash
from ringbuf._messages.positions cimport (
    END_BITS, FRAME_BYTES, GRANULE, MAX_FRAME_MESSAGES, PLACE_BITS, Frame, Frames, FrameView, advance_tail, claim, free_granules,
    make_read, nearest32, peek_frame, place_of, publish, read_mark, release_part, tail_position,
)
from ringbuf._shared.op_slots cimport HELD, NOBODY, TURN_BITS, Slot, help_taker, prepare_take, set_state

cdef enum:
    END_MASK = (1 << END_BITS) - 1


# What a consumer may take: `count` messages from number `place` of the frame at `position` on.
cdef struct Take:
    uint64_t position
    uint64_t place
    uint64_t count
    uint64_t bytes
    uint64_t first_seq
    uint64_t seen         # the source word that it was found with
    uint64_t next         # … and the one behind it


# Where takes are taken from: the ring itself, or what a dead process had taken.
cdef struct Source:
    word* read
    uint64_t number       # as in Slot.source
    uint64_t end          # of what a dead process had taken, as a source word


cdef inline uint64_t frame_bytes(uint64_t count, uint64_t payload) noexcept nogil:
    """Without the trailer."""
    return sizeof(Frame) + (count * sizeof(uint32_t) if count > 1 else 0) + payload


cdef inline uint64_t frame_granules(Frames* f, uint64_t count, uint64_t payload) noexcept nogil:
    return (frame_bytes(count, payload) + (TRAILER_BYTES if f.key != NULL else 0) + GRANULE - 1) // GRANULE


cdef inline void put_bytes(Frames* f, uint64_t offset, const void* source, size_t size) noexcept nogil:
    """Copy into the memory at `offset`, going on at the start where the end is reached."""
    cdef uint64_t whole = f.capacity * GRANULE
    offset &= whole - 1
    cdef size_t first = min(size, <size_t>(whole - offset))
    memcpy(f.data + offset, source, first)
    memcpy(f.data, <const char*>source + first, size - first)


cdef inline void get_bytes(Frames* f, void* target, uint64_t offset, size_t size) noexcept nogil:
    """Copy out of the memory at `offset`, going on at the start where the end is reached."""
    cdef uint64_t whole = f.capacity * GRANULE
    offset &= whole - 1
    cdef size_t first = min(size, <size_t>(whole - offset))
    memcpy(target, f.data + offset, first)
    memcpy(<char*>target + first, f.data, size - first)


# ---------------------------------------------------------------- in


cdef inline int64_t push_column(Frames* f, Slot* slot, Column* column, uint64_t* first_seq) noexcept nogil:
    """Push as many messages of the column as fit; returns how many."""
    cdef int64_t done = 0, end
    cdef uint64_t payload, free, position, sequence, granules
    while done < column.count:
        # As many as one frame takes …
        payload = column.lengths[done]
        end = done + 1
        while end < column.count and end - done < MAX_FRAME_MESSAGES and payload + column.lengths[end] <= FRAME_BYTES:
            payload += column.lengths[end]
            end += 1
        # … or, near a full ring, as many as there is room for.
        while True:
            granules = frame_granules(f, end - done, payload)
            if claim(f, slot, granules, end - done, &position, &sequence):
                break
            free = free_granules(f)
            while end > done and frame_granules(f, end - done, payload) > free:
                end -= 1
                payload -= column.lengths[end]
            if end == done:
                return done
        if done == 0:
            first_seq[0] = sequence
        fill_frame(f, column, done, end - done, payload, position, sequence)
        if f.key != NULL:
            seal_frame(f, position, granules, end - done, payload)
        publish(f, slot, position, granules)
        done = end
    return done


cdef inline void fill_frame(
    Frames* f, Column* column, int64_t first, int64_t count, uint64_t payload, uint64_t position, uint64_t sequence
) noexcept nogil:
    """Write a claimed frame."""
    cdef uint64_t offset = (position & (f.capacity - 1)) * GRANULE
    cdef Frame* frame = <Frame*>(f.data + offset)
    cdef uint32_t* lengths = column.lengths + first
    cdef const char** starts = column.starts + first
    cdef uint32_t* ends
    cdef unsigned char* target
    cdef uint32_t end = 0
    cdef int64_t i
    frame.first_seq = sequence
    frame.count = <uint32_t>count
    frame.payload = <uint32_t>payload
    store32_relaxed(&frame.mark, 0)
    if offset + frame_granules(f, count, payload) * GRANULE <= f.capacity * GRANULE:
        target = f.data + offset + sizeof(Frame)
        if count > 1:
            ends = <uint32_t*>target
            target += count * sizeof(uint32_t)
            for i in range(count):
                memcpy(target + end, starts[i], lengths[i])
                end += lengths[i]
                ends[i] = end
        else:
            memcpy(target, starts[0], lengths[0])
        return
    # The frame runs over the end of the memory.
    offset += sizeof(Frame)
    if count > 1:
        for i in range(count):
            end += lengths[i]
            put_bytes(f, offset, &end, sizeof(uint32_t))
            offset += sizeof(uint32_t)
    for i in range(count):
        put_bytes(f, offset, starts[i], lengths[i])
        offset += lengths[i]


cdef inline void seal_frame(Frames* f, uint64_t position, uint64_t granules, uint64_t count, uint64_t payload) noexcept nogil:
    """Say of a filled frame that it is whole, before anybody marks anything in it.

    Read a second time as a whole: hashing each 8 KiB just after they were copied took 2.5 times as long (measured).
    """
    cdef char[GRANULE] zeros
    cdef uint64_t slot = position & (f.capacity - 1), used = frame_bytes(count, payload), first
    cdef Frame* frame = <Frame*>(f.data + slot * GRANULE)
    # It ends with a granule, so it does not run over the end of the memory.
    cdef Trailer* trailer = <Trailer*>(f.data + ((slot + granules - 1) & (f.capacity - 1)) * GRANULE + GRANULE - TRAILER_BYTES)
    cdef ringbuf_hash hash
    frame.check = header_check(f.key, frame.first_seq, frame.count, frame.payload, slot)
    memset(zeros, 0, sizeof(zeros))
    put_bytes(f, slot * GRANULE + used, zeros, granules * GRANULE - TRAILER_BYTES - used)
    trailer.position = position
    trailer.seal = 0
    first = min(granules, f.capacity - slot)
    hash_start(&hash, f.key)
    hash_add(&hash, f.key, f.data + slot * GRANULE, first * GRANULE, f.way)
    hash_add(&hash, f.key, f.data, (granules - first) * GRANULE, f.way)
    trailer.seal = hash_end(&hash, f.key)


# ---------------------------------------------------------------- out


cdef inline bint find_take(Frames* f, Source* source, int64_t max_messages, int64_t max_bytes, Take* take) noexcept nogil:
    """Find what a consumer with these limits may take next, without taking it; False: nothing.

    Another consumer may take it at the same time, and producers may then write over what is read here. So nothing read is
    trusted further than the memory reaches, and all of it is void unless the exchange of the source word succeeds.
    """
    cdef FrameView view
    cdef uint64_t tail, position, place, count, many, bytes
    cdef uint32_t before
    cdef int64_t low, high, middle
    while True:
        take.seen = load_acquire(source.read)
        tail = tail_position(f)
        position = nearest32(take.seen >> 32, tail)
        place = place_of(take.seen)
        take.count = 0
        take.bytes = 0
        while <int64_t>take.count < max_messages and peek_frame(f, position, &view):
            count = view.frame.count
            if source.number != 0:
                if <uint32_t>position == <uint32_t>(source.end >> 32):
                    count = min(count, place_of(source.end))
                if count <= place and (place > 0 or <uint32_t>position == <uint32_t>(source.end >> 32)):
                    break
            if count == 0:  # a pad: never in the midst of a take, so nobody has to look for one there
                if take.count > 0:
                    break
                position += view.granules
                continue
            if count > MAX_FRAME_MESSAGES or place >= count:
                break  # written over: the exchange will fail
            if take.count > 0 and view.frame.first_seq != take.first_seq + take.count:
                break  # numbers are missing, and those of one take follow each other
            before = end_of(f, &view, place - 1) if place > 0 else 0
            many = min(count - place, <uint64_t>max_messages - take.count)
            if source.number != 0:
                many = unreleased(f, &view, place, many)
                if many == 0:
                    break
            bytes = end_of(f, &view, place + many - 1) - before
            if <int64_t>(take.bytes + bytes) > max_bytes:
                # The most messages that fit: their ends ascend.
                low, high = 0, many
                while low < high:
                    middle = (low + high + 1) // 2
                    if <int64_t>(take.bytes + end_of(f, &view, place + middle - 1) - before) <= max_bytes:
                        low = middle
                    else:
                        high = middle - 1
                many = low if low > 0 or take.count > 0 else 1
                if many == 0:
                    break
                bytes = end_of(f, &view, place + many - 1) - before
            if take.count == 0:
                take.position = position
                take.place = place
                take.first_seq = view.frame.first_seq + place
            take.count += many
            take.bytes += bytes
            place += many
            if place < view.frame.count:
                break
            position += view.granules
            place = 0
        if source.number != 0 and take.count > 0:
            pass_released(f, source, &position, &place)
        if take.count > 0:
            # A garbled frame could make up any size: see that it could be real before anyone allocates it.
            if take.bytes <= f.capacity * GRANULE and place < MAX_FRAME_MESSAGES:
                take.next = make_read(position, place, NOBODY, take.seen & ((1 << TURN_BITS) - 1))
                return True
        # Nothing there, unless another consumer was faster and all that was read above is void.
        if load_acquire(source.read) == take.seen:
            return False


cdef inline uint64_t unreleased(Frames* f, FrameView* view, uint64_t place, uint64_t most) noexcept nogil:
    """How many of these messages, which a dead process had taken, it had not released: up to the first part that it had."""
    cdef uint64_t i
    for i in range(most):
        if read_mark(f, view, place + i) != 0:
            return i
    return most


cdef inline void pass_released(Frames* f, Source* source, uint64_t* position, uint64_t* place) noexcept nogil:
    """Go on over parts that a dead process had released, so that what is left of its range begins with one that it had not."""
    cdef FrameView view
    cdef uint64_t mark
    while <uint32_t>position[0] != <uint32_t>(source.end >> 32) or place[0] != place_of(source.end):
        if not peek_frame(f, position[0], &view) or view.frame.count == 0:
            return
        mark = read_mark(f, &view, place[0])
        if mark == 0 or place[0] + mark > view.frame.count:
            return
        place[0] += mark
        if place[0] == view.frame.count:
            position[0] += view.granules
            place[0] = 0


cdef inline bint win_take(Frames* f, Slot* slot, uint64_t who, Source* source, Take* take) noexcept nogil:
    """Take what was found; False: another consumer was faster. In a shared ring `slot`, number `who` - 1, speaks of it."""
    cdef uint64_t seen = take.seen
    if slot == NULL:
        return cas_acq_rel(source.read, &seen, take.next)
    help_taker(f.desk, source.number, seen)
    take.next |= who << TURN_BITS
    prepare_take(slot, source.number, seen, take.next)
    if not cas_acq_rel(source.read, &seen, take.next):  # B
        return False
    set_state(slot, HELD)
    return True


cdef inline uint32_t end_of(Frames* f, FrameView* view, uint64_t i) noexcept nogil:
    """Where message number i of the frame ends, counted from the start of its payloads."""
    cdef uint64_t at
    if view.frame.count == 1:
        return view.frame.payload
    at = (view.position & (f.capacity - 1)) * GRANULE + sizeof(Frame) + i * sizeof(uint32_t)
    return load32_relaxed(<word32*>(f.data + (at & (f.capacity * GRANULE - 1)))) & END_MASK


cdef inline void copy_out(Frames* f, Take* take, unsigned char* data, int64_t* offsets) noexcept nogil:
    """Copy what was taken into columns."""
    cdef FrameView view
    cdef uint64_t position = take.position, place = take.place, left = take.count, many, offset
    cdef uint64_t whole = f.capacity * GRANULE
    cdef int64_t written = 0, shift
    cdef uint32_t first, last
    cdef uint32_t* ends
    cdef uint64_t i
    offsets[0] = 0
    while left > 0:
        peek_frame(f, position, &view)
        many = min(view.frame.count - place, left)
        first = end_of(f, &view, place - 1) if place > 0 else 0
        last = end_of(f, &view, place + many - 1)
        offset = (position & (f.capacity - 1)) * GRANULE + sizeof(Frame)
        shift = written - first
        if view.frame.count == 1:
            offsets[1] = shift + last
        else:
            if offset + view.frame.count * sizeof(uint32_t) <= whole:
                # Ours alone are read here, and they have no mark before we release them.
                ends = <uint32_t*>(f.data + offset) + place
                for i in range(many):
                    offsets[i + 1] = shift + (ends[i] & END_MASK)
            else:
                for i in range(many):
                    offsets[i + 1] = shift + end_of(f, &view, place + i)
            offset += view.frame.count * sizeof(uint32_t)
        get_bytes(f, data + written, offset + first, last - first)
        written += last - first
        offsets += many
        left -= many
        position += view.granules
        place = 0


cdef inline void walk(Frames* f, uint64_t* position, uint64_t* place, uint64_t count) noexcept nogil:
    """Go on by so many messages of a range that nobody has released any of."""
    cdef FrameView view
    while count > 0:
        peek_frame(f, position[0], &view)
        if place[0] + count < view.frame.count:
            place[0] += count
            return
        count -= view.frame.count - place[0]
        position[0] += view.granules
        place[0] = 0


cdef inline void release_messages(Frames* f, uint64_t position, uint64_t place, uint64_t count) noexcept nogil:
    """Free the parts that hold these messages, from the front on."""
    cdef FrameView view
    cdef uint64_t many
    while count > 0:
        # Our messages are in it, so it can neither be freed nor written over before its part is released.
        peek_frame(f, position, &view)
        position += view.granules
        many = min(view.frame.count - place, count)
        release_part(f, &view, place, many)
        place = 0
        count -= many
    advance_tail(f)
