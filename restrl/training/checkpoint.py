"""Files of a training run: whole checkpoints or none, and metric rows that match them.

    out/
      training.json        what the run was started with; a run with other settings is refused
      metrics.jsonl        one row per optimiser step
      checkpoint-<step>/   model files and trainer_state.pt (optimiser, step, RNG, the job's own state)
      final/               model files; the run is done when this folder exists

A folder is written under a temporary name and renamed, and it is renamed before it is deleted: whatever
instant the process is killed at, a folder under its own name is complete.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from restrl.errors import RestrlError

METRICS = "metrics.jsonl"
STATE = "trainer_state.pt"
_TEMPORARY = ".incomplete-"


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Create `target` with what `fill(folder)` writes, all or nothing. An existing `target` is kept as it is.

    Raises RestrlError when the disk is full; nothing is left behind then.
    """
    if target.exists():
        return
    temporary = target.with_name(_TEMPORARY + target.name)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for path in temporary.rglob("*"):
            _flush_to_disk(path)
        _flush_to_disk(temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _disk_error(target, error) from error
    os.replace(temporary, target)
    _flush_to_disk(target.parent)


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint of `out`, oldest first."""
    found = [(int(path.name.removeprefix("checkpoint-")), path) for path in out.glob("checkpoint-[0-9]*")]
    return sorted(found)


def rotate(out: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for _, path in checkpoints(out)[:-keep]:
        remove_folder(path)


def remove_folder(path: Path) -> None:
    """Delete a folder: first its name, so that half of it never stands there as the whole."""
    doomed = path.with_name(_TEMPORARY + path.name)
    if doomed.exists():
        shutil.rmtree(doomed)
    os.replace(path, doomed)
    shutil.rmtree(doomed)


def remove_leftovers(out: Path) -> None:
    """Delete what a killed process was writing or deleting."""
    for path in out.glob(_TEMPORARY + "*"):
        shutil.rmtree(path)


def claim(out: Path, identity: dict[str, Any]) -> None:
    """Write `identity` to out/training.json, or check that it equals what stands there.

    Raises RestrlError naming the first settings that differ.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "training.json"
    new: dict[str, Any] = json.loads(json.dumps(identity))
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(new, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return
    old = json.loads(path.read_text(encoding="utf-8"))
    differences = [
        f"{key} {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise RestrlError(
            f"{path}: the run was started with other settings ({'; '.join(differences[:3])}); "
            "start it with those again or use a new folder"
        )


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Rows of out/metrics.jsonl in order, up to a torn line."""
    path = out / METRICS
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def keep_metrics(out: Path, last_step: int) -> None:
    """Cut out/metrics.jsonl after the row of `last_step`: what a killed run wrote past its checkpoint."""
    path = out / METRICS
    rows = [row for row in read_metrics(out) if row["step"] <= last_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(map(metrics_line, rows)), encoding="utf-8")
    os.replace(temporary, path)


def metrics_line(row: dict[str, Any]) -> str:
    """One row as JSON; what is not finite becomes null."""
    finite = {key: _finite(value) for key, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def mean_metrics(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Mean of every metric over the rows that have it; nulls left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if value is not None and key != "step":
                values.setdefault(key, []).append(float(value))
    return {key: sum(column) / len(column) for key, column in values.items()}


def _finite(value: Any) -> Any:
    is_finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if is_finite else None


def _flush_to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_error(target: Path, error: OSError) -> RestrlError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RestrlError(
            f"{target}: the disk is full; free some space and start the same command again: "
            "it goes on from the newest checkpoint"
        )
    return RestrlError(f"{target}: could not be written: {error}")
