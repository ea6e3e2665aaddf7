"""The verifier: runs programs a model wrote against a problem's tests, in sandboxes.

Lazy on purpose: judges import this package too, and need none of what the caller's side needs.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which takes its time
if TYPE_CHECKING:
    from typing import Any

    from restrl.sandbox.verifier import Pending, Stats, Verdict, Verifier

__all__ = ["Pending", "Stats", "Verdict", "Verifier"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from restrl.sandbox import verifier

        return vars(verifier)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
