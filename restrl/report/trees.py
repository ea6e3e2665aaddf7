"""A search tree to look into: nested <details>, one for each node, and the best program as code."""

from __future__ import annotations

from collections import defaultdict

from restrl.report import words
from restrl.report.contents import Node, Tree, TreeSample
from restrl.report.markup import any_value, finite, number, paragraph, text, whole

PARAMS = ("mode", "c", "k", "num_decisions")
STATS = ("simulations", "expansions", "completions", "samples", "reused", "generated_tokens", "collisions")


def tree_view(tree: Tree) -> str:
    """The problem and the best program, then every node with its line, N, V, marks and completions."""
    facts = [
        f"{text(name.replace('_', ' '))} {whole(tree.stats[name])}" for name in STATS if name in tree.stats
    ]
    facts += [f"{text(name)} {any_value(tree.params[name])}" for name in PARAMS if name in tree.params]
    meaning = words.VALUES.get(str(tree.params.get("mode")), "the score that the search worked with")
    return "\n".join(
        [
            paragraph(f"Problem <code>{text(tree.key)}</code>; {', '.join(facts)}."),
            paragraph(words.TREE.format(meaning=meaning), kind="note"),
            _best_program(tree),
            f'<div class="tree">{_nodes(tree)}</div>',
        ]
    )


def _best_program(tree: Tree) -> str:
    """The code that was given (the specification) and what the search added to it."""
    if tree.best is None:
        return ""
    best = tree.completions[tree.best]
    given = tree.nodes[0].line
    added = "".join(tree.nodes[i].line for i in _path(tree, best.node)[1:]) + best.text
    code = f'<span class="given">{text(given)}</span>{text(added)}'
    return (
        f'<figure class="best"><figcaption>Best program, value {number(best.value)}; the given part is grey.'
        f"</figcaption><pre><code>{code}</code></pre></figure>"
    )


def _path(tree: Tree, index: int) -> list[int]:
    """Nodes from the root to `index`."""
    path = [index]
    while tree.nodes[path[-1]].parent >= 0:
        path.append(tree.nodes[path[-1]].parent)
    return path[::-1]


def _nodes(tree: Tree) -> str:
    """All nodes; a stack of open elements instead of recursion: programs can be deep."""
    samples: dict[int, list[int]] = defaultdict(list)
    for number_, sample in enumerate(tree.completions):
        samples[sample.node].append(number_)
    parents = {node.parent for node in tree.nodes}
    way = set(_path(tree, tree.completions[tree.best].node)) if tree.best is not None else {0}
    out: list[str] = []
    stack: list[int] = []
    for i, node in enumerate(tree.nodes):
        while stack and stack[-1] != node.parent:
            stack.pop()
            out.append("</details>")
        below = _samples([(j, tree.completions[j]) for j in samples[i]], tree.best)
        names = "node" + " way" * (i in way) + " hidden-node" * (not node.visible and i > 0)
        if i in parents or below:
            is_open = " open" * (i in way)
            out.append(f'<details class="{names}"{is_open}><summary>{_line(node, i)}</summary>{below}')
            stack.append(i)
        else:
            out.append(f'<div class="{names} leaf">{_line(node, i)}</div>')
    out += ["</details>"] * len(stack)
    return "\n".join(out)


def _line(node: Node, index: int) -> str:
    """One node: its line, N, V and marks."""
    code = "start" if index == 0 else f"<code>{text(node.line.rstrip()) or '(empty line)'}</code>"
    value = finite(node.V)
    share = 0 if value is None else round(100 * min(1.0, max(0.0, value)))
    marks = ["terminal"] * node.terminal + ["hidden"] * (not node.visible and index > 0)
    tags = "".join(f'<span class="tag">{mark}</span>' for mark in marks)
    return (
        f'<span class="line">{code}</span> <span class="stat">N {whole(node.N)}</span> '
        f'<span class="stat value" style="--share:{share}%">V {number(node.V)}</span>{tags}'
    )


def _samples(samples: list[tuple[int, TreeSample]], best: int | None) -> str:
    """The completions of a node, folded; "" for none."""
    if not samples:
        return ""
    items = []
    for i, sample in samples:
        chosen, tag = (' class="chosen"', '<span class="tag">best</span>') if i == best else ("", "")
        code = f"<pre><code>{text(sample.text.rstrip())}</code></pre>"
        items.append(f'<li{chosen}><span class="stat">{number(sample.value)}</span>{tag}{code}</li>')
    values = [value for _, sample in samples if (value := finite(sample.value)) is not None]
    best_value = f", best value {number(max(values))}" if values else ""
    count = f"{len(samples)} completion{'s' * (len(samples) != 1)}"
    is_open = " open" * any(i == best for i, _ in samples)
    return (
        f'<details class="samples"{is_open}><summary>{count}{best_value}</summary>'
        f"<ol>{''.join(items)}</ol></details>"
    )
