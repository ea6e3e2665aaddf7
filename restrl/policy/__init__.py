"""Policies: whatever completes a prompt. The whole of restrl runs on any object with `complete`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from restrl.policy.batch import TokenScorer


@dataclass(frozen=True)
class Prompt:
    """What to continue: `header` (chat turns, instruction) followed by `state` (the program so far).

    key          names this request for the random generator: equal keys and seeds draw equal samples
    answer_from  characters of header + state before the program's own text (what a value head does not score)
    token_ids    exact ids of header + state where they are known; tokenised from the text otherwise
    """

    header: str
    state: str
    key: str
    answer_from: int = 0
    token_ids: tuple[int, ...] | None = None

    @property
    def text(self) -> str:
        return self.header + self.state


@dataclass(frozen=True)
class Sampling:
    """How to draw. temperature 0 is greedy; `stop` strings end a completion and are cut from its text."""

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One sample.

    text         without the stop string that ended it and without special tokens
    token_ids    `[T]` sampled ids, the end-of-sequence token and tokens of the stop string included
    log_probs    `[T]` log-probability of each id under the policy at temperature 1 (nats, float32)
    finish       "eos", "stop" (a stop string) or "length"
    prompt_token_ids  the ids that were actually continued
    scores       `[T]` token scores of a value head that read the policy's states while it decoded (float32)
    prefix_score sum of that head's scores over the program tokens of the prompt
    """

    text: str
    token_ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    log_probs: NDArray[np.float32] | None = None
    finish: Literal["eos", "stop", "length"] = "stop"
    prompt_token_ids: tuple[int, ...] = ()
    scores: NDArray[np.float32] | None = None
    prefix_score: float = 0.0


class Policy(Protocol):
    """Anything that completes prompts."""

    def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """`n` completions for each request, in order; sample i depends on (seed, key, i) alone."""
        ...


@dataclass(frozen=True, eq=False)
class Ask:
    """`n` completions of a prompt, each cut at these stop strings."""

    prompt: Prompt
    n: int
    stop: tuple[str, ...] = ()


class CompletionStream(Protocol):
    """A running batch that requests join and leave."""

    @property
    def busy(self) -> bool:
        """Whether completions are under way."""
        ...

    @property
    def hungry(self) -> bool:
        """Whether more requests than it has would find a place."""
        ...

    def advance(self, asks: list[Ask]) -> list[tuple[Ask, list[Completion]]]:
        """Take these in, decode until some are answered, and return those.

        What runs together follows from the sequence of these calls alone.
        """
        ...


@runtime_checkable
class StreamingPolicy(Policy, Protocol):
    """A policy whose running batch can be joined: no row waits for the longest completion of a batch."""

    def stream(self, sampling: Sampling, token_scorer: TokenScorer | None = None) -> CompletionStream:
        """An empty batch; every completion is what `complete` gives. sampling.stop gives way to Ask.stop."""
        ...
