"""Everything restrl claims about a GPU, checked in one go: tests, correctness, repeatability, times, memory.

    python benchmarks/gpu.py [--json gpu.json] [--minutes 9] [--only WORD] [--dry-run]

Runs from a bare checkout with Python, torch, triton and pytest; nothing is fetched, and the engine's module
restrl._core is not needed. Peers (trl, liger_kernel) are measured where they can be imported. A part that
fails is reported and the others go on; parts that no longer fit into the minutes are left out, and say so.
The JSON file is written after every part: goals beside measurements, errors against float64, the profiler's
table, and what went wrong.

--only     parts whose name has this word
--dry-run  without a GPU: the same parts on tiny shapes, kernels in Triton's interpreter; its times say nothing
"""

from __future__ import annotations

import argparse
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

    session = Session(args.dry_run, time.monotonic() + 60 * args.minutes)
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": harness.commit(),
        "dry_run": args.dry_run,
        "device": session.describe(),
        "versions": session.versions(),
        "restrl._core": "built"
        if find_spec("restrl._core")
        else "not built; `pip install .` builds it, not needed here",
    }
    print(json.dumps(about, indent=1), flush=True)
    parts: dict[str, dict[str, object]] = {}
    for name, part in PARTS.items():
        if args.only not in name:
            continue
        parts[name] = run(name, part, session)
        text = {**about, "parts": parts, "rows": [{**asdict(r), "met": r.met} for r in session.rows]}
        args.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    goals = [r for r in session.rows if r.must is not None]
    print("", harness.table(session.rows), "", sep="\n")
    failed = [name for name, found in parts.items() if found["state"] == "failed"]
    met = sum(bool(r.met) for r in goals)
    print(f"goals met: {met} of {len(goals)}; parts failed: {', '.join(failed) or 'none'}; {args.json}")
    return 1 if failed else 0


def run(name: str, part: Callable[..., str], session: object) -> dict[str, object]:
    """What a part said, how long it took, and whether it ended well. Nothing it raises gets past."""
    start = time.monotonic()
    print(f"== {name}", flush=True)
    if start > session.until:
        print("left out: the minutes are over", flush=True)
        return {"state": "left out"}
    try:
        said, state = part(session), "done"
    except Exception:
        said, state = traceback.format_exc(limit=-4), "failed"
    seconds = round(time.monotonic() - start, 1)
    print(f"{said}\n{name}: {state}, {seconds} s", flush=True)
    return {"state": state, "seconds": seconds, "said": said}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What restrl's kernels do on this machine's GPU.")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the figures go")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part starts later")
    parser.add_argument("--only", default="", help="parts whose name has this word")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
