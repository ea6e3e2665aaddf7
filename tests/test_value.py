"""Value models: what they read where, free path = teacher forcing, scalar head = transformers' own class."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_llama, make_tiny_qwen2
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2ForSequenceClassification

from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.local import LocalPolicy
from restrl.prompts import value_text
from restrl.records import Calls, Problem
from restrl.value import FreeValueModel, finished, line_ends, load_value, to_values
from restrl.value.additive import AdditiveValue, covering, pairwise_loss, target_loss
from restrl.value.quality import within_auc, within_spearman
from restrl.value.scalar import ScalarValue, token_positions

torch.set_num_threads(1)

PREFIX = "# b: größer als 5; 世界\ndef f(a):\n"
PROGRAM = PREFIX + "    b = 'ü🙂é'  # x\n\n    c = b[::-1]\n    return '世界'\n"


def problem(name: str = "p", prefix: str = PREFIX) -> Problem:
    return Problem(
        task_id=name,
        source="pipelines",
        prompt=prefix,
        mode="complete",
        prefix=prefix,
        tests=Calls(fn_name="f", args=[[1]], expected=[1]),
    )


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    return LocalPolicy(make_tiny_qwen2(tmp_path_factory.mktemp("qwen")), device="cpu", max_rows=8)


@pytest.fixture(scope="module")
def head(policy: LocalPolicy) -> AdditiveValue:
    value = AdditiveValue.new(policy, 16, seed=3)
    torch.nn.init.normal_(value.head.out.weight, std=2.0)  # scores that differ
    return value


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, policy: LocalPolicy) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    config = policy.model.config.__class__.from_dict({**policy.model.config.to_dict(), "num_labels": 1})
    torch.manual_seed(5)
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


# ---- the additive head


def sampled(
    policy: LocalPolicy, head: AdditiveValue, state: str, n: int = 6
) -> tuple[Prompt, list[Completion]]:
    prompt = policy.format.prompt(problem(), state, "key")
    done = head.complete([prompt], n, Sampling(temperature=1.0, max_new_tokens=40, stop=("\ndef ",), seed=1))[
        0
    ]
    return prompt, done


def test_free_path_equals_teacher_forcing(policy: LocalPolicy, head: AdditiveValue) -> None:
    """The sampled ids, given to the policy's teacher-forced pass, have the same scores."""
    assert isinstance(head, FreeValueModel)
    for state in (PREFIX, PREFIX + "    b = [x for x in a]\n"):
        prompt, done = sampled(policy, head, state)
        for completion in done:
            (trace,) = policy.trace([(prompt, completion.token_ids.tolist())])
            first = min(trace.program, trace.answer)  # a first token without text of its own counts
            with torch.no_grad():
                scores = head.token_scorer(policy)(
                    trace.hidden[first:], trace.ids[first:], trace.log_probs[first:]
                )
            got = head.line_values_from_completion(problem(), prompt, completion)
            program = finished(prompt.state, completion.text)
            assert list(got.ends) == line_ends(program, len(state))
            assert got.tokens == 0
            ends = (trace.ends - len(prompt.header)).tolist()
            for end, value in zip(got.ends[:-1], got.values, strict=False):
                count = next(t for t, e in enumerate(ends) if e >= end) + 1 - first
                assert value == pytest.approx(math.exp(float(scores[:count].sum())), abs=1e-4)


