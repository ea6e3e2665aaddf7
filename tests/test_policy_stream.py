"""The running batch of the local policy: what joins late is drawn as if alone; searches and stages on it."""

from __future__ import annotations

import functools
import hashlib
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CORPUS, make_tiny_qwen2

from restrl.config import CollectConfig, DecodeConfig
from restrl.decode import decode_trees
from restrl.errors import RestrlError
from restrl.policy import Ask, Completion, Prompt, Sampling, StreamingPolicy
from restrl.policy.local import LocalPolicy
from restrl.records import Calls, Problem
from restrl.rows import read_rows
from restrl.search import Drawer, Evaluation, Expansion, Root, SearchParams, search
from restrl.stages import collect as stage
from restrl.value import LineValues
from restrl.value.additive import AdditiveValue
from restrl.value.scalar import ScalarValue

torch.set_num_threads(1)
SAMPLING = Sampling(temperature=0.7, max_new_tokens=24, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("models") / "qwen2")


@pytest.fixture(scope="module", params=["fast", "module"])
def policy(request: pytest.FixtureRequest, folder: Path) -> LocalPolicy:
    return LocalPolicy(folder, device="cpu", max_rows=7, fast=request.param == "fast")


def prompt(i: int) -> Prompt:
    return Prompt("", (CORPUS[i % 5] * 3)[: 12 + 9 * i], f"task/{i}", 5)


def problem(name: str) -> Problem:
    text = f"# {name}: reverse the order\ndef f(a):\n"
    return Problem(
        task_id=name, source="pipelines", prompt=text, mode="complete", entry_point="f", prefix=text,
        tests=Calls(fn_name="f", args=[[1]], expected=[1]),
    )  # fmt: skip


PROBLEMS = [problem(f"p{i}") for i in range(7)]


def drain(stream: Any, asks: list[Ask], several: int) -> dict[Ask, list[Completion]]:
    """Asks in groups of `several`, one group at each call."""
    found: dict[Ask, list[Completion]] = {}
    waiting = list(asks)
    while waiting or stream.busy:
        now, waiting = waiting[:several], waiting[several:]
        for ask, completions in stream.advance(now):
            assert ask not in found
            found[ask] = completions
    return found


@pytest.mark.parametrize("several", [1, 3, 12])
def test_a_stream_draws_what_complete_draws(policy: LocalPolicy, several: int) -> None:
    """Each request by itself against all of them in one batch: numbers of samples and stops of their own."""
    stops = [(), ("\n",), ("e", "\n"), ("    c",)]
    asks = [Ask(prompt(i), 1 + i % 5, stops[i % 4]) for i in range(12)]
    found = drain(policy.stream(SAMPLING), asks, several)
    assert len(found) == 12
    finishes = set()
    for ask in asks:
        own = Sampling(temperature=0.7, max_new_tokens=24, seed=3, stop=ask.stop)
        (alone,) = policy.complete([ask.prompt], ask.n, own)
        assert [c.text for c in found[ask]] == [c.text for c in alone]
        assert [c.token_ids.tolist() for c in found[ask]] == [c.token_ids.tolist() for c in alone]
        assert [c.finish for c in found[ask]] == [c.finish for c in alone]
        for one, two in zip(found[ask], alone, strict=True):
            assert one.log_probs is not None
            assert two.log_probs is not None
            np.testing.assert_allclose(one.log_probs, two.log_probs, atol=1e-4)
        finishes |= {c.finish for c in alone}
    assert finishes >= {"stop", "length"}


def test_token_and_prefix_scores_do_not_depend_on_company(policy: LocalPolicy) -> None:
    head = AdditiveValue.new(policy, 16, seed=0)
    asks = [Ask(prompt(i), 3) for i in range(8)]
    found = drain(policy.stream(SAMPLING, head.token_scorer(policy)), asks, 2)
    for ask in asks:
        (alone,) = head.complete([ask.prompt], 3, SAMPLING)
        for one, two in zip(found[ask], alone, strict=True):
            assert one.scores is not None
            assert two.scores is not None
            np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)
            assert one.prefix_score == pytest.approx(two.prefix_score, abs=1e-4)
            assert two.prefix_score < 0


