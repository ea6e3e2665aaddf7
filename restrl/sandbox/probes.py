"""What a candidate must not be able to do: tried through the real path before anything else is."""

from __future__ import annotations

import threading
from typing import Any

from restrl.records import Calls, Problem
from restrl.sandbox.item import task_seconds
from restrl.sandbox.jobs import judge_tests
from restrl.sandbox.native import core
from restrl.sandbox.pool import Pool
from restrl.sandbox.process import Task

_PROBES = """
import os, socket
def alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
def probe(what):
    try:
        if what == "read a file":
            open("/etc/passwd").close()
        elif what == "connect":
            socket.create_connection(("127.0.0.1", 9), 1).close()
        elif what == "fork":
            if os.fork() == 0:
                os._exit(0)
        elif what == "kill":
            others = {os.getppid(), *range(1, 20)} - {0, os.getpid()}
            return "allowed" if any(map(alive, others)) else "denied"
        elif what == "read the environment":
            return "denied" if set(os.environ) <= {"LC_CTYPE"} else "allowed"
    except ConnectionRefusedError:
        return "allowed"
    except OSError:
        return "denied"
    return "allowed"
"""
_WHAT = ["read a file", "connect", "fork", "kill", "read the environment"]


def leaks(pool: Pool) -> str:
    """What the probes got away with, as text; "" if nothing."""
    tests = Calls(fn_name="probe", args=[[w] for w in _WHAT], expected=["denied"] * len(_WHAT))
    data = judge_tests(Problem(task_id="self-test", source="restrl", prompt="", mode="instruct", tests=tests))
    answers: list[dict[str, Any]] = []
    done = threading.Event()

    def finish(answer: dict[str, Any]) -> None:
        answers.append(answer)
        done.set()

    options = {"problem": b"self-test", "early_exit": False}
    pool.submit(Task(_PROBES, core.encode(data), task_seconds(pool.limits.timeout, data), finish, options))
    done.wait()
    statuses = answers[0]["tests"]
    if statuses is None:
        return f"the self-test did not run: {answers[0]['detail']}"
    failed = [
        f"{what} ({status})" for what, status in zip(_WHAT, statuses, strict=True) if status != "passed"
    ]
    return f"the self-test could {', '.join(failed)}" if failed else ""
