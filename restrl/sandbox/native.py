"""The native part (`restrl._core.sandbox`): codec, messages, and the zygote's loop."""

from __future__ import annotations

from typing import Any

from restrl import _core

core: Any = vars(_core)["sandbox"]
CORE_FILE = str(_core.__file__)
