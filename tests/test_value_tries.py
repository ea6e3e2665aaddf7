"""Shared passes of the value models: the tries are right, and what is read off them equals the plain pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_models import make_tiny_qwen2, tiny_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from restrl.errors import RestrlError
from restrl.policy.local import LocalPolicy
from restrl.records import Calls, Problem
from restrl.value import LineValues, line_ends, remembering, tries
from restrl.value.additive import AdditiveValue
from restrl.value.scalar import ScalarValue
from restrl.value.starts import Start, Starts, common
from restrl.value.states import StateScores

torch.set_num_threads(1)

PREFIX = "def f(a):\n"
LINES = ["    b = [x for x in a]\n", "    return a\n", "\n", "        if x > 1:\n", "    # Grüße, 世界 🙂\n"]
SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "num_labels": 1,
    "pad_token_id": 0,
}
CONFIGS = {
    "gemma": GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
}


def problem(task_id: str = "p", prompt: str = PREFIX) -> Problem:
    return Problem(
        task_id=task_id,
        source="pipelines",
        mode="complete",
        prompt=prompt,
        prefix=PREFIX,
        tests=Calls(fn_name="f", args=[[1]], expected=[1]),
    )


def classifier(config: Any, **options: Any) -> ScalarValue:
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config, **options)
    model.score.weight.data.normal_(std=0.3)
    return ScalarValue(model, tiny_tokenizer(), max_rows=8, max_length=480)


@pytest.fixture(scope="module")
def scalar() -> ScalarValue:
    return classifier(CONFIGS["qwen2"])


@pytest.fixture(scope="module")
def additive(tmp_path_factory: pytest.TempPathFactory) -> AdditiveValue:
    policy = LocalPolicy(make_tiny_qwen2(tmp_path_factory.mktemp("qwen")), device="cpu", max_rows=8)
    value = AdditiveValue.new(policy, 16, seed=3, max_length=480)
    torch.nn.init.normal_(value.head.out.weight, std=2.0)
    return value


def plain(value: ScalarValue, items: Sequence[tuple[Problem, str]]) -> list[LineValues]:
    """Every text in a pass of its own row."""
    value.shares = False
    try:
        return value.score(items)
    finally:
        value.shares = True


def unclamped(value: ScalarValue, items: Sequence[tuple[Problem, str]]) -> tuple[list[float], list[float]]:
    """All values by the shared pass and by the plain one, before they are clamped."""
    encoded = [value.encode(*item) for item in items]
    value.model.eval()
    with torch.no_grad():
        shared = value._shared(encoded, [p.task_id for p, _ in items])
        one_by_one = value._padded(encoded)
    return [v for row, _ in shared for v in row], [v for row, _ in one_by_one for v in row]


# ---- the tries

token_texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(token_texts, st.sampled_from([1, 8, 1000]), st.sampled_from([1, 6, 1000]))
@example([[1]], 8, 1000)
@example([[1, 2, 0], [1, 2], [1, 2, 0, 0], [1, 2]], 1000, 1000)
def test_rows_are_tries(texts: list[list[int]], scale: int, longest: int) -> None:
    """Paths spell their texts, a token sees its own text up to itself and nothing else, nothing twice."""
    rows = tries.pack(dict(enumerate(texts)), scale, longest=longest)
    assert sorted(i for row in rows for i in row.paths) == list(range(len(texts)))
    for row in rows:
        own = {tuple(texts[i][: n + 1]) for i in row.paths for n in range(len(texts[i]))}
        assert len(row) == len(own)  # each distinct prefix once
        assert len(row) <= max(longest, *(len(texts[i]) for i in row.paths))
        sees = np.arange(len(row))[:, None] < row.until[None, :]
        sees &= np.arange(len(row))[None, :] <= np.arange(len(row))[:, None]
        for i, path in row.paths.items():
            assert row.ids[path].tolist() == texts[i]
            assert row.depth[path].tolist() == list(range(len(texts[i])))
            assert row.parent[path].tolist() == [-1, *path[:-1].tolist()]
            for n, place in enumerate(path):
                assert np.flatnonzero(sees[place]).tolist() == path[: n + 1].tolist()
    charged = tries.charges(rows, len(texts))
    assert sum(charged) == sum(len(row) for row in rows)
    if len(rows) == 1:  # what the first texts are charged is what they would be charged without the others
        seen: set[tuple[int, ...]] = set()
        for text, tokens in zip(texts, charged, strict=True):
            own = {tuple(text[: n + 1]) for n in range(len(text))} - seen
            assert tokens == len(own)
            seen |= own


@settings(max_examples=60, deadline=None)
@given(token_texts, st.sampled_from([1, 4, 30]), st.integers(1, 12))
def test_cuts_cost_least(texts: list[list[int]], scale: int, longest: int) -> None:
    """No other way to cut the texts in lexical order is cheaper."""
    texts = [list(t) for t in sorted({tuple(t) for t in texts})][:7]

    def size(part: list[list[int]]) -> int:
        return len({tuple(t[: n + 1]) for t in part for n in range(len(t))})

    def cost(parts: list[list[list[int]]]) -> float:
        return sum(size(p) + size(p) ** 2 / scale for p in parts)

    best = float("inf")
    for pattern in range(1 << (len(texts) - 1)):
        parts = [[texts[0]]]
        for i, text in enumerate(texts[1:]):
            if pattern >> i & 1:
                parts.append([text])
            else:
                parts[-1].append(text)
        if all(len(p) == 1 or size(p) <= longest for p in parts):
            best = min(best, cost(parts))
    rows = tries.pack(dict(enumerate(texts)), scale, longest=longest)
    assert sum(len(r) + len(r) ** 2 / scale for r in rows) == pytest.approx(best)


def test_batches_bound_rows_tokens_and_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for n in (40, 39, 30, 20, 10, 9, 4) for row in tries.pack({0: [n] * n}, 1000)]

    def sizes(**limits: int) -> list[list[int]]:
        return [[len(row) for row in batch] for batch in tries.batches(rows, **limits)]

    assert sizes(max_rows=9, max_tokens=1000) == [[40, 39, 30, 20], [10, 9], [4]]
    assert sizes(max_rows=2, max_tokens=1000) == [[40, 39], [30, 20], [10, 9], [4]]
    assert sizes(max_rows=9, max_tokens=80) == [[40, 39], [30, 20], [10, 9], [4]]
    monkeypatch.setattr(tries, "_MASK_ELEMENTS", 2500)
    assert sizes(max_rows=9, max_tokens=1000) == [[40], [39], [30, 20], [10, 9], [4]]
    layer = (torch.zeros(1, 50, 2),)
    rows = [
        dataclasses.replace(rows[-2], start=Start(np.zeros(n, np.int64), layer, layer)) for n in (50, 300)
    ]
    assert sizes(max_rows=9, max_tokens=1000) == [[9], [9]]
    assert [len(b) for b in tries.batches([rows[0], rows[0]], max_rows=9, max_tokens=1000)] == [2]


# ---- the scalar head

programs = st.lists(
    st.tuples(st.sampled_from("pq"), st.lists(st.sampled_from(LINES), max_size=6), st.text(max_size=8)),
    max_size=10,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(programs, st.sampled_from([1, 64, 4096]))
@example([("p", [LINES[1]], "")], 64)
@example([("p", LINES[:3], ""), ("p", LINES[:2], ""), ("p", LINES[:3], ""), ("q", LINES[:3], "é🙂")], 64)
@example([], 64)
def test_scalar_equals_the_plain_pass(
    scalar: ScalarValue, drawn: list[tuple[str, list[str], str]], longest: int
) -> None:
    owners = {"p": problem("p"), "q": problem("q", "def f(a):\n    '''Other words.'''\n")}
    items = [(owners[name], PREFIX + "".join(lines) + tail) for name, lines, tail in drawn]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tries.pack, "__kwdefaults__", {"longest": longest})
        shared, one_by_one = unclamped(scalar, items)
    assert shared == pytest.approx(one_by_one, abs=2e-5, rel=1e-5)
    got, want = scalar.score(items), plain(scalar, items)
    assert [g.ends for g in got] == [w.ends for w in want]
    assert sum(g.tokens for g in got) <= sum(w.tokens for w in want)


def branching() -> list[tuple[Problem, str]]:
    """Programs of one problem that part at several lines."""
    tails = ["    return a\n", "    b = [x for x in a]\n    return b\n", "    if x > 1:\n        return 3\n"]
    return [(problem(), PREFIX + "    c = a[::-1]\n" * n + tail) for n in (0, 1, 2) for tail in tails]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_backbones_that_share(name: str, attention: str) -> None:
    """Every model type that is taken to read tries does, by either attention."""
    value = classifier(CONFIGS[name], attn_implementation=attention)
    assert value.shares
    shared, one_by_one = unclamped(value, branching())
    assert max(one_by_one) - min(one_by_one) > 0.1
    assert shared == pytest.approx(one_by_one, abs=2e-5, rel=1e-5)
    assert set(CONFIGS) == set(tries._MODEL_TYPES)


def test_rows_of_bfloat16_agree_roughly() -> None:
    value = classifier(CONFIGS["llama"])
    value.model.to(torch.bfloat16)
    shared, one_by_one = unclamped(value, branching())
    assert shared == pytest.approx(one_by_one, abs=0.1)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=16), {}),
        (Qwen2Config(**SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=16), {}),
        (
            Qwen2Config(
                **SIZES,
                num_key_value_heads=2,
                use_sliding_window=True,
                sliding_window=16,
                max_window_layers=1,
            ),
            {},
        ),
        (
            LlamaConfig(
                **SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
            ),
            {},
        ),
        (GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4, num_labels=1, pad_token_id=0), {}),
        (LlamaConfig(**SIZES), {"attn_implementation": "flex_attention"}),
    ],
)
def test_backbones_that_do_not_share(config: Any, options: dict[str, str]) -> None:
    """A window, positions that turn by the batch, an unknown type or attention: read text by text."""
    value = classifier(config, **options)
    assert not value.shares
    if not options:
        items = branching()
        got = value.score(items)
        assert [g.tokens for g in got] == [len(value.encode(*item).token_ids) for item in items]


@pytest.mark.parametrize("planted", ["siblings seen", "positions by place", "token not seen"])
def test_planted_errors_show(
    scalar: ScalarValue, additive: AdditiveValue, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """What the comparison with the plain pass would not forgive."""
    right = tries.inputs

    def wrong(rows: Sequence[tries.Row], model: Any) -> dict[str, Any]:
        given = right(rows, model)
        width = given["input_ids"].shape[1]
        if planted == "siblings seen":
            causal = torch.full((width, width), torch.finfo(torch.float32).min).triu(1)
            given["attention_mask"] = causal.expand(len(rows), 1, width, width).contiguous()
        elif planted == "positions by place":
            given["position_ids"] = torch.arange(width).expand(len(rows), width)
        else:
            given["attention_mask"][..., 1] = torch.finfo(torch.float32).min
            given["attention_mask"][..., 1, 1] = 0
        return given

    monkeypatch.setattr(tries, "inputs", wrong)
    shared, one_by_one = unclamped(scalar, branching())
    assert max(abs(a - b) for a, b in zip(shared, one_by_one, strict=True)) > 1e-3
    encoded = [additive.encode(*item) for item in branching()]
    read, _ = additive._read(encoded)
    want = additive.trace(encoded)
    assert max(float((a.log_probs - b.log_probs).abs().max()) for a, b in zip(read, want, strict=True)) > 0.01


def test_each_token_is_counted_once(scalar: ScalarValue) -> None:
    items = branching()
    once = scalar.score(items)
    texts = [scalar.encode(*item).token_ids for item in items]
    assert sum(v.tokens for v in once) == len({t[: n + 1] for t in texts for n in range(len(t))})
    assert once[0].tokens == len(texts[0])
    assert all(0 < v.tokens < len(t) for v, t in zip(once[1:], texts[1:], strict=True))
    assert [v.tokens for v in scalar.score(items[:4])] == [v.tokens for v in once[:4]]
    twice = scalar.score([*items, *items])
    assert [v.tokens for v in twice] == [v.tokens for v in once] + [0] * len(items)
    assert [v.values for v in twice[: len(items)]] == [v.values for v in twice[len(items) :]]


def test_long_texts(scalar: ScalarValue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit, past it, and past what is packed."""
    line = "    b = [x for x in a if x >= 5]\n"
    fits = max(n for n in range(60) if len(scalar.encode(problem(), PREFIX + line * n).token_ids) <= 480)
    items = [(problem(), PREFIX + line * (fits - n)) for n in range(3)]
    shared, one_by_one = unclamped(scalar, items)
    assert shared == pytest.approx(one_by_one, abs=5e-5, rel=1e-5)
    with pytest.raises(RestrlError, match=r"p: a program to be scored has \d+ tokens .* more than the 480"):
        scalar.score([*items, (problem(), PREFIX + line * (fits + 1))])
    monkeypatch.setattr(tries, "LONGEST", 100)
    got = scalar.score(items)
    assert [v.tokens for v in got] == [len(scalar.encode(*item).token_ids) for item in items]


