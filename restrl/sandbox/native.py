"""The native part (`restrl._sandbox`): codec, messages, and the zygote's loop."""

from __future__ import annotations

from restrl import _sandbox

TYPE_CHECKING = False  # as in typing, which takes its time
if TYPE_CHECKING:
    from typing import Any

core: Any = _sandbox
CORE_FILE = str(core.__file__)
