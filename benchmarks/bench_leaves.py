"""What leaves in flight and reuse cost: quality and tree shape over F, at equal simulations and samples.

    python benchmarks/bench_leaves.py --history benchmarks/history/leaves.json --plot docs/images/leaves.svg

Parts: `simulated`, a task whose truth is known (leaves_task.py), on the native forest; `rules`, rules of
virtual loss that the engine does not have, in a plain Python search (leaves_rules.py); `real`, the pipelines
policy with its additive value head (leaves_real.py; the head is trained once for every --work folder, as
bench_decode.py does). Differences are paired, with 95 % bootstrap intervals over problems.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from harness import commit, machine, versions
from leaves_rules import Rule, Search
from leaves_search import Oracle, Outcome, Prepare, grow
from leaves_task import Model, tasks
from numpy.typing import NDArray

from restrl._core import SearchParams

LEAVES = (1, 2, 4, 8, 16, 32)
RULES: tuple[Rule, ...] = ("loss", "unobserved")
NOISES = (0.5, 1.0, 2.0)
K = 5
PARTS = ("simulated", "rules", "real", "wall")


@dataclass(frozen=True)
class Arm:
    """One way to search.

    budget  what arms have in common: `simulations` of a problem, or k times as many `samples` for it
    trees   root-parallel: as many trees share leaves and budget, their answers are pooled
    weight  of a leaf in flight, in the plain Python search; 0: native forest
    """

    part: Literal["simulated", "rules", "real"]
    mode: Literal["value", "collect"] = "value"
    noise: float = 0.0
    budget: Literal["simulations", "samples"] = "simulations"
    simulations: int = 20
    leaves: int = 1
    rule: Rule = "loss"
    trees: int = 1
    reuse: bool = False
    c: float = 0.1
    temperature: float = 0.0
    weight: int = 0

    @property
    def alone(self) -> Arm:
        """What it is compared with: one leaf in flight, nothing reused."""
        return replace(self, leaves=1, rule="loss", trees=1, reuse=False, weight=0)

    def params(self) -> SearchParams:
        by_samples = self.budget == "samples"
        return SearchParams(
            self.mode,
            simulations=self.simulations * (20 if by_samples else 1) // self.trees,
            max_samples=self.simulations * K // self.trees if by_samples else 0,
            k=K,
            c=self.c,
            leaves_in_flight=self.leaves // self.trees,
            virtual_loss=self.rule,
            reuse=self.reuse,
        )


def spread(
    base: Arm, leaves: Iterable[int] = LEAVES, rules: Iterable[Rule] = RULES, **more: Any
) -> list[Arm]:
    """`base` with every rule and number of leaves, and what these are compared with."""
    out = []
    for rule in rules:
        for count in leaves:
            arm = replace(base, leaves=count, rule=rule if count > 1 else "loss", **more)
            out += [arm.alone, arm] if count > 1 or arm.reuse else [arm.alone]
    return out


def simulated_arms(noises: Sequence[float], simulations: Sequence[int]) -> list[Arm]:
    out: list[Arm] = []
    for sims in simulations:
        out += spread(Arm("simulated", "collect", simulations=sims, c=0.2))
        for noise in noises:
            base = Arm("simulated", noise=noise, simulations=sims)
            out += spread(base) + spread(base, (1, 4, 16), ("loss",), reuse=True)
            out += spread(base, (1, 2, 4, 8, 16), ("loss",), budget="samples")
            out += spread(base, (1, 4, 16), ("loss",), reuse=True, budget="samples")
            for c in (0.2, 0.4):
                out += spread(base, (1, 4, 16), c=c)
            for trees in (2, 4):
                out += spread(base, (4, 8, 16, 32), ("loss",), trees=trees)
    return list(dict.fromkeys(out))


def rules_arms(noises: Sequence[float], simulations: Sequence[int]) -> list[Arm]:
    out: list[Arm] = []
    for sims in simulations:
        for noise in noises:
            base = Arm("rules", noise=noise, simulations=sims)
            out += spread(base, (2, 4, 8, 16), ("loss", "half", "unobserved", "skip"), weight=K)
            out += spread(base, (2, 4, 8, 16), ("loss",), weight=1)
    return list(dict.fromkeys(out))


def real_arms(temperature: float, simulations: Sequence[int]) -> list[Arm]:
    out: list[Arm] = []
    for sims in simulations:
        base = Arm("real", simulations=sims, temperature=temperature)
        out += spread(base) + spread(base, (1, 4, 16), ("loss",), c=0.4)
        out += spread(base, (1, 2, 4, 8, 16, 32), ("loss",), reuse=True)
        out += spread(base, (1, 4, 16), ("loss",), reuse=True, budget="samples")
    return list(dict.fromkeys(out))


def run(oracles: Sequence[Oracle], arm: Arm, prepare: Prepare | None = None) -> list[Outcome]:
    if arm.part != "rules":
        return grow(oracles, arm.params(), trees=arm.trees, prepare=prepare)
    return [_plain(oracle, arm) for oracle in oracles]


def _plain(oracle: Oracle, arm: Arm) -> Outcome:
    """The arm in the plain Python search."""
    search = Search(oracle, arm.simulations, arm.leaves, arm.rule, weight=arm.weight or K, c=arm.c).run()
    answer = max(search.programs, key=lambda row: row[0])[1]
    expanded = [node for node in search.nodes if node.children]
    figures = {
        "rounds": search.rounds,
        "samples": search.expansions * K,
        "expanded": search.expansions,
        "collisions": search.collisions,
        "mean_depth": sum(node.depth for node in expanded) / len(expanded),
    }
    nodes = [(node.state, node.V) for node in expanded]
    return Outcome(answer, figures | oracle.judge(answer, [program for _, program in search.programs], nodes))


Found = dict[Arm, list[list[Outcome]]]
"""Arm -> `[seeds][problems]`."""


def simulated(part: str, args: argparse.Namespace) -> tuple[Found, list[dict[str, Any]]]:
    """The task's arms, and best-of-n at the same numbers of samples."""
    found: Found = {}
    pools: dict[tuple[float, int], list[dict[str, float]]] = {}
    every = (simulated_arms if part == "simulated" else rules_arms)(args.noise, args.simulations)
    for noise in sorted({arm.noise for arm in every}):
        for seed in range(args.seeds):
            models = [Model(task, seed, noise) for task in tasks(args.problems)]
            for arm in every:
                if arm.noise == noise:
                    found.setdefault(arm, []).append(run(models, arm))
            if part == "simulated" and noise > 0:
                for n in (1, *(K * sims for sims in args.simulations)):
                    pools.setdefault((noise, n), []).extend(model.best_of(n) for model in models)
            print(f"{part}: noise {noise}, seed {seed}, {time.process_time():.0f} CPU-s", file=sys.stderr)
    pooled = [
        {"part": "best-of-n", "noise": noise, "samples": n}
        | {key: round(float(np.mean([row[key] for row in rows])), 4) for key in ("right", "found")}
        for (noise, n), rows in pools.items()
    ]
    return found, pooled


