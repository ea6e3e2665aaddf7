"""The demo in sizes that take seconds: every row of the table, the report, and going on after a stop."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from restrl.demo import schedule
from restrl.demo.jobs import ARMS, HEADS, SEARCHED, Settings, jobs
from restrl.errors import RestrlError

TINY = Settings(
    seed=3, short=True, train_problems=16, test_problems=6, difficulty=(2, 4), samples=4, steps=2,
    prompts_per_step=4, collect_problems=12, collect_simulations=2, budget=4, max_new_tokens=96,
)  # fmt: skip


def living(session: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A demo that was killed after its first jobs and then went on."""
    out = tmp_path_factory.mktemp("demo") / "out"
    fields = {k: v for k, v in dataclasses.asdict(TINY).items()}
    script = (
        "from restrl.demo import schedule\nfrom restrl.demo.jobs import Settings\n"
        f"tiny = Settings(**{fields!r})\n"
        "if __name__ == '__main__':\n"
        "    Settings.of = staticmethod(lambda seed, short: tiny)\n"
        f"    schedule.demo(__import__('pathlib').Path({str(out)!r}), seed=3, short=True)\n"
    )
    program = out.parent / "tiny_demo.py"
    program.write_text(script)
    command = [sys.executable, str(program)]
    first = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    limit = time.monotonic() + 200
    while len(list(out.glob("jobs/*.json"))) < 3 and first.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    first.kill()
    first.communicate()
    limit = time.monotonic() + 20
    while living(first.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    left = living(first.pid)
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert not left, "workers outlived the killed demo: the next one would write beside them"
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("jobs/*.json")}
    assert 3 <= len(kept) < len(jobs(TINY))
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert second.returncode == 0, second.stderr + (out / "log.txt").read_text()
    assert {name: (out / "jobs" / name).stat().st_mtime_ns for name in kept} == kept
    (out / "printed.txt").write_text(second.stdout)
    return out


def test_the_report_has_every_row(folder):
    report = json.loads((folder / "report.json").read_text())
    found = {(r["policy"], r["decoding"], r["value_head"]) for r in report["rows"]}
    plain = {(policy, method, None) for policy in ("base", *ARMS) for method in ("sample", "greedy")}
    pool = {(policy, method, None) for policy in SEARCHED for method in ("vote", "likelihood", "oracle")}
    valued = {
        (policy, method, head)
        for policy in SEARCHED
        for head in HEADS
        for method in ("orm", "prm", "orm-mcts", "vm-mcts")
    }
    assert found == plain | pool | valued
    for row in report["rows"]:
        assert {"budget", "accuracy", "stderr", "problems", "generated_tokens", "seconds"} <= row.keys()
        assert row["problems"] == 6
        assert 0 <= row["accuracy"] <= 1
    assert report["seed"] == 3
    assert set(report["reward_std"]) == set(ARMS)
    assert report["seconds"]["total"] > 0
    for arm in ARMS:
        groups = sum(report["reward_std"][arm]["histogram"]["counts"])
        assert groups == TINY.steps * TINY.prompts_per_step
    by_key = {(r["policy"], r["decoding"], r["value_head"]): r["accuracy"] for r in report["rows"]}
    for policy in SEARCHED:
        assert by_key[policy, "oracle", None] >= by_key[policy, "vote", None]
    printed = (folder / "printed.txt").read_text()
    assert len([line for line in printed.splitlines() if line.startswith(("base ", *ARMS))]) == len(found)
    assert "<svg" in (folder / "report.html").read_text()


def test_all_arms_start_from_the_same_policy_and_take_the_same_steps(folder):
    report = json.loads((folder / "report.json").read_text())
    assert {arm: len(rows) for arm, rows in report["training"].items()} == dict.fromkeys(ARMS, TINY.steps)
    kinds = {}
    for arm in ARMS:
        rows = [json.loads(line) for line in (folder / arm / "states.jsonl").read_text().splitlines()]
        kinds[arm] = {row["kind"] for row in rows}
    assert kinds["grpo"] == kinds["filter-grpo"] == {"bare"}
    assert kinds["rest-grpo"] == {"bare", "partial"}


def test_another_demo_in_the_folder_is_refused(folder):
    with pytest.raises(RestrlError, match=r"holds another demo .*seed: 3 -> 4"):
        schedule.demo(folder, seed=4, short=True)


def test_the_longest_chain_of_jobs_comes_first():
    names = [job.name for job in jobs(TINY)]
    assert names[0] == "sample"
    assert names.index("train rest-grpo") < names.index("train grpo")
    for job in jobs(TINY):
        assert all(names.index(need) < names.index(job.name) for need in job.needs)
