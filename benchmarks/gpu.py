"""Everything restrl claims about a GPU, checked in one go: tests, correctness, repeatability, times, memory.

    python benchmarks/gpu.py [--json gpu.json] [--minutes 9] [--only WORD ...] [--dry-run]

Runs from a bare checkout with Python, torch, triton and pytest; nothing is fetched, and the engine's module
restrl._core is not needed. Peers (trl, liger_kernel) are measured where they can be imported. Every part is a
process of its own with its own limit of time: one that fails, hangs or leaves the GPU unusable is reported,
and the others go on. Parts that no longer fit into the minutes are left out, and say so. The JSON file is
written as the figures come, a part that was stopped leaves those it had: goals beside measurements, errors
against float64, the profiler's table, and what went wrong.

--only     parts whose name has one of these words
--dry-run  without a GPU: the same parts on tiny shapes, kernels in Triton's interpreter; times say nothing
--resume   go on with the parts that the JSON file does not hold
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]  # a bare checkout: restrl is not installed

NOT_BUILT = "not built: `pip install .` builds it (cmake, a C++20 compiler); nothing here needs it"
LEAST = 15  # seconds that a part is given, or it is left out
PATIENCE = 4  # times the minutes and seconds in a dry run: Triton's interpreter, on any machine


def main() -> int:
    args = arguments()
    import torch

    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined
    elif not torch.cuda.is_available():
        print("There is no GPU that torch can use here; --dry-run walks through the script without one.")
        return 1
    import harness
    from kernels_gpu import PARTS, Session

    if args.part:
        return alone(args, PARTS[args.part], Session)
    patience = PATIENCE if args.dry_run else 1
    until = time.time() + 60 * args.minutes * patience
    found: dict[str, Any] = {"parts": {}, "rows": []}
    if args.resume:
        found = json.loads(args.json.read_text())
        found["parts"] = {k: v for k, v in found["parts"].items() if v["state"] != "left out"}
    else:
        session = Session(args.dry_run, until)
        found |= {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": harness.commit(),
            "dry_run": args.dry_run,
            "device": session.describe(),
            "versions": session.versions(),
            "restrl._core": "built" if find_spec("restrl._core") else NOT_BUILT,
        }
        print(json.dumps({k: v for k, v in found.items() if k not in ("parts", "rows")}, indent=1))
    for name, part in PARTS.items():
        if any(word in name for word in args.only) and name not in found["parts"]:
            print(f"== {name}", flush=True)
            seconds = min(part.seconds * patience, until - time.time())
            made = of_child(name, seconds, found["rows"], args)
            found["rows"] += made.pop("rows")
            found["parts"][name] = made
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"{name}: {made['state']}, {made['seconds']} s", flush=True)
    rows = [harness.Row(**{k: v for k, v in row.items() if k != "met"}) for row in found["rows"]]
    goals = [r for r in rows if r.must is not None]
    print("", harness.table(rows), "", sep="\n")
    missed = [name for name, part in found["parts"].items() if part["state"] != "done"]
    met = sum(bool(r.met) for r in goals)
    print(
        f"goals met: {met} of {len(goals)}; failed or left out: {', '.join(missed) or 'nothing'}; {args.json}"
    )
    return 1 if missed else 0


def of_child(
    name: str, seconds: float, rows: list[dict[str, Any]], args: argparse.Namespace
) -> dict[str, Any]:
    """What a part found, in a process that has so many seconds; `rows`: of the parts before it."""
    start = time.time()
    if seconds < LEAST:
        return {"state": "left out", "seconds": 0.0, "said": "the minutes are over", "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        file.write_text(json.dumps({"rows": rows}))
        words = ["--part", name, "--json", str(file), "--until", str(start + seconds)]
        words += ["--dry-run"] if args.dry_run else []
        child = subprocess.Popen([sys.executable, __file__, *words], start_new_session=True)
        try:
            code = child.wait(seconds)
            state = "failed"
        except subprocess.TimeoutExpired:
            code, state = None, "timed out"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what it started, too
            child.wait()
        found: dict[str, Any] = json.loads(file.read_text())
    ended = f"stopped after {seconds:.0f} s" if code is None else f"exit code {code}"
    found = {"state": state, "said": ended, **found, "seconds": round(time.time() - start, 1)}
    return {**found, "rows": found["rows"][len(rows) :]}


def alone(args: argparse.Namespace, part: Callable[..., str], session_type: Any) -> int:
    """The child: one part. Its rows reach the file one by one, as the part may be stopped at any time."""
    import harness

    known = json.loads(args.json.read_text())["rows"]
    session = session_type(args.dry_run, args.until)
    session.rows = [harness.Row(**{k: v for k, v in row.items() if k != "met"}) for row in known]

    def report(**more: object) -> None:
        rows = [{**asdict(r), "met": r.met} for r in session.rows]
        new = args.json.with_suffix(".new")
        new.write_text(json.dumps({"rows": rows, **more}))
        new.replace(args.json)

    session.report = report
    try:
        said, state = part(session), "done"
    except Exception:
        said, state = traceback.format_exc(limit=-4), "failed"
    print(said, flush=True)
    report(state=state, said=said)
    return 0 if state == "done" else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What restrl's kernels do on this machine's GPU.")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the figures go")
    parser.add_argument("--minutes", type=float, default=9.0, help="everything ends by then")
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose name has one of these words")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    parser.add_argument("--resume", action="store_true", help="the parts that the JSON file does not hold")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # of a child: this one, in this process
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
