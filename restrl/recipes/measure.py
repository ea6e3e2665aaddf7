"""What a policy does on generated problems: the numbers that every claim is read against.

    python -m restrl.recipes.measure restrl/assets/pipelines-base --n 200 --difficulty 2 6

Prints one JSON object: of n samples of each problem at one temperature, and of the best of 16 by rules that
need no training,

pass@1        share of samples that pass all tests
greedy        share of problems whose greedy program passes
vote@16       the most frequent program of the first 16
likelihood@16 the program of the highest log-likelihood of the first 16
oracle@16     share of problems that one of 16 samples solves (unbiased over the n samples)
auc           how well log-likelihood ranks right above wrong samples of a problem (mean over mixed ones)
reward        mean share of tests passed
dead_groups   share of problems whose first 8 rewards have a population std below .05: nothing to learn there
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restrl.errors import RestrlError
from restrl.policy import Completion, Policy, Sampling
from restrl.problems import pipelines
from restrl.prompts import PromptFormat
from restrl.records import Problem

BEST_OF = 16
GROUP = 8
DEAD = 0.05

Rewards = Callable[[list[tuple[Problem, str]]], Sequence[float]]


def measure(
    policy: Policy,
    rewards: Rewards,
    problems: Sequence[Problem],
    *,
    samples: int = 25,
    temperature: float = 0.7,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """The table of the module's head, over all problems ("all") and by difficulty ("2", "3", ...).

    `rewards` maps (problem, whole program) pairs to the share of tests passed. Raises RestrlError for fewer
    samples than the best-of-16 rules need.
    """
    if samples < BEST_OF:
        raise RestrlError(
            f"measure: {samples} samples are too few for best of {BEST_OF}; ask for {BEST_OF} or more"
        )
    form = PromptFormat(None)
    prompts = [form.prompt(problem, problem.prefix, problem.task_id) for problem in problems]
    start = time.perf_counter()
    drawn = policy.complete(prompts, samples, Sampling(temperature, max_new_tokens=max_new_tokens, seed=seed))
    seconds = time.perf_counter() - start
    greedy = policy.complete(prompts, 1, Sampling(0.0, max_new_tokens=max_new_tokens, seed=seed))
    items = [
        (problem, problem.prefix + completion.text)
        for problem, own, best in zip(problems, drawn, greedy, strict=True)
        for completion in [*own, *best]
    ]
    earned = np.asarray(rewards(items)).reshape(len(problems), samples + 1)
    rows = [_row(own, earned[i]) for i, own in enumerate(drawn)]
    groups: dict[str, list[dict[str, float]]] = {"all": rows}
    for problem, row in zip(problems, rows, strict=True):
        groups.setdefault(str(problem.meta["difficulty"]), []).append(row)
    tokens = sum(len(completion.token_ids) for own in drawn for completion in own)
    return {
        "problems": len(problems),
        "samples": samples,
        "temperature": temperature,
        "table": {name: _mean(members) for name, members in groups.items()},
        "tokens_per_completion": round(tokens / (len(problems) * samples), 1),
        "tokens_per_second": round(tokens / seconds),
    }


def _row(completions: Sequence[Completion], earned: NDArray[np.float64]) -> dict[str, float]:
    """The measures of one problem; `earned` is `[n + 1]`: the samples' rewards, then the greedy program's."""
    rewards, greedy = earned[:-1], earned[-1]
    right = rewards == 1.0
    scores = np.array([_log_likelihood(completion) for completion in completions])
    count, solved = len(right), int(right.sum())
    frequent = collections.Counter(c.text for c in completions[:BEST_OF]).most_common(1)[0][0]
    vote = next(i for i, completion in enumerate(completions) if completion.text == frequent)
    row = {
        "pass@1": float(right.mean()),
        "greedy": float(greedy == 1.0),
        f"vote@{BEST_OF}": float(right[vote]),
        f"likelihood@{BEST_OF}": float(right[int(scores[:BEST_OF].argmax())]),
        f"oracle@{BEST_OF}": 1 - math.comb(count - solved, BEST_OF) / math.comb(count, BEST_OF),
        "reward": float(rewards.mean()),
        "dead_groups": float(rewards[:GROUP].std() < DEAD),
    }
    if 0 < solved < count:
        above = scores[right][:, None] - scores[~right][None, :]
        row["auc"] = float(((above > 0) + 0.5 * (above == 0)).mean())
    return row


def _log_likelihood(completion: Completion) -> float:
    """Sum of the token log-probabilities (nats); 0 where the policy does not tell them."""
    return 0.0 if completion.log_probs is None else float(completion.log_probs.sum())


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: round(float(np.mean([row[name] for row in rows if name in row])), 3) for name in names}


def measure_checkpoint(
    folder: Path,
    *,
    split: pipelines.Split,
    n: int,
    difficulty: tuple[int, int],
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """`measure` of a saved policy on `n` generated problems, verified in the sandbox."""
    from restrl.policy.local import LocalPolicy
    from restrl.sandbox import Verifier
    from restrl.stages.collect import known_reward

    problems = pipelines.generate(split, n, seed=seed, difficulty=difficulty)
    with Verifier() as verifier:
        return measure(
            LocalPolicy(str(folder)),
            lambda items: [
                known_reward(v, p.task_id) for v, (p, _) in zip(verifier.verify(items), items, strict=True)
            ],
            problems,
            samples=samples,
            seed=seed,
        )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a policy on generated problems.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--split", choices=("train", "dev", "test"), default="test")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--difficulty", type=int, nargs=2, default=(2, 6), metavar=("LOW", "HIGH"))
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    low, high = args.difficulty
    try:
        table = measure_checkpoint(
            args.checkpoint,
            split=args.split,
            n=args.n,
            difficulty=(low, high),
            samples=args.samples,
            seed=args.seed,
        )
    except RestrlError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
