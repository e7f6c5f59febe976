"""Every interleaving of a few participants over shared memory: an explicit-state model
checker.

Memory is a tuple of words, each of any hashable value. A participant is a generator
that yields its next step (`load`, `store`, `exchange` …) and is sent the result.
Between two steps any other participant may run; the code between them touches nothing
that is shared. It may also yield `ghost`, which records something for the checks in the
same moment as the step before.

`explore` visits each state that can be reached once, depth first, with sequential
consistency: it finds wrong protocols, not missing barriers. Two states are the same if
memory is the same and each participant stands at the same line with the same local
variables. So a local variable must be hashable, and nothing may depend on what a
generator keeps elsewhere: the middle of an expression, or an iterator whose loop
variable does not tell how far it has come.

It raises Counterexample for

    a Violation      raised by a ghost, by `check` (after each step that changes
                     memory), or by `at_end`
    a standstill     no participant can go on, and not all have ended
    a livelock       a state that comes again: an endless schedule in which no operation
                     ends. Without one every operation is lock-free, as a participant's
                     progress is part of the state
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

__all__ = [
    "Counterexample",
    "Memory",
    "Report",
    "Violation",
    "add",
    "DEAD",
    "exchange",
    "explore",
    "get",
    "ghost",
    "load",
    "lock",
    "put",
    "run_alone",
    "store",
]

Step = tuple[Any, ...]
Program = Generator[Step, Any, Any]
Words = tuple[Any, ...]
State = tuple[int, ...]
#: A state, and the participant that took the last step.
_Place = tuple[State, int]

LOAD, STORE, EXCHANGE, ADD, GET, PUT, LOCK, GHOST = range(8)

#: The word that tells which participants were killed: a bit for each.
DEAD = 0


def load(word: int) -> Step:
    """The value of the word."""
    return LOAD, word


def store(word: int, value: object) -> Step:
    return STORE, word, value


def exchange(word: int, expected: object, desired: object) -> Step:
    """Compare and exchange; what was found. Done if that is what was expected."""
    return EXCHANGE, word, expected, desired


def add(word: int, number: int) -> Step:
    return ADD, word, number


def get(word: int, half: int) -> Step:
    """Half of a pair, which is loaded by itself."""
    return GET, word, half


def put(word: int, half: int, value: object) -> Step:
    """Store half of a pair."""
    return PUT, word, half, value


def lock(word: int) -> Step:
    """Wait until a lock is free (0), or its holder was killed. A store unlocks."""
    return LOCK, word


def ghost(note: Callable[..., None], *arguments: object) -> Step:
    """`note(words, participant, *arguments)` in the same moment as the step before.

    It may change the list `words`.
    """
    return GHOST, note, arguments


class Violation(Exception):
    """An invariant does not hold."""


class Counterexample(AssertionError):
    """A schedule that ends in a violation: `schedule`, a line a step, and `reason`."""

    def __init__(self, reason: str, schedule: list[str]) -> None:
        super().__init__("\n".join([reason, *schedule]))
        self.reason = reason
        self.schedule = schedule


@dataclasses.dataclass(frozen=True)
class Report:
    states: int
    steps: int
    #: States in which no participant can go on.
    ends: int


class Memory:
    """Names and first values of words."""

    def __init__(self) -> None:
        self.names: list[str] = ["dead"]
        self.values: list[Any] = [0]

    def word(self, name: str, value: Any) -> int:
        self.names.append(name)
        self.values.append(value)
        return len(self.names) - 1

    def words(self, name: str, value: Any, count: int) -> list[int]:
        return [self.word(f"{name}[{number}]", value) for number in range(count)]


class _Node:
    """Where a participant stands: its next step, and its place after each result."""

    __slots__ = ("edges", "generator", "number", "origin", "participant", "step")

    def __init__(
        self,
        number: int,
        participant: int,
        step: Step | None,
        generator: Program | None,
        origin: tuple[_Node, Any] | None,
    ) -> None:
        self.number = number
        self.participant = participant
        self.step = step
        self.generator = generator
        self.origin = origin
        self.edges: dict[Any, _Node] = {}


_KILLED = 0
_ENDED = -1
_NODE_BITS = 24


class _Explorer:
    """A state is (number of the memory, number of each participant's node).

    A choice is the number of a participant that takes a step, or ~number: it is killed.
    """

    def __init__(
        self,
        memory: Memory,
        programs: Sequence[tuple[str, Callable[[], Program]]],
        check: Callable[[list[Any]], None],
        at_end: Callable[[Words], None],
        killable: Iterable[int],
        kills: int,
    ) -> None:
        self.names = memory.names
        self.programs = programs
        self.check = check
        self.at_end = at_end
        self.killable = sorted(killable)
        self.kills = kills
        self.memories: list[Words] = []
        self.numbers: dict[Words, int] = {}
        self.nodes: list[_Node] = [_Node(_KILLED, -1, None, None, None)]
        #: What the next step of each node is: LOAD … GHOST, or _ENDED.
        self.kinds = [_ENDED]
        self.known: dict[Any, _Node] = {}
        #: By memory and node: a step depends on nothing else.
        self.moves: dict[int, tuple[int, int]] = {}
        starts = []
        for number, (_, start) in enumerate(programs):
            generator = start()
            starts.append(self.stand(number, generator, next(generator), None).number)
        self.start: State = (self.number_of(tuple(memory.values)), *starts)

    def number_of(self, words: Words) -> int:
        number = self.numbers.get(words)
        if number is None:
            number = self.numbers[words] = len(self.memories)
            self.memories.append(words)
        return number

    # ---------------------------------------------------------------- participants

    def stand(
        self,
        participant: int,
        generator: Program,
        step: Step | None,
        origin: tuple[_Node, Any] | None,
    ) -> _Node:
        """Where a participant stands whose generator has come to this step."""
        key: list[Any] = [participant]
        if step is not None:
            inner: Any = generator
            while inner is not None:
                frame = inner.gi_frame
                shared = frame.f_code.co_freevars
                # By name: they come in the order in which they were first set.
                own = sorted(item for item in frame.f_locals.items() if item[0] not in shared)
                key += (frame.f_code, frame.f_lasti, *own)
                inner = inner.gi_yieldfrom
        found = self.known.get(tuple(key))
        if found is None:
            found = _Node(len(self.nodes), participant, step, generator, origin)
            self.nodes.append(found)
            self.kinds.append(_ENDED if step is None else step[0])
            self.known[tuple(key)] = found
        assert found.step == step, "local variables do not tell everything"
        return found

    def after(self, node: _Node, result: Any) -> _Node:
        found = node.edges.get(result)
        if found is None:
            generator, node.generator = node.generator, None
            if generator is None:  # it has gone on by another result: here again
                generator = self.replay(node)
            try:
                step = generator.send(result)
            except StopIteration:
                step = None
            found = node.edges[result] = self.stand(
                node.participant, generator, step, (node, result)
            )
        return found

    def replay(self, node: _Node) -> Program:
        results = []
        while node.origin is not None:
            node, result = node.origin
            results.append(result)
        generator = self.programs[node.participant][1]()
        next(generator)
        for result in reversed(results):
            generator.send(result)
        return generator

    # ---------------------------------------------------------------- steps

    def choices(self, state: State, last: int) -> list[int]:
        """What may come next.

        The end of the list is tried first: to go on with the last one.
        """
        kinds = self.kinds
        able = []
        for number in range(len(state) - 1, 0, -1):
            at = state[number]
            if kinds[at] == _ENDED or number - 1 == last:
                continue
            if kinds[at] != LOCK or self.is_free(state[0], at):
                able.append(number - 1)
        if last >= 0:
            at = state[last + 1]
            if kinds[at] != _ENDED and (kinds[at] != LOCK or self.is_free(state[0], at)):
                able.append(last)
        if self.kills and self.kills > self.memories[state[0]][DEAD].bit_count():
            return [~number for number in self.killable if kinds[state[number + 1]] >= 0] + able
        return able

    def is_free(self, memory: int, at: int) -> bool:
        words, step = self.memories[memory], self.nodes[at].step
        assert step is not None
        holder = words[step[1]]
        return bool(holder == 0 or words[DEAD] >> holder - 1 & 1)

    def go_on(self, state: State, choice: int) -> State:
        """The state after that, or Violation."""
        new = list(state)
        if choice < 0:
            words = list(self.memories[state[0]])
            words[DEAD] |= 1 << ~choice
            new[0] = self.number_of(tuple(words))
            new[~choice + 1] = _KILLED
        else:
            key = state[0] << _NODE_BITS | state[choice + 1]
            move = self.moves.get(key)
            if move is None:
                move = self.moves[key] = self.move(state[0], state[choice + 1])
            new[0], new[choice + 1] = move
        return tuple(new)

    def move(self, memory: int, at: int) -> tuple[int, int]:
        words = list(self.memories[memory])
        node = self.nodes[at]
        assert node.step is not None
        result = _perform(node.step, words, node.participant)
        changed = node.step[0] not in (LOAD, GET)
        node = self.after(node, result)
        while node.step is not None and node.step[0] == GHOST:
            changed = True
            node.step[1](words, node.participant, *node.step[2])
            node = self.after(node, None)
        if changed:
            self.check(words)
            memory = self.number_of(tuple(words))
        return memory, node.number

    def finish(self, state: State) -> None:
        """In a state in which no participant can go on."""
        left = [
            name
            for (name, _), at in zip(self.programs, state[1:], strict=True)
            if self.kinds[at] != _ENDED
        ]
        if left:
            raise Violation(f"a standstill: {', '.join(left)} cannot go on")
        self.at_end(self.memories[state[0]])

    # ---------------------------------------------------------------- schedules

    def tell(self, choices: Sequence[int]) -> list[str]:
        """A schedule in words."""
        lines = []
        last = None
        state = self.start
        for choice in choices:
            participant = choice if choice >= 0 else ~choice
            name = self.programs[participant][0]
            step = self.nodes[state[participant + 1]].step
            assert step is not None
            text = "is killed"
            if choice >= 0:
                text = _told(step, self.names[step[1]], self.memories[state[0]][step[1]])
            with contextlib.suppress(Violation):
                state = self.go_on(state, choice)
            lines.append(f"{name if name != last else '':>14}  {text}")
            last = name
        return lines

    def simplest(self, limit: int) -> Counterexample | None:
        """The counterexample of the fewest switches, unless more states than that are
        before it.

        It does not look for livelocks.
        """
        first: _Place = (self.start, -1)
        came: dict[_Place, tuple[_Place, int] | None] = {first: None}
        done: set[_Place] = set()
        waiting = deque([first])

        def schedule(place: _Place, *more: int) -> list[str]:
            found = list(more)
            while (origin := came[place]) is not None:
                place, choice = origin
                found.insert(0, choice)
            return self.tell(found)

        while waiting and len(came) < limit:
            place = waiting.popleft()
            if place in done:
                continue
            done.add(place)
            state, last = place
            choices = self.choices(state, last)
            if all(choice < 0 for choice in choices):
                try:
                    self.finish(state)
                except Violation as violation:
                    return Counterexample(str(violation), schedule(place))
            for choice in choices:
                try:
                    after = self.go_on(state, choice)
                except Violation as violation:
                    return Counterexample(str(violation), schedule(place, choice))
                following = (after, choice if choice >= 0 else last)
                if following not in came:
                    came[following] = (place, choice)
                    if choice == last:
                        waiting.appendleft(following)
                    else:
                        waiting.append(following)
        return None


def _perform(step: Step, words: list[Any], participant: int) -> Any:
    """Do a step; its result."""
    kind, word = step[0], step[1]
    if kind == LOAD:
        return words[word]
    if kind == STORE:
        words[word] = step[2]
    elif kind == EXCHANGE:
        found = words[word]
        if found == step[2]:
            words[word] = step[3]
        return found
    elif kind == ADD:
        words[word] += step[2]
    elif kind == GET:
        return words[word][step[2]]
    elif kind == PUT:
        pair = words[word]
        words[word] = (step[3], pair[1]) if step[2] == 0 else (pair[0], step[3])
    elif kind == LOCK:
        words[word] = participant + 1
    return None


def _told(step: Step, word: str, value: Any) -> str:
    """A step in words, before it is done."""
    kind = step[0]
    half = (".position", ".rest")[step[2]] if kind in (GET, PUT) else ""
    if kind == LOAD:
        return f"{word} is {value}"
    if kind == GET:
        return f"{word}{half} is {value[step[2]]}"
    if kind == EXCHANGE and value != step[2]:
        return f"{word} is {value}, not {step[2]}: no exchange"
    if kind == EXCHANGE:
        return f"{word} := {step[3]}, was {value}"
    if kind == LOCK:
        return f"{word} is locked"
    return f"{word}{half} := {value + step[2] if kind == ADD else step[-1]}"


def explore(
    memory: Memory,
    programs: Sequence[tuple[str, Callable[[], Program]]],
    *,
    check: Callable[[list[Any]], None] = lambda state: None,
    at_end: Callable[[Words], None] = lambda words: None,
    killable: Iterable[int] = (),
    kills: int = 0,
    most_states: int = 1_000_000,
) -> Report:
    """Look at every state that the participants can bring about. Raises Counterexample.

    check: called with the words after each step that changes memory; it may change
        ghosts.
    at_end: called with the words of each state in which all have ended or were killed.
    killable: participants of which up to `kills` are killed, each before any of its
        steps.
    """
    explorer = _Explorer(memory, programs, check, at_end, killable, kills)
    on_path, done = 1, 2
    colors: dict[State, int] = {explorer.start: on_path}
    #: States, what is still to be tried there, and what is being tried.
    path: list[tuple[State, list[int]]] = []
    tried: list[int] = []
    steps = ends = 0

    def fail(reason: str, livelock: bool = False) -> Counterexample:
        found = None if livelock else explorer.simplest(most_states)
        return found or Counterexample(reason, explorer.tell(tried))

    def enter(state: State, last: int) -> None:
        nonlocal ends
        choices = explorer.choices(state, last)
        path.append((state, choices))
        if not choices or choices[-1] < 0:
            ends += 1
            try:
                explorer.finish(state)
            except Violation as violation:
                raise fail(str(violation)) from None

    enter(explorer.start, -1)
    while path:
        state, choices = path[-1]
        if not choices:
            colors[state] = done
            path.pop()
            if tried:
                tried.pop()
            continue
        choice = choices.pop()
        steps += 1
        try:
            after = explorer.go_on(state, choice)
        except Violation as violation:
            tried.append(choice)
            raise fail(str(violation)) from None
        color = colors.get(after)
        if color is None:
            tried.append(choice)
            colors[after] = on_path
            assert len(colors) <= most_states, "more states than a test has time for"
            enter(after, choice if choice >= 0 else -1)
        elif color == on_path:
            tried.append(choice)
            raise fail("a livelock: after the last step all is as it was before", livelock=True)
    return Report(len(colors), steps, ends)


def run_alone(
    words: Sequence[Any],
    program: Program,
    participant: int,
    check: Callable[[list[Any]], None],
    most_steps: int = 10_000,
) -> tuple[list[Any], Any]:
    """Run one participant to its end, alone.

    Returns the words after that, and what the program returned.
    """
    state = list(words)
    try:
        step = next(program)
        for _ in range(most_steps):
            result = _perform(step, state, participant)
            step = program.send(result)
            while step[0] == GHOST:
                step[1](state, participant, *step[2])
                step = program.send(None)
            check(state)
    except StopIteration as end:
        check(state)
        return state, end.value
    raise Violation("an operation does not end, though no other runs")
