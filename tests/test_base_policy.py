"""The base policy's tokenizer, its recipe, the measures, and the shipped checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from restrl.assets import BASE_POLICY
from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.problems import pipelines
from restrl.recipes import base_policy
from restrl.recipes.base_policy import Recipe
from restrl.recipes.measure import measure
from restrl.records import Calls, Problem


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=["trained", "saved", "shipped"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As trained, as AutoTokenizer reads it back beside a qwen2 config, and the shipped one."""
    if request.param == "shipped":
        return AutoTokenizer.from_pretrained(BASE_POLICY)
    trained = base_policy.train_tokenizer(pipelines.corpus(600, 0), 400)
    if request.param == "trained":
        return trained
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(folder)
    base_policy.new_model(Recipe(hidden=16, heads=2, feed_forward=16, layers=1), trained).save_pretrained(
        folder
    )
    return AutoTokenizer.from_pretrained(folder)


def encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def test_text_survives_tokenising(tokenizer: Any) -> None:
    odd = [
        "",
        "\n\n  \n",
        "x = 'é 漢 \U0001f600'\t# ok  \n",
        "a  b   c\r\n",
        "class A:\n\n    def f(self):\n        pass",
    ]
    for text in [*odd, *pipelines.corpus(200, 7)]:
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_tokens_end_where_lines_end(tokenizer: Any) -> None:
    newline = encode(tokenizer, "\n")
    assert len(newline) == 1
    for text in pipelines.corpus(100, 8):
        whole = encode(tokenizer, text)
        assert whole.count(newline[0]) == text.count("\n")
        for cut in [i + 1 for i, c in enumerate(text) if c == "\n"]:
            assert encode(tokenizer, text[:cut]) + encode(tokenizer, text[cut:]) == whole


def test_both_ways_of_loading_give_the_same_ids() -> None:
    auto = AutoTokenizer.from_pretrained(BASE_POLICY)
    plain = PreTrainedTokenizerFast.from_pretrained(BASE_POLICY)
    for text in pipelines.corpus(200, 9):
        assert encode(auto, text) == encode(plain, text)
    assert auto.eos_token == plain.eos_token == "<eos>"
    assert auto.bos_token is None
    assert auto.chat_template is None


def test_longest_texts_fit_the_context(tokenizer: Any) -> None:
    lengths = [len(encode(tokenizer, text)) for text in pipelines.corpus(200, 1, difficulty=(12, 12))]
    assert max(lengths) < 0.9 * base_policy.CONTEXT


def test_batches_hold_whole_texts_that_grow_longer() -> None:
    recipe = Recipe(steps=320, batch=2, ramp=0.5, longest=12)
    tokenizer = base_policy.train_tokenizer(pipelines.corpus(300, 0), 400)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    most: list[int] = []
    filled = total = 0
    for ids, weights in base_policy.batches(recipe, tokenizer):
        assert torch.equal(weights > 0, ids != pad)
        filled, total = filled + int((ids != pad).sum()), total + ids.numel()
        operations = []
        for row, weight in zip(ids.tolist(), weights, strict=True):
            tokens = row[: row.index(end)]
            text = tokenizer.decode(tokens)
            operations.append(text.count(" = "))
            assert text.endswith("\n")
            assert row.count(end) == 1
            head = text[: text.index("def f(a):\n") + len("def f(a):\n")]
            spec = len(encode(tokenizer, head))
            assert weight[:spec].unique().tolist() == pytest.approx([recipe.spec_weight])
            assert weight[spec : len(tokens) + 1].unique().tolist() == [1.0]
        most.append(max(operations))
    assert len(most) == 320
    assert max(most[:64]) <= 3 < max(most[128:]) <= 12
    assert max(most[160:]) > 9
    assert filled > 0.85 * total


def test_recipe_learns_and_its_seed_fixes_the_weights(tmp_path: Any) -> None:
    options = ["--steps", "12", "--batch", "8", "--hidden", "32", "--layers", "1", "--feed-forward", "32"]
    options += ["--warmup", "3", "--measure", "0"]
    for name, seed in [("a", "0"), ("b", "0"), ("c", "1")]:
        base_policy.main(["--out", str(tmp_path / name), "--seed", seed, *options])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["train"]["loss"] < np.log(512) - 0.2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())


