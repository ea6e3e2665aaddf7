"""Ahead-of-time compiling of every kernel, without a GPU: what the compiler made of them.

    python -m restrl.kernels.compile [--arch 80 90 100] [--only WORD]

Prints registers a thread, shared memory a block, bytes of stack a thread and instructions that spill, and
64-bit floating point instructions in the PTX. Exits with 1 if a kernel fails to compile, spills, has a stack
or computes in 64 bits, which a float argument or a constant that was widened by mistake leads to.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restrl.kernels.build import Build

ARCHITECTURES = (80, 90, 100)  # A100, H100 and H200, B200
ALIGNED = [["tt.divisibility", 16]]
USAGE = re.compile(r"Function (\w+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)")
SPILL = re.compile(r"\b(?:LDL|STL)\b")  # loads from and stores to a thread's own memory
FP64 = re.compile(r"\.f64\b")
HEADINGS = ("kernel", "variant", "arch", "warps", "registers", "shared", "stack", "spills", "fp64", "")


@dataclass(frozen=True)
class Compiled:
    """registers and stack (bytes) of a thread, shared memory (bytes) of a block, instructions counted."""

    registers: int
    shared: int
    stack: int
    spills: int
    fp64: int

    @property
    def complaint(self) -> str:
        """Empty if there is none."""
        found = (("stack", self.stack), ("spills", self.spills), ("fp64", self.fp64))
        return ", ".join(name for name, count in found if count)


def all_builds() -> Iterator[Build]:
    """The variants that the files of kernels list, file by file."""
    package = importlib.import_module("restrl.kernels")
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        yield from vars(importlib.import_module(f"restrl.kernels.{name}")).get("BUILDS", ())


def compile_build(build: Build, arch: int, folder: Path) -> Compiled:
    """`folder` keeps the machine code for the disassembler. Raises ValueError where the variant does not fit
    the kernel's arguments, and what Triton raises where it does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    if wrong := set(names) ^ (build.types.keys() | build.constants.keys()):
        raise ValueError(f"arguments in the kernel or in its Build, not in both: {', '.join(sorted(wrong))}")
    signature = {
        name: build.types[name].split(":")[0] if name in build.types else "constexpr" for name in names
    }
    aligned = {name for name, kind in build.types.items() if kind.startswith("*") or kind.endswith(":16")}
    source = ASTSource(
        build.kernel,
        signature,
        dict(build.constants),
        {(i,): ALIGNED for i, name in enumerate(names) if name in aligned},
    )
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    path = folder / "kernel.cubin"
    path.write_bytes(made.asm["cubin"])
    usage = USAGE.search(disassemble("--dump-resource-usage", path))
    if usage is None:
        raise ValueError("the disassembler reports no resources")
    return Compiled(
        registers=int(usage[2]),
        stack=int(usage[3]),
        shared=max(
            int(usage[4]), made.metadata.shared
        ),  # the former holds only what is fixed at compile time
        spills=len(SPILL.findall(disassemble("--dump-sass", path))) if int(usage[3]) else 0,
        fp64=len(FP64.findall(made.asm["ptx"])),
    )


def disassemble(option: str, path: Path) -> str:
    """By the cuobjdump that comes with Triton."""
    from triton import knobs

    tool = knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout


def report(builds: Sequence[Build], architectures: Sequence[int]) -> bool:
    """Prints the table, a line as soon as it is known; whether all is well."""
    widths = (28, 24, 4, 5, 9, 6, 5, 6, 4, 0)
    well = True

    def show(cells: Sequence[object]) -> None:
        padded = (
            str(c).ljust(w) if i < 2 else str(c).rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        print(" ".join(padded).rstrip(), flush=True)

    show(HEADINGS)
    with tempfile.TemporaryDirectory() as folder:
        for build in builds:
            for arch in architectures:
                about = (build.kernel.__name__, build.note, arch, build.num_warps)
                try:
                    c = compile_build(build, arch, Path(folder))
                except (
                    Exception
                ) as error:  # whatever one kernel's compiler raises, the others are compiled too
                    well = False
                    why = " ".join(f"{type(error).__name__}: {error}".split())
                    show((*about, *[""] * 5, f" FAILED: {why}"))
                    continue
                well &= not c.complaint
                verdict = f" BAD: {c.complaint}" if c.complaint else ""
                show((*about, c.registers, c.shared, c.stack, c.spills, c.fp64, verdict))
    return well


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m restrl.kernels.compile", description="Compiles every kernel."
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="80 90 100")
    parser.add_argument("--only", default="", help="kernels whose name has this word")
    args = parser.parse_args(words)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print(
            "TRITON_INTERPRET=1 runs kernels in Python instead of compiling them: unset it", file=sys.stderr
        )
        return 1
    if importlib.util.find_spec("triton") is None:
        print("triton is not installed: pip install triton", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # nothing that was compiled before counts
        os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what Triton 3.6 does, and later ones change
        builds = [build for build in all_builds() if args.only in build.kernel.__name__]
        if not builds:
            print(f"no kernel has {args.only!r} in its name", file=sys.stderr)
            return 1
        return 0 if report(builds, args.arch) else 1


if __name__ == "__main__":
    sys.exit(main())
