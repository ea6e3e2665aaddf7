"""Prompts whose domains end in different stop strings, completed in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from restrl.policy import Completion, Prompt, Sampling
from restrl.prompts import PromptFormat
from restrl.records import Problem

Complete = Callable[[list[Prompt], int, Sampling], list[list[Completion]]]  # a policy's `complete`


def complete_grouped(
    complete: Complete,
    form: PromptFormat,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    counts: Sequence[int],
    sampling: Sampling,
) -> list[list[Completion]]:
    """`counts[i]` completions of `prompts[i]`, cut at the stop strings of `problems[i]`, in order.

    One call of `complete` for every set of stop strings and count; `sampling.stop` is replaced.
    """
    kinds: dict[tuple[tuple[str, ...], int], list[int]] = {}
    for i, (problem, count) in enumerate(zip(problems, counts, strict=True)):
        kinds.setdefault((form.stops(problem), count), []).append(i)
    out: list[list[Completion]] = [[] for _ in prompts]
    for (stops, count), members in kinds.items():
        groups = complete([prompts[i] for i in members], count, replace(sampling, stop=stops))
        for i, group in zip(members, groups, strict=True):
            out[i] = group
    return out
