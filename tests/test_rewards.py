"""Rewards for TRL: the contract, and the real trainer on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make_tiny_qwen2

from restrl.errors import RestrlError
from restrl.records import Asserts, Check, Problem, Stdio
from restrl.rewards import TestsPassed, program_of, rows

PREFIX = 'def add(x, y):\n    """Sum."""\n'
COMPLETE = Problem(
    task_id="a/1", source="humaneval", prompt=PREFIX, mode="complete", prefix=PREFIX, entry_point="add",
    tests=Check(code="def check(c):\n    assert c(1, 2) == 3\n", entry_point="add"),
)  # fmt: skip
INSTRUCT = Problem(
    task_id="b/2", source="mbpp", prompt="Write a function inc.", mode="instruct", entry_point="inc",
    tests=Asserts(asserts=["assert inc(1) == 2", "assert inc(2) == 3"]),
)  # fmt: skip


@pytest.fixture(scope="module")
def reward() -> Iterator[TestsPassed]:
    made = TestsPassed(workers=1)
    yield made
    made.close()


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def test_what_the_program_of_a_completion_is() -> None:
    assert program_of(COMPLETE, "    return x + y\n\ndef main(): pass") == PREFIX + "    return x + y\n"
    code = "def inc(x):\n    return x + 1"
    assert program_of(INSTRUCT, said(f"So:\n```python\n{code}\n```\nor\n```\nno\n```")) == code
    assert program_of(INSTRUCT, said(f"```py\n{code}")) == code  # cut off before the fence was closed
    assert program_of(INSTRUCT, said(code)) == code
    assert program_of(INSTRUCT, [*said(f"```\n{code}\n```"), {"role": "tool", "content": "x"}]) == code
    assert program_of(INSTRUCT, [{"role": "assistant", "content": None}]) == ""


def test_the_contract(reward: TestsPassed) -> None:
    table = rows([COMPLETE, INSTRUCT])
    assert [row["task_id"] for row in table] == ["a/1", "b/2"]
    completions = ["    return x + y\n", "    return x - y\n", "def inc(x): return 2\n", "   "]
    columns = {key: [table[0][key]] * 2 + [table[1][key]] * 2 for key in table[0]}
    metrics: dict[str, float] = {}
    found = reward(
        columns["prompt"], completions, completion_ids=[[1]] * 4, problem=columns["problem"],
        task_id=columns["task_id"], trainer_state=None, log_metric=metrics.__setitem__,
    )  # fmt: skip
    assert found == [1.0, 0.0, 0.5, 0.0]
    assert metrics == {"verifier/passed": 0.25, "verifier/timeout": 0, "verifier/infrastructure_error": 0}
    assert reward(["", ""], completions[:2], problem=[None, columns["problem"][0]]) == [None, 0.0]
    assert reward.__name__ == "tests_passed"


def test_what_could_not_be_judged_has_no_reward(reward: TestsPassed) -> None:
    fatal = Check(code="import os\ndef check(c): os._exit(1)", entry_point="add")
    broken = COMPLETE.model_copy(update={"tests": fatal})
    assert reward([""], ["    return 0"], problem=[broken.model_dump_json()]) == [None]


def test_problems_by_task_id_and_all_or_nothing() -> None:
    made = TestsPassed([COMPLETE, INSTRUCT], all_or_nothing=True, workers=1)
    chats = [said("```\ndef inc(x): return x + 1\n```"), said("def inc(x): return 2")]
    assert made(["", ""], chats, task_id=["b/2", "b/2"]) == [1.0, 0.0]
    assert made([""], chats[:1], task_id=[None]) == [None]
    with pytest.raises(RestrlError, match="'c/3' is none of the problems"):
        made([""], chats[:1], task_id=["c/3"])
    with pytest.raises(RestrlError, match='no column "task_id"'):
        made([""], chats[:1])
    made.close()
    made.close()


def test_mistakes_are_named(reward: TestsPassed) -> None:
    with pytest.raises(RestrlError, match=r'no column "problem".*restrl\.rewards\.rows'):
        reward([""], [""])
    with pytest.raises(RestrlError, match='column "problem": no problem record'):
        reward([""], [""], problem=['{"task_id": 3}'])


def test_rows_of_a_chat_say_how_the_program_is_run() -> None:
    echo = Problem(
        task_id="c", source="apps", prompt="Echo.", mode="instruct", tests=Stdio(inputs=["a"], outputs=["a"])
    )
    (row,) = rows([echo], chat=True)
    assert row["prompt"][0]["role"] == "user"
    assert "standard input" in row["prompt"][0]["content"]
    assert Problem.model_validate_json(row["problem"]) == echo


@pytest.mark.parametrize("chat", [False, True])
def test_inside_the_real_trainer(chat: bool, tmp_path: Path, reward: TestsPassed) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoTokenizer

    folder = make_tiny_qwen2(tmp_path / "model", chat_template=chat)
    seen: list[tuple[Any, list[float | None]]] = []

    def watched(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        found = reward(prompts, completions, **columns)
        seen.append((completions, found))
        return found

    watched.__name__ = reward.__name__
    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=2, num_generations=2, per_device_train_batch_size=2,
        max_completion_length=8, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=str(folder),
        processing_class=AutoTokenizer.from_pretrained(folder),
        reward_funcs=watched,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows([COMPLETE, INSTRUCT], chat=chat)),
    )
    trainer.train()
    assert len(seen) == 2
    assert all(isinstance(c, list if chat else str) for batch, _ in seen for c in batch)
    assert all(found == [0.0, 0.0] for _, found in seen)  # a random model's programs
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert [entry["rewards/tests_passed/mean"] for entry in logged] == [0.0, 0.0]
    assert [entry["verifier/passed"] for entry in logged] == [0.0, 0.0]
