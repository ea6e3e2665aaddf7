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


Tests = Annotated[Asserts | Check | Stdio | Calls, Field(discriminator="kind")]


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