@pytest.mark.parametrize("fast", [True, False])
def test_what_comes_late_does_not_wait_for_the_longest(folder: Path, fast: bool) -> None:
    """A request that joins beside a long completion is answered long before it."""
    policy = LocalPolicy(folder, device="cpu", max_rows=8, fast=fast)
    sampling = Sampling(temperature=0.7, max_new_tokens=200, seed=1)
    stream = policy.stream(sampling)
    assert isinstance(policy, StreamingPolicy)
    lengths = [len(c[0].token_ids) for c in policy.complete([prompt(i) for i in range(9)], 1, sampling)]
    assert max(lengths) > 150
    long = Ask(prompt(int(np.argmax(lengths))), 1)
    short = [
        Ask(Prompt("", f"def f{i}(", f"s/{i}"), 1, tuple("abcdefghijklmnopqrstuvwxyz \n")) for i in range(30)
    ]
    order = [ask for ask, _ in stream.advance([long, *short[:3]])]
    for ask in short[3:]:
        order += [done for done, _ in stream.advance([ask])]
    while stream.busy:
        order += [done for done, _ in stream.advance([])]
    assert set(order) == {long, *short}
    assert order.index(long) > 20


def test_hungry_says_whether_more_would_find_a_place(folder: Path) -> None:
    policy = LocalPolicy(folder, device="cpu", max_rows=8)
    stream = policy.stream(SAMPLING)
    assert stream.hungry
    assert not stream.busy
    stream.advance([Ask(prompt(i), 4) for i in range(9)])
    assert stream.busy
    assert not stream.hungry
    while stream.busy:
        stream.advance([])
    assert stream.hungry


def test_greedy_and_more_samples_than_rows(policy: LocalPolicy) -> None:
    greedy = policy.stream(Sampling(temperature=0, max_new_tokens=12))
    ((ask, group),) = drain(greedy, [Ask(prompt(2), 4)], 1).items()
    assert len(group) == ask.n
    assert len({c.text for c in group}) == 1
    many = drain(policy.stream(SAMPLING), [Ask(prompt(2), 17), Ask(prompt(3), 2)], 2)
    expected = policy.complete([prompt(2)], 17, SAMPLING)
    assert [c.text for c in next(iter(g for a, g in many.items() if a.n == 17))] == [
        c.text for c in expected[0]
    ]


def test_wrong_asks_are_named(policy: LocalPolicy) -> None:
    for ask, message in [
        (Ask(prompt(0), 0), "number of samples"),
        (Ask(prompt(0), 1, ("",)), "empty string"),
    ]:
        with pytest.raises(RestrlError, match=message):
            policy.stream(SAMPLING).advance([ask])
    with pytest.raises(RestrlError, match="temperature"):
        policy.stream(Sampling(temperature=-1))


class Plain:
    """The policy without its stream."""

    def __init__(self, policy: LocalPolicy) -> None:
        self.complete = policy.complete


def score(text: str) -> float:
    return hashlib.sha256(text.encode()).digest()[0] / 255


def by_text(expansions: list[Expansion]) -> list[Evaluation]:
    return [Evaluation([score(p) for p in e.programs], [score(c) for c in e.children]) for e in expansions]


@pytest.mark.parametrize("mode", ["collect", "value"])
def test_a_search_on_a_stream_grows_the_trees_of_plain_batches(policy: LocalPolicy, mode: str) -> None:
    by_id = {p.task_id: p for p in PROBLEMS}
    params = SearchParams(mode, simulations=8, k=3, leaves_in_flight=2, reuse=True)

    def run(drawer: Drawer, **options: Any) -> list[Any]:
        roots = [Root(p.task_id, p.prefix) for p in PROBLEMS]
        found = search(
            roots,
            params,
            complete=drawer.complete,
            source=drawer.source(),
            evaluate=by_text,
            seed=1,
            **options,
        )
        assert sum(tree.stats.samples for tree in found) > 3 * len(found)
        return [tree.to_json() for tree in found]

    streamed = run(Drawer(policy, policy.format, by_id, SAMPLING), trees_in_flight=4)
    plain = Drawer(Plain(policy), policy.format, by_id, SAMPLING)
    assert plain.source() is None
    assert streamed == run(plain, trees_in_flight=2) == run(plain, overlap=False)


