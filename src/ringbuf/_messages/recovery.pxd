"""The Hooks of a ring of messages: what the participant that tidies up asks of its
frames (_shared/shared_ring.pxd).
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport load_acquire, store_release
from ringbuf._core.pairs cimport Pair, cas_pair, is_before, load_pair, pair, same
from ringbuf._messages.positions cimport (
    Frames, FrameView, advance_tail, frame_at, publish, read_mark, write_pad,
)
from ringbuf._shared.op_slots cimport FREE, ControlBlock, OpSlot, place_in, set_state
from ringbuf._shared.shared_ring cimport Hooks, SharedRing, lay_out


cdef inline void share_frames(Frames* f, SharedRing* s, ControlBlock* control) noexcept:
    """Make these frames a ring that processes share."""
    cdef Hooks hooks
    hooks.first_waiting = first_waiting_frame
    hooks.extent = extent_of_frame
    hooks.fill = fill_frame_hole
    hooks.unreleased = unreleased_messages
    hooks.advance = advance_frames
    lay_out(s, control, &f.cursors.write, &f.cursors.read, f.index, f.capacity - 1, True, f, hooks)
    f.shared = s


cdef inline uint64_t first_waiting_frame(void* ring) noexcept nogil:
    return load_acquire(&(<Frames*>ring).cursors.read.position)


cdef inline uint64_t extent_of_frame(void* ring, uint64_t position) noexcept nogil:
    cdef FrameView view
    return view.granules if frame_at(<Frames*>ring, position, &view) else 0


cdef inline void advance_frames(void* ring) noexcept nogil:
    advance_tail(<Frames*>ring)


cdef inline bint fill_frame_hole(
    void* ring, OpSlot* slot, uint64_t tag, Pair before, Pair after, bint alone
) noexcept nogil:
    """Make a pad of it, which stands for the numbers that were claimed."""
    cdef Frames* f = <Frames*>ring
    cdef Pair write = after
    # The last claim is taken back with its numbers, as if it had never been, if no
    # other process can have seen them; otherwise, and before a later claim, it becomes
    # a pad. So it does in a ring with checksums: what was filled and not published may
    # be found whole after power loss, and no number may mean two messages.
    if (
        alone and f.key == NULL
        and (cas_pair(&f.cursors.write, &write, before) or same(write, before))
    ):
        store_release(&f.index[before.position & (f.capacity - 1)], 0)
        set_state(slot, FREE)
        return False
    write_pad(f, before.position, before.rest, after.rest - before.rest)
    publish(f, slot, before.position, after.position - before.position)
    return True


cdef inline bint unreleased_messages(void* ring, OpSlot* slot, Pair* start) noexcept nogil:
    cdef Frames* f = <Frames*>ring
    cdef FrameView view
    cdef Pair end = place_in(load_pair(&slot.after)), tail = load_pair(&f.cursors.tail)
    cdef uint64_t many
    # What lies before `tail` has been released, and its memory may be written over.
    if is_before(start[0], tail):
        start[0] = tail
    while is_before(start[0], end):
        if not frame_at(f, start.position, &view):
            return False
        if start.rest < view.count:
            many = read_mark(f, &view, start.rest)
            if many == 0:
                return True
            start.rest += many
            if start.rest < view.count:
                continue
        start[0] = pair(start.position + view.granules, 0)
    return False
