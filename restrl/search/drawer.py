"""A policy as the place that a search's completions come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from restrl.policy import Ask, Completion, CompletionStream, Policy, Prompt, Sampling, StreamingPolicy
from restrl.policy.grouped import complete_grouped
from restrl.prompts import PromptFormat
from restrl.records import Problem
from restrl.search.records import Answered, Request, Source
from restrl.value import FreeValueModel, ValueModel


@dataclass(frozen=True)
class Drawer:
    """Completions of partial programs, cut at the stop strings of their problems.

    problems  by the key of their trees
    sampling  its stop strings give way to the problems'
    value     scores the completions on the way if it is free on this policy
    """

    policy: Policy
    form: PromptFormat
    problems: Mapping[str, Problem]
    sampling: Sampling
    value: ValueModel | None = None

    def complete(self, requests: list[Request]) -> list[list[Completion]]:
        """One batch, for any policy: a call of it for every set of stop strings and number of samples."""
        draw = self.policy.complete
        if isinstance(self.value, FreeValueModel) and self.value.policy is self.policy:
            draw = self.value.complete
        owners = [self.problems[request.key] for request in requests]
        prompts = [self.prompt(request) for request in requests]
        return complete_grouped(draw, self.form, owners, prompts, [r.k for r in requests], self.sampling)

    def source(self) -> Source | None:
        """The running batch of a policy that has one, requests of all stop strings together; else None."""
        if not isinstance(self.policy, StreamingPolicy):
            return None
        scorer = None
        if isinstance(self.value, FreeValueModel) and self.value.policy is self.policy:
            scorer = self.value.token_scorer(self.value.policy)
        return _PolicySource(self, self.policy.stream(self.sampling, scorer))

    def prompt(self, request: Request) -> Prompt:
        return self.form.prompt(self.problems[request.key], request.state, request.seed_key)


class _PolicySource:
    """A CompletionStream as the Source of a search."""

    def __init__(self, drawer: Drawer, stream: CompletionStream) -> None:
        self._drawer, self._stream = drawer, stream
        self._open: dict[Ask, Request] = {}

    @property
    def busy(self) -> bool:
        return self._stream.busy

    @property
    def hungry(self) -> bool:
        return self._stream.hungry

    def advance(self, requests: list[Request]) -> Answered:
        asks = []
        for request in requests:
            problem = self._drawer.problems[request.key]
            ask = Ask(self._drawer.prompt(request), request.k, self._drawer.form.stops(problem))
            self._open[ask] = request
            asks.append(ask)
        return [(self._open.pop(ask), samples) for ask, samples in self._stream.advance(asks)]