class Scripted:
    """Answers with given (text, log-probability) pairs; greedily with the first."""

    def __init__(self, answers: list[list[tuple[str, float]]]) -> None:
        self.answers = answers

    def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        return [
            [
                Completion(text, np.zeros(4, np.int64), np.array([score], np.float32))
                for text, score in own[:n]
            ]
            for own, _ in zip(self.answers, requests, strict=True)
        ]


def test_measures_by_hand() -> None:
    problems = pipelines.generate("dev", 3, seed=0, difficulty=(2, 4))
    # 20 samples: 5 right of low likelihood, 12 wrong ones that agree, 3 wrong ones that do not
    mixed = [("wrong", -1.0)] * 12 + [(f"odd{i}", -2.0) for i in range(3)] + [("right", -1.5)] * 5
    always = [("right", -1.0)] * 20
    rare = [("right", -1.0)] * 2 + [("wrong", -2.0)] * 18
    table = measure(
        Scripted([mixed, always, rare]),
        lambda items: [float(text.endswith("right")) for _, text in items],
        problems,
        samples=20,
    )
    # 15 of the 20 are wrong: 16 of them always hold a right one
    assert table["table"]["2"] == {
        "pass@1": 0.25,
        "greedy": 0.0,
        "vote@16": 0.0,
        "likelihood@16": 0.0,
        "oracle@16": 1.0,
        "reward": 0.25,
        "dead_groups": 1.0,
        "auc": 0.2,
    }
    assert table["table"]["3"]["pass@1"] == table["table"]["3"]["greedy"] == 1.0
    assert table["table"]["4"]["oracle@16"] == 0.968  # 1 - C(18, 16) / C(20, 16)
    assert table["table"]["4"]["likelihood@16"] == 1.0
    assert table["table"]["4"]["dead_groups"] == 0.0
    assert table["table"]["all"]["pass@1"] == 0.45
    assert table["table"]["all"]["auc"] == 0.6  # over the two mixed problems
    assert table["tokens_per_completion"] == 4
    with pytest.raises(RestrlError, match="15 samples are too few"):
        measure(Scripted([]), lambda items: [], [], samples=15)


def test_shipped_policy_is_small_and_loads_in_float32() -> None:
    files = [path for path in BASE_POLICY.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    model = AutoModelForCausalLM.from_pretrained(BASE_POLICY)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.model_type == "qwen2"
    assert model.config.tie_word_embeddings


def test_shipped_policy_is_what_the_recipe_makes() -> None:
    metrics = json.loads((BASE_POLICY / "metrics.json").read_text())
    assert metrics["recipe"] == asdict(Recipe())
    tokenizer = AutoTokenizer.from_pretrained(BASE_POLICY)
    made = base_policy.train_tokenizer(pipelines.corpus(4000, 0), Recipe().vocabulary)
    assert made.get_vocab() == tokenizer.get_vocab()
    assert len(tokenizer) == Recipe().vocabulary
    fresh = base_policy.new_model(Recipe(), made)
    shipped = AutoModelForCausalLM.from_pretrained(BASE_POLICY)
    assert {n: p.shape for n, p in fresh.named_parameters()} == {
        n: p.shape for n, p in shipped.named_parameters()
    }


def test_shipped_policy_solves_some_problems_and_not_all() -> None:
    problems = pipelines.generate("dev", 40, seed=0, difficulty=(2, 4))
    tokenizer = AutoTokenizer.from_pretrained(BASE_POLICY)
    model = AutoModelForCausalLM.from_pretrained(BASE_POLICY).eval()
    tokenizer.padding_side = "left"
    inputs = tokenizer([problem.prefix for problem in problems], return_tensors="pt", padding=True)
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=140, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    for problem, text in zip(problems, texts, strict=True):
        assert text.count("\n") == problem.meta["difficulty"] + 1, "one line per operation, and the return"
    share = sum(map(solves, problems, texts)) / len(problems)
    assert 0.25 < share < 0.8


def solves(problem: Problem, text: str) -> bool:
    """Whether the completion passes all tests, in this process: for policies that write such lines only."""
    assert isinstance(problem.tests, Calls)
    scope: dict[str, Any] = {}
    exec(problem.prefix + text, scope)
    try:
        return all(
            scope["f"](list(args[0])) == expected
            for args, expected in zip(problem.tests.args, problem.tests.expected, strict=True)
        )
    except (ArithmeticError, TypeError, ValueError):
        return False
