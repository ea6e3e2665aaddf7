"""The native part (`restrl._sandbox`): codec, messages, and the zygote's loop."""

from __future__ import annotations

from typing import Any

from restrl import _sandbox

core: Any = _sandbox
CORE_FILE = str(core.__file__)
