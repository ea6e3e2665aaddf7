"""Every kernel is on a list and compiles for the GPUs restrl names: no spills, no 64-bit arithmetic."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from restrl.kernels.compile import ARCHITECTURES, HEADINGS, all_builds  # noqa: E402

KERNELS = Path(__file__).parents[1] / "kernels"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: here, kernels may be decorated for the interpreter."""
    return subprocess.run(
        [sys.executable, "-m", "restrl.kernels.compile", *words],
        env={**os.environ, "TRITON_INTERPRET": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def jit_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [node for node in found if any("jit" in ast.unparse(d) for d in node.decorator_list)]


def test_no_kernel_is_missing_from_the_lists() -> None:
    """A jit function is a kernel unless another one calls it."""
    functions = [
        f for path in KERNELS.glob("*.py") for f in jit_functions(ast.parse(path.read_text("utf-8")))
    ]
    called = {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)
    }
    listed = {build.kernel.__name__ for build in all_builds()}
    assert {f.name for f in functions} - called - listed == set()
    assert listed <= {f.name for f in functions}


def test_every_kernel_compiles_without_spills() -> None:
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == [word for word in HEADINGS if word]
    assert len(lines) == len(ARCHITECTURES) * len(list(all_builds()))


BAD = """
import triton
import triton.language as tl
from restrl.kernels.build import Build

@triton.jit
def wide(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float64)
    tl.store(y + at, tl.sqrt(value).to(tl.float32), mask=at < n)

@triton.jit
def spilling(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(y + at, tl.exp(value - tl.max(value, 0)), mask=at < n)

@triton.jit
def broken(x, y, BLOCK: tl.constexpr):
    tl.store(y, unknown)

@triton.jit
def fine(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n), mask=at < n)

TYPES = {"x": "*fp32", "y": "*fp32", "n": "i32"}
BUILDS = (
    Build(wide, TYPES, {"BLOCK": 128}),
    Build(spilling, TYPES, {"BLOCK": 8192}, num_warps=1),
    Build(broken, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 128}),
    Build(fine, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 128}),
    Build(fine, TYPES, {"BLOCK": 128}, note="as listed"),
)
"""


def test_what_is_wrong_is_said_and_the_rest_still_compiled(tmp_path: Path) -> None:
    (tmp_path / "bad_kernels.py").write_text(BAD, encoding="utf-8")
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport bad_kernels\n"
        "from restrl.kernels import compile\n"
        "compile.all_builds = lambda: bad_kernels.BUILDS\n"
        "sys.exit(compile.main(['--arch', '90']))\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    wide, spilling, broken, unlisted, fine = done.stdout.splitlines()[1:]
    assert wide.endswith("BAD: fp64")
    assert "BAD: stack" in spilling
    assert "spills" in spilling
    assert "FAILED" in broken
    assert "FAILED: ValueError: arguments in the kernel or in its Build, not in both: n" in unlisted
    assert fine.split()[:5] == ["fine", "as", "listed", "90", "4"]
    assert fine.split()[-3:] == ["0", "0", "0"]


def test_the_interpreter_cannot_compile() -> None:
    done = run(TRITON_INTERPRET="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "TRITON_INTERPRET=1 runs kernels in Python instead of compiling them: unset it\n"


def test_a_word_that_fits_no_kernel_is_an_error() -> None:
    done = run("--only", "no such kernel")
    assert (done.returncode, done.stderr) == (1, "no kernel has 'no such kernel' in its name\n")