def test_free_path_equals_score_of_the_text(policy: LocalPolicy, head: AdditiveValue) -> None:
    """A completion whose ids are the text's own: both ways give the same at every line end."""
    ids, ends = policy.codec.encode(PROGRAM)
    for lines in (2, 3, 4):  # the state ends after so many lines
        state = "".join(PROGRAM.splitlines(keepends=True)[:lines])
        cut = next(t for t, end in enumerate(ends) if end >= len(state)) + 1
        if ends[cut - 1] != len(state) or policy.codec.encode(state)[0] != ids[:cut]:
            continue
        prompt = policy.format.prompt(problem(), state, "key")
        (trace,) = policy.trace([(prompt, ids[cut:])])
        scorer = head.token_scorer(policy)
        with torch.no_grad():
            scores = scorer(trace.hidden, trace.ids, trace.log_probs)
        eos = np.asarray([*ids[cut:], policy.tokenizer.eos_token_id])
        completion = Completion(
            PROGRAM[len(state) :],
            eos,
            None,
            "eos",
            tuple(ids[:cut]),
            np.append(scores[cut:].numpy(), np.float32(-9)),  # the end token's score does not count
            float(scores[trace.program : cut].sum()),
        )
        free = head.line_values_from_completion(problem(), prompt, completion)
        (forced,) = head.score([(problem(), PROGRAM)])
        assert free.ends == forced.ends[-len(free.ends) :]
        assert free.values == pytest.approx(forced.values[-len(free.values) :], abs=1e-4)
        assert len(set(free.values)) > 1
        break
    else:
        pytest.fail("no line border of the program is a token border")


def test_score_of_a_prefix_is_the_score_on_the_way(policy: LocalPolicy, head: AdditiveValue) -> None:
    """One pass gives at a line end what a pass over the program cut there gives."""
    (whole,) = head.score([(problem(), PROGRAM)])
    end = PROGRAM.index("# x\n") + len("    c") - 1
    for end in whole.ends:
        ids = policy.codec.encode(PROGRAM[:end])[0]
        if policy.codec.encode(PROGRAM)[0][: len(ids)] == ids:
            (cut,) = head.score([(problem(), PROGRAM[:end])])
            assert cut.last == pytest.approx(whole.at(end), abs=1e-5)
    assert list(whole.values) == sorted(whole.values, reverse=True)  # every token's score is <= 0
    assert whole.tokens == len(policy.codec.encode(PROGRAM)[0])
    (start,) = head.score([(problem(), PREFIX)])
    assert start.values == (1.0,)


def test_batches_do_not_matter(policy: LocalPolicy, head: AdditiveValue) -> None:
    items = [(problem(), PREFIX + "    return a\n" * k) for k in range(1, 12)]
    together = head.score(items)
    for item, got in zip(items, together, strict=True):
        (alone,) = head.score([item])
        assert alone.ends == got.ends
        assert alone.values == pytest.approx(got.values, abs=1e-5)


def test_additive_round_trip(policy: LocalPolicy, head: AdditiveValue, tmp_path: Path) -> None:
    head.save(tmp_path / "value")
    again = load_value(tmp_path / "value", policy=policy)
    assert again.score([(problem(), PROGRAM)]) == head.score([(problem(), PROGRAM)])
    other = LocalPolicy(make_tiny_qwen2(tmp_path / "other", hidden=16), device="cpu")
    with pytest.raises(RestrlError, match=r"hidden_size.: 32.*this one has.*hidden_size.: 16"):
        load_value(tmp_path / "value", policy=other)
    with pytest.raises(RestrlError, match="train a head for this policy"):
        head.token_scorer(other)
    (tmp_path / "value" / "additive_head.safetensors").write_bytes(b"nothing")
    with pytest.raises(RestrlError, match="not the weights"):
        load_value(tmp_path / "value", policy=policy)
    with pytest.raises(RestrlError, match="no value model here"):
        load_value(tmp_path / "nowhere", policy=policy)


def test_llama_and_chat_header(tmp_path: Path) -> None:
    """Another architecture, a chat template: the header's tokens are not scored."""
    policy = LocalPolicy(make_tiny_llama(tmp_path / "llama", chat_template=True), device="cpu")
    value = AdditiveValue.new(policy, 16, seed=0)
    encoded = value.encode(problem(), PROGRAM)
    text = policy.format.header(problem()) + PREFIX
    assert text.rstrip().endswith(policy.codec.decode(encoded.token_ids[: encoded.first])[-40:].rstrip())
    assert policy.codec.decode(encoded.token_ids[encoded.first :]).startswith(("    b", "\n    b"))
    assert encoded.counts[-1] == len(encoded.token_ids) - encoded.first
    (got,) = value.score([(problem(), PROGRAM)])
    assert 0 < got.last < 1


