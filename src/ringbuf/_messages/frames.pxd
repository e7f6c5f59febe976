"""What is in frames: messages on their way into the memory of a ring, and out of it.

    frame    Frame header (24 bytes) | ends, uint32 each, left out for a single message
             | payloads, end to end | trailer

Only a ring with checksums has the trailer: zeros up to the last 16 bytes of the frame's
last granule, and those; see frame_checksum.pxd. One push of many messages makes one
frame, so that what a message costs is a length and a copy, and the positions, the tag
and the marks are paid for once a frame. A frame starts on a granule and may run over
the end of the memory back to its start.

Nothing here touches Python objects; see positions.pxd for positions, ordering and
progress.
"""

from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ringbuf._core.atomics cimport (
    ignore_races, load_acquire, load_relaxed, store32_relaxed, store_relaxed,
)
from ringbuf._core.copying cimport copy_many
from ringbuf._core.pairs cimport Pair, PairWord, cas_pair, is_before, load_pair, pair, same
from ringbuf._messages.gathered cimport Column
from ringbuf._messages.frame_checksum cimport (
    TRAILER_BYTES, Trailer, hash_add, hash_end, hash_start, header_check, pending_checksum,
    ringbuf_hash,
)
from ringbuf._messages.newlines cimport copy_lines
from ringbuf._messages.positions cimport (
    END_MASK, FRAME_BYTES, GRANULE, MAX_FRAME_MESSAGES, Frame, Frames, FrameView, advance_tail,
    claim, end_of, frame_at, frame_granules, frame_memory, free_granules, pass_pads, publish,
    read_mark, release_part,
)
from ringbuf._shared.op_slots cimport NO_TAKER, OpSlot, amount_of, make_rest, place_in, turn_of
from ringbuf._shared.shared_ring cimport win_take


# What a consumer may take: `count` messages from number `place` of the frame at
# `position` on.
cdef struct Take:
    uint64_t position
    uint64_t place
    uint64_t count
    uint64_t bytes
    uint64_t first_seq
    Pair seen             # the source word that it was found with
    Pair next             # … and the one that takes it


# Where takes are taken from: the ring itself, or what a dead process had taken.
cdef struct TakeSource:
    PairWord* word
    uint64_t number       # as in OpSlot.source
    PairWord* after       # of what a dead process had taken: where it ends …
    Pair end              # … position and place, as it was when `word` was looked at


cdef inline void put_bytes(
    Frames* f, uint64_t offset, const void* source, size_t size
) noexcept nogil:
    """Copy into the memory at `offset`, over its end to its start."""
    cdef uint64_t whole = f.capacity * GRANULE
    offset &= whole - 1
    cdef size_t first = min(size, <size_t>(whole - offset))
    memcpy(f.data + offset, source, first)
    memcpy(f.data, <const char*>source + first, size - first)


cdef inline void get_bytes(Frames* f, void* target, uint64_t offset, size_t size) noexcept nogil:
    """Copy out of the memory at `offset`, over its end to its start."""
    cdef uint64_t whole = f.capacity * GRANULE
    offset &= whole - 1
    cdef size_t first = min(size, <size_t>(whole - offset))
    copy_many(target, f.data + offset, first)
    copy_many(<char*>target + first, f.data, size - first)


# ---------------------------------------------------------------- in


cdef inline int64_t push_column(
    Frames* f, OpSlot* slot, Column* column, uint64_t* first_seq
) noexcept nogil:
    """Push as many messages of the column as fit; returns how many."""
    cdef int64_t done = 0, end
    cdef uint64_t payload, free, position, sequence, granules
    while done < column.count:
        # As many as one frame takes …
        payload = column.lengths[done]
        end = done + 1
        while (
            end < column.count and end - done < MAX_FRAME_MESSAGES
            and payload + column.lengths[end] <= FRAME_BYTES
        ):
            payload += column.lengths[end]
            end += 1
        # … or, near a full ring, as many as there is room for.
        while True:
            granules = frame_granules(f, end - done, payload)
            if claim(f, slot, granules, end - done, &position, &sequence):
                break
            if pass_pads(f):
                continue
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
            write_checksums(f, position, granules, sequence, end - done, payload)
        publish(f, slot, position, granules)
        done = end
    return done


