"""One self-contained HTML page about a demo or a run: what was measured, what it cost, and one search tree.

    demo_folder.py, run_folder.py   a folder -> Contents (contents.py)
    page.py                         Contents -> HTML; tables.py, plots.py and trees.py are its parts

The page loads nothing, works without JavaScript and is a function of the folder's files alone: the same
files give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from restrl.errors import RestrlError
from restrl.rows import write_text

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html for a folder of `restrl demo` (report.json) or `restrl run` (config.json).

    Stages of a run that are not there yet are left out, with a line on the page that says so. Returns the
    page's path. Raises RestrlError, naming the file and what to do, for a folder that is neither and for a
    damaged file.
    """
    from restrl.report import demo_folder, page, run_folder  # page brings matplotlib

    folder = Path(folder)
    if (folder / "report.json").exists():
        contents = demo_folder.read(folder)
    elif (folder / "config.json").exists():
        contents = run_folder.read(folder)
    else:
        raise RestrlError(
            f"{folder / 'report.json'}: no such file, and no config.json beside it: name the folder of a "
            "`restrl demo` that has ended or of a `restrl run`"
        )
    path = folder / "report.html"
    write_text(path, page.render(contents))
    return path