def test_losses_by_hand() -> None:
    s = torch.tensor([-0.5, -1.0, -0.1])
    y = torch.tensor([1.0, 0.0, 0.25])
    want = [0.5, -math.log(1 - math.exp(-1.0)), 0.25 * 0.1 - 0.75 * math.log(1 - math.exp(-0.1))]
    assert target_loss(s, y).tolist() == pytest.approx(want, rel=1e-5)
    assert torch.isfinite(target_loss(torch.tensor([0.0, -200.0]), torch.tensor([0.0, 1.0]))).all()
    pairs = pairwise_loss(s, torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 1]))
    assert float(pairs) == pytest.approx(math.log1p(math.exp(-0.5)))  # the only pair: 0 over 1
    assert float(pairwise_loss(s, y, torch.tensor([0, 1, 2]))) == 0.0


def test_covering() -> None:
    ends = [2, 5, 5, 9]
    assert [covering(ends, c) for c in (1, 2, 3, 5, 6, 9, 12)] == [1, 1, 2, 2, 4, 4, 4]


def test_neither_end_token_nor_stop_string_counts(policy: LocalPolicy, head: AdditiveValue) -> None:
    """Without a last newline of its own, a completion's value is that of its last visible character."""
    eos = policy.tokenizer.eos_token_id
    ids = policy.codec.encode("    return b", special=False)[0]
    prompt = policy.format.prompt(problem(), PREFIX, "key")
    stop = policy.codec.encode("\ndef", special=False)[0]
    want = math.exp(-0.25 * len(ids))
    for tail in ([], [eos], stop):
        sampled_ids = np.asarray([*ids, *tail])
        scores = np.full(len(sampled_ids), -0.25, np.float32)
        finish = "eos" if tail == [eos] else "stop"
        done = Completion("    return b", sampled_ids, None, finish, (1,), scores, 0.0)  # type: ignore[arg-type]
        got = head.line_values_from_completion(problem(), prompt, done)
        assert got.ends == (len(PREFIX + "    return b\n"),)
        assert got.last == pytest.approx(want), tail


@pytest.mark.parametrize(("text", "ids"), [("", 1), ("\n  \n", 3)])
def test_an_answer_that_adds_nothing_is_worth_nothing(
    policy: LocalPolicy, head: AdditiveValue, text: str, ids: int
) -> None:
    """The empty sum of scores would make it the best of all."""
    prompt = policy.format.prompt(problem(), PREFIX, "key")
    scores = np.full(ids, -0.25, np.float32)
    done = Completion(text, np.arange(ids), None, "stop", (1,), scores, 0.0)  # type: ignore[arg-type]
    assert head.line_values_from_completion(problem(), prompt, done).last == 0.0
    (forced,) = head.score([(problem(), finished(PREFIX, text))])
    assert forced.last == 0.0


# ---- the scalar head


