"""A programming task whose truth is known: what the price of leaves in flight is measured on.

A hidden program has 12 to 18 lines. At line i the policy writes one of two right wordings with probability
p_i, else one of four wrong ones. Every wrong line costs half of the tests and cannot be repaired: the reward
is 2^-(wrong lines), and a program is right at reward 1. The true value of a partial program is its expected
reward: 2^-(wrong lines so far) times the product of (1 + p_i) / 2 over the lines to come. The value model
sees it on the logit scale through a normal error of standard deviation `noise`, fixed for every state and
correlated by CARRY with its parent's: as with a trained model, asking twice does not help, and a misjudged
line is misjudged in all programs that contain it.

The completions of a state depend on (seed, problem, tree, state) alone. Searches that come to the same state
get the same ones, whatever their parameters: their differences are as well paired as can be.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

RIGHT, WRONG = 2, 4  # wordings of a line
LINES = (12, 18)
CARRY = 0.7  # correlation of a state's error with its parent's
LEAST = 0.02  # true values are cut to [LEAST, 1 - LEAST] before the noise

_NORMAL = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(65536)]


@dataclass(frozen=True)
class Task:
    """A problem: `chances[i]` is how likely the policy writes line i rightly."""

    name: str
    chances: tuple[float, ...]

    def value(self, state: str) -> float:
        """Expected reward of what the policy makes of `state`; of a whole program its reward."""
        to_come = self.chances[state.count("\n") :]
        return 0.5 ** state.count("w") * math.prod((1 + p) / 2 for p in to_come)


def tasks(count: int, seed: int = 0, lines: tuple[int, int] = LINES) -> list[Task]:
    """Problems of which two lines in three are easy (p .8 to 1) and the third is hard (.25 to .6)."""
    out = []
    for number in range(count):
        rng = random.Random(f"leaves: task {seed} {number}")
        length = rng.randint(*lines)
        chances = [
            rng.uniform(0.8, 1) if rng.random() < 2 / 3 else rng.uniform(0.25, 0.6) for _ in range(length)
        ]
        out.append(Task(f"task {seed} {number}", tuple(chances)))
    return out


@dataclass
class Model:
    """Policy and value model of one task; what was asked once is kept."""

    task: Task
    seed: int
    noise: float
    root: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    drawn: dict[tuple[int, str], list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.task.name} {self.seed}"

    def completions(self, tree: int, state: str, k: int) -> list[str]:
        """`k` rests of the program, without the last newline; the first of them are the same for any k."""
        known = self.drawn.setdefault((tree, state), [])
        if len(known) < k:
            chances = self.task.chances[state.count("\n") :]
            rng = random.Random(f"{self.name} {tree} {len(known)} {state}")
            known += ["\n".join(_line(rng.random(), p) for p in chances) for _ in range(k - len(known))]
        return known[:k]

    def tokens(self, tree: int, state: str, k: int) -> int:
        """What the first `k` completions took to write: a line is the token of this task."""
        return k * (len(self.task.chances) - state.count("\n"))

    def score(self, state: str) -> float:
        """The value model's opinion of a partial or whole program."""
        known = self.scores.get(state)
        if known is None:
            truth = min(max(self.task.value(state), LEAST), 1 - LEAST)
            logit = math.log(truth / (1 - truth)) + self.noise * self._error(state)
            known = self.scores[state] = 1 / (1 + math.exp(-logit))
        return known

    def _error(self, state: str) -> float:
        """Standard normal."""
        known = self.errors.get(state)
        if known is None:
            digest = hashlib.blake2b(f"{self.name} {state}".encode(), digest_size=2).digest()
            known = _NORMAL[int.from_bytes(digest, "little")]
            parent = state[: state.rfind("\n", 0, -1) + 1]
            if parent:
                known = CARRY * self._error(parent) + math.sqrt(1 - CARRY**2) * known
            self.errors[state] = known
        return known

    def reward(self, program: str) -> float:
        return 0.5 ** program.count("w")

    def judge(
        self, answer: str, programs: Sequence[str], nodes: Sequence[tuple[str, float]]
    ) -> dict[str, float]:
        """What only the truth can tell.

        right  the answer is right
        found  a right program is among `programs`
        error  root mean square of V minus the true value over `nodes`, the expanded ones
        """
        squares = [(V - self.task.value(state)) ** 2 for state, V in nodes]
        return {
            "right": float("w" not in answer),
            "found": float(any("w" not in program for program in programs)),
            "error": math.sqrt(sum(squares) / len(squares)),
        }

    def best_of(self, n: int) -> dict[str, float]:
        """The one of highest score of `n` independent programs."""
        programs = [text + "\n" for text in self.completions(-1, "", n)]
        return self.judge(max(programs, key=self.score), programs, [("", 0.0)])


def _line(draw: float, chance: float) -> str:
    """Right below `chance`; the rest of the draw picks the wording."""
    if draw < chance:
        return f"r{int(draw / chance * RIGHT)}"
    return f"w{int((draw - chance) / (1 - chance) * WRONG)}"