def real(args: argparse.Namespace) -> Found:
    """The pipelines policy: all arms of a temperature over the same drawn completions."""
    from leaves_real import load_banks, load_problems, verify

    problems = load_problems(args.real_problems, args.difficulty)
    found: Found = {}
    for bank in load_banks(args, K):
        for seed in range(args.real_seeds):
            oracles = bank.oracles(problems, seed)
            for arm in real_arms(bank.temperature, args.real_simulations):
                found.setdefault(arm, []).append(run(oracles, arm, bank.prepare))
            print(
                f"real: T {bank.temperature}, seed {seed}, {time.process_time():.0f} CPU-s", file=sys.stderr
            )
    verify(problems, [outcomes for per_seed in found.values() for outcomes in per_seed])
    return found


def wall(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per problem, nothing shared: problems one after the other and together, one leaf and many."""
    from leaves_real import load_banks, load_problems

    bank = load_banks(args, K)[0]
    problems = load_problems(args.wall_problems, args.difficulty)
    rows = []
    for together in (1, len(problems)):
        for leaves in (1, 4, 16):
            few = problems if together > 1 else problems[: max(1, len(problems) // 8)]
            oracles = bank.oracles(few, 0)
            arm = Arm("real", leaves=leaves)
            start = time.perf_counter()
            for i in range(0, len(few), together):
                run(oracles[i : i + together], arm, bank.prepare)
            seconds = (time.perf_counter() - start) / len(few)
            sizes = {"together": together, "leaves": leaves, "simulations": arm.simulations}
            rows.append(
                {"part": "wall", **sizes, "problems": len(few), "seconds_per_problem": round(seconds, 4)}
            )
    return rows


# Figures


def per_problem(outcomes: list[list[Outcome]], figure: str) -> NDArray[np.float64]:
    """`[problems]` mean over the seeds."""
    return np.array([[o.figures[figure] for o in seed] for seed in outcomes]).mean(0)


def interval(rows: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean of `[problems]` and its 95 % bootstrap interval, problems drawn with replacement."""
    rng = np.random.default_rng(0)
    means = rows[rng.integers(len(rows), size=(4000, len(rows)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return round(float(rows.mean()), 4), round(float(low), 4), round(float(high), 4)


def rows_of(found: Found) -> list[dict[str, Any]]:
    """One row an arm: its means, and paired differences.

    right_minus, found_minus, error_minus  from one leaf in flight without reuse
    reuse_minus  of right answers, from the same leaves without reuse; `reuse_saves` is the share of tokens
    """
    out = []
    for arm, outcomes in found.items():
        row: dict[str, Any] = asdict(arm) | {"searches": len(outcomes) * len(outcomes[0])}
        for figure in outcomes[0][0].figures:
            row[figure] = round(float(per_problem(outcomes, figure).mean()), 4)
        alone = found[arm.alone]
        for figure in ("right", "found", "error"):
            if figure in row:
                difference = per_problem(outcomes, figure) - per_problem(alone, figure)
                row[f"{figure}_minus"] = interval(difference)
        drawn = found.get(replace(arm, reuse=False))
        if arm.reuse and drawn is not None:
            row["reuse_minus"] = interval(per_problem(outcomes, "right") - per_problem(drawn, "right"))
            saved = 1 - per_problem(outcomes, "tokens").sum() / per_problem(drawn, "tokens").sum()
            row["reuse_saves"] = round(float(saved), 4)
        out.append(row)
    return out


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line an arm."""
    lines = [
        "| part | noise or T | c | budget | trees x F | rule | reuse | right | minus F = 1 [95 %] | rounds "
        "| samples | depth, max | entropy | collisions | error |",
        "|" + "---|" * 15,
    ]
    for row in rows:
        if row["part"] == "wall":
            who = f"{row['together']} problems, F = {row['leaves']}"
            seconds = f"{row['seconds_per_problem']:.3f} s a problem"
            lines.append(f"| wall | | | {row['simulations']} simulations | {who} | {seconds} |")
            continue
        if row["part"] == "best-of-n":
            lines.append(
                f"| best-of-n | {row['noise']} | | {row['samples']} samples | | | | {row['right']:.3f} "
                f"(found {row['found']:.3f}) |"
            )
            continue
        mean, low, high = row["right_minus"]
        rule = row["rule"] + (f" x {row['weight']}" if row["weight"] else "")
        reuse = "yes" if row["reuse"] else ""
        if "reuse_minus" in row:
            gain, least, most = row["reuse_minus"]
            reuse = f"{gain:+.3f} [{least:+.3f}, {most:+.3f}], tokens -{row['reuse_saves']:.0%}"
        lines.append(
            f"| {row['part']} {row['mode']} | {row['temperature'] or row['noise']} | {row['c']} "
            f"| {row['simulations']} {row['budget']} "
            f"| {row['trees']} x {row['leaves'] // row['trees']} | {rule} | {reuse} "
            f"| {row['right']:.3f} | {mean:+.3f} [{low:+.3f}, {high:+.3f}] | {row['rounds']:.1f} "
            f"| {row['samples']:.0f} | {row['mean_depth']:.2f}, {row.get('max_depth', 0):.1f} "
            f"| {row.get('entropy', 0):.2f} | {row['collisions']:.1f} | {row.get('error', 0):.3f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--problems", type=int, default=200, help="of the simulated task")
    parser.add_argument("--seeds", type=int, default=3, help="of the simulated task")
    parser.add_argument("--noise", type=float, nargs="+", default=NOISES)
    parser.add_argument("--simulations", type=int, nargs="+", default=(20, 100))
    parser.add_argument("--real-problems", type=int, default=120)
    parser.add_argument("--real-seeds", type=int, default=3)
    parser.add_argument("--real-simulations", type=int, nargs="+", default=(6, 20, 60))
    parser.add_argument("--wall-problems", type=int, default=64, help="together; an eighth one by one")
    parser.add_argument("--difficulty", type=int, nargs=2, default=(4, 8), metavar=("LOW", "HIGH"))
    parser.add_argument("--model", default="pipelines-base", help="folder in Hugging Face format")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-decode"), help="keeps the value head")
    parser.add_argument("--train-problems", type=int, default=240, help="of the value head")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--temperature", type=float, nargs="+", default=(0.7, 1.0))
    parser.add_argument("--history", type=Path, help="JSON with the rows; parts that were not run are kept")
    parser.add_argument("--plot", type=Path, help="picture of the rows in --history")
    parser.set_defaults(head="additive", device="cpu", dtype="float32")
    args = parser.parse_args(argv)
    start = time.process_time()
    rows: list[dict[str, Any]] = []
    for part in args.parts:
        if part == "real":
            rows += rows_of(real(args))
        elif part == "wall":
            rows += wall(args)
        else:
            found, pooled = simulated(part, args)
            rows += rows_of(found) + pooled
    print(table(rows))
    if args.history:
        rows = record(args.history, args, rows, time.process_time() - start)
    if args.plot:
        from leaves_plot import plot

        plot(rows, args.plot)


def record(
    path: Path, args: argparse.Namespace, rows: list[dict[str, Any]], seconds: float
) -> list[dict[str, Any]]:
    """Replaces the rows of the parts that were run; all rows of the file."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": {}, "rows": []}
    about = {"commit": commit(), "machine": machine(), "versions": versions("torch", "numpy")}
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()}
    for part in args.parts:
        known["runs"][part] = about | {"cpu_seconds": round(seconds), "settings": settings}
    parts = {*args.parts, *(["best-of-n"] if "simulated" in args.parts else [])}
    known["rows"] = [row for row in known["rows"] if row["part"] not in parts] + rows
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(row) for row in known["rows"])
    head = json.dumps({"runs": known["runs"]}, indent=1)[:-2]
    path.write_text(f'{head},\n "rows": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    return list(known["rows"])


if __name__ == "__main__":
    main()
