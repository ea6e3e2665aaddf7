"""Value models: how good will a partial program become?

A value model gives a number in [0, 1] at every line end of a program. Two heads stand behind one interface:

    scalar    a backbone with a scalar head: transformers' AutoModelForSequenceClassification(num_labels=1)
    additive  a small head on the policy's own states and log-probabilities; free while the policy decodes

Importing this module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.records import Problem

if TYPE_CHECKING:
    from restrl.policy.local import LocalPolicy, TokenScorer

Aggregate = Literal["min", "last", "product"]
ADDITIVE_CONFIG = "additive_head.json"  # marks a folder that holds an additive head


@dataclass(frozen=True)
class LineValues:
    """Values along one program.

    ends    character offsets into the program, increasing: after each line past what was known before, and
            its end
    values  value in [0, 1] of the program cut at each end
    tokens  tokens that a model read for them (0 if they were by-products of decoding). Programs that are
            scored together share their prefixes: what is read once counts once, for the first of them
    """

    ends: tuple[int, ...]
    values: tuple[float, ...]
    tokens: int = 0

    def at(self, end: int) -> float:
        """The value of the program cut at character `end`. Raises KeyError if that is no line end."""
        try:
            return self.values[self.ends.index(end)]
        except ValueError:
            raise KeyError(end) from None

    @property
    def last(self) -> float:
        """The value of the whole program."""
        return self.values[-1]

    def aggregate(self, how: Aggregate) -> float:
        """One score for the program: the smallest, the last or the product of its values at line ends."""
        if how == "min":
            return min(self.values)
        return self.last if how == "last" else math.prod(self.values)


class ValueModel(Protocol):
    """Anything that scores programs."""

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[LineValues]:
        """Values at `line_ends` of every (problem, whole program), in order.

        Raises RestrlError for a program that is too long for the model or does not start with the problem's
        prefix, and for a value that is not a number.
        """
        ...

    def save(self, folder: str | Path) -> None:
        """Write what `load_value` reads."""
        ...


@runtime_checkable
class FreeValueModel(ValueModel, Protocol):
    """A value model that reads what the policy computes while it decodes, and so costs no pass of its own."""

    @property
    def policy(self) -> LocalPolicy:
        """The policy whose states it reads."""
        ...

    def token_scorer(self, policy: LocalPolicy) -> TokenScorer:
        """What LocalPolicy.complete takes as token_scorer. Raises RestrlError if the head does not fit."""
        ...

    def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """The policy's completions, with scores."""
        ...

    def line_values_from_completion(
        self, problem: Problem, prompt: Prompt, completion: Completion
    ) -> LineValues:
        """Values of `finished(prompt.state, completion.text)` at its line ends past the prompt's state."""
        ...


@runtime_checkable
class RememberingValueModel(ValueModel, Protocol):
    """A value model that can keep, for the time of a search, what it has read of the problems."""

    def remembering(self) -> AbstractContextManager[None]:
        """Within it `score` does not read a problem's text twice; the weights must not change."""
        ...


def remembering(model: ValueModel) -> AbstractContextManager[None]:
    """What a search runs its calls of `score` in: the model's own `remembering`, or nothing special."""
    return model.remembering() if isinstance(model, RememberingValueModel) else nullcontext()


def finished(state: str, text: str) -> str:
    """The program that a completion makes of a state: trailing white space stripped, one newline at the end.

    The same as the search does, so that equal completions are equal programs everywhere.
    """
    return state + text.rstrip() + "\n"


def line_ends(program: str, start: int) -> list[int]:
    """Character offsets after each newline past `start`, and the end of the program."""
    ends = [i + 1 for i in range(start, len(program)) if program[i] == "\n"]
    return ends if ends and ends[-1] == len(program) else [*ends, len(program)]


def checked(problem: Problem, program: str) -> str:
    """The program, if it starts with the problem's prefix. Raises RestrlError otherwise."""
    if not program.startswith(problem.prefix):
        raise RestrlError(
            f"{problem.task_id}: a program to be scored does not start with the problem's code; "
            "give whole programs, not completions"
        )
    return program


def to_values(problem: Problem, ends: Sequence[int], values: Sequence[float], tokens: int = 0) -> LineValues:
    """Clamp to [0, 1]. Raises RestrlError if a value is not a number."""
    if any(math.isnan(v) for v in values):
        raise RestrlError(
            f"{problem.task_id}: the value model gave NaN; its weights are damaged or its dtype is too "
            "narrow (try float32)"
        )
    return LineValues(tuple(ends), tuple(min(1.0, max(0.0, float(v))) for v in values), tokens)


def load_value(folder: str | Path, *, policy: LocalPolicy, max_length: int = 2048) -> ValueModel:
    """The value model in `folder`, whichever head it is.

    policy: gives the additive head its states, and the scalar head a device, a batch size, and a tokenizer
    if the folder has none. Raises RestrlError for a folder that holds no value model or does not fit the
    policy.
    """
    folder = Path(folder)
    if (folder / ADDITIVE_CONFIG).exists():
        from restrl.value.additive import AdditiveValue

        return AdditiveValue.load(folder, policy, max_length=max_length)
    if (folder / "config.json").exists():
        from restrl.value.scalar import ScalarValue

        return ScalarValue.load(folder, policy, max_length=max_length)
    raise RestrlError(
        f"{folder}: no value model here: neither {ADDITIVE_CONFIG} nor a Hugging Face config.json; "
        "train one with `restrl train-value`"
    )
