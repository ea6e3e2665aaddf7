"""Value scoring: tokens that the model reads and CPU seconds, per expansion, against one padded pass a text.

    python benchmarks/bench_value.py [PROBLEMS]

One JSON row per case; the texts of a case are those of recorded VM-MCTS searches (20 simulations, k = 5), the
calls are replayed by every way in turn, in one run:

    padded    every program in a row of its own, right-padded (the peer)
    shared    ScalarValue.score: the programs of a call as prefix tries, one pass over each
    tree      the same behind StateScores: a program that the tree has seen is not scored again
    kept      the same within ScalarValue.remembering: nor is a problem read again

Cases: the shipped policy with a scalar head, on problems of the pipelines family, one tree at a time and all
of them at once; a small random Qwen2 on long prompts (150 tokens, five completions of 100 tokens an
expansion, all different).
"""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles

import torch
from transformers import AutoModelForSequenceClassification, Qwen2Config

from restrl.assets import BASE_POLICY
from restrl.config import DecodeConfig
from restrl.decode.trees import decode_trees
from restrl.policy.local import LocalPolicy
from restrl.problems import pipelines
from restrl.records import Calls, Problem
from restrl.value import LineValues, tries
from restrl.value.scalar import ScalarValue
from restrl.value.states import StateScores

Call = list[tuple[Problem, str]]
WAYS = ("padded", "shared", "tree", "kept")
WORDS = [
    "return",
    "filter",
    "values",
    "sorted",
    "items",
    "the",
    "list",
    "of",
    "numbers",
    "larger",
    "than",
    "mean",
]


@dataclass
class Recorder:
    """A value model that keeps what it is asked."""

    model: ScalarValue
    calls: list[Call]

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[LineValues]:
        self.calls.append(list(items))
        return self.model.score(items)

    def save(self, folder: str | Path) -> None:
        self.model.save(folder)


def recorded(value: ScalarValue, policy: LocalPolicy, problems: int, trees: int, leaves: int) -> list[Call]:
    """The calls of a search over problems of the pipelines family."""
    recorder = Recorder(value, [])
    cfg = DecodeConfig(
        simulations=20, k=5, budget=500, trees_in_flight=trees, leaves_in_flight=leaves, temperature=0.7
    )
    chosen = pipelines.generate("dev", problems, seed=1)
    decode_trees("vm-mcts", chosen, policy, cfg, form=policy.format, value=recorder, seed=0)
    return recorder.calls


def long_calls(value: ScalarValue, trees: int, seed: int) -> list[Call]:
    """Expansions of random trees: a state of an earlier completion, five completions of about 100 tokens."""
    rng = random.Random(seed)

    def words(tokens: int, indent: str) -> str:
        text = ""
        while len(value.tokenizer(text)["input_ids"]) < tokens:
            text += indent + " ".join(rng.choices(WORDS, k=4)) + "\n"
        return text

    calls: list[Call] = []
    for number in range(trees):
        prefix = f'def f{number}(a):\n    """\n{words(150, "    ")}    """\n'
        tests = Calls(fn_name=f"f{number}", args=[[1]], expected=[1])
        problem = Problem(
            task_id=f"long/{number}",
            source="humaneval",
            mode="complete",
            prompt=prefix,
            prefix=prefix,
            tests=tests,
        )
        states = [prefix]
        for _ in range(20):
            state = states[min(rng.randrange(len(states)), rng.randrange(len(states)))]
            programs = [state + words(100, "    ") for _ in range(5)]
            calls.append([(problem, program) for program in programs])
            first = {p[: p.index("\n", len(state)) + 1] for p in programs}
            states += sorted(first)
    return calls


def read(way: str, value: ScalarValue, calls: Sequence[Call]) -> tuple[list[float], list[int], list[float]]:
    """(CPU seconds, model tokens) of every call, and all values."""
    seconds, tokens, values = [], [], []
    trees: dict[str, StateScores] = {}
    value.shares = way != "padded"
    with value.remembering() if way == "kept" else nullcontext():
        for call in calls:
            clock = time.process_time()
            scored = score_in_trees(value, trees, call) if way in ("tree", "kept") else value.score(call)
            seconds.append(time.process_time() - clock)
            tokens.append(sum(v.tokens for v in scored))
            values += [x for v in scored for x in v.values]
    value.shares = tries.shareable(value.model)
    return seconds, tokens, values


