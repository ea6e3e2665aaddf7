"""Verified rewards for TRL: a reward function with the contract of its GRPO and RLOO trainers.

    trl grpo --dataset_name FOLDER --reward_funcs restrl.rewards.tests_passed ...

or `GRPOTrainer(reward_funcs=TestsPassed(workers=8), train_dataset=Dataset.from_list(rows(problems)), ...)`.
Neither imports TRL: the contract is (prompts, completions, **columns) -> list of floats, None where a
completion has no reward.
"""

from __future__ import annotations

import atexit
import functools
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from restrl.errors import RestrlError
from restrl.prompts import PromptFormat, cut_at_stop, instruction
from restrl.records import Problem
from restrl.sandbox import Verifier

Completion = str | list[dict[str, Any]]
"""What TRL hands over: text, or the messages of an assistant's turn."""

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


def rows(problems: Iterable[Problem], *, chat: bool = False) -> list[dict[str, Any]]:
    """Rows of a TRL dataset: {"prompt", "task_id", "problem" (the whole record as JSON)}.

    chat  prompts are conversations: the problem in words, answered with a whole program. Otherwise they are
          text that the model continues, as everywhere in restrl.
    """
    form = PromptFormat(None)
    return [
        {
            "prompt": [{"role": "user", "content": instruction(problem)}]
            if chat
            else form.header(problem) + problem.prefix,
            "task_id": problem.task_id,
            "problem": problem.model_dump_json(),
        }
        for problem in problems
    ]


def program_of(problem: Problem, completion: Completion) -> str:
    """The program that a completion is.

    Text continues the problem's prefix, up to the first stop string. In the messages of a chat it is the
    first fenced block of the last message that has text, or all of that text.
    """
    if isinstance(completion, str):
        return problem.prefix + cut_at_stop(completion, PromptFormat(None).stops(problem), problem.prefix)[0]
    texts = [message.get("content") for message in completion if message.get("role") == "assistant"]
    text = next((t for t in reversed(texts) if isinstance(t, str) and t.strip()), "")
    fenced = _FENCED.search(text)
    return fenced[1] if fenced else text


class TestsPassed:
    """The share of a problem's tests that each completion passes, in [0, 1]; a reward function for TRL.

    Without `problems` they are read from the column "problem" (see `rows`); with them they are found by the
    column "task_id". A completion whose cell is None (a row of another task) has no reward, and neither has
    one that could not be judged. The verifier is started at the first call, in every process of the training
    one; it ends with the process, or by `close`.

    all_or_nothing  1 for programs that pass every test, else 0; judging stops at the first that fails
    options         those of `restrl.sandbox.Verifier`
    """

    __test__ = False  # no test class of pytest's

    def __init__(
        self, problems: Iterable[Problem] | None = None, *, all_or_nothing: bool = False, **options: Any
    ) -> None:
        self.__name__ = "tests_passed"  # TRL's metrics are named by it
        self._problems = None if problems is None else {p.task_id: p for p in problems}
        self._all_or_nothing, self._options = all_or_nothing, options
        self._verifier: Verifier | None = None
        self._lock = threading.Lock()

    @property
    def verifier(self) -> Verifier:
        with self._lock:
            if self._verifier is None:
                self._verifier = Verifier(**self._options)
                atexit.register(self.close)
            return self._verifier

    def close(self) -> None:
        with self._lock:
            verifier, self._verifier = self._verifier, None
        if verifier is not None:
            atexit.unregister(self.close)
            verifier.close()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        *,
        problem: Sequence[str | None] | None = None,
        task_id: Sequence[str | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """TRL's contract. Raises RestrlError where no column says what the problems are."""
        owners = self._owners(len(completions), problem, task_id)
        verifier = self.verifier
        pending = [
            None
            if owner is None
            else verifier.submit(owner, program_of(owner, text), early_exit=self._all_or_nothing)
            for owner, text in zip(owners, completions, strict=True)
        ]
        verdicts = [None if one is None else one.result() for one in pending]
        judged = [v for v in verdicts if v is not None]
        if log_metric is not None and judged:  # always the same ones: TRL averages them over processes
            for status in ("passed", "timeout", "infrastructure_error"):
                log_metric(f"verifier/{status}", sum(v.status == status for v in judged) / len(judged))
        return [None if v is None else v.reward for v in verdicts]

    def _owners(
        self, count: int, problem: Sequence[str | None] | None, task_id: Sequence[str | None] | None
    ) -> list[Problem | None]:
        if self._problems is None:
            if problem is None:
                raise RestrlError(
                    'the dataset has no column "problem": make it with restrl.rewards.rows, or give '
                    'TestsPassed the problems and the dataset a column "task_id"'
                )
            return [None if text is None else _parsed(text) for text in problem]
        if task_id is None:
            raise RestrlError('the dataset has no column "task_id", by which TestsPassed finds its problems')
        unknown = [i for i in task_id if i is not None and i not in self._problems]
        if unknown:
            raise RestrlError(f"task_id {unknown[0]!r} is none of the problems that TestsPassed was given")
        return [None if i is None else self._problems[i] for i in task_id]


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Problem:
    try:
        return Problem.model_validate_json(text)
    except ValidationError as error:
        where = error.errors()[0]
        place = ".".join(map(str, where["loc"]))
        raise RestrlError(f'column "problem": no problem record ({place}: {where["msg"]})') from None


_shared = TestsPassed()


def tests_passed(
    prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
) -> list[float | None]:
    """`TestsPassed` with its defaults, for `trl grpo --reward_funcs restrl.rewards.tests_passed`."""
    return _shared(prompts, completions, **columns)


vars(tests_passed)["__test__"] = False
