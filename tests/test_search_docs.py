"""The README's example of a search, run as it stands from outside the checkout; what docs/search.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from restrl._core import SearchParams

README = Path(__file__).parents[1] / "README.md"
PAGE = README.parent / "docs" / "search.md"


def example() -> tuple[str, str]:
    """The code, and what the README says it prints."""
    found = re.search(r"```python search\n(.*?)```.*?```text\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert found
    return found[1], found[2]


def test_the_example_has_ten_lines() -> None:
    source, _ = example()
    assert len([line for line in source.splitlines() if line.strip()]) == 10


def test_the_example_prints_what_is_said(tmp_path: Path) -> None:
    source, output = example()
    path = tmp_path / "example.py"
    path.write_text(source, "utf-8")
    done = subprocess.run(
        [sys.executable, path.name], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == output.strip()
    exec(done.stdout, names := {})
    assert names["x"] == 42


def test_the_example_of_a_forest_works(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python forest\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert found
    exec(found[1], {})
    assert capsys.readouterr().out == "50 0\n"


def written(value: object) -> str:
    return f"`{value}`" if isinstance(value, str | bool | tuple) else f"{value}"


def test_the_table_of_parameters_has_every_field_and_its_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    collect, value, outcome = (SearchParams(mode).to_dict() for mode in ("collect", "value", "outcome"))
    assert [name for name, _ in rows] == list(collect)
    for name, default in rows:
        expected = written(collect[name])
        if name != "mode" and value[name] != collect[name]:
            assert value[name] == outcome[name]
            expected += f"; {written(value[name])} in `value` and `outcome`"
        assert default == expected, name
