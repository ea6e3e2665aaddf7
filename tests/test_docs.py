"""The documentation says what the code does: every configuration key, example rows that load, links that exist."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from restrl import config
from restrl.config import METHODS, RunConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": RunConfig,
    **{
        f"[{name}]": field.annotation
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    },
}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands below the heading `title`, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no heading {title!r}"
    return found[1]


def table(text: str) -> dict[str, list[str]]:
    """First cell (without back-ticks) -> the other cells of every row of the tables in `text`."""
    rows = [
        [c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"
    ]
    return {row[0].strip("|` "): [c.strip("| ") for c in row[1:]] for row in rows if row[0].startswith("`")}


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys of a section that are no sections themselves."""
    return {
        name: field
        for name, field in model.model_fields.items()
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }


def choices(annotation: Any) -> set[str]:
    """Every value that a Literal, or a union with one, allows."""
    if get_origin(annotation) is Literal:
        return {str(value) for value in get_args(annotation)}
    return set[str]().union(*map(choices, get_args(annotation)))


@pytest.mark.parametrize("title", SECTIONS)
def test_every_key_and_default_stands_in_the_configuration_page(title: str) -> None:
    rows, fields = table(section(page("config.md"), title)), keys(SECTIONS[title])
    assert list(rows) == list(fields)
    for name, field in fields.items():
        kind, default = rows[name][:2]
        if name == "methods":
            assert field.default == [m for m in METHODS if m != "oracle"]
            assert default == "all but `oracle`"
            assert all(f"`{m}`" in section(page("config.md"), title) for m in METHODS)
            continue
        if field.default is PydanticUndefined:
            assert default == "required", name
        elif field.default is None:
            assert default == "none", name
        else:
            written = tomllib.loads(f"value = {default.strip('`')}")["value"]
            assert (written, type(written)) == (field.default, type(field.default)), name
        for choice in choices(field.annotation):
            assert f"`{choice}`" in kind, f"{name}: {choice}"
        for limit in field.metadata:
            if isinstance(limit, Ge):
                assert f"≥ {limit.ge}" in kind, name
            if isinstance(limit, Gt):
                assert f"> {limit.gt}" in kind or f"({limit.gt}, " in kind, name
            if isinstance(limit, Le):
                assert f", {limit.le}]" in kind, name


def test_the_example_has_every_key_at_its_default() -> None:
    (text,) = blocks(page("config.md"), "toml")
    commented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    data = tomllib.loads(text)
    run = config.parse(data)
    config.parse(tomllib.loads(commented))
    required = {"out": run.out, "model": {"path": run.model.path}, "problems": {"train": run.problems.train}}
    assert run == config.parse(required)
    for title, model in SECTIONS.items():
        name = title.strip("[]")
        with_comments = tomllib.loads(commented)
        assert keys(model).keys() <= (with_comments if name == "Top level" else with_comments[name]).keys()
        given = data if name == "Top level" else data[name]
        unset = [k for k, f in keys(model).items() if f.default is None]
        assert unset == [k for k in keys(model) if k not in given]
