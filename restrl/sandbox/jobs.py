"""From a problem to what a judge needs of it: plain data."""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from typing import Any

from restrl.errors import RestrlError
from restrl.problems.typed import typed_arguments
from restrl.records import Asserts, Calls, Check, Context, Inputs, Problem, Stdio, Unittest
from restrl.sandbox.remote import wants_scratch

# Call-based APPS programs, and all of LiveCodeBench, were written where these names are there already. Of its
# lines a program gets those that it needs (judge.py:names_for).
_USUAL_NAMES = """\
import bisect
import collections
import copy
import fractions
import functools
import heapq
import itertools
import math
import operator
import random
import re
import string
import sys
import time
from bisect import bisect_left, bisect_right, insort
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush, heappushpop, heapreplace, nlargest, nsmallest
from itertools import accumulate, chain, combinations, count, cycle, groupby, permutations, product
from math import ceil, comb, cos, exp, fabs, floor, gcd, inf, isqrt, log, log2, pi, sin, sqrt, tan
from typing import Any, Dict, List, Optional, Set, Tuple, Union
"""


def judge_tests(problem: Problem) -> dict[str, Any]:
    """The tests of `problem` as plain data for `restrl.sandbox.judge`.

    Raises RestrlError for a problem without tests or with tests that are no Python.
    """
    tests = problem.tests
    if isinstance(tests, Calls):
        if len(tests.args) != len(tests.expected):
            raise RestrlError(
                f"{problem.task_id}: {len(tests.args)} calls but {len(tests.expected)} expected values"
            )
        data: dict[str, Any] = {
            "kind": "calls",
            "fn_name": tests.fn_name,
            "inputs": tests.args,
            "expected": tests.expected,
            "wrapped": tests.wrapped,
            "before": _USUAL_NAMES if problem.source in ("apps", "livecodebench") else "",
        }
    elif isinstance(tests, Stdio):
        if len(tests.inputs) != len(tests.outputs):
            raise RestrlError(
                f"{problem.task_id}: {len(tests.inputs)} inputs but {len(tests.outputs)} outputs"
            )
        data = {
            "kind": "stdio",
            "inputs": tests.inputs,
            "outputs": tests.outputs,
            "tolerant": problem.source == "apps",
            "before": _USUAL_NAMES if problem.source == "livecodebench" else "",
        }
    elif isinstance(tests, Check):
        data = {
            "kind": "check",
            "prefix": _trusted_prefix(problem.prefix),
            "code": tests.code,
            "entry_point": tests.entry_point,
        }
        _parse(tests.code, problem, "test code")
    elif isinstance(tests, Inputs):
        data = {
            "kind": "inputs",
            "entry_point": tests.entry_point,
            "inputs": typed_arguments(tests.inputs, tests.examples),
            "base": tests.base,
            "gold": tests.gold,
            "contract": tests.contract,
            "atol": tests.atol,
            "compare": tests.compare,
        }
    elif isinstance(tests, Unittest):
        data = _unittest(problem, tests)
    elif isinstance(tests, Context):
        data = _context(problem, tests)
    else:
        data = _asserts(problem, tests)
    data["reference"] = problem.reference or ""
    if data["kind"] != "check" and not data.get("inputs", data.get("methods", data.get("asserts"))):
        raise RestrlError(f"{problem.task_id}: a problem without tests cannot be verified")
    return data


