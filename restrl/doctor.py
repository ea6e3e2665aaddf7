"""`restrl doctor`: what this machine offers, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from restrl.errors import RestrlError
from restrl.sandbox import Verifier
from restrl.sandbox.native import core
from restrl.sandbox.settings import NOT_HERE, TIERS, UNSAFE, usable_cores

PACKAGES = ("torch", "transformers", "numpy", "pydantic", "triton")

# What the set-up says when it is refused (docs/security.md), and what helps.
_REMEDIES = (
    (
        "new namespaces: Operation not permitted",
        "allow user namespaces to ordinary users: sysctl kernel.apparmor_restrict_unprivileged_userns=0 "
        "(Ubuntu), kernel.unprivileged_userns_clone=1 (Debian); in a container, a seccomp profile that "
        "allows unshare, mount and pivot_root",
    ),
    ("new namespaces: No space left on device", "sysctl user.max_user_namespaces=15000"),
    ("landlock: not in this kernel", "Linux 5.13 or newer with landlock in the boot parameter lsm="),
    ("seccomp: ", "a kernel with CONFIG_SECCOMP_FILTER"),
)


def examine() -> tuple[list[str], bool]:
    """Lines to print, and whether restrl can work here: some tier that is not unsafe starts."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.release()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines.append(f"cores: {len(usable_cores())}; free disk here: {_free_gb():.0f} GB")
    lines.append(_device())
    lines.append(f"isolation of untrusted programs (each tier started and probed; {_kernel()}):")
    works = {tier: _tier(tier) for tier in TIERS if tier != "none"}
    if not core.confines:
        lines.append(f"  none only: {NOT_HERE}")
    lines += [f"  {tier:<12} {why or 'works'}" for tier, why in works.items()]
    well = any(not why for tier, why in works.items() if tier not in UNSAFE)
    if not well:
        lines.append("no sufficient isolation: restrl runs programs here only with allow_unsafe")
    elif works["tier1+tier2"]:
        lines.append("programs are sealed by tier 2 alone; namespaces would add a second wall")
    if os.geteuid() == 0:
        lines.append("started by root, which nothing here needs: an ordinary user is better")
    lines += dict.fromkeys(f"  to get more: {r}" for why in works.values() for k, r in _REMEDIES if k in why)
    return lines, well


def _kernel() -> str:
    version = core.landlock_version()
    lacks = [what for least, what in ((3, "truncation"), (4, "TCP"), (6, "signals")) if version < least]
    missing = f", without {', '.join(lacks)}: seccomp refuses these" if version and lacks else ""
    return f"Landlock version {version}{missing}" if version else "no Landlock"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _free_gb() -> float:
    return shutil.disk_usage(".").free / 1e9


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"no GPU that torch sees; CPU threads: {torch.get_num_threads()}"
    triton = "" if find_spec("triton") else " (triton is missing: pip install triton)"
    return f"GPU: {torch.cuda.get_device_name()}{triton}"


def _tier(tier: str) -> str:
    """Why a tier does not work here; empty if it does."""
    try:
        with Verifier(workers=1, cache=False, isolation=tier, allow_unsafe=True):
            return ""
    except RestrlError as error:
        return str(error).partition(f"({tier}: ")[2].rpartition("); use")[0] or str(error)