def test_nothing_to_score(scalar: ScalarValue, additive: AdditiveValue) -> None:
    assert scalar.score([]) == []
    assert additive.score([]) == []
    assert tries.pack({}, 10) == []


def test_training_reads_row_by_row_with_gradients(scalar: ScalarValue) -> None:
    encoded = [scalar.encode(*item) for item in branching()]
    assert all(row.requires_grad for row in scalar.values(encoded))


# ---- what a search remembers

steps = st.lists(
    st.tuples(st.sampled_from("pq"), st.integers(0, 3), st.lists(st.sampled_from(LINES))), max_size=4
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=5), st.sampled_from([0, 9000, 1 << 30]))
@example(
    [[("p", 0, LINES[:2])] * 3, [("p", 0, LINES[:1]), ("q", 1, [])], [("q", 1, []), ("p", 0, LINES)]], 1 << 30
)
def test_remembering_equals_the_plain_pass(
    scalar: ScalarValue, calls: list[list[tuple[str, int, list[str]]]], limit: int
) -> None:
    """Calls of one search, some with problems seen before, whatever of them is still kept."""
    owners = {"p": problem("p"), "q": problem("q", "def f(a):\n    '''Other words.'''\n")}
    with scalar.remembering():
        assert scalar._starts is not None
        scalar._starts.limit = limit
        for call in calls:
            items = [(owners[n], PREFIX + "    c = a\n" * k + "".join(lines)) for n, k, lines in call]
            shared, one_by_one = unclamped(scalar, items)
            assert shared == pytest.approx(one_by_one, abs=2e-5, rel=1e-5)
            assert scalar._starts.nbytes <= limit


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_backbones_that_remember(name: str, attention: str) -> None:
    value = classifier(CONFIGS[name], attn_implementation=attention)
    with value.remembering():
        for items in (branching()[:3], branching()[2:6], branching()):
            shared, one_by_one = unclamped(value, items)
            assert shared == pytest.approx(one_by_one, abs=2e-5, rel=1e-5)
    assert value._starts is None


