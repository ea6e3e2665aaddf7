"""A batch of the decode loop as a stream: prompts in, whole groups of completions out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from restrl.policy import Ask, Completion
from restrl.policy.batch import Batch, Request, split


@dataclass
class _Group:
    """A request under way, in parts of at most as many samples as there are rows."""

    ask: Ask
    parts: list[Request]
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.parts)

    def completions(self) -> list[Completion]:
        found = [part.done[i] for part in self.parts for i in range(part.copies)]
        return found if len(found) == self.ask.n else found * self.ask.n  # greedy: one for all


class LocalStream:
    """The CompletionStream of a LocalPolicy."""

    def __init__(
        self,
        batch: Batch,
        tokenised: Callable[[Ask], Request],
        evaluating: Callable[[], AbstractContextManager[None]],
        max_rows: int,
    ) -> None:
        self._batch, self._tokenised, self._evaluating = batch, tokenised, evaluating
        self._max_rows = max_rows
        self._groups: dict[int, _Group] = {}
        self._count = 0

    @property
    def busy(self) -> bool:
        return self._batch.busy

    @property
    def hungry(self) -> bool:
        return self._batch.hungry

    def advance(self, asks: list[Ask]) -> list[tuple[Ask, list[Completion]]]:
        """See CompletionStream; longest prompts first. Raises RestrlError as LocalPolicy.complete does."""
        new: list[Request] = []
        for ask in asks:
            request = self._tokenised(ask)
            request.owner = self._count
            self._groups[self._count] = _Group(ask, split(request, self._max_rows))
            new += self._groups[self._count].parts
            self._count += 1
        with self._evaluating():
            ended = self._batch.advance(sorted(new, key=lambda request: -len(request.ids)))
        answered = []
        for part in ended:
            group = self._groups[part.owner]
            group.left -= 1
            if not group.left:
                answered.append((group.ask, group.completions()))
                del self._groups[part.owner]
        return answered