class Tardy:
    """A value model that takes its time now and then."""

    def __init__(self, inner: Any, seed: int) -> None:
        self.inner, self.random = inner, random.Random(seed)
        self.texts = 0

    def score(self, items: list[tuple[Problem, str]]) -> list[LineValues]:
        assert len(set((p.task_id, text) for p, text in items)) == len(items)
        self.texts += len(items)
        time.sleep(self.random.choice([0, 0.01]))
        return self.inner.score(items)

    def save(self, folder: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("reuse", [False, True])
def test_scores_repeat_to_the_last_bit_whatever_the_timing(folder: Path, reuse: bool) -> None:
    policy = LocalPolicy(folder, device="cpu", max_rows=12)
    scalar = ScalarValue.from_policy(policy)
    cfg = DecodeConfig(
        budget=12, k=3, simulations=8, max_new_tokens=24, trees_in_flight=5, leaves_in_flight=2, reuse=reuse
    )
    runs = []
    for seed in (1, 2):
        value = Tardy(scalar, seed)
        pairs = decode_trees("vm-mcts", PROBLEMS, policy, cfg, form=policy.format, value=value, seed=4)
        runs.append([(a.candidates, tree.to_json()) for a, tree in pairs])
        assert sum(len({c.program for c in a.candidates}) for a, _ in pairs) == value.texts
        assert all(a.program == tree.best_program for a, tree in pairs)
        assert all(a.generated == tree.stats.samples <= 12 for a, tree in pairs)
        assert (sum(tree.stats.reused for _, tree in pairs) > 0) == reuse
    assert runs[0] == runs[1]


@pytest.mark.parametrize("method", ["vm-mcts", "orm-mcts"])
def test_free_values_serve_reused_suffixes_without_a_pass(folder: Path, method: Any, monkeypatch) -> None:
    policy = LocalPolicy(folder, device="cpu", max_rows=12)
    head = AdditiveValue.new(policy, 16, seed=0)

    def passes(self: Any, items: Any) -> Any:
        raise AssertionError("a pass of its own")

    monkeypatch.setattr(AdditiveValue, "score", passes)
    cfg = DecodeConfig(budget=12, k=3, simulations=12, max_new_tokens=24, trees_in_flight=5, reuse=True)
    pairs = decode_trees(method, PROBLEMS, policy, cfg, form=policy.format, value=head, seed=4)
    assert sum(tree.stats.reused for _, tree in pairs) > 0
    for a, tree in pairs:
        values = {c.program: c.score for c in a.candidates}
        assert a.value_tokens == 0
        assert {c.program: c.value for c in tree.completions if c.source < 0} == values


class FakeVerdict:
    detail = ""

    def __init__(self, program: str) -> None:
        self.reward = score(program)


class FakeVerifier:
    def verify(self, items: list[tuple[Problem, str]]) -> list[FakeVerdict]:
        time.sleep(random.choice([0, 0.005]))
        return [FakeVerdict(program) for _, program in items]


class Killed(LocalPolicy):
    """Ends the process, so to speak, in the middle of a wave."""

    left = 10**9

    def stream(self, *args: Any, **options: Any) -> Any:
        stream = super().stream(*args, **options)
        advance = stream.advance

        @functools.wraps(advance)
        def counts(asks: list[Ask]) -> Any:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return advance(asks)

        stream.advance = counts  # type: ignore[method-assign]
        return stream


def test_a_killed_collection_goes_on_at_a_wave_and_ends_byte_for_byte_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "LEAST_WAVE", 3)
    assert stage.wave(1) == 4
    assert stage.wave(64) == 256
    many = [problem(f"q{i}") for i in range(11)]
    cfg = CollectConfig(
        simulations=5, k=3, max_new_tokens=24, trees_in_flight=1, leaves_in_flight=3, reuse=True
    )
    policy = Killed(folder, device="cpu", max_rows=8)

    def run(out: Path) -> None:
        stage.collect(policy, policy.format, many, FakeVerifier(), cfg, out, seed=2)  # type: ignore[arg-type]

    run(tmp_path / "whole.jsonl")
    calls = 10**9 - policy.left
    kept = []
    for policy.left in (calls // 6, calls * 9 // 20, calls * 9 // 20):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed.jsonl")
        kept.append(len(read_rows(tmp_path / "killed.jsonl.part")))
    policy.left = calls
    run(tmp_path / "killed.jsonl")
    assert kept == [0, 4, 8]
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(read_rows(tmp_path / "whole.jsonl")) == 11
