"""The records that stages exchange: problems and their tests.

Numpy and pydantic only: importing this module imports no torch. Stage outputs are plain JSON rows,
documented in docs/formats.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Asserts(_Record):
    """MBPP: every entry of `asserts` is one test; `setup` runs before it (after a program that it uses)."""

    kind: Literal["asserts"] = "asserts"
    setup: str = ""
    asserts: list[str]


class Check(_Record):
    """HumanEval: `code` defines `check(candidate)`; one test, called as `check(<entry_point>)`."""

    kind: Literal["check"] = "check"
    code: str
    entry_point: str


class Stdio(_Record):
    """Programs that read stdin and write stdout: one test per pair."""

    kind: Literal["stdio"] = "stdio"
    inputs: list[str]
    outputs: list[str]


class Calls(_Record):
    """Call-based tests: `fn_name(*args[i])`, a method of `Solution` if there is one, equals `expected[i]`.

    With `wrapped` an expected value may stand in one more list (APPS), and tuples equal lists.
    """

    kind: Literal["calls"] = "calls"
    fn_name: str
    args: list[list[Any]]
    expected: list[Any]
    wrapped: bool = False


class Inputs(_Record):
    """EvalPlus: `entry_point(*inputs[i])` gives what the program `gold` gives. One test per input.

    The first `base` inputs are the original ones. `contract` is a whole program with a function of the name
    `contract` that raises for arguments that are none. `examples` are calls in Python (`f((1, 2))`): where
    they have tuples, sets or complex numbers, the inputs, which JSON made lists and text of, have them too.
    Floats may differ by `atol`. `compare`: "equal"; "set" (same elements); "not_none" (the gold solution
    says whether there is a result); "root" (the result is a root of the polynomial, to within `atol`).
    """

    kind: Literal["inputs"] = "inputs"
    entry_point: str
    inputs: list[list[Any]]
    base: int = 0
    gold: str
    contract: str = ""
    examples: list[str] = Field(default_factory=list)
    atol: float = 0.0
    compare: Literal["equal", "set", "not_none", "root"] = "equal"


class Unittest(_Record):
    """BigCodeBench: `code` defines `unittest.TestCase` classes that call `entry_point`; a test per method."""

    kind: Literal["unittest"] = "unittest"
    code: str
    entry_point: str


class Context(_Record):
    """DS-1000: `code` defines `test_execution(program)` and perhaps `test_string(program)`, a test each."""

    kind: Literal["context"] = "context"
    code: str


Tests = Annotated[Asserts | Check | Stdio | Calls | Inputs | Unittest | Context, Field(discriminator="kind")]


class Problem(_Record):
    """One programming problem, whatever file it came from.

    prefix       the code a program starts with (HumanEval's prompt, a starter function); "" if none
    prompt       what the policy is asked, as text
    mode         "complete": the prompt is code to be continued (then prefix == prompt);
                 "instruct": the prompt is an instruction in words
    reference    a whole program known to pass, or None
    """

    task_id: str
    source: str
    prompt: str
    mode: Literal["complete", "instruct"]
    entry_point: str | None = None
    prefix: str = ""
    tests: Tests
    reference: str | None = None
    meta: dict[str, Any] = Field(default_factory=dict)
