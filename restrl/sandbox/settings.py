"""What a sandbox is built with: isolation tier, limits, and the paths a candidate may read."""

from __future__ import annotations

import os
import site
import stat
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restrl.sandbox.native import core

VERSION = 8  # of the verifier; part of every cache key: raise it when a verdict could change

TIERS: dict[str, dict[str, bool]] = {
    "tier1+tier2": {"namespaces": True, "landlock": True, "seccomp": True},
    "tier2": {"namespaces": False, "landlock": True, "seccomp": True},
    "tier1": {"namespaces": True, "landlock": False, "seccomp": True},
    "none": {"namespaces": False, "landlock": False, "seccomp": False},
}
if not core.confines:  # this build: no Linux, or without its calls
    TIERS = {"none": TIERS["none"]}

_PROGRAMS = ("/bin", "/usr/bin", "/lib", "/lib64", "/usr/lib", "/usr/lib64")
PLACES = sys.platform == "linux"  # whether a process can be given a core
NOT_HERE = (
    "this build has no namespaces, Landlock or seccomp, which are Linux's; run restrl in a Linux container "
    "or virtual machine, or allow_unsafe to have resource limits alone (isolation none)"
)
UNSAFE = ("tier1", "none")  # less than tier 2: only where the user allows it


@dataclass(frozen=True)
class Limits:
    """Limits of one candidate.

    timeout        seconds per test; a verdict is capped at `timeout * max(min(tests, 3), tests / 4)`
    memory_mb      address space beyond the interpreter's own
    result_bytes   one returned value, encoded
    output_bytes   what a script may print for one input
    """

    timeout: float = 6.0
    memory_mb: int = 1024
    result_bytes: int = 16 << 20
    output_bytes: int = 16 << 20


def usable_cores() -> list[int]:
    """The cores this process may run on."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _library_paths() -> list[str]:
    paths = sysconfig.get_paths()
    prefix = Path(sys.base_prefix)
    wanted = [paths["stdlib"], paths["platstdlib"], str(Path(os.__file__).parent), str(prefix / "lib")]
    packages = package_paths()
    wanted += [str(prefix / "lib64"), *packages, *_linked_packages(packages)]
    wanted += [
        "/lib",
        "/lib64",
        "/usr/lib",
        "/usr/lib64",
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/usr/share/zoneinfo",
    ]
    present = sorted({p for p in wanted if os.path.exists(p)}, key=len)
    # A directory inside another one that is there already needs no entry of its own.
    kept: list[str] = []
    for path in present:
        if not any(path.startswith(k + "/") for k in kept):
            kept.append(path)
    return kept


def package_paths() -> list[str]:
    """Where the packages lie that are installed beside restrl: candidates may import them."""
    paths = sysconfig.get_paths()
    places = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
    if site.ENABLE_USER_SITE and site.USER_SITE:
        places.append(site.USER_SITE)
    # Through a .pth file too, but only directories of packages: another one may be somebody's work.
    places += [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")]
    return list(dict.fromkeys(p for p in places if os.path.isdir(p)))


def _linked_packages(places: list[str]) -> list[str]:
    """Packages that are symbolic links: what these lead to, which lies elsewhere."""
    links = [entry for place in places for entry in os.scandir(place) if entry.is_symlink()]
    return [os.path.realpath(entry.path) for entry in links]


def _open_to_all(path: str) -> bool:
    """Whether every user may reach and read `path`."""
    real = Path(os.path.realpath(path))
    way = all(p.stat().st_mode & stat.S_IXOTH for p in real.parents)
    return way and bool(real.stat().st_mode & stat.S_IROTH)


def sandbox_settings(tier: str, limits: Limits) -> dict[str, Any]:
    """What the judge and the zygote get at start (plain data)."""
    readable = _library_paths()
    return {
        **TIERS[tier],
        # Root's files stay closed even to a candidate that got past everything else.
        "drop_user": tier != "none" and os.geteuid() == 0 and all(map(_open_to_all, readable)),
        "readable": readable,
        "sys_path": package_paths(),
        "memory_bytes": limits.memory_mb << 20,
        "scratch_bytes": 16 << 20,
        "processes": 256,
        "children": False,
        "programs": [p for p in _PROGRAMS if os.path.isdir(p)],
        "cpu_seconds": int(limits.timeout * 4) + 2,
        "result_bytes": limits.result_bytes,
        "output_bytes": limits.output_bytes,
        "timeout": limits.timeout,
        "judge_bytes": 4 << 30,
    }