cdef inline int64_t push_found(
    Frames* f, OpSlot* slot, const char* chunk, size_t size, const uint32_t* ends, int64_t count,
    uint64_t* sequence
) noexcept nogil:
    """Push the lines with these ends (see newlines.pxd), as one frame, of a chunk that
    begins with them; as many as fit. Returns how many.
    """
    cdef uint64_t position, granules, free
    while True:
        granules = frame_granules(f, count, ends[count - 1])
        if claim(f, slot, granules, count, &position, sequence):
            break
        if pass_pads(f):
            continue
        free = free_granules(f)
        while count > 0 and frame_granules(f, count, ends[count - 1]) > free:
            count -= 1
        if count == 0:
            return 0
    fill_lines(f, position, granules, sequence[0], chunk, size, ends, count)
    if f.key != NULL:
        write_checksums(f, position, granules, sequence[0], count, ends[count - 1])
    publish(f, slot, position, granules)
    return count


cdef inline void fill_header(
    Frames* f, uint64_t position, uint64_t sequence, int64_t count, uint64_t payload
) noexcept nogil:
    cdef Frame* frame = frame_memory(f, position)
    store_relaxed(&frame.first_seq, sequence)
    store32_relaxed(&frame.count, <uint32_t>count)
    store32_relaxed(&frame.payload, <uint32_t>payload)
    store32_relaxed(&frame.mark, 0)


cdef inline void fill_frame(
    Frames* f, Column* column, int64_t first, int64_t count, uint64_t payload,
    uint64_t position, uint64_t sequence
) noexcept nogil:
    """Write a claimed frame."""
    cdef uint64_t offset = (position & (f.capacity - 1)) * GRANULE
    cdef uint32_t* lengths = column.lengths + first
    cdef const char** starts = column.starts + first
    cdef uint32_t* ends
    cdef unsigned char* target
    cdef uint32_t end = 0
    cdef int64_t i
    fill_header(f, position, sequence, count, payload)
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


cdef inline void fill_lines(
    Frames* f, uint64_t position, uint64_t granules, uint64_t sequence, const char* chunk,
    size_t size, const uint32_t* ends, int64_t count
) noexcept nogil:
    """Write a claimed frame of the lines with these ends."""
    cdef uint64_t offset = (position & (f.capacity - 1)) * GRANULE
    cdef uint64_t table = count * sizeof(uint32_t) if count > 1 else 0
    cdef uint32_t start = 0
    cdef int64_t i
    fill_header(f, position, sequence, count, ends[count - 1])
    if offset + granules * GRANULE <= f.capacity * GRANULE:
        offset += sizeof(Frame)
        memcpy(f.data + offset, ends, table)
        copy_lines(
            f.line_way, f.data + offset + table, granules * GRANULE - sizeof(Frame) - table,
            chunk, size, ends, count
        )
        return
    # The frame runs over the end of the memory.
    offset += sizeof(Frame)
    put_bytes(f, offset, ends, table)
    offset += table
    for i in range(count):
        put_bytes(f, offset + start, chunk + start + i, ends[i] - start)
        start = ends[i]


cdef inline void write_checksums(
    Frames* f, uint64_t position, uint64_t granules, uint64_t sequence, uint64_t count,
    uint64_t payload
) noexcept nogil:
    """Write the checksums of a filled frame, before a consumer can mark anything in it;
    where pushes defer it, that of the whole only as pending.

    The frame is read a second time as a whole: hashing each 8 KiB just after they were
    copied took 2.5 times as long (measured).
    """
    cdef uint64_t slot = position & (f.capacity - 1), used = sizeof(Frame) + payload, first
    cdef uint64_t whole = f.capacity * GRANULE, padding
    cdef Frame* frame = <Frame*>(f.data + slot * GRANULE)
    # It ends with a granule, so it does not run over the end of the memory.
    cdef uint64_t last = (slot + granules - 1) & (f.capacity - 1)
    cdef Trailer* trailer = <Trailer*>(f.data + (last + 1) * GRANULE - TRAILER_BYTES)
    cdef ringbuf_hash hash
    if count > 1:
        used += count * sizeof(uint32_t)
    frame.check = header_check(f.key, sequence, <uint32_t>count, <uint32_t>payload, slot)
    padding = granules * GRANULE - TRAILER_BYTES - used
    used += slot * GRANULE
    if used < whole < used + padding:
        memset(f.data + used, 0, whole - used)
        padding -= whole - used
        used = whole
    memset(f.data + (used & (whole - 1)), 0, padding)
    trailer.position = position
    if load_relaxed(f.deferring) != 0:
        trailer.checksum = pending_checksum(f.key, position)
        return
    trailer.checksum = 0
    first = min(granules, f.capacity - slot)
    hash_start(&hash, f.key)
    hash_add(&hash, f.key, f.data + slot * GRANULE, first * GRANULE, f.way)
    hash_add(&hash, f.key, f.data, (granules - first) * GRANULE, f.way)
    trailer.checksum = hash_end(&hash, f.key)


