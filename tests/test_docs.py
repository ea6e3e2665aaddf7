"""The documentation says what the code does: configuration keys, rows that load, links and names."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from tiny_models import make_tiny_qwen2

from restrl import config
from restrl.config import (
    METHODS,
    AssembleConfig,
    CollectConfig,
    DecodeConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    ValueConfig,
)  # fmt: skip
from restrl.demo.table import KEPT
from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.local import LocalPolicy
from restrl.problems import FORMATS, load_problems
from restrl.prompts import PromptFormat
from restrl.records import Problem
from restrl.rows import read_rows
from restrl.sandbox import Verdict, Verifier
from restrl.sandbox.settings import TIERS
from restrl.stages.assemble import assemble
from restrl.stages.collect import collect
from restrl.stages.decode import decode_problems
from restrl.stages.evaluate import evaluate
from restrl.stages.sample import sample
from restrl.stages.verify import verify_file
from restrl.training.grpo import train_grpo
from restrl.training.rollout import TrainState
from restrl.training.sft import train_sft
from restrl.value import LineValues, line_ends
from restrl.value.train import LEARNING_RATE, train_value

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": RunConfig,
    **{
        f"[{name}]": field.annotation
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    },
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands below the heading `title`, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {title!r}"
    return found[1]


def table(text: str) -> dict[str, list[str]]:
    """First cell (without back-ticks) -> the other cells of every row of the tables in `text`."""
    rows = [
        [c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"
    ]
    return {row[0].strip("|` "): [c.strip("| ") for c in row[1:]] for row in rows if row[0].startswith("`")}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section that are no sections themselves."""
    return {
        name: field
        for name, field in model.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }


def choices(annotation: Any) -> set[str]:
    """Every value that a Literal, or a union with one, allows."""
    if get_origin(annotation) is Literal:
        return {str(value) for value in get_args(annotation)}
    return set[str]().union(*map(choices, get_args(annotation)))


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_and_default_stands_in_the_configuration_page(title: str) -> None:
    rows, fields = table(section(page("config.md"), title)), keys(SECTIONS[title])
    assert list(rows) == list(fields)
    for name, field in fields.items():
        kind, default = rows[name][:2]
        if name == "methods":
            assert field.default == [m for m in METHODS if m != "oracle"]
            assert default == "all but `oracle`"
            assert all(f"`{m}`" in section(page("config.md"), title) for m in METHODS)
            continue
        if field.default is PydanticUndefined:
            assert default == "required", name
        elif field.default is None:
            assert default == "none", name
        else:
            written = tomllib.loads(f"value = {default.strip('`')}")["value"]
            assert (written, type(written)) == (field.default, type(field.default)), name
        for choice in choices(field.annotation):
            assert f"`{choice}`" in kind, f"{name}: {choice}"
        for limit in field.metadata:
            if isinstance(limit, Ge):
                assert f"≥ {limit.ge}" in kind, name
            if isinstance(limit, Gt):
                assert f"> {limit.gt}" in kind or f"({limit.gt}, " in kind, name
            if isinstance(limit, Le):
                assert f", {limit.le}]" in kind, name


def test_the_example_has_every_key_at_its_default() -> None:
    (text,) = blocks(page("config.md"), "toml")
    commented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    data = tomllib.loads(text)
    run = config.parse(data)
    config.parse(tomllib.loads(commented))
    required = {"out": run.out, "model": {"path": run.model.path}, "problems": {"train": run.problems.train}}
    assert run == config.parse(required)
    for title, model in SECTIONS.items():
        name = title.strip("[]")
        with_comments = tomllib.loads(commented)
        assert keys(model).keys() <= (with_comments if name == "Top level" else with_comments[name]).keys()
        given = data if name == "Top level" else data[name]
        unset = [k for k, f in keys(model).items() if f.default is None]
        assert unset == [k for k in keys(model) if k not in given]


def test_the_default_rates_of_the_value_heads() -> None:
    row = table(section(page("config.md"), "[value]"))["learning_rate"]
    said = re.search(r"none: (\S+) for scalar, (\S+) for additive", row[-1])
    assert said
    assert {"scalar": float(said[1]), "additive": float(said[2])} == LEARNING_RATE


# -- formats.md

PROBLEM_ROWS = [(name, text) for name in FORMATS for text in blocks(page("formats.md"), f"json {name}")]


def example(name: str) -> Any:
    """The one example of a record."""
    (text,) = blocks(page("formats.md"), f"json {name}")
    return json.loads(text)


