"""Equal states of one tree share their scores: what a value model has said there, by program and by state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from restrl.value import LineValues, line_ends


class StateScores:
    """The values in one tree: of every program scored, and of every state that such a program runs through.

        fresh = scores.missing(programs)                     # equal programs are scored once in a tree
        for program, values in zip(fresh, model.score([(problem, p) for p in fresh])):
            scores.record(program, values)                   # values.tokens: what the model read for it
        scores.of(program), scores.value(state)              # shared by all that are equal

    The first value of a state stays its value: a value model may see a little past a line end (a token may
    cover the newline and the indentation after it), so that programs with a common state need not agree there
    to the last bit. Where a seed is to fix the tree, programs are recorded in an order that the seed fixes
    too: that in which the tree takes its answers, not that in which they arrive.

    A whole program and the state of the same text are two things, as they are for the value model (the one
    is finished): `of` and `record` end with the program's value, `value` answers for the state.

    hits  programs that were not asked for again, and states that were found
    """

    def __init__(self, start: int) -> None:
        """start: characters of the problem's prefix; what follows it is kept line by line, no line twice."""
        self.start, self.hits = start, 0
        self._programs: dict[str, LineValues] = {}
        self._states: dict[tuple[int, str], int] = {}  # (state before, line) -> state; 0 is the prefix
        self._values: list[float | None] = [None]  # by state

    def __len__(self) -> int:
        """Programs recorded."""
        return len(self._programs)

    def missing(self, programs: Iterable[str]) -> list[str]:
        """Those without values, each once, in order: what the value model is to be asked for."""
        wanted = list(programs)
        fresh = [p for p in dict.fromkeys(wanted) if p not in self._programs]
        self.hits += len(wanted) - len(fresh)
        return fresh

    def record(self, program: str, values: LineValues) -> LineValues:
        """Keep the values of a program that `missing` named, and return what the tree goes by from now on.

        Those are `values`, with the value that a state before the program's end has in this tree already.
        Ends that are no line ends past the prefix keep their values and are not shared. A program recorded
        before keeps its first values.
        """
        if program in self._programs:
            return self._programs[program]
        given = dict(zip(values.ends[:-1], values.values[:-1], strict=True))
        state, before = 0, self.start
        for end in line_ends(program, self.start)[:-1]:
            key = (state, program[before:end])
            state = self._states.setdefault(key, len(self._values))
            if state == len(self._values):
                self._values.append(None)
            known = self._values[state]
            if known is not None and end in given:
                given[end] = known
            elif known is None:
                self._values[state] = given.get(end)
            before = end
        kept = replace(values, values=(*given.values(), values.last))
        self._programs[program] = kept
        return kept

    def of(self, program: str) -> LineValues | None:
        """What the tree goes by for a whole program; None if it has not been recorded."""
        return self._programs.get(program)

    def value(self, state: str) -> float | None:
        """The value of a state (prefix and whole lines); None if no program with a value ran through it."""
        place, before = 0, self.start
        for end in line_ends(state, self.start) if len(state) > self.start else ():
            found = self._states.get((place, state[before:end]))
            if found is None:
                return None
            place, before = found, end
        known = self._values[place]
        self.hits += known is not None
        return known