# ---------------------------------------------------------------- out


cdef inline bint find_take(
    Frames* f, TakeSource* source, int64_t max_messages, int64_t max_bytes, Take* take
) noexcept nogil:
    """Find what a consumer with these limits may take next, without taking it; False:
    nothing.

    Another consumer may take it at the same time, and producers may then write over
    what is read here. So nothing read is trusted further than the memory reaches, and
    all of it is void unless the exchange of the source word succeeds.
    """
    cdef bint found
    ignore_races(True)
    found = look_for_take(f, source, max_messages, max_bytes, take)
    ignore_races(False)
    return found


cdef inline bint look_for_take(
    Frames* f, TakeSource* source, int64_t max_messages, int64_t max_bytes, Take* take
) noexcept nogil:
    cdef FrameView view
    cdef uint64_t position, place, count, many, bytes, before, limit = UINT64_MAX
    cdef int64_t low, high, middle
    cdef bint is_last
    while True:
        take.seen = load_pair(source.word)
        if source.number != 0:
            # Each time: the slot may have become an ORPHAN anew, which ends elsewhere.
            source.end = place_in(load_pair(source.after))
        if f.shared != NULL:
            # A file may hold anything in front of `write`. Loaded after `read`, which
            # is never ahead of it.
            limit = load_acquire(&f.cursors.write.position)
        position = take.seen.position
        place = amount_of(take.seen.rest)
        take.count = 0
        take.bytes = 0
        while (
            <int64_t>take.count < max_messages and position < limit
            and frame_at(f, position, &view)
        ):
            count = view.count
            if source.number != 0:
                is_last = position >= source.end.position
                if is_last:
                    count = min(count, source.end.rest)
                if position > source.end.position or count <= place and (place > 0 or is_last):
                    break
            # A pad: never in the midst of a take, so no other code looks for one there.
            if count == 0:
                if take.count > 0:
                    break
                position += view.granules
                continue
            if place >= count:
                break  # written over: the exchange will fail
            if take.count > 0 and view.first_seq != take.first_seq + take.count:
                break  # numbers are missing, and those of one take follow each other
            before = end_of(f, &view, place - 1) if place > 0 else 0
            many = min(count - place, <uint64_t>max_messages - take.count)
            if source.number != 0:
                many = count_unreleased(f, &view, place, many)
                if many == 0:
                    break
            bytes = end_of(f, &view, place + many - 1) - before
            if <int64_t>(take.bytes + bytes) > max_bytes:
                # The most messages that fit: their ends ascend.
                low, high = 0, many
                while low < high:
                    middle = (low + high + 1) // 2
                    bytes = end_of(f, &view, place + middle - 1) - before
                    if <int64_t>(take.bytes + bytes) <= max_bytes:
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
                take.first_seq = view.first_seq + place
            take.count += many
            take.bytes += bytes
            place += many
            if place < view.count:
                break
            position += view.granules
            place = 0
        if source.number != 0 and take.count > 0:
            pass_released(f, source, &position, &place)
        # A garbled frame could make up any size: see that it can be real before it is
        # allocated.
        if take.count > 0 and take.bytes <= f.capacity * GRANULE:
            take.next = pair(position, make_rest(place, NO_TAKER, turn_of(take.seen.rest)))
            return True
        # Nothing there, unless another consumer was faster and all that was read above
        # is void.
        if same(load_pair(source.word), take.seen):
            return False