def load(folder: Path, text: str, format: str = "auto") -> Problem:
    path = folder / "problems.jsonl"
    path.write_text(json.dumps(json.loads(text)) + "\n", encoding="utf-8")
    (problem,) = load_problems(path, format)
    return problem


def test_every_problem_format_has_an_example_that_is_recognised(tmp_path: Path) -> None:
    assert {name for name, _ in PROBLEM_ROWS} == set(FORMATS)
    for name, text in PROBLEM_ROWS:
        assert load(tmp_path, text) == load(tmp_path, text, name)
    kinds = {load(tmp_path, text).tests.kind for name, text in PROBLEM_ROWS if name == "restrl"}
    assert kinds == {"calls", "stdio", "asserts", "check", "inputs", "unittest", "context"}


def test_the_references_of_the_examples_pass(tmp_path: Path) -> None:
    problems = [load(tmp_path, text) for _, text in PROBLEM_ROWS]
    items = [(p, p.reference) for p in problems if p.reference is not None]
    assert {p.source for p in problems if p.reference is None} == {"livecodebench"}  # has none
    with Verifier(workers=1) as verifier:
        assert [v.status for v in verifier.verify(items)] == ["passed"] * len(items)


class Liar:
    """A policy and value model that know one good and one bad ending."""

    def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        texts = ["    b = a[::-1] + [6]\n    return b\n", "    return a\n"]
        ids, log_probs = np.arange(9), np.zeros(9, np.float32)
        return [[Completion(texts[i % 2], ids, log_probs, "eos") for i in range(n)] for _ in requests]

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[LineValues]:
        ends = [tuple(line_ends(program, len(problem.prefix))) for problem, program in items]
        return [LineValues(e, (0.5,) * len(e), 20) for e in ends]

    def save(self, folder: str | Path) -> None:
        raise AssertionError


