"""Everything restrl claims about a GPU, checked in one go: tests, correctness, repeatability, times, memory.

    python benchmarks/gpu.py [--json gpu.json] [--minutes 9] [--only WORD ...] [--dry-run]

Runs from a bare checkout with Python, torch, triton and pytest; nothing is fetched, and the engine's module
restrl._core is not needed. Peers (trl, liger_kernel) are measured where they can be imported. A part that
fails is reported and the others go on, in a new process if it left the GPU unusable; parts that no longer fit
into the minutes are left out, and say so. The JSON file is written after every part: goals beside
measurements, errors against float64, the profiler's table, and what went wrong.

--only     parts whose name has one of these words
--dry-run  without a GPU: the same parts on tiny shapes, kernels in Triton's interpreter; times say nothing
--resume   go on with the parts that the JSON file does not hold
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
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

    found: dict[str, Any] = json.loads(args.json.read_text()) if args.resume else {"parts": {}, "rows": []}
    if args.until is None:  # asked for, not gone on by itself: what was left out gets another chance
        found["parts"] = {k: v for k, v in found["parts"].items() if v["state"] != "left out"}
    session = Session(args.dry_run, args.until or time.time() + 60 * args.minutes)
    session.rows = [harness.Row(**{k: v for k, v in row.items() if k != "met"}) for row in found["rows"]]
    if not args.resume:
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
        if not any(word in name for word in args.only) or name in found["parts"]:
            continue
        found["parts"][name] = run(name, part, session)
        found["rows"] = [{**asdict(r), "met": r.met} for r in session.rows]
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        if not args.dry_run and not usable():
            sys.stdout.flush()
            go_on = ["--resume", "--until", str(session.until)]
            os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:], *go_on])
    goals = [r for r in session.rows if r.must is not None]
    print("", harness.table(session.rows), "", sep="\n")
    missed = [name for name, part in found["parts"].items() if part["state"] != "done"]
    met = sum(bool(r.met) for r in goals)
    print(
        f"goals met: {met} of {len(goals)}; failed or left out: {', '.join(missed) or 'nothing'}; {args.json}"
    )
    return 1 if missed else 0


def run(name: str, part: Callable[..., str], session: Any) -> dict[str, object]:
    """What a part said, how long it took, and whether it ended well. Nothing it raises gets past."""
    start = time.time()
    print(f"== {name}", flush=True)
    if start > session.until:
        print("left out: the minutes are over", flush=True)
        return {"state": "left out"}
    try:
        said, state = part(session), "done"
    except Exception:
        said, state = traceback.format_exc(limit=-4), "failed"
    gc.collect()  # a failed part's tensors
    seconds = round(time.time() - start, 1)
    print(f"{said}\n{name}: {state}, {seconds} s", flush=True)
    return {"state": state, "seconds": seconds, "said": said}


def usable() -> bool:
    """Whether the GPU still answers: after an illegal access it does not, in this process."""
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:  # torch has several types for it
        return False
    return True


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What restrl's kernels do on this machine's GPU.")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the figures go")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part starts later")
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose name has one of these words")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    parser.add_argument("--resume", action="store_true", help="the parts that the JSON file does not hold")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of the process that goes on
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
