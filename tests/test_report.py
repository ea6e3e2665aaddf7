"""The report page: numbers in their cells, nothing from outside, nothing from data unescaped."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_folders as made

from restrl import config as configuration
from restrl.errors import RestrlError
from restrl.report import write_report
from restrl.report.plots import smoothed, window
from restrl.report.run_folder import toml
from restrl.report.tables import largest

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Checks that elements nest, and collects tables (rows of cell texts), ids, attributes and plain text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self._rows: list[list[str]] = []
        self._cell = False
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("class") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes another element"
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._cell:
            self._rows[-1][-1] += data

    def cell(self, table: str, column: str, *labels: str) -> str:
        """The cell under `column` in the row that starts with `labels`."""
        header, *rows = self.tables[table]
        (row,) = [row for row in rows if tuple(row[: len(labels)]) == labels]
        return row[header.index(column)]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def page(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(made.demo_folder(tmp_path_factory.mktemp("demo")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(made.run_folder(tmp_path_factory.mktemp("run")))


def plots(source: Page) -> set[str]:
    return {name for name in source.ids if re.fullmatch(r"plot-[a-z]+(-[0-9a-z]+)?", name)} - {"plot-"}


def test_every_accuracy_stands_in_its_cell(demo: Page) -> None:
    assert demo.tables["accuracy"][0] == ["decoding", "budget", *made.POLICIES]
    for row in made.demo_report()["rows"]:
        name = f"{row['decoding']}, {row['value_head']}" if row["value_head"] else row["decoding"]
        shown = demo.cell("accuracy", row["policy"], name)
        assert shown == f"{row['accuracy']:.3f} ± {row['stderr']:.3f}"
        assert demo.cell("accuracy", "budget", name) == str(row["budget"])


def test_every_cost_stands_in_its_cell(demo: Page) -> None:
    row = made.result("rest-grpo", "vm-mcts", "scalar", 16)
    labels = ("rest-grpo", "vm-mcts, scalar")
    assert demo.cell("cost", "generated tokens", *labels) == f"{row['generated_tokens']:,}".replace(
        ",", "\u2009"
    )
    assert demo.cell("cost", "value-model tokens", *labels) == f"{row['value_tokens']:,}".replace(
        ",", "\u2009"
    )
    assert demo.cell("cost", "value-model tokens", "rest-grpo", "vm-mcts, additive") == "0"
    assert demo.cell("cost", "per problem", *labels) == f"{row['generated_tokens'] / 200:.1f}"
    assert demo.cell("cost", "seconds", *labels) == "11.7"
    assert demo.cell("cost", "verifier seconds", "base", "oracle") == "1.25"
    assert demo.cell("jobs", "seconds", "collect") == "63.7"
    assert demo.tables["jobs"][-1][0] == "total"


def test_the_demo_page_has_every_part(demo: Page) -> None:
    budgets = {f"plot-budget-{i}" for i in range(4)}
    assert {"plot-reward", "plot-dead", "plot-spread", *budgets} <= plots(demo)
    assert "restrl demo --seed 7" in demo.words
    assert demo.cell("settings", "value", "grpo.learning_rate") == "0.0003"
    assert "2.13.0" in demo.words
    assert "Means (dashed lines): grpo 0.200, filter-grpo 0.210, rest-grpo 0.220." in demo.words
    assert "standard error over problems" in demo.words
    assert 'class="missing"' not in demo.source


@pytest.mark.parametrize("which", ["demo", "run"])
def test_the_page_refers_to_nothing_outside(which: str, request: pytest.FixtureRequest) -> None:
    shown = request.getfixturevalue(which)
    assert not re.search(r"http|src=|@import|//[a-z]", shown.source.replace("// The page", ""))
    links = [value for _, name, value in shown.attributes if name.endswith("href")]
    assert links
    assert all(value.startswith("#") and value[1:] in shown.ids for value in links)
    inside = re.findall(r"url\(([^)]*)\)", shown.source)
    assert inside
    assert all(value.startswith("#") and value[1:] in shown.ids for value in inside)
    assert len(shown.ids) == len(set(shown.ids)), "an id appears twice"


@pytest.mark.parametrize("which", ["demo", "run"])
def test_plots_take_the_colours_of_the_page(which: str, request: pytest.FixtureRequest) -> None:
    body = request.getfixturevalue(which).source.partition("<body>")[2]
    assert "var(--ink)" in body
    assert not re.search(r"#[0-9a-f]{6}\b", body), "a colour that has no dark version"


def test_same_folder_same_bytes(tmp_path: Path) -> None:
    first = write_report(made.demo_folder(tmp_path / "a")).read_bytes()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert write_report(tmp_path / "b").read_bytes() == first
    assert write_report(tmp_path / "a").read_bytes() == first


def test_the_tree_shows_nodes_marks_and_the_best_program(demo: Page) -> None:
    for shown in ("N 7", "V 0.512", "V 0.955", "V 0.118"):
        assert shown in demo.words
    tree = demo.source[demo.source.index('<div class="tree">') :]
    assert tree.count('class="tag">terminal') == 1
    assert tree.count('class="tag">hidden') == 2
    assert tree.count("<pre><code>") >= 5
    assert tree.count('class="chosen"') == 1
    chosen = tree[tree.index('class="chosen"') :]
    assert "0.973" in chosen[:80]
    best = re.search(r'class="best">.*?<code>(.*?)</code>', demo.source, re.S)
    assert best
    given = f'<span class="given">{html.escape(made.SPEC)}</span>'
    program = "    b = [x for x in a if x &gt;= 5]\n    c = b[::-1]\n    return c\n"
    assert best[1] == given + program
    # Only the way to the best program stands open.
    assert re.findall(r'<details class="node[^"]*"( open)?>', tree) == [" open", " open", ""]


def test_nodes_stand_inside_their_parents(demo: Page) -> None:
    tree = demo.source[demo.source.index('<div class="tree">') : demo.source.index('<section id="cost"')]
    depths, depth = [], 0
    for mark in re.findall(
        r'<details class="node|<details class="samples|</details>|class="node[^"]* leaf', tree
    ):
        if mark.startswith("</"):
            depth -= 1
            continue
        if "samples" not in mark:
            depths.append(depth)
        depth += mark.startswith("<details")
    assert depths == [node["depth"] for node in made.tree()["nodes"]]


def test_a_deep_tree_nests_without_recursion(tmp_path: Path) -> None:
    tree = made.tree()
    deep = [{**tree["nodes"][1], "parent": i, "depth": i + 1, "line": f"x{i}\n"} for i in range(3000)]
    chain = {**tree, "nodes": [tree["nodes"][0], *deep], "completions": [], "best": None}
    folder = made.demo_folder(tmp_path)
    made.write_json(folder / "trees" / "additive.tree.json", chain)
    assert "x2999" in page(folder).words


def test_what_comes_from_data_is_escaped(tmp_path: Path) -> None:
    hostile = made.HOSTILE
    report = made.demo_report()
    rows = [
        {**row, "policy": row["policy"] + hostile, "decoding": row["decoding"] + "<i>$x_1$"}
        for row in report["rows"]
    ]
    curves = [{**row, "policy": row["policy"] + hostile} for row in report["curves"]]
    folder = made.demo_folder(
        tmp_path,
        rows=rows,
        curves=curves,
        training={hostile: made.training(1)},
        reward_std={hostile: made.spread(1)},
        settings={hostile: hostile, "list": [hostile]},
        seconds={hostile: 1.0},
        versions={hostile: hostile},
        trees={hostile: "trees/additive.tree.json"},
    )
    made.write_json(
        folder / "trees" / "additive.tree.json", {**made.tree(key=hostile), "params": {"mode": hostile}}
    )
    shown = page(folder)
    assert shown.source.count("</script>") == 1
    assert not [name for _, name, _ in shown.attributes if name.startswith("on")]
    assert shown.tables["accuracy"][0][2] == "base" + hostile
    assert shown.cell("settings", "value", hostile) == hostile
    assert "sample<i>$x_1$" in shown.words


def test_missing_and_unknown_numbers_are_dashes(tmp_path: Path) -> None:
    rows = made.demo_report()["rows"]
    rows[0] |= {"accuracy": math.nan, "seconds": None, "generated_tokens": math.inf}
    rows[1] |= {"stderr": math.nan}
    del rows[0]["value_tokens"], rows[2]["budget"], rows[2]["accuracy"]
    rows = rows[:13] + rows[14:]  # grpo has no row for sample
    training = {
        "grpo": [{"step": i, "reward": [None, math.nan, 0.5, "x"][i % 4]} for i in range(20)],
        "none": [],
    }
    folder = made.demo_folder(
        tmp_path,
        rows=rows,
        curves=[{**made.curve("base")[0], "accuracy": math.nan}, {**made.curve("base")[1], "stderr": None}],
        training=training,
        reward_std={
            "grpo": {"mean": math.nan, "histogram": {"edges": [0, 1], "counts": []}},
            "rest-grpo": {},
        },
    )
    tree = made.tree()
    tree["nodes"][0]["V"] = math.nan
    tree["completions"][2] |= {"value": None, "text": "torn \ud83d here\n"}
    made.write_json(folder / "trees" / "additive.tree.json", tree)
    shown = page(folder)
    assert shown.cell("accuracy", "base", "sample") == "-"
    assert shown.cell("accuracy", "base", "greedy") == "0.420 ± -"
    assert shown.cell("accuracy", "grpo", "sample") == "-"
    for column in ("seconds", "generated tokens", "per problem", "value-model tokens"):
        assert shown.cell("cost", column, "base", "sample") == "-"
    assert "V -" in shown.words
    assert "torn ? here" in shown.words
    assert "nan" not in shown.source.lower()
    assert "plot-reward" in plots(shown)
    assert "plot-spread" not in plots(shown)


def test_a_demo_without_some_parts_says_so(tmp_path: Path) -> None:
    folder = made.demo_folder(
        tmp_path, curves=[], training={}, reward_std={}, seed=None, settings={"short": True}
    )
    (folder / "trees" / "additive.tree.json").unlink()
    shown = page(folder)
    assert "so not on this page: curves, training, reward_std." in shown.words
    assert "trees/additive.tree.json is not in the folder" in shown.words
    assert "nothing about effects follows" in shown.words
    assert "restrl demo --short" in shown.words
    assert not plots(shown)


def test_a_run_page_shows_what_the_stages_wrote(run: Page) -> None:
    assert (
        run.cell("accuracy", "final policy", "vm-mcts, additive") == "0.704 ± 0.031"
    )  # not the smaller budget's
    assert run.cell("cost", "budget", "final policy", "vm-mcts, additive") == "16"
    assert run.cell("table-0", "completions", "2") == "60"
    assert run.cell("table-0", "mean reward", "1") == "0.438"
    assert run.cell("table-0", "partial states", "1") == "19"
    assert run.cell("table-1", "eval auc", "additive") == "0.814"
    assert run.cell("table-1", "rows", "additive") == "3\u2009000"
    assert run.cell("table-1", "eval spearman", "additive") == "-"
    assert {"plot-reward", "plot-dead", "plot-loss", "plot-spread", "plot-budget-0"} <= plots(run)
    assert "4 of the test problems are also training problems" in run.words
    assert "decode, additive head" in run.words
    assert "collect, true rewards" in run.words
    assert "abc123" in run.words
    assert 'class="missing"' not in run.source


def test_a_run_page_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    made.write_json(tmp_path / "config.json", made.config())
    shown = page(tmp_path)
    missing = (
        "sample (iteration 1), assemble (iteration 1), sample (iteration 2), assemble (iteration 2), "
        "train-policy (iteration 1), train-policy (iteration 2), collect, train-value, decode, evaluate, "
        "search trees."
    )
    assert f"Not there yet, so not on this page: {missing}" in shown.words
    assert not plots(shown)
    assert "accuracy" not in shown.tables


def test_a_run_page_halfway(tmp_path: Path) -> None:
    folder = made.run_folder(tmp_path)
    shutil.rmtree(folder / "results")
    shutil.rmtree(folder / "iter-2" / "policy" / "final")
    with (folder / "iter-2" / "policy" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 26, "rew')  # torn by a kill
    shown = page(folder)
    assert "this page: train-policy (iteration 2, not finished), evaluate." in shown.words
    assert "plot-reward" in plots(shown)
    assert "plot-budget-0" not in plots(shown)


def test_the_recipe_of_a_run_is_its_config(run: Page) -> None:
    config = made.config()
    assert configuration.parse(tomllib.loads(toml(config))).model_dump() == config
    recipe = run.source[run.source.index("<summary>config.toml") :]
    shown = re.search(r"<code>(.*?)</code>", recipe, re.S)
    assert shown
    assert tomllib.loads(html.unescape(shown[1]))["train"]["epsilon_high"] == 0.28
    assert "restrl run config.toml" in run.words


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "damaged"),
        ("[]", "not a JSON object"),
        ("{}", "rows: Field required"),
        ('{"rows": [{"decoding": "sample", "accuracy": "good"}]}', "rows.0.accuracy"),
        ('{"rows": [], "training": {"grpo": 3}}', "training.grpo"),
        ("\udcff", "damaged"),
    ],
)
def test_a_damaged_report_json_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "report.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RestrlError, match=re.escape(said)) as caught:
        write_report(tmp_path)
    assert str(tmp_path / "report.json") in str(caught.value)
    assert "restrl demo" in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RestrlError, match=r"nothing/report\.json: no such file.*restrl demo"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nodes": []}, "nodes"),
        ({"best": 99}, "best = 99"),
        ({"completions": [{"node": 77, "text": ""}], "best": None}, "a completion names a node"),
        ({"nodes": [{"parent": 0, "depth": 0, "line": ""}]}, "nodes.0: parent 0"),
        (
            {"nodes": [{"parent": -1, "depth": 0, "line": ""}, {"parent": 4, "depth": 1, "line": ""}]},
            "nodes.1",
        ),
    ],
)
def test_a_damaged_tree_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = made.demo_folder(tmp_path)
    path = folder / "trees" / "additive.tree.json"
    path.write_text(json.dumps({**made.tree(), **change}))
    with pytest.raises(RestrlError, match=re.escape(said)) as caught:
        write_report(folder)
    assert str(path) in str(caught.value)


def test_smoothing_is_a_centred_mean_that_leaves_gaps_out() -> None:
    assert [window(n) for n in (0, 5, 30, 60, 1000)] == [1, 1, 3, 7, 21]
    ys = np.arange(30.0)
    ys[10] = math.nan
    out = smoothed(ys)
    assert out[5] == 5.0
    assert out[0] == 0.5  # of steps 0 and 1
    assert out[10] == 10.0  # of its neighbours
    assert out[11] == 11.5


def test_the_largest_budget_is_the_headline() -> None:
    from restrl.report.contents import Result

    rows = [Result(policy="p", decoding="vote", budget=b, accuracy=b / 100) for b in (4, 16, 8)]
    (found,) = largest(rows).values()
    assert found.budget == 16