def test_the_problem_is_read_once_in_a_search(scalar: ScalarValue) -> None:
    """The second call reads what follows the problem; after the search and in the next, all is read again."""
    items = branching()
    alone = [v.tokens for v in scalar.score(items)]
    encoded = [scalar.encode(*item) for item in items]
    begin = min(common([e.token_ids for e in encoded]), *(e.positions[0] for e in encoded))
    assert begin >= len(scalar.encode(problem(), PREFIX).token_ids) - 3
    with scalar.remembering():
        first = scalar.score(items)
        second = scalar.score(items)
        with scalar.remembering():
            assert [v.tokens for v in scalar.score(items)] == alone
        assert [v.tokens for v in scalar.score(items)] == [v.tokens for v in second]
    assert [v.tokens for v in first] == alone
    assert first[0].tokens - second[0].tokens == begin
    assert [v.tokens for v in second[1:]] == alone[1:]
    assert [v.tokens for v in scalar.score(items)] == alone


def test_rows_with_starts_of_different_lengths(scalar: ScalarValue, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch: what pads a shorter start is not seen, nor does it move a position; one has none yet."""
    owners = [problem(str(n), PREFIX + "    # some words on what is asked\n" * n) for n in (1, 3, 6)]
    programs = [PREFIX + "    c = a[::-1]\n" + tail for tail in ("    return a\n", "    return c\n")]
    sizes: list[list[int]] = []
    right = tries.inputs

    def spied(rows: Sequence[tries.Row], model: Any) -> dict[str, Any]:
        sizes.append(sorted(0 if row.start is None else len(row.start) for row in rows))
        return right(rows, model)

    monkeypatch.setattr(tries, "inputs", spied)
    with scalar.remembering():
        unclamped(scalar, [(owners[0], programs[0]), (owners[1], programs[0])])
        sizes.clear()
        items = [(owner, program) for owner in owners[:2] for program in programs]
        shared, one_by_one = unclamped(scalar, items)
        assert len(sizes) == 1
        assert 0 < sizes[0][0] < sizes[0][1] - 10
        assert shared == pytest.approx(one_by_one, abs=2e-5, rel=1e-5)
        long = [
            (owners[0], programs[0] + "    d = a\n" * 6),
            (owners[2], programs[1]),
            (owners[1], programs[0]),
        ]
        shared, one_by_one = unclamped(scalar, long)
        assert shared == pytest.approx(one_by_one, abs=2e-5, rel=1e-5)


def test_searches_ask_for_it(scalar: ScalarValue, additive: AdditiveValue) -> None:
    with remembering(scalar), remembering(additive):
        assert scalar._starts is not None
        first = scalar.score(branching())
        assert sum(v.tokens for v in scalar.score(branching())) < sum(v.tokens for v in first)
    assert scalar._starts is None


def test_starts_used_longest_ago_go_first() -> None:
    def start(*ids: int) -> Start:
        return Start(np.asarray(ids), (torch.ones(1, len(ids), 1),), (torch.ones(1, len(ids), 1),))

    kept = Starts(limit=8 * 6)
    kept.keep("a", start(1, 2, 3))
    kept.keep("b", start(1, 2))
    assert kept.nbytes == 8 * 5
    taken = kept.take("a", [[1, 2, 3, 4], [1, 2, 3, 5]], 9)
    assert taken is not None
    assert len(taken) == 3
    kept.keep("c", start(7, 8))
    assert kept.take("b", [[1, 2]], 9) is None
    cut = kept.take("a", [[1, 2, 3, 4], [1, 2, 4]], 9)
    assert cut is not None
    assert cut.ids.tolist() == [1, 2]
    assert cut.keys[0].shape == (1, 2, 1)
    assert kept.nbytes == 8 * 4
    capped = kept.take("c", [[7, 8, 9]], 1)
    assert capped is not None
    assert capped.ids.tolist() == [7]
    assert kept.take("c", [[8, 9]], 9) is None
    assert len(kept) == 1


# ---- the additive head


def test_additive_equals_the_plain_pass(additive: AdditiveValue, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [*branching(), (problem(), PREFIX), (problem("q", "x"), PREFIX + "    return 'é🙂'\n")]
    encoded = [additive.encode(*item) for item in items]
    for own, other in zip(additive._read(encoded)[0], additive.trace(encoded), strict=True):
        assert torch.equal(own.token_ids, other.token_ids)
        torch.testing.assert_close(own.log_probs, other.log_probs, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(own.hidden, other.hidden, atol=5e-5, rtol=1e-5)
    shared = additive.score(items)
    monkeypatch.setattr(tries, "shareable", lambda model: False)
    one_by_one = additive.score(items)
    for got, want in zip(shared, one_by_one, strict=True):
        assert got.ends == want.ends
        assert got.values == pytest.approx(want.values, abs=1e-6, rel=1e-3)
    assert len({v.values[0] for v in one_by_one}) > 5
    assert sum(v.tokens for v in shared) < 0.7 * sum(v.tokens for v in one_by_one)
    assert [v.tokens for v in one_by_one] == [len(additive.encode(*item).token_ids) for item in items]


def test_the_policy_keeps_its_mode(additive: AdditiveValue) -> None:
    additive.policy.model.train()
    additive.score(branching())
    assert additive.policy.model.training
    additive.policy.model.eval()


# ---- equal states of one tree


def scored(program: str, base: float) -> LineValues:
    ends = line_ends(program, len(PREFIX))
    return LineValues(tuple(ends), tuple(base + i / 100 for i in range(len(ends))), 7)


def test_equal_states_share_their_scores() -> None:
    one, two, three, short = (
        PREFIX + text for text in ("  a\n  b\n  c\n", "  a\n  b\n  d\n", "  x\n  b\n", "  a\n")
    )
    scores = StateScores(len(PREFIX))
    assert scores.missing([one, two, one, three]) == [one, two, three]
    assert scores.hits == 1
    scores.record(one, scored(one, 0.1))
    assert scores.missing([one, two]) == [two]
    assert scores.hits == 2
    assert scores.of(two) is None
    shared = scores.record(two, scored(two, 0.5))
    assert shared.values == (0.1, 0.11, 0.52)  # the two common states, and its own end
    assert shared.tokens == 7
    assert scores.of(two) == shared
    assert scores.record(three, scored(three, 0.7)).values == (0.7, 0.71)  # the line b elsewhere
    assert scores.record(one, scored(one, 0.9)) == scored(one, 0.1)
    assert len(scores) == 3
    hits = scores.hits
    assert scores.value(PREFIX + "  a\n") == 0.1
    assert scores.value(PREFIX + "  x\n") == 0.7
    assert scores.hits == hits + 2
    assert scores.value(PREFIX + "  y\n") is None
    assert scores.value(PREFIX + "  x\n  y\n") is None
    assert scores.value(PREFIX) is None
    assert scores.value(one) is None  # a finished program is no state
    assert scores.hits == hits + 2
    assert scores.record(short, scored(short, 0.3)).values == (0.3,)  # finished where others go on
    assert scores.value(short) == 0.1


def test_states_of_values_that_start_late() -> None:
    """While decoding, values begin at the expanded state: what lies before has none until it is scored."""
    program, other = PREFIX + "  a\n  b\n  c\n", PREFIX + "  a\n  d\n"
    scores = StateScores(len(PREFIX))
    whole = scored(program, 0.2)
    late = LineValues(whole.ends[1:], whole.values[1:])
    assert scores.record(program, late) == late
    assert scores.value(PREFIX + "  a\n") is None
    assert scores.value(PREFIX + "  a\n  b\n") == whole.values[1]
    assert scores.record(other, scored(other, 0.4)) == scored(other, 0.4)
    assert scores.value(PREFIX + "  a\n") == 0.4


def test_a_tree_scored_with_shared_states_is_the_model_s_own(scalar: ScalarValue, tmp_path: Path) -> None:
    items = [(problem(), p) for _, p in [*branching(), *branching()]]
    scores = StateScores(len(PREFIX))
    for start in range(0, len(items), 5):
        fresh = scores.missing([p for _, p in items[start : start + 5]])
        for program, values in zip(fresh, scalar.score([(problem(), p) for p in fresh]), strict=True):
            scores.record(program, values)
    assert len(scores) == len(branching())
    assert scores.hits == len(branching())
    for (_, program), want in zip(items, plain(scalar, items), strict=True):
        got = scores.of(program)
        assert got is not None
        assert got.last == pytest.approx(want.last, abs=1e-5)
