"""Decoding by VM-MCTS: the published schedule against restrl's, on the same model and problems.

    python benchmarks/bench_decode.py --work runs/bench-decode [--head scalar] [--device cuda]

The published schedule is one problem, one leaf, k completions a call and one call of the value model for
every child and every completion (serial_decode.py); it is run with transformers' `generate` and with restrl's
decode loop, so that what scheduling gains stands apart from what the loop gains. Value models are trained as
the demo trains them, once for every --work folder. Each arm has its own processes; loading and a warm-up are
not timed, verification comes after all arms. Needs under ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import harness
import torch
from decode_figures import Share, compare, figures, right, same_answers, show, wall
from serial_decode import Outcome, decode_serial

from restrl.config import CollectConfig, DecodeConfig, ValueConfig
from restrl.decode import decode_trees
from restrl.errors import RestrlError
from restrl.pipeline import load_policy, model_path, problem_set
from restrl.policy.local import LocalPolicy
from restrl.records import Problem
from restrl.rows import write_json
from restrl.sandbox import Verifier
from restrl.search import Timing
from restrl.seeds import derive
from restrl.stages.collect import collect
from restrl.value import ValueModel, load_value
from restrl.value.train import train_value

MAX_ROWS = 512  # completions decoded at once
MAX_LENGTH = 512  # tokens of a text that a value model reads
HEADS: dict[str, dict[str, float]] = {  # as the demo trains them
    "additive": {"epochs": 8, "batch_size": 16},
    "scalar": {"epochs": 2, "batch_size": 32, "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Arm:
    """One way to decode.

    kind      "generate" and "policy": the published schedule with that sampler; "restrl": decode_trees
    problems  the first so many, each with the seeds 0 .. seeds - 1
    threads   of torch in each process; 0: 1 or 2, whichever decodes the first problem faster
    """

    name: str
    kind: Literal["generate", "policy", "restrl"]
    problems: int
    seeds: int
    leaves: int = 1
    reuse: bool = False
    workers: int = 1
    threads: int = 1


@dataclass(frozen=True)
class Setting:
    """What all arms share. `value` is the folder of the value model."""

    model: str
    device: str
    dtype: str
    problems: str
    value: str
    cfg: DecodeConfig


def run_arm(arm: Arm, setting: Setting) -> list[Share]:
    """Runs the arm in processes of its own, which start together. RestrlError if one fails."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for index in range(arm.workers):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=_work, args=(arm, setting, index, theirs), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    try:
        for pipe in pipes:
            _receive(pipe, arm)
        for pipe in pipes:
            pipe.send("go")
        return [_receive(pipe, arm) for pipe in pipes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def _receive(pipe: Connection, arm: Arm) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RestrlError(f"a process of the arm {arm.name!r} ended early; its error stands above") from None


def _work(arm: Arm, setting: Setting, index: int, pipe: Connection) -> None:
    """A process of an arm: says when it is ready, waits for the word, and sends its share."""

    def ready() -> None:
        pipe.send("ready")
        pipe.recv()

    pipe.send(share(arm, setting, index, ready))


def share(arm: Arm, setting: Setting, index: int, ready: Callable[[], None]) -> Share:
    """Decodes every arm.workers-th problem, from `index` on; `ready` is called before the clock starts."""
    torch.set_num_threads(arm.threads or 1)
    policy = load_policy(setting.model, setting.device, setting.dtype, MAX_ROWS)
    value = load_value(setting.value, policy=policy, max_length=MAX_LENGTH)
    problems = problem_set(setting.problems, "auto", 0)[: arm.problems]
    own = problems[index :: arm.workers]
    timing = Timing()

    def decode(some: Sequence[Problem], seed: int, simulations: int) -> list[Outcome]:
        of_arm = {"simulations": simulations, "leaves_in_flight": arm.leaves, "reuse": arm.reuse}
        cfg = DecodeConfig.model_validate(setting.cfg.model_dump() | of_arm)
        if arm.kind == "restrl":
            return _decode_restrl(some, policy, value, cfg, seed, timing)
        return decode_serial(arm.kind, some, policy, value, cfg, seed)

    decode(problems[:1], 0, 2)
    if not arm.threads:
        torch.set_num_threads(_best_threads(lambda: decode(problems[:1], 0, 3)))
    timing = Timing()
    ready()
    start, cpu = time.perf_counter(), time.process_time()
    outcomes = [one for seed in range(arm.seeds) for one in decode(own, seed, setting.cfg.simulations)]
    end, cpu = time.perf_counter(), time.process_time() - cpu
    gpu = torch.cuda.max_memory_allocated() / 2**20 if policy.device.type == "cuda" else 0.0
    return Share(outcomes, start, end, cpu, timing, torch.get_num_threads(), _peak_mib(), gpu)


def _decode_restrl(
    problems: Sequence[Problem],
    policy: LocalPolicy,
    value: ValueModel,
    cfg: DecodeConfig,
    seed: int,
    timing: Timing,
) -> list[Outcome]:
    form = policy.format
    found = decode_trees("vm-mcts", problems, policy, cfg, form=form, value=value, seed=seed, timing=timing)
    return [
        Outcome(
            task_id=a.task_id,
            seed=seed,
            program=a.program,
            seconds=0.0,
            samples=tree.stats.samples,
            reused=tree.stats.reused,
            generated_tokens=a.generated_tokens,
            value_tokens=a.value_tokens,
        )
        for a, tree in found
    ]


def _best_threads(decode: Callable[[], object]) -> int:
    """1 or 2, by the faster of two runs each, in turn."""
    seconds: dict[int, float] = {}
    for count in (1, 2, 1, 2):
        torch.set_num_threads(count)
        start = time.perf_counter()
        decode()
        seconds[count] = min(seconds.get(count, float("inf")), time.perf_counter() - start)
    return min(seconds, key=lambda count: seconds[count])


def _peak_mib() -> float:
    """The most memory this process has held (Linux counts it anew for every program that is started)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


# Value models


def value_folder(args: argparse.Namespace) -> Path:
    """The value model args.head of args.model, trained into args.work if it is not there yet."""
    trees = CollectConfig(
        simulations=4, k=4, temperature=1.0, max_new_tokens=args.max_new_tokens, trees_in_flight=120
    )
    cfg = ValueConfig.model_validate({"head": args.head, "max_length": MAX_LENGTH, **HEADS[args.head]})
    spec = f"pipelines:train:{args.train_problems}:2-6"
    model = model_path(args.model)
    weights = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in Path(model).glob("*.safetensors")]
    made_of = {"model": model, "weights": sorted(weights), "problems": spec, "collect": trees.model_dump()}
    name = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=6).hexdigest()
    folder = args.work / name
    out = folder / f"value-{args.head}"
    if not (out / "final").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "settings.json", made_of)
        policy = load_policy(model, args.device, args.dtype, MAX_ROWS)
        problems = problem_set(spec, "auto", 0)
        with Verifier() as verifier:
            targets = folder / "targets.jsonl"
            seed = derive(0, "collect")
            rows = collect(policy, policy.format, problems, verifier, trees, targets, seed=seed)
        targets = [target for row in rows for target in row["targets"]]
        train_value(cfg, targets, {p.task_id: p for p in problems}, policy, out, seed=derive(0, "value"))
    return out


def arms(args: argparse.Namespace) -> list[Arm]:
    """The published schedule twice, restrl without and with what changes a tree."""
    few = min(args.serial_problems, args.problems)
    serial = {"problems": few, "seeds": 1, "threads": 0 if args.device == "cpu" else 1}
    ours = Arm("", "restrl", args.problems, args.seeds, workers=args.workers, threads=args.threads)
    return [
        Arm("serial, generate", "generate", **serial),
        Arm("serial, restrl's loop", "policy", **serial),
        replace(ours, name="restrl, 1 leaf"),
        replace(ours, name=f"restrl, {args.leaves} leaves", leaves=args.leaves),
        replace(ours, name=f"restrl, {args.leaves} leaves, reuse", leaves=args.leaves, reuse=True),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pipelines-base", help="folder in Hugging Face format")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--head", choices=sorted(HEADS), default="additive")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-decode"), help="keeps the value models")
    parser.add_argument("--problems", type=int, default=100, help="of restrl's arms")
    parser.add_argument("--seeds", type=int, default=3, help="of restrl's arms")
    parser.add_argument("--serial-problems", type=int, default=100, help="of the serial arms, one seed")
    parser.add_argument("--train-problems", type=int, default=240, help="of the value model")
    parser.add_argument("--simulations", type=int, default=20)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--leaves", type=int, default=8, help="in flight in one tree, in restrl's last arm")
    parser.add_argument("--virtual-loss", choices=("loss", "unobserved"), default="unobserved")
    parser.add_argument("--trees", type=int, default=128, help="in flight in each process")
    parser.add_argument("--workers", type=int, help="processes of restrl's arms (default: cores, 1 on a GPU)")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each of them")
    parser.add_argument("--out", type=Path, help="JSON with every answer")
    parser.add_argument("--history", type=Path, help="JSON list that the figures are added to")
    args = parser.parse_args(argv)
    if args.workers is None:
        args.workers = len(os.sched_getaffinity(0)) if args.device == "cpu" else 1
    torch.set_num_threads(1)
    try:
        measure(args)
    except RestrlError as error:
        parser.exit(2, f"{error}\n")


def measure(args: argparse.Namespace) -> None:
    value = value_folder(args)
    cfg = DecodeConfig(
        methods=["vm-mcts"],
        budget=args.simulations * args.k,
        k=args.k,
        simulations=args.simulations,
        max_new_tokens=args.max_new_tokens,
        trees_in_flight=args.trees,
        virtual_loss=args.virtual_loss,
    )
    spec = f"pipelines:test:{args.problems}:2-6"
    setting = Setting(model_path(args.model), args.device, args.dtype, spec, str(value / "final"), cfg)
    shares: dict[str, list[Share]] = {}
    loads = {}
    for arm in arms(args):
        loads[arm.name] = round(os.getloadavg()[0], 2)
        shares[arm.name] = run_arm(arm, setting)
        print(f"{arm.name}: {wall(shares[arm.name]):.1f} s", file=sys.stderr, flush=True)
    rows = right(shares, problem_set(spec, "auto", 0))
    table = {
        arm.name: figures(shares[arm.name], rows[arm.name]) | {"load": loads[arm.name]} for arm in arms(args)
    }
    generate, loop, one, many, reuse = table
    pairs = [(reuse, generate), (reuse, loop), (many, generate), (one, generate), (loop, generate)]
    pairs += [(many, one), (reuse, one), (reuse, many)]
    comparisons = [compare(a, b, rows, table) for a, b in pairs]
    print(show(table, comparisons))
    same = same_answers(shares[loop], shares[one])
    print(f"\nsame answers, {loop} and {one}: {same:.0%}")
    result = {
        "bench": "decode",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": harness.commit(),
        "versions": harness.versions("torch", "transformers", "numpy"),
        "machine": harness.machine(),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "settings": {k: v for k, v in vars(args).items() if k not in ("work", "out", "history")},
        "value": json.loads((value / "value.json").read_text(encoding="utf-8")),
        "arms": table,
        "comparisons": comparisons,
        "same_answers": round(same, 4),
    }
    if args.out:
        answers = {
            name: [
                asdict(o) | {"right": rows[name][o.seed][o.task_id]} for share in own for o in share.outcomes
            ]
            for name, own in shares.items()
        }
        write_json(args.out, result | {"answers": answers})
    if args.history:
        history = json.loads(args.history.read_text(encoding="utf-8")) if args.history.exists() else []
        write_json(args.history, [*history, result])


if __name__ == "__main__":
    main()
