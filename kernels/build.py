"""What `python -m restrl.kernels.compile` compiles: every file of kernels lists its variants in `BUILDS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Build(NamedTuple):
    """A variant of a kernel as a GPU would run it.

    kernel     the `@triton.jit` function
    types      argument -> Triton's type: "*bf16", "*fp32", "*i64", "i32", "fp32"; pointers are taken as
               aligned to 16 bytes; "i32:16" is an integer known to be a multiple of 16
    constants  every other argument: the constexpr ones, and those that are None or 1 in this variant
    note       what tells it from the kernel's other variants
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, object]
    num_warps: int = 4
    num_stages: int = 3
    note: str = ""
