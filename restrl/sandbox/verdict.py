"""What became of a program, and the handle of a verdict to come."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What became of one program.

    status     "passed", or the status of the first test that did not pass: failed, error, timeout, memory,
               crashed, output_limit, unserialisable; infrastructure_error where nothing could be found out
    reward     fraction of tests passed, in [0, 1]; with early exit 1 or 0; None for infrastructure_error
    tests      status of every test, in order; "skipped" after the first that failed, with early exit
    seconds    wall time in the judge
    isolation  tier it ran under: tier1+tier2, tier2, tier1 or none
    detail     one line on the first failure
    mode       how the tests were run: function, stdio, harness or split (apart from the program), guarded
               (unittest, beside it), split+guarded; "" where nothing came back
    """

    status: str
    passed: bool
    reward: float | None
    tests: tuple[str, ...]
    seconds: float
    isolation: str
    detail: str = ""
    mode: str = ""


class Pending(Future[Verdict]):
    """A verdict to come, with all that a `concurrent.futures.Future` can do.

    Callbacks run in the verifier's own thread: they must be short.
    """

    def __init__(self, withdraw: Callable[[Pending], bool]) -> None:
        super().__init__()
        self._withdraw = withdraw
        self.key = ""  # what it waits for, in the verifier

    def cancel(self) -> bool:
        """Give it up, even if it is being judged. False if the verdict is there already."""
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        if self._withdraw(self):  # nobody else will tell those that wait for it
            self.set_running_or_notify_cancel()
        return True

    def settle(self, verdict: Verdict) -> None:
        """For the verifier."""
        if self.set_running_or_notify_cancel():
            self.set_result(verdict)