def score_in_trees(value: ScalarValue, trees: dict[str, StateScores], call: Call) -> list[LineValues]:
    """Values of the call's programs; of those that are known, with 0 tokens."""
    fresh: Call = []
    for problem in {p.task_id: p for p, _ in call}.values():
        scores = trees.setdefault(problem.task_id, StateScores(len(problem.prefix)))
        fresh += [
            (problem, text) for text in scores.missing(t for p, t in call if p.task_id == problem.task_id)
        ]
    asked = {
        (problem.task_id, text): trees[problem.task_id].record(text, values)
        for (problem, text), values in zip(fresh, value.score(fresh), strict=True)
    }
    out: list[LineValues] = []
    for problem, text in call:
        known = trees[problem.task_id].of(text)
        assert known is not None
        asked_now = asked.pop((problem.task_id, text), None)
        out.append(LineValues(known.ends, known.values, asked_now.tokens if asked_now else 0))
    return out


def measure(case: str, value: ScalarValue, calls: list[Call], repeats: int) -> dict[str, object]:
    """All ways over the same calls, by turns; seconds are the least of the repeats of each call."""
    best: dict[str, list[float]] = {}
    tokens: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for way in WAYS:
        read(way, value, calls[:2])  # warm up
    for _ in range(repeats):
        for way in WAYS:
            seconds, tokens[way], values[way] = read(way, value, calls)
            best[way] = [min(pair) for pair in zip(best.get(way, seconds), seconds, strict=True)]
    expansions = sum(len(call) for call in calls) / 5
    row: dict[str, object] = {
        "case": case,
        "calls": len(calls),
        "expansions": round(expansions),
        "programs": sum(len(call) for call in calls),
    }
    for way in WAYS:
        row[f"{way}_tokens_per_expansion"] = round(sum(tokens[way]) / expansions, 1)
        row[f"{way}_ms_per_expansion"] = round(1000 * sum(best[way]) / expansions, 2)
        cuts = quantiles(best[way], n=10)
        row[f"{way}_ms_per_call"] = [round(1000 * cuts[i], 2) for i in (1, 4, 7)]  # p20, p50, p80
        if way != "padded":
            row[f"{way}_fewer_tokens"] = round(sum(tokens["padded"]) / sum(tokens[way]), 2)
            row[f"{way}_faster"] = round(sum(best["padded"]) / sum(best[way]), 2)
            error = max(abs(a - b) for a, b in zip(values["padded"], values[way], strict=True))
            row[f"{way}_largest_difference"] = float(f"{error:.1e}")
    return row


def about() -> dict[str, object]:
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit,
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def long_model(tokenizer: object) -> ScalarValue:
    """A random Qwen2 of 13 M weights past its embeddings, with a head whose values differ."""
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=1,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    return ScalarValue(model, tokenizer)


def spread(value: ScalarValue, call: Call) -> None:
    """Turn the head so that the call's values lie about 0.5, not outside [0, 1], where all are equal."""
    with torch.no_grad():
        states = torch.cat(
            [
                value.model.base_model(torch.tensor([e.token_ids])).last_hidden_state[0, list(e.positions)]
                for e in (value.encode(*item) for item in call)
            ]
        )
        mean, deviation = states.mean(0), states - states.mean(0)
        direction = torch.linalg.svd(deviation, full_matrices=False).Vh[0]
        along = mean - (mean @ direction) * direction  # moves the mean and leaves the spread
        weight = 0.1 * direction / (deviation @ direction).std()
        value.model.score.weight.copy_(weight + (0.5 - mean @ weight) * along / (mean @ along))


def main() -> None:
    torch.set_num_threads(1)
    problems = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    policy = LocalPolicy(BASE_POLICY, device="cpu", dtype="float32")
    value = ScalarValue.from_policy(policy)
    first = pipelines.generate("dev", 20, seed=2)
    spread(value, [(p, p.prefix + "    b = a\n    return b\n") for p in first])
    for trees, leaves in ((1, 1), (problems, 1), (problems, 4)):
        case = f"pipelines-base, {trees} trees x {leaves} leaves in flight"
        calls = recorded(value, policy, problems, trees, leaves)
        print(json.dumps(measure(case, value, calls, repeats=3) | about()), flush=True)
    long = long_model(policy.tokenizer)
    calls = long_calls(long, 1, seed=0)
    spread(long, calls[0])
    print(json.dumps(measure("random Qwen2, long prompts", long, calls, repeats=1) | about()), flush=True)


if __name__ == "__main__":
    main()