def shape(value: Any) -> Any:
    """The keys of nested records; of a list its first entry's."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def test_the_records_of_a_run_have_the_keys_of_the_examples(tmp_path: Path) -> None:
    problem = load(tmp_path, PROBLEM_ROWS[0][1])
    liar, form, by_id = Liar(), PromptFormat(), {problem.task_id: problem}
    answers, found = tmp_path / "answers.jsonl", {}
    with Verifier(workers=1) as v:
        samples = sample(liar, form, [problem], v, SamplingConfig(n=2), tmp_path / "s.jsonl", seed=0)
        states = assemble(samples, by_id, AssembleConfig(), tmp_path / "states.jsonl", seed=0)
        cfg = CollectConfig(simulations=1, k=2)
        trees = collect(liar, form, [problem], v, cfg, tmp_path / "targets.jsonl", seed=0)
        rows = decode_problems(
            liar, form, [problem], DecodeConfig(methods=["vm-mcts"], budget=2, k=2), answers, seed=0,
            values={"scalar": liar}, verifier=v,
        )  # fmt: skip
        evaluate(rows, by_id, v, tmp_path, seed=0)
    verify_file(
        tmp_path / "problems.jsonl", tmp_path / "samples.jsonl", tmp_path / "v.jsonl", workers=1, quiet=True
    )
    found["sample"], found["state"], found["collect"], found["decode"] = (
        samples[0],
        states[-1],
        trees[0],
        rows[0],
    )
    found["tree"] = json.loads((tmp_path / "targets.tree.json").read_text())
    found["evaluate"] = json.loads((tmp_path / "results.json").read_text())
    found["answer"] = read_rows(tmp_path / "samples.jsonl")[0]
    found["verify"] = read_rows(tmp_path / "v.jsonl")[0]
    assert {name: shape(row) for name, row in found.items()} == {name: shape(example(name)) for name in found}


def test_every_number_of_a_training_stands_in_the_page(tmp_path: Path) -> None:
    problems = [load(tmp_path, text) for _, text in PROBLEM_ROWS[:4]]
    policy = LocalPolicy(make_tiny_qwen2(tmp_path / "tiny"), device="cpu")
    cfg = TrainConfig(max_steps=1, num_generations=2, prompts_per_step=1, max_completion_length=4)
    states = [TrainState(problems[0], Prompt("", problems[0].prefix, "k"), "bare", ())]

    def reward(_: Any, completions: list[list[Completion]]) -> list[list[float | None]]:
        return [[i / len(group) for i in range(len(group))] for group in completions]

    grpo = train_grpo(policy, states, reward, cfg, tmp_path / "grpo", seed=0).rows[0]
    sft = train_sft(policy.model, policy.tokenizer, [("a", "b")], cfg, tmp_path / "sft", seed=0).rows[0]
    text = section(page("formats.md"), "metrics.jsonl")
    said = set(re.findall(r"`([\w/]+)`", text))
    bins = sorted(name for name in grpo if name.startswith("reward_std/bin_"))
    assert f"`{bins[0]}` ... `{bins[-1]}`" in text
    assert (grpo.keys() | sft.keys()) - set(bins) <= said

    rows = [
        {
            "task_id": p.task_id,
            "program": p.prefix + "x\n",
            "ends": [len(p.prefix) + 2],
            "values": [0.5],
            "visits": [1],
        }
        for p in problems
    ]
    value = ValueConfig(epochs=1)
    train_value(value, rows, {p.task_id: p for p in problems}, policy, tmp_path / "value", seed=0)
    summary = json.loads((tmp_path / "value" / "value.json").read_text())
    assert set(summary) == set(re.findall(r"`(\w+)`", section(page("formats.md"), "value.json"))) - {"eval_"}
    training = read_rows(tmp_path / "value" / "train" / "metrics.jsonl")
    assert set().union(*training) <= said


def test_the_demo_rows_have_the_keys_of_the_example() -> None:
    assert list(example("report")) == ["policy", "decoding", "value_head", "budget", *KEPT]


# -- all pages

OWN = (
    "config.md",
    "formats.md",
    "kernels.md",
    "losses.md",
    "method.md",
    "search.md",
    "security.md",
    "verifier.md",
)


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", OWN)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page(name)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = ROOT / "docs" / (path or name)
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", OWN)
def test_places_in_the_code_exist(name: str) -> None:
    """`folder/file.py:name` and `folder/file.cpp:name`."""
    places = re.findall(r"`((?:restrl|csrc)/[\w/.]+\.(?:py|cpp|h))(?::([\w.]+))?`", page(name))
    for path, names in places:
        text = (ROOT / path).read_text(encoding="utf-8")
        defined = (
            r"^\s*(?:def|class) {0}\b|^{0}\b.* = |^{0}: "
            if path.endswith(".py")
            else r"(?:class|struct) {0}\b|{0}::|\b{0}\("
        )
        for part in filter(None, names.split(".")):
            assert re.search(defined.format(part), text, re.MULTILINE), f"{path}:{names}"


@pytest.mark.parametrize("name", OWN)
def test_lines_fit(name: str) -> None:
    rows = "security.md"  # its tables name system calls; a row cannot be broken
    long = [line for line in page(name).splitlines() if len(line) > 125]
    assert [line for line in long if name != rows or line[0] != "|"] == []


# -- method.md


def test_the_example_of_a_search_works(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = blocks(page("method.md"), "python search")
    exec(source, {})
    assert capsys.readouterr().out.startswith("def f():\n    return 3\n")


# -- verifier.md


def test_the_example_of_a_new_format_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = blocks(page("verifier.md"), "python format")
    names: dict[str, Any] = {}
    exec(source, names)
    monkeypatch.setitem(FORMATS, "livecodebench", (names["KEYS"], names["livecodebench"]))
    cases = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    row = {"question_id": "q1", "question_content": "Add.", "public_test_cases": json.dumps(cases)}
    problem = load(tmp_path, json.dumps(row))
    with Verifier(workers=1) as verifier:
        assert verifier.verify([(problem, "print(sum(map(int, input().split())))")])[0].passed
    row["public_test_cases"] = '[{"input": "1"}]'
    with pytest.raises(RestrlError, match=r"problems\.jsonl:1: key 'public_test_cases' holds a case without"):
        load(tmp_path, json.dumps(row))


def test_every_status_and_tier_stands_in_the_verifier_page() -> None:
    text = page("verifier.md")
    known = re.search(r"failed, error, timeout,.*?infrastructure_error", Verdict.__doc__ or "", re.DOTALL)
    assert known
    statuses = set(
        re.findall(r"\b(?:[a-z]+_[a-z]+|failed|error|timeout|memory|crashed|unserialisable)\b", known[0])
    )
    assert set(table(section(text, "Verdicts"))) == statuses | {"passed"}
    assert set(table(section(text, "Isolation"))) == set(TIERS)


def test_the_readme_s_example_of_a_loss_works(capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = re.findall(
        r"^```python loss\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    exec(source, names := {})
    assert names["hidden"].grad.abs().sum() > 0
    assert names["lm_head"].grad.abs().sum() > 0
    assert capsys.readouterr().out == "tensor([ 0.7070, -0.7070])\n"