cdef inline uint64_t count_unreleased(
    Frames* f, FrameView* view, uint64_t place, uint64_t most
) noexcept nogil:
    """How many of these messages, which a dead process had taken, it had not released:
    those before the first part that it had.
    """
    cdef uint64_t i
    for i in range(most):
        if read_mark(f, view, place + i) != 0:
            return i
    return most


cdef inline void pass_released(
    Frames* f, TakeSource* source, uint64_t* position, uint64_t* place
) noexcept nogil:
    """Go on over parts that a dead process had released, so that the rest of its range
    begins with one that it had not.
    """
    cdef FrameView view
    cdef uint64_t mark
    while is_before(pair(position[0], place[0]), source.end):
        if not frame_at(f, position[0], &view) or place[0] >= view.count:
            return
        mark = read_mark(f, &view, place[0])
        if mark == 0 or place[0] + mark > view.count:
            return
        place[0] += mark
        if place[0] == view.count:
            position[0] += view.granules
            place[0] = 0


cdef inline bint win(Frames* f, OpSlot* slot, TakeSource* source, Take* take) noexcept nogil:
    """Take what was found; False: another consumer was faster. In a shared ring `slot`
    says what is taken.
    """
    if slot == NULL:
        return cas_pair(source.word, &take.seen, take.next)
    return win_take(f.shared, slot, source.number, &take.seen, take.next)


cdef inline bint copy_out(
    Frames* f, Take* take, unsigned char* data, int64_t* offsets
) noexcept nogil:
    """Copy what was taken into columns; False: it is not what it was when it was found,
    so the memory is damaged.
    """
    cdef FrameView view
    cdef uint64_t position = take.position, place = take.place, left = take.count, many, offset
    cdef uint64_t first, last
    cdef uint64_t whole = f.capacity * GRANULE, written = 0
    cdef int64_t shift
    cdef uint32_t* ends
    cdef uint64_t i
    offsets[0] = 0
    while left > 0:
        if not frame_at(f, position, &view) or place >= view.count:
            return False
        many = min(view.count - place, left)
        first = end_of(f, &view, place - 1) if place > 0 else 0
        last = end_of(f, &view, place + many - 1)
        if not first <= last <= view.payload or last - first > take.bytes - written:
            return False
        offset = (position & (f.capacity - 1)) * GRANULE + sizeof(Frame)
        shift = <int64_t>(written - first)
        if view.count == 1:
            offsets[1] = shift + <int64_t>last
        else:
            if offset + view.count * sizeof(uint32_t) <= whole:
                # Only ends of this take are read, and they have no mark before it is
                # released.
                ends = <uint32_t*>(f.data + offset) + place
                for i in range(many):
                    offsets[i + 1] = shift + (ends[i] & END_MASK)
            else:
                for i in range(many):
                    offsets[i + 1] = shift + <int64_t>end_of(f, &view, place + i)
            offset += view.count * sizeof(uint32_t)
        get_bytes(f, data + written, offset + first, last - first)
        written += last - first
        offsets += many
        left -= many
        position += view.granules
        place = 0
    return written == take.bytes


cdef inline bint walk(
    Frames* f, uint64_t* position, uint64_t* place, uint64_t count
) noexcept nogil:
    """Go on by `count` messages of a range of which none is released; False: there are
    not as many.
    """
    cdef FrameView view
    while count > 0:
        if not frame_at(f, position[0], &view) or place[0] >= view.count:
            return False
        if place[0] + count < view.count:
            place[0] += count
            return True
        count -= view.count - place[0]
        position[0] += view.granules
        place[0] = 0
    return True


cdef inline bint release_messages(
    Frames* f, uint64_t position, uint64_t place, uint64_t count
) noexcept nogil:
    """Free the parts that hold these messages, from the front on; False: they are not
    there, so the memory is damaged.
    """
    cdef FrameView view
    cdef uint64_t many
    cdef bint found = True
    while count > 0:
        # The take holds messages in it, so it can neither be freed nor written over
        # before its part is released.
        if not frame_at(f, position, &view) or place >= view.count:
            found = False
            break
        position += view.granules
        many = min(view.count - place, count)
        release_part(f, &view, place, many)
        place = 0
        count -= many
    advance_tail(f)
    return found