def reference_scores(folder: Path, texts: list[str]) -> list[float]:
    """Last-token scores by the class's own forward, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]


def test_scalar_equals_the_class(policy: LocalPolicy, classifier: Path) -> None:
    programs = [PREFIX + "    return a\n" * k for k in range(1, 12)] + [PROGRAM, PROGRAM.rstrip()]
    value = load_value(classifier, policy=policy)
    assert isinstance(value, ScalarValue)
    encoded = [value.encode(problem(), p) for p in programs]
    with torch.no_grad():
        raw = [float(v[-1]) for v in value.values(encoded)]  # one batch, with padding
        alone = [float(value.values([e])[0][-1]) for e in encoded]
    want = reference_scores(classifier, [value_text(problem(), p)[0] for p in programs])
    assert raw == pytest.approx(want, abs=1e-5)
    assert alone == pytest.approx(want, abs=1e-5)
    assert len({round(x, 4) for x in want}) > 5
    got = value.score([(problem(), p) for p in programs])
    assert [g.last for g in got] == pytest.approx([min(1, max(0, x)) for x in want], abs=1e-5)


def test_scalar_reads_every_line_end_in_one_pass(policy: LocalPolicy, classifier: Path) -> None:
    value = ScalarValue.load(classifier, policy)
    encoded = value.encode(problem(), PROGRAM)
    text, start = value_text(problem(), PROGRAM)
    spans = policy.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert list(encoded.ends) == line_ends(PROGRAM, len(PREFIX))
    for end, position in zip(encoded.ends[:-1], encoded.positions, strict=False):
        a, b = spans[position]
        assert a < start + end <= b  # the token covers the newline
        assert text[start + end - 1] == "\n"
    assert encoded.positions[-1] == len(encoded.token_ids) - 1
    with torch.no_grad():
        (values,) = value.values([encoded])
        ids = torch.tensor([encoded.token_ids[: encoded.positions[0] + 1]])
        cut = value.model(input_ids=ids).logits[0, 0]
    assert float(values[0]) == pytest.approx(float(cut), abs=1e-5)


def test_token_positions_with_characters_of_several_tokens() -> None:
    spans = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 5), (5, 6)]
    assert token_positions(spans, [1, 2, 3, 5, 6]) == [0, 3, 4, 4, 5]


def test_scalar_from_policy_round_trip(policy: LocalPolicy, tmp_path: Path) -> None:
    value = ScalarValue.from_policy(policy, seed=1)
    weights = policy.model.state_dict()
    for name, tensor in value.model.base_model.state_dict().items():
        assert torch.equal(tensor, weights[f"model.{name}"])
    assert (
        value.model.model.embed_tokens.weight.data_ptr() != policy.model.model.embed_tokens.weight.data_ptr()
    )
    value.save(tmp_path)
    again = load_value(tmp_path, policy=policy)
    assert again.score([(problem(), PROGRAM)]) == value.score([(problem(), PROGRAM)])
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert plain.config.num_labels == 1
    assert ScalarValue.from_policy(policy, seed=2).model.score.weight.ne(value.model.score.weight).any()


def test_what_cannot_be_scored(
    policy: LocalPolicy, classifier: Path, head: AdditiveValue, tmp_path: Path
) -> None:
    scalar = ScalarValue.load(classifier, policy, max_length=40)
    short = AdditiveValue(policy, head.head, max_length=40)
    for value in (scalar, short):
        with pytest.raises(RestrlError, match=r"p: a program to be scored has \d+ tokens"):
            value.score([(problem(), PROGRAM * 2)])
        with pytest.raises(RestrlError, match="does not start with the problem's code"):
            value.score([(problem(), "return a\n")])
    with pytest.raises(RestrlError, match="gave NaN"):
        to_values(problem(), [1], [math.nan])
    assert to_values(problem(), [1, 2], [-0.5, 1.5]).values == (0.0, 1.0)
    config = replace_labels(classifier, tmp_path)
    with pytest.raises(RestrlError, match="not a scalar value model"):
        ScalarValue.load(config, policy)
    broken = ScalarValue.load(classifier, policy)
    with torch.no_grad():
        broken.model.score.weight.fill_(math.nan)
    with pytest.raises(RestrlError, match="p: the value model gave NaN"):
        broken.score([(problem(), PROGRAM)])


def replace_labels(folder: Path, out: Path) -> Path:
    """A classifier with three labels."""
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, ignore_mismatched_sizes=True
    )
    model.save_pretrained(out)
    return out


# ---- ranking quality


def test_auc_and_spearman_by_hand() -> None:
    assert within_auc([([0.1, 0.9], [0, 1]), ([0.5, 0.5], [0, 1]), ([1, 2], [1, 1])]) == 0.75
    assert within_auc([([0.9, 0.1, 0.5], [0.0, 1.0, 0.5])]) == 0.0
    assert within_auc([([1, 2], [1, 1])]) is None
    assert within_spearman([([1, 2, 3], [10, 20, 15])]) == pytest.approx(0.5)
    assert within_spearman([([1, 1, 2], [0, 0, 1]), ([1, 2], [2, 1])]) == pytest.approx(0.0)
    assert within_spearman([([1, 1], [0, 1])]) is None


def test_completions_without_scores_are_refused(policy: LocalPolicy, head: AdditiveValue) -> None:
    prompt, done = sampled(policy, head, PREFIX, n=1)
    with pytest.raises(ValueError, match="carries no scores"):
        head.line_values_from_completion(problem(), prompt, replace(done[0], scores=None))
