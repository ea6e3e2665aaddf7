"""What changed below `/tmp`, as plain data: tests and program in different processes see the same files.

Its text is also part of the program that runs there (mirror.py), so it imports nothing of restrl. Regular
files and directories travel, no links: nothing that is written here leads out of `/tmp`.
"""

import os
import stat

ROOT = "/tmp"  # every process has its own
_MOST_BYTES = 8 << 20


def listing():  # type: ignore[no-untyped-def]
    """{path below ROOT: (directory?, size in bytes, time of change in ns)}"""
    found = {}
    device = os.lstat(ROOT).st_dev
    for place, directories, files in os.walk(ROOT):
        # Not what is mounted there: packages.
        directories[:] = [d for d in directories if os.lstat(os.path.join(place, d)).st_dev == device]
        for name in directories + files:
            path = os.path.join(place, name)
            try:
                info = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISDIR(info.st_mode):
                found[os.path.relpath(path, ROOT)] = (True, 0, 0)
            elif stat.S_ISREG(info.st_mode):
                found[os.path.relpath(path, ROOT)] = (False, info.st_size, info.st_mtime_ns)
    return found


def changes(before):  # type: ignore[no-untyped-def]
    """(what was there `before` and is gone, [(path, contents or None for a directory, mode, time)])"""
    now = listing()
    written = []
    left = _MOST_BYTES
    for path in sorted(now):
        if before.get(path) == now[path]:
            continue
        full = os.path.join(ROOT, path)
        try:
            info = os.lstat(full)
            data = None
            if not now[path][0]:
                left -= info.st_size
                if left < 0:
                    raise ValueError("files too large to be shared")
                with open(full, "rb") as file:
                    data = file.read()
        except OSError:
            continue
        written.append((path, data, stat.S_IMODE(info.st_mode), info.st_mtime_ns))
    return sorted(before.keys() - now.keys(), reverse=True), written


def apply(gone, written):  # type: ignore[no-untyped-def]
    """Make the same changes here; the listing afterwards. Raises ValueError for paths that lead out."""
    for path in gone:
        full = _inside(path)
        try:
            os.rmdir(full) if stat.S_ISDIR(os.lstat(full).st_mode) else os.unlink(full)
        except OSError:
            continue
    for path, data, mode, time in written:
        full = _inside(path)
        if data is None:
            os.makedirs(full, exist_ok=True)
            continue
        if os.path.lexists(full) and not stat.S_ISREG(os.lstat(full).st_mode):
            raise ValueError("another kind of file")
        with open(full, "wb") as file:
            file.write(data)
        os.chmod(full, mode | 0o600)
        os.utime(full, ns=(time, time))
    return listing()


def _inside(path):  # type: ignore[no-untyped-def]
    parts = path.split("/")
    if not path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError("no path below the root")
    place = ROOT
    for part in parts[:-1]:
        place = os.path.join(place, part)
        if os.path.islink(place):
            raise ValueError("a link on the way")
    return os.path.join(ROOT, path)
