"""Type stub of the sandbox's native part (csrc/bindings/register_sandbox.cpp), which is taken as Any."""

from typing import Any

def __getattr__(name: str) -> Any: ...
