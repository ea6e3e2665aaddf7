"""Rules of steps as Python callables: when they are called, what their failures leave, their garbage."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from restrl._core import AnswerError, Forest, SearchParams


def test_a_splitter_is_called_once_for_every_step_that_may_be_inherited() -> None:
    seen: list[str] = []

    def three(text: str) -> int:
        seen.append(text)
        assert forest.in_flight() == 1  # no lock is held
        return 3

    for reuse, calls in [(False, ["éabcdefg\n", "xy\n"]), (True, ["éabcdefg\n", "cdefg\n", "fg\n", "xy\n"])]:
        forest = Forest(SearchParams(k=2, reuse=reuse), 0, three)
        forest.add("a", "")
        (request,) = forest.next(1)
        forest.fulfil([request.id], completions=["éabcdefg", "xy "])
        assert seen == calls
        seen.clear()
        split = forest.expansion(request.id)
        assert split["children"] == ["éab", "xy\n"]
        assert split["terminal"] == [False, True]


@pytest.mark.parametrize("result", [0, -3, "x", 1.5, None, KeyError("mine"), KeyboardInterrupt()])
def test_a_splitter_that_fails_changes_nothing(result: Any) -> None:
    calls = 0

    def splitter(text: str) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            if isinstance(result, BaseException):
                raise result
            return result
        return 2**70  # as long as you like

    forest = Forest(SearchParams(k=2), 0, splitter)
    trees = [forest.add(key, "") for key in "ab"]
    ids = [request.id for request in forest.next(2)]
    error = type(result) if isinstance(result, BaseException) else AnswerError
    with pytest.raises(error, match=r"mine|splitter gave|^$"):
        forest.fulfil(ids, completions=["a", "b", "c", "d"], completion_values=np.ones((2, 2)))
    assert [forest.stats(tree)["simulations"] for tree in trees] == [0, 0]
    with pytest.raises(AnswerError, match="no completions yet"):
        forest.expansion(ids[0])
    forest.fulfil(ids, completions=["a", "b", "c", "d"], completion_values=np.ones((2, 2)))
    assert forest.take_finished() == trees
    assert forest.in_flight() == 0


def test_a_splitter_that_refers_to_its_forest_is_collected() -> None:
    class Rule:
        forest: Forest

        def __call__(self, text: str) -> int:
            return 1

    rule = Rule()
    rule.forest = Forest(SearchParams(), 0, rule)
    gone = weakref.ref(rule)
    del rule
    gc.collect()
    assert gone() is None
    with pytest.raises(TypeError, match="callable"):
        Forest(SearchParams(), 0, 3)  # type: ignore[arg-type]
