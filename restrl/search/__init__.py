"""Monte-Carlo tree search over many trees at once, on the C++ forest (`restrl._core.Forest`).

    trees = search([Root("a", "def f():\\n")], SearchParams("value"), complete=complete, evaluate=evaluate)

The policy and the scorer stay busy: a finished tree's place is taken by the next root, and scoring runs
beside generation. A tree's shape depends on its root, the parameters, the seed and the answers alone, never
on its neighbours or on the batches it was answered in.
"""

from restrl._core import SearchParams
from restrl.search.drawer import Drawer
from restrl.search.records import Evaluation, Expansion, Request, Root, Source, Timing
from restrl.search.result import TreeCompletion, TreeNode, TreeResult, TreeStats, value_targets
from restrl.search.schedule import grow, search

__all__ = [
    "Drawer",
    "Evaluation",
    "Expansion",
    "Request",
    "Root",
    "SearchParams",
    "Source",
    "Timing",
    "TreeCompletion",
    "TreeNode",
    "TreeResult",
    "TreeStats",
    "grow",
    "search",
    "value_targets",
]
