"""The protocol of MessageRing, step by step, for `interleave.explore`.

A transcript of `_messages/{positions,frames,recovery}.pxd` and `_shared/op_slots.pxd`,
under the same names. A frame has a header, marks and, in each of its granules, the
number of its first message in place of the payload. Left out are bytes, ends,
checksums, limits in bytes, and all that only a file found after power loss needs.

Two widths of the words that are exchanged:

    whole    positions, sequence numbers and turns as they are: pairs of words,
             exchanged as one
    narrow   their low bits, extended to the value nearest to `tail`

Beside the words of the ring there are ghosts, which no step reads: the frames between
`tail` and `write`, where `read` is in full, which messages were published, taken and
released, and which participant has them. `check` compares them with the ring's own
words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from tests.support.interleave import (
    DEAD,
    Memory,
    Violation,
    add,
    exchange,
    get,
    ghost,
    load,
    lock,
    put,
    run_alone,
    store,
)

__all__ = ["Protocol", "Ring", "Take", "script"]

Steps = Generator[tuple[Any, ...], Any, Any]
#: Two words that are exchanged as one: a position, and what moves with it.
Pair = tuple[int, Any]

FREE, PUSHING, PREPARED, HELD, ORPHAN = range(5)
NO_TAKER = 0
PAD = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """
    capacity: granules, a power of two.
    shared: with op slots, as in a ring that processes share.
    narrow: bits of a position and of a sequence number, or None for whole ones.
    turn_bits: of the number that tells two ORPHANs in one slot apart; None: it never
        wraps.
    torn: a pair is loaded and stored half by half.
    passes_pads: a push that finds no room passes pads that nothing follows.
    fresh_end: the end of an ORPHAN is loaded with each load of its start, not once for
        all.
    participants: how many, each with one op slot; one more sets the ring up and checks
        its end.
    messages: the most in one frame.
    without: steps that are left out, to show that this is found.
    """

    capacity: int = 4
    shared: bool = False
    narrow: tuple[int, int] | None = None
    turn_bits: int | None = None
    torn: bool = False
    passes_pads: bool = True
    fresh_end: bool = True
    participants: int = 2
    messages: int = 1
    without: frozenset[str] = frozenset()


class FrameView(NamedTuple):
    position: int
    granules: int


class Take(NamedTuple):
    position: int
    place: int
    count: int  # type: ignore[assignment]  # tuple.count, which it hides, is not called
    first_seq: int
    seen: Pair
    next: Pair


class TakeSource(NamedTuple):
    word: int
    number: int
    end: Pair | None


class Ghost(NamedTuple):
    """A frame that was claimed: `message` is what its first message is, or PAD."""

    position: int
    granules: int
    first_seq: int
    count: int  # type: ignore[assignment]  # tuple.count, which it hides, is not called
    message: int
    published: bool


class Ring:
    def __init__(self, protocol: Protocol, start: int | None = None) -> None:
        """start: its first position; by default one lap on, as in a new file."""
        self.protocol = p = protocol
        self.capacity = p.capacity
        self.mask = p.capacity - 1
        self.slots = range(p.participants + 1) if p.shared else None
        first = p.capacity if start is None else start
        self.memory = m = Memory()
        self.write = m.word("write", self.source(first, 0))
        self.read = m.word("read", self.read_word(first, 0, NO_TAKER, 0))
        self.tail = m.word("tail", (first, 0))
        self.sequence = m.word("sequence", 0)
        self.index = m.words("index", (0, 0), p.capacity)
        self.first_seq = m.words("frame.first_seq", 0, p.capacity)
        self.count = m.words("frame.count", 0, p.capacity)
        self.mark = [
            m.words(f"mark({place})", 0, p.capacity) if p.messages > place else []
            for place in range(p.messages)
        ]
        self.payload = m.words("payload", 0, p.capacity)
        if p.shared:
            many = p.participants + 1
            self.deaths = m.word("deaths", 0)
            self.recovery = m.word("recovery", 0)
            self.state = m.words("slot.state", (0, FREE), many)
            self.slot_source = m.words("slot.source", 0, many)
            nothing = (0, (0, NO_TAKER, 0))
            self.before = m.words("slot.before", nothing, many)
            self.after = m.words("slot.after", nothing, many)
            self.left = m.words("slot.left", nothing, many) if p.narrow is None else self.before
            if p.narrow is not None:
                self.size = m.words("slot.size", (0, 0), many)
                self.base = m.words("slot.base", (0, 0), many)
        self.g_frames = m.word("frames", ())
        self.g_end = m.word("end of claims", (first, 0))
        self.g_read = m.word("where read is", (first, 0))
        self.g_published = m.word("published", 0)
        self.g_taken = m.word("taken", 0)
        self.g_released = m.word("released", 0)
        self.g_out = m.word("out with", (0,) * (p.participants + 1))
        self.g_checked = m.word("checked", None)

    def begin_with(self, *operations: tuple[Any, ...]) -> None:
        """Do these before the others begin."""
        steps = script(self, self.protocol.participants, *operations)()
        words, _ = run_alone(self.memory.values, steps, self.protocol.participants, self.check)
        self.memory.values = words

    # ---------------------------------------------------------------- widths

    def source(self, position: int, sequence: int) -> Pair:
        """`write`."""
        if self.protocol.narrow is not None:
            bits, sequence_bits = self.protocol.narrow
            return position & (1 << bits) - 1, sequence & (1 << sequence_bits) - 1
        return position, sequence

    def read_word(self, position: int, place: int, taker: int, turn: int) -> Pair:
        """A source word of takes."""
        if self.protocol.narrow is not None:
            position &= (1 << self.protocol.narrow[0]) - 1
        if self.protocol.turn_bits is not None:
            turn &= (1 << self.protocol.turn_bits) - 1
        return position, (place, taker, turn)

    def full(self, position: int, near: int) -> int:
        """The position of which a source word holds as much as there is room for."""
        if self.protocol.narrow is None:
            return position
        return _nearest(position, near, self.protocol.narrow[0])

    def full_sequence(self, sequence: int, near: int) -> int:
        if self.protocol.narrow is None:
            return sequence
        return _nearest(sequence, near, self.protocol.narrow[1])

    def same_position(self, a: int, b: int) -> bool:
        """As the code compares a position with that of a source word."""
        if self.protocol.narrow is None:
            return a == b
        return (a - b) & (1 << self.protocol.narrow[0]) - 1 == 0

    def does(self, what: str) -> bool:
        return what not in self.protocol.without

    def load_pair(self, word: int) -> Steps:
        if not self.protocol.torn:
            return (yield load(word))
        again = yield get(word, 0)
        while True:
            position = again
            rest = yield get(word, 1)
            again = yield get(word, 0)
            if again == position:
                return position, rest

    def store_pair(self, word: int, value: Pair) -> Steps:
        if not self.protocol.torn:
            yield store(word, value)
            return
        yield put(word, 1, value[1])
        yield put(word, 0, value[0])

    # ---------------------------------------------------------------- slots

    def set_state(self, slot: int, kind: int) -> Steps:
        version, _ = yield load(self.state[slot])
        yield store(self.state[slot], (version, kind))

    def kind_of(self, slot: int) -> Steps:
        _, kind = yield load(self.state[slot])
        return kind

    def begin_push(self, slot: int, granules: int, count: int, write: Pair) -> Steps:
        yield from self.say_push(slot, granules, count, write)
        yield from self.set_state(slot, PUSHING)

    def say_push(self, slot: int, granules: int, count: int, write: Pair) -> Steps:
        if self.protocol.narrow is None:
            yield from self.store_pair(self.after[slot], (write[0] + granules, write[1] + count))
            yield from self.store_pair(self.before[slot], write)
        else:
            yield store(self.size[slot], (granules, count))
            yield store(self.base[slot], write)

    def prepare_take(self, slot: int, source: int, before: Pair, after: Pair) -> Steps:
        version, _ = yield load(self.state[slot])
        if self.does("version"):
            version += 1
        yield store(self.state[slot], (version, FREE))
        yield store(self.slot_source[slot], source)
        yield from self.store_pair(self.before[slot], before)
        yield from self.store_pair(self.after[slot], after)
        yield store(self.state[slot], (version, PREPARED))

    def help_taker(self, source: int, seen: Pair) -> Steps:
        taker = seen[1][1]
        if taker == NO_TAKER or not self.does("help_taker"):
            return
        state = yield load(self.state[taker - 1])
        if state[1] != PREPARED:
            return
        after = yield from self.load_pair(self.after[taker - 1])
        if after != seen:
            return
        named = yield load(self.slot_source[taker - 1])
        if named == source:
            yield exchange(self.state[taker - 1], state, (state[0], HELD))

    def source_word(self, source: int) -> int:
        return self.read if source == 0 else self.left[source - 1]

    # ---------------------------------------------------------------- producers

    def claim(
        self, slot: int | None, granules: int, count: int, message: int
    ) -> Generator[Any, Any, tuple[int, int] | None]:
        write = yield from self.load_pair(self.write)
        if slot is not None:
            yield from self.begin_push(slot, granules, count, write)
        while True:
            tail, _ = yield load(self.tail)
            at = self.full(write[0], tail)
            if at >= tail and at - tail + granules > self.capacity:
                if self.protocol.passes_pads:
                    moved = yield from self.pass_pads(slot, tail)
                    if moved:
                        continue
                if slot is not None:
                    yield from self.set_state(slot, FREE)
                return None
            if slot is None:
                after = self.source(write[0] + granules, write[1] + count)
                found = yield exchange(self.write, write, after)
                if found != write:
                    write = found
                    continue
                yield ghost(self.note_claim, at, granules, count, message)
            else:
                claimed = yield from self.shared_claim(slot, write, at, granules, count, message)
                if not claimed:
                    write = yield from self.load_pair(self.write)
                    yield from self.say_push(slot, granules, count, write)
                    continue
            if self.protocol.narrow is None:
                return at, write[1]
            near = yield load(self.sequence)
            return at, self.full_sequence(write[1], near)

    def pass_pads(self, slot: int | None, tail: int) -> Generator[Any, Any, bool]:
        """Pass pads that nothing follows.

        Returns whether there is more room than with this `tail`.
        """
        read: Any
        view: Any
        position: Any
        while True:
            read = yield from self.load_pair(self.read)
            position = self.full(read[0], tail)
            view = yield from self.peek_frame(position)
            if view is None or read[1][0] > 0:
                break
            count = yield load(self.count[position & self.mask])
            if count > 0:
                break
            if slot is not None:
                yield from self.help_taker(0, read)
            after = self.read_word(position + view.granules, 0, NO_TAKER, 0)
            found = yield exchange(self.read, read, after)
            if found == read:
                yield ghost(self.note_pass, position + view.granules)
            del found, after, count
        read = view = position = None
        yield from self.advance_tail()
        now, _ = yield load(self.tail)
        moved: bool = now != tail
        return moved

    def shared_claim(
        self, slot: int, write: Pair, position: int, granules: int, count: int, message: int
    ) -> Generator[Any, Any, bool]:
        index = self.index[position & self.mask]
        tag = yield load(index)
        other = _claimer(tag, position)
        if other is None:
            now = yield from self.load_pair(self.write)
            if now == write or not self.does("load of write"):
                found = yield exchange(index, tag, (-slot - 1, position))
                if found == tag:
                    yield ghost(self.note_claim, position, granules, count, message)
                    yield from self.move_write(slot, write)
                    return True
                tag = found
                other = _claimer(tag, position)
        if other is not None:
            yield from self.move_write(other, write)
        return False

    def move_write(self, slot: int, write: Pair) -> Steps:
        if self.protocol.narrow is None:
            after = yield from self.load_pair(self.after[slot])
            before = yield from self.load_pair(self.before[slot])
        else:
            granules, count = yield load(self.size[slot])
            before = yield load(self.base[slot])
            after = self.source(write[0] + granules, write[1] + count)
        if before == write:
            yield exchange(self.write, write, after)

    def publish(self, slot: int | None, position: int, granules: int) -> Steps:
        yield store(self.index[position & self.mask], (granules, position))
        yield ghost(self.note_publish, position)
        if slot is not None:
            yield from self.set_state(slot, FREE)

    def push(
        self, slot: int | None, granules: int, count: int, message: int
    ) -> Generator[Any, Any, bool]:
        """Push messages numbered from `message` on, in one frame."""
        claimed = yield from self.claim(slot, granules, count, message)
        if claimed is None:
            return False
        position, sequence = claimed
        del claimed
        if not self.does("fill before publish"):
            yield from self.publish(slot, position, granules)
        yield from self.fill_frame(position, granules, sequence, count, message)
        if self.does("fill before publish"):
            yield from self.publish(slot, position, granules)
        return True

    def fill_frame(
        self, position: int, granules: int, sequence: int, count: int, message: int
    ) -> Steps:
        at = position & self.mask
        yield store(self.first_seq[at], sequence)
        yield store(self.count[at], count)
        if self.does("clear marks"):
            for place in range(count):
                yield store(self.mark[place][at], 0)
        for granule in range(granules):
            yield store(self.payload[(position + granule) & self.mask], message)

    def write_pad(self, position: int, sequence: int, numbers: int) -> Steps:
        at = position & self.mask
        yield store(self.first_seq[at], sequence)
        yield store(self.count[at], 0)
        yield store(self.payload[at], numbers)

    # ---------------------------------------------------------------- consumers

    def peek_frame(self, position: int) -> Generator[Any, Any, FrameView | None]:
        granules, of = yield load(self.index[position & self.mask])
        return FrameView(position, granules) if granules > 0 and of == position else None

    def find_take(self, source: TakeSource, most: int) -> Generator[Any, Any, Take | None]:
        view: Any
        is_last: Any
        while True:
            seen = yield from self.load_pair(source.word)
            position, place = seen[0], _place_in(seen)[1]
            if source.number != 0 and self.protocol.fresh_end:
                end = yield from self.load_pair(self.after[source.number - 1])
                source = source._replace(end=end)
                del end
            if self.protocol.narrow is not None:
                tail, _ = yield load(self.tail)
                position = self.full(position, tail)
                del tail
            taken = first = first_place = first_seq = 0
            while taken < most:
                view = yield from self.peek_frame(position)
                if view is None:
                    break
                all_of_it = count = yield load(self.count[position & self.mask])
                if source.end is not None:
                    is_last = self.same_position(position, source.end[0])
                    if is_last:
                        count = min(count, _place_in(source.end)[1])
                    if count <= place and (place > 0 or is_last):
                        break
                if count == 0:
                    if taken > 0:
                        break
                    position += view.granules
                    continue
                if place >= count:
                    break
                number = yield load(self.first_seq[position & self.mask])
                if taken > 0 and number != first_seq + taken:
                    break
                many = min(count - place, most - taken)
                if source.number != 0:
                    many = yield from self.unreleased(view, place, many)
                    if many == 0:
                        break
                if taken == 0:
                    first, first_place, first_seq = position, place, number + place
                taken += many
                place += many
                if place < all_of_it:
                    break
                position += view.granules
                place = 0
            view = count = all_of_it = many = number = is_last = None
            if source.number != 0 and taken > 0:
                position, place = yield from self.pass_released(source, position, place)
            if taken > 0 and place < self.protocol.messages:
                after = self.read_word(position, place, NO_TAKER, seen[1][2])
                return Take(first, first_place, taken, first_seq, seen, after)
            again = yield from self.load_pair(source.word)
            if again == seen:
                return None
            del again

    def unreleased(self, view: FrameView, place: int, most: int) -> Generator[Any, Any, int]:
        for more in range(most):
            mark = yield from self.read_mark(view, place + more)
            if mark != 0:
                return more
        return most

    def pass_released(
        self, source: TakeSource, position: int, place: int
    ) -> Generator[Any, Any, tuple[int, int]]:
        end = source.end
        assert end is not None
        while not self.same_position(position, end[0]) or place != _place_in(end)[1]:
            view = yield from self.peek_frame(position)
            if view is None:
                break
            count = yield load(self.count[position & self.mask])
            if count == 0:
                break
            mark = yield from self.read_mark(view, place)
            if mark == 0 or place + mark > count:
                break
            place += mark
            if place == count:
                position += view.granules
                place = 0
        return position, place

    def win_take(
        self, slot: int | None, source: TakeSource, take: Take
    ) -> Generator[Any, Any, Take | None]:
        """The take as it was made, or None: another consumer was faster."""
        if slot is not None:
            yield from self.help_taker(source.number, take.seen)
            place, _, turn = take.next[1]
            take = take._replace(next=(take.next[0], (place, slot + 1, turn)))
            if self.does("prepare first"):
                yield from self.prepare_take(slot, source.number, take.seen, take.next)
        found = yield exchange(source.word, take.seen, take.next)
        if found != take.seen:
            return None
        yield ghost(self.note_take, source.number, take)
        if slot is not None:
            if not self.does("prepare first"):
                yield from self.prepare_take(slot, source.number, take.seen, take.next)
            yield from self.set_state(slot, HELD)
        return take

    def take_one(
        self, slot: int | None, source: TakeSource, most: int
    ) -> Generator[Any, Any, Take | None]:
        while True:
            take = yield from self.find_take(source, most)
            if take is None:
                return None
            if source.number != 0 and self.does("load of the orphan's state"):
                kind = yield from self.kind_of(source.number - 1)
                if kind != ORPHAN:
                    return None
                del kind
            take = yield from self.win_take(slot, source, take)
            if take is not None:
                yield from self.copy_out(take)
                return take

    def take(self, slot: int | None, most: int) -> Generator[Any, Any, Take | None]:
        """Take from the ring; None: nothing there."""
        take = yield from self.take_one(slot, TakeSource(self.read, 0, None), most)
        if take is None and slot is not None:
            yield from self.set_state(slot, FREE)
        return take

    def take_orphan(
        self, slot: int, most: int, seen_deaths: int = -1
    ) -> Generator[Any, Any, Take | None]:
        """Take what a dead process had taken; None: nothing there."""
        while True:
            orphan = yield from self.next_orphan(seen_deaths)
            if orphan is None:
                yield from self.set_state(slot, FREE)
                return None
            end = None
            if not self.protocol.fresh_end:
                end = yield from self.load_pair(self.after[orphan])
            source = TakeSource(self.left[orphan], orphan + 1, end)
            take = yield from self.take_one(slot, source, most)
            if take is not None:
                return take
            del end, source, orphan

    def next_orphan(self, seen_deaths: int) -> Generator[Any, Any, int | None]:
        deaths = yield load(self.deaths)
        if deaths == seen_deaths:
            return None
        found, oldest = None, 0
        assert self.slots is not None
        for slot in self.slots:
            kind = yield from self.kind_of(slot)
            if kind != ORPHAN:
                continue
            left = yield from self.load_pair(self.left[slot])
            after = yield from self.load_pair(self.after[slot])
            if _place_in(left) == _place_in(after):
                continue
            if found is None or left[0] < oldest:
                found, oldest = slot, left[0]
        return found

    def copy_out(self, take: Take) -> Steps:
        position, place, left = take.position, take.place, take.count
        number = take.first_seq
        while left > 0:
            view = yield from self.peek_frame(position)
            if view is None:
                raise Violation(f"takes from {position}, where no frame is")
            count = yield load(self.count[position & self.mask])
            many = min(count - place, left)
            for granule in range(view.granules):
                message = yield load(self.payload[(position + granule) & self.mask])
                yield ghost(self.note_copy, number, message + place)
            number += many
            left -= many
            position += view.granules
            place = 0

    def release(
        self, slot: int | None, take: Take, beyond: int | None = None
    ) -> Generator[Any, Any, None]:
        """beyond: then send an empty ring back to its start, if it has come further
        than that.
        """
        actor = take.next[1][1] - 1 if slot is not None else None
        yield from self.release_messages(
            actor, take.position, take.place, take.count, take.first_seq
        )
        if slot is not None:
            yield from self.set_state(slot, FREE)
        if beyond is not None:
            yield from self.rewind(slot, beyond)

    def release_messages(
        self, actor: int | None, position: int, place: int, count: int, number: int
    ) -> Steps:
        while count > 0:
            view = yield from self.peek_frame(position)
            if view is None:
                raise Violation(f"releases a frame at {position}, where none is")
            yield ghost(self.note_done, actor, number)
            position += view.granules
            many = yield load(self.count[view.position & self.mask])
            many = min(many - place, count)
            yield from self.release_part(view, place, many, number)
            place = 0
            count -= many
            number += many
        del view, many, number
        if self.does("advance"):
            yield from self.advance_tail()

    def read_mark(self, view: FrameView, place: int) -> Generator[Any, Any, int]:
        mark: int = yield load(self.mark[place][view.position & self.mask])
        return mark

    def release_part(self, view: FrameView, place: int, count: int, number: int) -> Steps:
        part = (view.position, place)
        tail = yield load(self.tail)
        if tail == part:
            yield from self.step_tail(view, place, count, part, number)
            return
        yield store(self.mark[place][view.position & self.mask], count)
        yield ghost(self.note_release, number, count)

    def step_tail(
        self, view: FrameView, place: int, count: int, tail: tuple[int, int], number: int | None
    ) -> Steps:
        at = view.position & self.mask
        many = yield load(self.count[at])
        after = (view.position + view.granules, 0)
        if place + count < many:
            after = (view.position, place + count)
        sequence = yield load(self.first_seq[at])
        if many > 0:
            sequence += place + count
        else:
            numbers = yield load(self.payload[at])
            sequence += numbers
        found = yield exchange(self.tail, tail, after)
        if found == tail:
            if number is not None:
                yield ghost(self.note_release, number, count)
            if self.protocol.narrow is not None:
                yield store(self.sequence, sequence)

    def advance_tail(self) -> Steps:
        view: Any
        read: Any
        mark: Any
        while True:
            tail = yield load(self.tail)
            position, place = tail
            view = yield from self.peek_frame(position)
            if view is not None:
                count = yield load(self.count[position & self.mask])
                if count == 0:
                    read, _ = yield from self.load_pair(self.read)
                    if self.full(read, position) != position:
                        yield from self.step_tail(view, 0, 0, tail, None)
                        continue
                elif place < self.protocol.messages:
                    mark = yield from self.read_mark(view, place)
                    if mark > 0:
                        yield from self.step_tail(view, place, mark, tail, None)
                        continue
            view = count = read = mark = None
            if not self.does("second load of tail"):
                return
            again = yield load(self.tail)
            if again == tail:
                return
            del again

    def rewind(self, slot: int | None, beyond: int) -> Steps:
        claimed: Any
        after: Any
        sequence: Any
        write: Any
        write = yield from self.load_pair(self.write)
        tail = yield load(self.tail)
        position = tail[0]
        offset = position & self.mask
        granules = self.capacity - offset
        if not self.same_position(write[0], position) or offset <= beyond:
            return
        if slot is not None:
            yield from self.begin_push(slot, granules, 0, write)
            claimed = yield from self.shared_claim(slot, write, position, granules, 0, PAD)
            if not claimed:
                yield from self.set_state(slot, FREE)
                return
        else:
            after = self.source(write[0] + granules, write[1])
            found = yield exchange(self.write, write, after)
            if found != write:
                return
            yield ghost(self.note_claim, position, granules, 0, PAD)
        sequence = write[1]
        if self.protocol.narrow is not None:
            near = yield load(self.sequence)
            sequence = self.full_sequence(sequence, near)
            del near
        yield from self.write_pad(position, sequence, 0)
        yield from self.publish(slot, position, granules)
        claimed = found = after = sequence = write = None
        read = yield from self.load_pair(self.read)
        if self.same_position(read[0], position) and read[1][0] == 0:
            if slot is not None:
                yield from self.help_taker(0, read)
            after = self.read_word(position + granules, 0, NO_TAKER, 0)
            found = yield exchange(self.read, read, after)
            if found == read:
                yield ghost(self.note_pass, position + granules)
        yield from self.advance_tail()

    # ---------------------------------------------------------------- dead participants

    def tidy(self) -> Steps:
        """Tidy up after all dead participants, under the lock for that."""
        yield lock(self.recovery)
        killed = yield load(DEAD)
        if killed:
            yield from self.tidy_up(_numbers(killed), alone=False)
        yield store(self.recovery, 0)

    def tidy_up(self, dead: tuple[int, ...], alone: bool) -> Steps:
        for slot in dead:
            yield from self.settle_take(slot)
        yield from self.advance_tail()
        for slot in dead:
            yield from self.orphan_take(slot)
        yield from self.fill_holes(dead, alone)
        for slot in dead:
            kind = yield from self.kind_of(slot)
            if kind == PUSHING:
                yield from self.set_state(slot, FREE)
        yield from self.advance_tail()

    def settle_take(self, slot: int) -> Steps:
        kind = yield from self.kind_of(slot)
        if kind != PREPARED:
            return
        number = yield load(self.slot_source[slot])
        seen = yield from self.load_pair(self.source_word(number))
        after = yield from self.load_pair(self.after[slot])
        if seen == after:
            yield from self.set_state(slot, HELD)
            return
        kind = PREPARED
        if self.does("second load of state"):
            kind = yield from self.kind_of(slot)
        if kind == PREPARED:
            yield from self.set_state(slot, FREE)

    def orphan_take(self, slot: int) -> Steps:
        kind = yield from self.kind_of(slot)
        if kind == HELD:
            before = yield from self.load_pair(self.before[slot])
            after = yield from self.load_pair(self.after[slot])
            start = yield from self.first_unreleased(before, after)
            if start is None:
                yield from self.set_state(slot, FREE)
                return
            old = before
            if self.protocol.narrow is None:
                old = yield from self.load_pair(self.left[slot])
            turn = old[1][2] + 1 if self.does("turn") else 0
            left = self.read_word(*start, NO_TAKER, turn)
            yield from self.store_pair(self.left[slot], left)
            yield from self.set_state(slot, ORPHAN)
            yield add(self.deaths, 1)
        elif kind == ORPHAN:
            left = yield from self.load_pair(self.left[slot])
            after = yield from self.load_pair(self.after[slot])
            if _place_in(left) == _place_in(after):
                yield from self.help_taker(slot + 1, left)
                yield from self.set_state(slot, FREE)
            else:
                yield add(self.deaths, 1)

    def first_unreleased(
        self, before: Pair, after: Pair
    ) -> Generator[Any, Any, tuple[int, int] | None]:
        tail = yield load(self.tail)
        position, place = self.full(before[0], tail[0]), before[1][0]
        end = (self.full(after[0], tail[0]), after[1][0])
        if (position, place) < tail:
            position, place = tail
        while (position, place) < end:
            view = yield from self.peek_frame(position)
            if view is None:
                return None
            count = yield load(self.count[position & self.mask])
            if count > 0:
                many = yield from self.read_mark(view, place)
                if many == 0:
                    return position, place
                place += many
                if place < count:
                    continue
            position += view.granules
            place = 0
        return None

    def fill_holes(self, dead: tuple[int, ...], alone: bool) -> Steps:
        while True:
            start, _ = yield load(self.tail)
            position = start
            while True:
                write = yield from self.load_pair(self.write)
                index = self.index[position & self.mask]
                tag = yield load(index)
                slot = _claimer(tag, position)
                if slot is None:
                    if tag[0] > 0 and tag[1] == position:
                        position += tag[0]
                        continue
                    break
                if self.protocol.narrow is None:
                    after = yield from self.load_pair(self.after[slot])
                    base = yield from self.load_pair(self.before[slot])
                    granules, count = after[0] - base[0], after[1] - base[1]
                else:
                    granules, count = yield load(self.size[slot])
                    base = yield load(self.base[slot])
                    after = self.source(base[0] + granules, base[1] + count)
                again = yield load(index)
                if again != tag and self.does("second load of the tag"):
                    continue
                yield from self.move_write(slot, base)
                if slot not in dead:
                    position += granules
                    continue
                if alone:
                    found = yield exchange(self.write, after, base)
                    if found == after:
                        yield ghost(self.note_back, position)
                    if found in (after, base):
                        yield store(index, (0, 0))
                        yield from self.set_state(slot, FREE)
                        break
                sequence = base[1]
                if self.protocol.narrow is not None:
                    near = yield load(self.sequence)
                    sequence = self.full_sequence(sequence, near)
                yield from self.write_pad(position, sequence, count)
                yield ghost(self.note_pad, position)
                yield from self.publish(slot, position, granules)
                position += granules
            slot = tag = again = index = None
            if self.same_position(position, write[0]):
                return
            now, _ = yield load(self.tail)
            if now == start:
                return
            del now

    # ---------------------------------------------------------------- ghosts

    def note_claim(
        self, words: list[Any], actor: int, position: int, granules: int, count: int, message: int
    ) -> None:
        end, number = words[self.g_end]
        if position != end:
            raise Violation(f"claims at {position}, where `write` is not: {end}")
        words[self.g_frames] += (Ghost(position, granules, number, count, message, False),)
        words[self.g_end] = (end + granules, number + count)

    def note_publish(self, words: list[Any], actor: int, position: int) -> None:
        frames = words[self.g_frames]
        for at, frame in enumerate(frames):
            if frame.position == position:
                words[self.g_frames] = (
                    *frames[:at],
                    frame._replace(published=True),
                    *frames[at + 1 :],
                )
                if frame.message != PAD:
                    words[self.g_published] |= _bits(frame.first_seq, frame.count)
                return
        raise Violation(f"publishes at {position}, where nothing was claimed")

    def note_pad(self, words: list[Any], actor: int, position: int) -> None:
        """What a dead process had claimed will never come."""
        frames = words[self.g_frames]
        for at, frame in enumerate(frames):
            if frame.position == position:
                if frame.published and frame.message != PAD:
                    raise Violation(f"makes a pad of the frame at {position}, which is published")
                pad = frame._replace(message=PAD)
                words[self.g_frames] = (*frames[:at], pad, *frames[at + 1 :])
                return
        raise Violation(f"makes a pad at {position}, where nothing was claimed")

    def note_back(self, words: list[Any], actor: int, position: int) -> None:
        """The last claim is as if it had never been."""
        last = words[self.g_frames][-1]
        if last.position != position or last.published:
            raise Violation(f"takes back a claim at {position}, which is not the last one")
        words[self.g_frames] = words[self.g_frames][:-1]
        words[self.g_end] = (position, last.first_seq)

    def note_take(self, words: list[Any], actor: int, source: int, take: Take) -> None:
        """After the exchange of a source word: what was taken is what was next."""
        taken = _bits(take.first_seq, take.count)
        if self.protocol.shared:
            actor = take.next[1][1] - 1  # one participant may act for several
        out = words[self.g_out]
        if source == 0:
            if words[self.g_taken] & taken:
                raise Violation(f"takes message {take.first_seq} a second time")
            position, place = words[self.g_read]
            left, number = take.count, take.first_seq
            for frame in words[self.g_frames]:
                if frame.position < position:
                    continue
                if left == 0:
                    break
                if not frame.published:
                    raise Violation(f"takes from {position} what is not published")
                if frame.message != PAD:
                    if frame.first_seq + place != number:
                        raise Violation(
                            f"takes message {number} where {frame.first_seq + place} is next: "
                            "of an older round, or out of order"
                        )
                    many = min(frame.count - place, left)
                    left -= many
                    number += many
                    place += many
                    if place < frame.count:
                        break
                position, place = frame.position + frame.granules, 0
            if left > 0:
                raise Violation("takes more messages than there are")
            words[self.g_read] = (position, place)
        else:
            if words[self.g_released] & taken:
                raise Violation(f"takes message {take.first_seq} after it was released")
            for other, has in enumerate(out):
                if has & taken and not words[DEAD] >> other & 1:
                    raise Violation(f"takes message {take.first_seq}, which another one has")
            out = tuple(has & ~taken for has in out)
        words[self.g_taken] |= taken
        words[self.g_out] = (*out[:actor], out[actor] | taken, *out[actor + 1 :])

    def note_pass(self, words: list[Any], actor: int, position: int) -> None:
        """`read` was moved over a pad that nothing follows."""
        words[self.g_read] = (position, 0)

    def note_copy(self, words: list[Any], actor: int, number: int, message: int) -> None:
        for frame in words[self.g_frames]:
            if frame.first_seq <= number < frame.first_seq + frame.count and frame.message != PAD:
                if message != frame.message + number - frame.first_seq:
                    raise Violation(f"reads another message than was pushed as number {number}")
                return
        raise Violation(f"reads message {number}, which `tail` has passed")

    def note_done(self, words: list[Any], me: int, actor: int | None, number: int) -> None:
        """It reads no more in the frame in which this message is."""
        actor = me if actor is None else actor
        out = list(words[self.g_out])
        for frame in words[self.g_frames]:
            if frame.first_seq <= number < frame.first_seq + frame.count:
                out[actor] &= ~_bits(frame.first_seq, frame.count)
        words[self.g_out] = tuple(out)

    def note_release(self, words: list[Any], actor: int, number: int, count: int) -> None:
        words[self.g_released] |= _bits(number, count)

    # ---------------------------------------------------------------- invariants

    def check(self, words: list[Any]) -> None:
        """After each step: tail ≤ read ≤ write ≤ tail + capacity.

        And `tail` passes only what was released.
        """
        tail, read, write = words[self.tail], words[self.read], words[self.write]
        now = (tail, read, write, words[self.g_end])
        if words[self.g_checked] == now:
            return
        words[self.g_checked] = now
        frames = words[self.g_frames]
        gone = 0
        for frame in frames:
            if frame.position >= tail[0] and (frame.position, 0) >= tail:
                break
            past = frame.position + frame.granules <= tail[0]
            count = frame.count if past else tail[1]
            if frame.message != PAD and _bits(frame.first_seq, count) & ~words[self.g_released]:
                raise Violation(f"`tail` passes a message at {frame.position} that is not released")
            if not past:
                break
            if words[self.g_read][0] < frame.position + frame.granules:
                raise Violation(f"`tail` passes a frame at {frame.position} that is not read")
            gone += 1
        if gone:
            words[self.g_frames] = frames = frames[gone:]
        end, number = words[self.g_end]
        at = self.full(read[0], tail[0]), read[1][0]
        if at != words[self.g_read]:
            raise Violation(f"`read` is at {at}, and all before {words[self.g_read]} was taken")
        if at < tail:
            raise Violation(f"`tail` {tail} is beyond `read` {at}")
        if end > tail[0] + self.capacity:
            raise Violation(f"claims up to {end}, more than one lap from `tail` {tail[0]}")
        unmoved = self.source(frames[-1].position, frames[-1].first_seq) if frames else None
        if write != self.source(end, number) and (not self.protocol.shared or write != unmoved):
            raise Violation(f"`write` is {write}, and the claims go to {end}")
        if at[0] > end or (
            write == unmoved and self.protocol.shared and at[0] > frames[-1].position
        ):
            raise Violation(f"`read` {at} is beyond `write` {write}")

    def check_tail(self, words: list[Any]) -> None:
        """At rest `tail` stands before what is not released."""
        position, place = words[self.tail]
        read = words[self.g_read]
        if words[self.g_frames] and (position, place) < read:
            frame = words[self.g_frames][0]
            done = frame.message == PAD or words[self.g_released] >> frame.first_seq + place & 1
            if done:
                raise Violation(f"`tail` stands at {position}, {place}, which is released")

    def at_end(self, state: tuple[Any, ...]) -> None:
        """When all have ended, nothing is lost and a whole lap has room."""
        words = list(state[: len(self.memory.values)])
        dead = _numbers(words[DEAD])
        me = self.protocol.participants
        slot = me if self.protocol.shared else None

        def run(steps: Steps) -> Any:
            nonlocal words
            words, result = run_alone(words, steps, me, self.check)
            return result

        def drain(take: Callable[[], Steps]) -> None:
            while (taken := run(take())) is not None:
                run(self.release(slot, taken))

        if dead:
            run(self.tidy_up(dead, alone=len(dead) == self.protocol.participants))
        self.check_tail(words)
        if slot is not None:
            drain(lambda: self.take_orphan(slot, self.protocol.messages))
        drain(lambda: self.take(slot, self.protocol.messages))
        if dead:
            run(self.tidy_up(dead, alone=False))
        lost = words[self.g_published] & ~words[self.g_released]
        if lost:
            raise Violation(f"messages {_numbers(lost)} are lost")
        for granules in (self.capacity, 1):
            if not run(self.push(slot, granules, 1, 1000)):
                raise Violation(f"no room for {granules} granules, and the ring is empty")
            drain(lambda: self.take(slot, 1))
        end = words[self.g_end][0]
        if words[self.tail] != (end, 0) or words[self.g_read] != (end, 0) or words[self.g_frames]:
            raise Violation(f"`tail` is {words[self.tail]}, though all up to {end} is released")
        if slot is not None:
            for number in range(me + 1):
                kind = words[self.state[number]][1]
                if kind != FREE:
                    raise Violation(f"the slot of participant {number} is left as {kind}")


def _nearest(low: int, near: int, bits: int) -> int:
    """The value with these low bits that is nearest to `near`."""
    half = 1 << bits - 1
    return near + ((low - near + half) & (1 << bits) - 1) - half


def _claimer(tag: tuple[int, int], position: int) -> int | None:
    """The slot that claimed at `position`, if the tag says so."""
    return -tag[0] - 1 if tag[0] < 0 and tag[1] == position else None


def _place_in(source: Pair) -> tuple[int, int]:
    """Position and place.

    A push may use the pair by now: its sequence number has no high bits.
    """
    return source[0], source[1][0] if isinstance(source[1], tuple) else 0


def _bits(first: int, count: int) -> int:
    return ((1 << count) - 1) << first


def _numbers(bits: int) -> tuple[int, ...]:
    return tuple(number for number in range(bits.bit_length()) if bits >> number & 1)


def script(ring: Ring, number: int, *operations: tuple[Any, ...]) -> Callable[[], Steps]:
    """A participant that does these operations, one after the other:

    ("push", granules, count)
    ("take", most)
    ("orphan", most)                take from an ORPHAN
    ("release", n, beyond)          release its n-th take, if there was anything to take
    ("tidy",)                       tidy up after dead participants
    ("as", other)                   go on as another participant, without a script
    ("dies", n), ("is born", n)     that one is killed; a new one has its slot
    """

    def steps() -> Steps:
        held: tuple[Take | None, ...] = ()
        slot = number if ring.protocol.shared else None
        for at, full in enumerate(operations):
            operation, arguments = full[0], full[1:]
            if operation == "push":
                yield from ring.push(slot, arguments[0], arguments[1], 1000 * number + 10 * at)
            elif operation == "take":
                take = yield from ring.take(slot, *arguments)
                held = (*held, take)
            elif operation == "orphan":
                assert slot is not None
                take = yield from ring.take_orphan(slot, *arguments)
                held = (*held, take)
            elif operation == "release":
                take = held[arguments[0]]
                if take is not None:
                    yield from ring.release(slot, take, *arguments[1:])
            elif operation == "tidy":
                yield from ring.tidy()
            elif operation == "as":
                slot = arguments[0]
            elif operation == "dies":
                yield add(DEAD, 1 << arguments[0])
            else:
                _, kind = yield load(ring.state[arguments[0]])
                assert kind == FREE, "a participant slot that is not clean is not taken"
                yield add(DEAD, -1 << arguments[0])
            take = kind = None

    return steps