def _parse(source: str, problem: Problem, what: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files hold invalid escapes; that is not the user's doing
            return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise RestrlError(f"{problem.task_id}: the {what} is no Python: {error}") from None


def _trusted_prefix(prefix: str) -> list[str]:
    """The prefix as a module, if it is one (HumanEval's end in a docstring; a bare signature gets a body)."""
    for source in (prefix, prefix.rstrip() + "\n    pass\n"):
        try:
            ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        return [source] if source.strip() else []
    return []


def _bound_names(tree: ast.Module) -> set[str]:
    """Names that the module's top level defines or assigns."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        else:
            names.update(
                n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            )
    return names


def _imported_names(tree: ast.Module) -> set[str]:
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    return {(a.asname or a.name).split(".")[0] for n in imports for a in n.names}


def _loaded_names(tree: ast.Module) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _asserts(problem: Problem, tests: Asserts) -> dict[str, Any]:
    """MBPP: which names of the asserts live in the candidate, and where the set-up code runs.

    Set-up that uses names of the program (MBPP 367 and 927 build trees of its class) runs in the candidate
    after the program; the judge then passes its variables by name. Other set-up runs first, on both sides.
    """
    trees = [_parse(source, problem, "assert") for source in tests.asserts]
    setup = _parse(tests.setup, problem, "set-up code")
    used = set().union(*map(_loaded_names, trees)) - set().union(*map(_bound_names, trees))
    known = set(vars(builtins))
    of_setup = _bound_names(setup) | _imported_names(setup)
    remote_setup = bool(_loaded_names(setup) - of_setup - known)
    imports = ""
    if problem.reference is not None:
        reference = _parse(problem.reference, problem, "reference solution")
        program = _bound_names(reference) & used
        missing = used - program - of_setup - known
        kept = [
            n
            for n in reference.body
            if isinstance(n, ast.Import | ast.ImportFrom)
            and any((a.asname or a.name).split(".")[0] in missing or a.name == "*" for a in n.names)
        ]
        imports = "".join(ast.unparse(n) + "\n" for n in kept)
        of_imports = set().union(*(_imported_names(ast.Module([n], [])) for n in kept))
        names = program | (missing - of_imports)
    else:
        names = used - of_setup - known
    if problem.entry_point:
        names.add(problem.entry_point)
    if remote_setup:
        names |= of_setup & used
    return {
        "kind": "asserts",
        "asserts": tests.asserts,
        "names": sorted(names),
        "setup": imports + ("" if remote_setup else tests.setup),
        "before": "" if remote_setup else tests.setup,
        "after": tests.setup if remote_setup else "",
    }


# Test code with one of these words changes or watches what the program uses: it must run beside it.
_IN_PROCESS = {
    "patch",
    "mock",
    "Mock",
    "MagicMock",
    "putenv",
    "stderr",
    "stdin",
    "chdir",
}
_IN_PROCESS |= {"redirect_stderr", "assertLogs", "assertNoLogs", "assertWarns", "catch_warnings"}
# With one of these it can run in another process that gives and takes what they change (mirror.py).
_SHARED = {"seed": "seed", "environ": "environ", "stdout": "stdout", "redirect_stdout": "stdout"}
_SHARED_PATCHES = {"patch.dict": ("os.environ", "environ"), "patch": ("sys.stdout", "stdout")}


# With one of these, a file that a program wrote could run code where it is read.
_RUN_FILES = {"pickle", "read_pickle", "joblib", "dill", "shelve", "marshal", "importlib", "runpy", "ctypes"}
_RUN_FILES |= {"sys.path", "exec", "eval", "torch", "yaml", "cloudpickle", "allow_pickle"}
_WORD = re.compile(r"sys\.path|\w+")


def _files(code: str) -> set[str]:
    """{"files"} where the tests' code has words of files, and none of what runs them."""
    return {"files"} if wants_scratch(code) and not _RUN_FILES & set(_WORD.findall(code)) else set()


def _shared_patch(node: ast.AST) -> str:
    """What of `_SHARED` a call like `patch.dict(os.environ, ...)` changes; "" for any other code."""
    if not isinstance(node, ast.Call) or not node.args:
        return ""
    function = ast.unparse(node.func).removeprefix("unittest.").removeprefix("mock.")
    target, shared = _SHARED_PATCHES.get(function, ("", ""))
    return shared if ast.unparse(node.args[0]).strip("'\"") == target else ""


# Code with one of these words may start programs: the problem's own code, never the one that is judged.
_STARTS = {"subprocess", "Popen", "popen", "system", "posix_spawn", "multiprocessing", "ProcessPoolExecutor"}


def _starts_programs(problem: Problem, *sources: str) -> bool:
    for source in sources:
        tree = _parse(source, problem, "reference solution or test code")
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        texts = [a.name for n in imports for a in n.names]
        texts += [n.module or "" for n in imports if isinstance(n, ast.ImportFrom)]
        if (_words(tree) | {word for text in texts for word in text.split(".")}) & _STARTS:
            return True
    return False


def _words(node: ast.AST) -> set[str]:
    """Names and attributes; of a patch of what is shared only the word for that."""
    shared = _shared_patch(node)
    if shared:
        assert isinstance(node, ast.Call)
        rest = [*node.args[1:], *(k.value for k in node.keywords)]
        return set().union({shared}, *map(_words, rest))
    own = {node.id} if isinstance(node, ast.Name) else set()
    own |= {node.attr} if isinstance(node, ast.Attribute) else set()
    return set().union(own, *map(_words, ast.iter_child_nodes(node)))


def _unittest(problem: Problem, tests: Unittest) -> dict[str, Any]:
    """BigCodeBench: the test methods, and those that can only run in one process with the program."""
    tree = _parse(tests.code, problem, "test code")
    bases: set[str] = set()
    methods: list[str] = []
    in_process: list[str] = []
    outside = [n for n in tree.body if not isinstance(n, ast.ClassDef | ast.Import | ast.ImportFrom)]
    everywhere = set().union(*map(_words, outside)) & _IN_PROCESS
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not any(
            _words(base) & ({"TestCase", "IsolatedAsyncioTestCase"} | bases) for base in node.bases
        ):
            continue
        bases.add(node.name)
        own = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        shared = [n for n in node.body if n not in own] + node.decorator_list
        shared += [n for n in own if not n.name.startswith("test")]  # fixtures and what tests call
        together = bool(everywhere or set().union(*map(_words, shared)) & _IN_PROCESS)
        for method in sorted((n for n in own if n.name.startswith("test")), key=lambda n: n.name):
            name = f"{node.name}.{method.name}"
            if name in methods:
                continue  # a second definition replaces the first
            methods.append(name)
            if together or _words(method) & _IN_PROCESS:
                in_process.append(name)
    reference = problem.reference
    return {
        "kind": "unittest",
        "code": tests.code,
        "entry_point": tests.entry_point,
        "prefix": _trusted_prefix(problem.prefix),
        "reference": problem.reference or "",
        "methods": methods,
        "in_process": in_process,
        "starts_programs": reference is not None and _starts_programs(problem, tests.code, reference),
        "shares": sorted({_SHARED[word] for word in _words(tree) & _SHARED.keys()} | _files(tests.code)),
    }


def _context(problem: Problem, tests: Context) -> dict[str, Any]:
    """DS-1000: which functions test, and which of the program's variables they can ask for."""
    tree = _parse(tests.code, problem, "code context")
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    keys = [n.slice for n in ast.walk(tree) if isinstance(n, ast.Subscript)]
    keys += [n.args[0] for n in ast.walk(tree) if isinstance(n, ast.Call) and n.args]
    wanted = {n.value for n in keys if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {
        "kind": "context",
        "code": tests.code,
        "reference": problem.reference or "",
        "methods": [name for name in ("test_execution", "test_string") if name in defined],
        "wanted": sorted(w for w in wanted if w.isidentifier()),
    }
