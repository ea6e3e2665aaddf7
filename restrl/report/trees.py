"""A search tree to look into: nested <details>, one for each node, and the best program as code."""

from __future__ import annotations

from collections import defaultdict

from restrl.report.contents import Node, Tree, TreeSample
from restrl.report.markup import any_value, finite, folded, number, paragraph, text, whole

MEANING = {
    "collect": "the share of hidden tests that a program passes",
    "value": "the value model's score",
    "outcome": "the reward model's score of whole programs",
}
PARAMS = ("mode", "c", "k", "num_decisions")
STATS = ("simulations", "expansions", "completions", "generated_tokens", "collisions")


def tree_view(tree: Tree) -> str:
    """The problem and the best program, then every node with its line, N, V, marks and completions."""
    facts = [
        f"{text(name.replace('_', ' '))} {whole(tree.stats[name])}" for name in STATS if name in tree.stats
    ]
    facts += [f"{text(name)} {any_value(tree.params[name])}" for name in PARAMS if name in tree.params]
    meaning = MEANING.get(str(tree.params.get("mode")), "the score that the search worked with")
    return "\n".join(
        [
            paragraph(f"Problem <code>{text(tree.key)}</code>; {', '.join(facts)}."),
            paragraph(
                f"N counts visits, V is the mean over them of {meaning}. A node is one line of the program; those marked "
                "hidden fell outside the best num_decisions of their parent and are never selected, terminal ones end "
                "a program. Below a node stand the completions sampled there, each with its value.",
                kind="note",
            ),
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
        f'<figure class="best"><figcaption>Best program, value {number(best.value)}; what was given is set in grey.'
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
        mark = " way" if i in way else ""
        if i in parents or below:
            hidden = "" if node.visible or i == 0 else " hidden-node"
            out.append(
                f'<details class="node{mark}{hidden}"{" open" * (i in way)}><summary>{_line(node, i)}</summary>{below}'
            )
            stack.append(i)
        else:
            hidden = "" if node.visible else " hidden-node"
            out.append(f'<div class="node leaf{mark}{hidden}">{_line(node, i)}</div>')
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
    items = "".join(
        f'<li{" class=chosen" * (i == best)}><span class="stat">{number(sample.value)}</span>'
        f"{'<span class=tag>best</span>' * (i == best)}<pre><code>{text(sample.text.rstrip())}</code></pre></li>"
        for i, sample in samples
    )
    values = [value for _, sample in samples if (value := finite(sample.value)) is not None]
    best_value = f", best value {number(max(values))}" if values else ""
    count = f"{len(samples)} completion{'s' * (len(samples) != 1)}"
    is_open = any(i == best for i, _ in samples)
    return folded(f"{count}{best_value}", f"<ol>{items}</ol>", is_open=is_open).replace(
        "<details", '<details class="samples"', 1
    )
