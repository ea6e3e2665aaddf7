"""The local policy against transformers' own logits and generate, alone and in company."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CORPUS, make_tiny_llama, make_tiny_qwen2, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.codec import Codec
from restrl.policy.draw import draw, uniforms
from restrl.policy.engine import ModuleEngine, Start
from restrl.policy.fast import FastEngine, supports
from restrl.policy.local import LocalPolicy

torch.set_num_threads(1)
SAMPLING = Sampling(temperature=0.7, max_new_tokens=24, seed=3)
GREEDY = Sampling(temperature=0, max_new_tokens=24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        "qwen2": make_tiny_qwen2(base / "qwen2"),
        "qwen2-mha": make_tiny_qwen2(base / "mha", heads=4, kv_heads=4, tie_word_embeddings=True),
        "llama": make_tiny_llama(base / "llama", attention_bias=True, mlp_bias=True),
    }


@pytest.fixture(scope="module", params=["qwen2", "qwen2-mha", "llama", "qwen2/module"])
def policy(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LocalPolicy:
    name, _, engine = request.param.partition("/")
    loaded = LocalPolicy(folders[name], device="cpu", max_rows=7, fast=not engine)
    assert supports(loaded.model)
    return loaded


def prompts(count: int = 6) -> list[Prompt]:
    return [Prompt("", (CORPUS[i % 5] * 3)[: 12 + 9 * i], f"task/{i}", 5) for i in range(count)]


def reference_greedy(policy: LocalPolicy, ids: tuple[int, ...], count: int) -> list[int]:
    out = policy.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
    )
    return [int(i) for i in out[0, len(ids) :]]


def reference_logs(policy: LocalPolicy, c: Completion) -> torch.Tensor:
    """Log-probs of a completion's ids by one plain forward pass."""
    ids = torch.tensor([[*c.prompt_token_ids, *c.token_ids.tolist()]])
    with torch.no_grad():
        logs = torch.log_softmax(policy.model(ids).logits[0].float(), -1)
    first = len(c.prompt_token_ids)
    return logs[first - 1 : -1].gather(-1, ids[0, first:, None])[:, 0]


def test_greedy_equals_generate(policy: LocalPolicy) -> None:
    """Prompts of many lengths share the batch of 7 rows: rows leave and join."""
    for (c,), prompt in zip(policy.complete(prompts(12), 1, GREEDY), prompts(12), strict=True):
        assert list(c.prompt_token_ids) == policy.tokenizer(prompt.text)["input_ids"]
        assert c.token_ids.tolist() == reference_greedy(policy, c.prompt_token_ids, 24)


def test_log_probs_are_the_models_at_temperature_one(policy: LocalPolicy) -> None:
    for group in policy.complete(prompts(), 3, SAMPLING):
        for c in group:
            assert c.log_probs is not None
            assert c.log_probs.dtype == np.float32
            np.testing.assert_allclose(c.log_probs, reference_logs(policy, c).numpy(), atol=1e-4)


@pytest.mark.parametrize("kind", ["fast", "module"])
@pytest.mark.parametrize("name", ["qwen2", "qwen2-mha", "llama"])
def test_the_engines_compute_the_models_logits(folders: dict[str, Path], name: str, kind: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(0, 384, (count,), generator=generator).tolist()

    rows: list[list[int]] = []
    with torch.no_grad():
        engine = FastEngine(model) if kind == "fast" else ModuleEngine(model, 512)
        assert engine.joins
        for join in range(3):  # prompts join while others run, and rows leave in between
            starts = [Start(some(5 + 11 * p + join), 2 + p, 3) for p in range(3)]
            read = engine.read(starts, 60)
            for p, s in enumerate(starts):
                plain = model(torch.tensor([s.ids])).logits[0]
                torch.testing.assert_close(read.logits[p], plain[-1], atol=1e-4, rtol=0)
                logs = torch.log_softmax(plain, -1)[2:-1].gather(-1, torch.tensor(s.ids[3:])[:, None])[:, 0]
                torch.testing.assert_close(read.scored[p][1], logs, atol=1e-4, rtol=0)
                rows += [list(s.ids) for _ in range(s.copies)]
            for _ in range(20):
                tokens = some(len(rows))
                _, logits = engine.step(torch.tensor(tokens))
                for row, token in zip(rows, tokens, strict=True):
                    row.append(token)
            expected = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
            count = len(rows)
            keep = [count - 4, count - 3, count - 2, count - 1] if join else [0, count - 1, 2, count - 2, 4]
            engine.select(torch.tensor(keep))
            rows = [rows[i] for i in keep]
        if isinstance(engine, ModuleEngine):
            assert engine._mask.shape[1] < 3 * 20 + 5  # columns that no row uses are dropped


def test_samples_depend_on_seed_key_and_number_alone(policy: LocalPolicy) -> None:
    together = policy.complete(prompts(), 5, SAMPLING)
    texts = [[c.text for c in group] for group in together]
    for i, prompt in enumerate(prompts()):
        assert [c.text for c in policy.complete([prompt], 5, SAMPLING)[0]] == texts[i]
    assert [[c.text for c in g] for g in policy.complete(prompts()[::-1], 2, SAMPLING)] == [
        t[:2] for t in texts[::-1]
    ]
    wide = LocalPolicy.from_parts(policy.model, policy.tokenizer, max_rows=64, fast=policy.fast)
    assert [[c.text for c in g] for g in wide.complete(prompts(), 5, SAMPLING)] == texts
    assert len({t for group in texts for t in group}) == 30
    other = dataclasses.replace(prompts()[0], key="another")
    assert policy.complete([other], 5, SAMPLING)[0][0].text not in texts[0]
    seeded = policy.complete(prompts()[:1], 5, dataclasses.replace(SAMPLING, seed=4))[0]
    assert seeded[0].text not in texts[0]


def test_more_samples_than_rows(policy: LocalPolicy) -> None:
    few = policy.complete(prompts(2), 3, SAMPLING)
    many = policy.complete(prompts(2), 17, SAMPLING)
    assert [len(g) for g in many] == [17, 17]
    assert [[c.text for c in g[:3]] for g in many] == [[c.text for c in g] for g in few]


def test_both_engines_draw_the_same_samples(folders: dict[str, Path]) -> None:
    fast = LocalPolicy(folders["qwen2"])
    module = LocalPolicy.from_parts(fast.model, fast.tokenizer, fast=False)
    a, b = (p.complete(prompts(), 4, SAMPLING) for p in (fast, module))
    assert [[c.text for c in g] for g in a] == [[c.text for c in g] for g in b]


def test_new_weights_are_seen_by_the_next_call(folders: dict[str, Path]) -> None:
    policy = LocalPolicy(folders["qwen2"])
    before = policy.complete(prompts(2), 1, GREEDY)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(-0.8)
    after = policy.complete(prompts(2), 1, GREEDY)
    for (old,), (new,) in zip(before, after, strict=True):
        assert old.token_ids.tolist() != new.token_ids.tolist()
        assert new.token_ids.tolist() == reference_greedy(policy, new.prompt_token_ids, 24)


def test_the_training_mode_is_put_back(folders: dict[str, Path]) -> None:
    policy = LocalPolicy(folders["qwen2"])
    policy.model.train()
    policy.complete(prompts(1), 1, GREEDY)
    assert policy.model.training


def test_stop_strings_are_cut_wherever_they_lie(policy: LocalPolicy) -> None:
    drawn = [(p, g[0]) for p, g in zip(prompts(), policy.complete(prompts(), 1, SAMPLING), strict=True)]
    prompt, whole = max(drawn, key=lambda pair: len(pair[1].text))
    assert len(whole.text) > 12
    spanning = 0
    for begin in range(2, len(whole.text) - 4):
        stop = whole.text[begin : begin + 4]
        at = whole.text.find(stop)
        if "\ufffd" in stop or prompt.state.endswith((stop[:1], stop[:2], stop[:3])):
            continue
        (cut,) = policy.complete([prompt], 1, dataclasses.replace(SAMPLING, stop=("never", stop)))[0]
        assert (cut.text, cut.finish) == (whole.text[:at], "stop")
        count = len(cut.token_ids)
        assert cut.token_ids.tolist() == whole.token_ids[:count].tolist()
        upto = [policy.codec.decode(whole.token_ids[:k].tolist()) for k in (count - 1, count)]
        assert stop not in upto[0]
        assert stop in upto[1]
        spanning += len(upto[0]) > at
    assert spanning > 2


def test_a_stop_string_in_the_prompt_does_not_count(policy: LocalPolicy) -> None:
    prompt = Prompt("", "x = 1\ny = 2", "k")
    plain = policy.complete([prompt], 1, SAMPLING)[0][0]
    stopped = policy.complete([prompt], 1, dataclasses.replace(SAMPLING, stop=("\ny = 2",)))[0][0]
    assert (plain.text, plain.finish) == (stopped.text, stopped.finish)


def test_a_stop_string_may_begin_in_the_state(policy: LocalPolicy) -> None:
    for name in "abcdefgh":
        prompt = Prompt("", f"{name} = 1\n", "k")
        first = policy.complete([prompt], 1, GREEDY)[0][0]
        piece = policy.codec.decode([int(first.token_ids[0])])
        if piece.isascii() and piece:
            break
    cut = policy.complete([prompt], 1, dataclasses.replace(GREEDY, stop=("\n" + piece,)))[0][0]
    assert (cut.text, cut.finish, len(cut.token_ids)) == ("", "stop", 1)


def test_the_end_token_ends_a_completion(folders: dict[str, Path]) -> None:
    policy = LocalPolicy(folders["qwen2"])
    assert policy.end_ids == {policy.tokenizer.eos_token_id}
    whole = policy.complete(prompts(1), 1, GREEDY)[0][0]
    end = int(whole.token_ids[5])
    first = whole.token_ids.tolist().index(end)
    policy.end_ids = frozenset([end])
    c = policy.complete(prompts(1), 1, GREEDY)[0][0]
    assert c.finish == "eos"
    assert c.token_ids.tolist() == whole.token_ids[: first + 1].tolist()
    assert c.text == policy.tokenizer.decode(whole.token_ids[:first].tolist(), skip_special_tokens=True)
    assert whole.finish == "length"


def test_all_end_ids_of_tokenizer_and_configs_count(folders: dict[str, Path]) -> None:
    policy = LocalPolicy(folders["qwen2"])
    policy.model.generation_config.eos_token_id = [7, 9]
    assert LocalPolicy.from_parts(policy.model, policy.tokenizer).end_ids == {0, 7, 9}


def test_the_text_is_the_exact_text_of_the_ids(policy: LocalPolicy) -> None:
    for group in policy.complete(prompts(), 4, dataclasses.replace(SAMPLING, temperature=1.5)):
        for c in group:
            ids = c.token_ids[:-1] if c.finish == "eos" else c.token_ids
            assert c.text == policy.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def test_prompt_and_new_tokens_share_the_context(tmp_path: Path) -> None:
    policy = LocalPolicy(make_tiny_qwen2(tmp_path, context=40))
    ids = tuple(range(10, 45))
    c = policy.complete([Prompt("", "", "k", 0, ids)], 1, GREEDY)[0][0]
    assert (len(c.token_ids), c.finish) == (5, "length")
    assert c.prompt_token_ids == ids
    with pytest.raises(RestrlError, match=r"task/9.* 40 tokens .*context 40"):
        policy.complete([Prompt("", "", "task/9", 0, tuple(range(10, 50)))], 1, GREEDY)
    with pytest.raises(RestrlError, match=r"task/9.*41 tokens.*\(40\)"):
        policy.trace([(Prompt("", "", "task/9", 0, ids), [1] * 6)])


def test_given_token_ids_are_used_as_they_are(policy: LocalPolicy) -> None:
    text = "def add(x, y):\n"
    letters = tuple(i for c in text for i in policy.tokenizer(c)["input_ids"])
    assert len(letters) == len(text) != len(policy.tokenizer(text)["input_ids"])
    c = policy.complete([Prompt("", text, "k", 0, letters)], 1, GREEDY)[0][0]
    assert c.prompt_token_ids == letters
    assert c.token_ids.tolist() == reference_greedy(policy, letters, 24)


def scorer(hidden: torch.Tensor, ids: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    return -(hidden[:, :5].sin().sum(-1).abs() + 0.01 * ids + 0.5 * logs.abs())


def test_scores_equal_those_of_a_teacher_forced_pass(policy: LocalPolicy) -> None:
    asked = [
        dataclasses.replace(p, answer_from=k) for p, k in zip(prompts(), (0, 3, 7, 30, 99, 5), strict=True)
    ]
    done = policy.complete(asked, 3, SAMPLING, scorer)
    traces = policy.trace([(p, c.token_ids) for p, g in zip(asked, done, strict=True) for c in g])
    pairs = [(p, c) for p, g in zip(asked, done, strict=True) for c in g]
    assert len({round(c.prefix_score, 3) for _, c in pairs}) > 3
    for (prompt, c), t in zip(pairs, traces, strict=True):
        scores = scorer(t.hidden, t.ids, t.log_probs)
        assert c.scores is not None
        assert c.scores.dtype == np.float32
        assert len(c.scores) == len(c.token_ids)
        np.testing.assert_allclose(c.scores, scores[t.answer :].numpy(), atol=2e-4)
        start = max(
            1, next((i for i, end in enumerate(t.ends.tolist()) if end > prompt.answer_from), t.answer)
        )
        start = min(start, t.answer)
        assert c.prefix_score == pytest.approx(float(scores[start : t.answer].sum()), abs=5e-3)
    assert all(c.scores is None for g in policy.complete(asked, 1, SAMPLING) for c in g)


def test_trace_gives_states_log_probs_and_ends(policy: LocalPolicy) -> None:
    prompt = Prompt("# sum\n", "def f(a):\n    b = 'ü🙂'\n", "k", 6)
    short, long = policy.trace([(prompt, "    return a\n"), (prompt, "    c = 1\n    return c + 'é世'\n")])
    for t, text in ((short, "    return a\n"), (long, "    c = 1\n    return c + 'é世'\n")):
        whole = prompt.text + text
        assert policy.codec.decode(t.ids.tolist()) == whole
        with torch.no_grad():
            plain = policy.model(t.ids[None], output_hidden_states=True)
        states = plain.hidden_states[-1][0]
        torch.testing.assert_close(t.hidden[1:], states[:-1], atol=1e-4, rtol=0)
        torch.testing.assert_close(t.last, states[-1], atol=1e-4, rtol=0)
        logs = torch.log_softmax(plain.logits[0], -1)[:-1].gather(-1, t.ids[1:, None])[:, 0]
        torch.testing.assert_close(t.log_probs[1:], logs, atol=1e-4, rtol=0)
        assert t.ends[-1] == len(whole)
        for k, end in enumerate(t.ends.tolist()):
            spelled = policy.codec.decode(t.ids[: k + 1].tolist())
            assert spelled.rstrip("\ufffd") == whole[:end][: len(spelled.rstrip("\ufffd"))]
            assert abs(len(spelled) - end) <= spelled.count("\ufffd")
        assert t.ends[t.program - 1] <= 6 < t.ends[t.program]
        assert t.ends[t.answer - 1] <= len(prompt.text) < t.ends[t.answer]


def test_trace_of_ids_and_of_their_text_agree_on_ends(policy: LocalPolicy) -> None:
    prompt, text = prompts()[2], "x = [1, 2]\n# é🙂 done\n"
    ids = policy.tokenizer(prompt.text)["input_ids"]
    more = policy.tokenizer(text)["input_ids"]
    given = dataclasses.replace(prompt, token_ids=tuple(ids))
    a, b = policy.trace([(given, text), (given, [*more, policy.tokenizer.eos_token_id])])
    assert a.ids.tolist() == b.ids.tolist()[:-1]
    assert a.ends.tolist() == b.ends.tolist()[:-1]
    assert b.ends[-1] == b.ends[-2] == len(prompt.text) + len(text)


def test_a_chat_header_is_tokenised_as_special_tokens(tmp_path: Path) -> None:
    policy = LocalPolicy(make_tiny_qwen2(tmp_path, chat_template=True))
    prompt = Prompt("<|im_start|>user\nhi<|im_end|>\n", "x = 1\n", "k")
    ids, ends = policy.tokenize_with_offsets(prompt)
    start, end = policy.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids[0] == start
    assert end in ids
    assert ends[-1] == len(prompt.text)
    again = policy.tokenize_with_offsets(dataclasses.replace(prompt, token_ids=tuple(ids)))
    assert again == (ids, ends)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "gpt_neox": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 5.0},
}
COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_equal_generate(name: str) -> None:
    from transformers import AutoConfig

    given = (
        ARCHITECTURES[name] if name in ("gpt2", "gpt_neox", "opt", "bloom") else COMMON | ARCHITECTURES[name]
    )
    ids = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(name, vocab_size=384, initializer_range=0.2, **ids, **given)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    policy = LocalPolicy.from_parts(model, tiny_tokenizer(), max_rows=5)
    assert not supports(model)
    for c, again in policy.complete(prompts(), 2, GREEDY):
        expected = reference_greedy(policy, c.prompt_token_ids, 24)
        assert c.token_ids.tolist() == again.token_ids.tolist() == expected
    for c in policy.complete(prompts(3), 1, SAMPLING, scorer)[1]:
        np.testing.assert_allclose(c.log_probs, reference_logs(policy, c).numpy(), atol=1e-4)


def test_a_finished_row_never_runs_past_a_learned_position(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=384, n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=0, bos_token_id=0
        )
    )
    policy = LocalPolicy.from_parts(model.eval(), tiny_tokenizer(), max_rows=40)
    policy.end_ids = frozenset()
    asked = [Prompt("", "", f"k{i}", 0, tuple(range(5, 65 if i == 0 else 25))) for i in range(40)]
    done = policy.complete(asked, 1, dataclasses.replace(SAMPLING, max_new_tokens=40))
    assert [len(c.token_ids) for (c,) in done] == [4] + [40] * 39


def test_uniforms_are_fixed_numbers() -> None:
    """Samples of stored runs must not change: these values were computed once."""
    a = uniforms(0, "task", 1, 3)
    np.testing.assert_array_equal(a, uniforms(0, "task", 1, 5)[:3])
    np.testing.assert_allclose(a, UNIFORMS, rtol=0, atol=1e-12)
    many = uniforms(1, "x", 0, 20000)
    assert abs(many.mean() - 0.5) < 0.01
    assert many.min() >= 0
    assert many.max() < 1


UNIFORMS = [0.9899207562912246, 0.16433206280513013, 0.031855393773447815]


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -30.0])
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=0.5), Sampling(temperature=2.0)):
        grid = (torch.arange(10000) + 0.5) / 10000
        ids = draw(logits.expand(10000, -1).contiguous(), sampling, grid)
        expected = torch.softmax(logits / sampling.temperature, -1)
        torch.testing.assert_close(torch.bincount(ids, minlength=5) / 10000, expected, atol=2e-4, rtol=0)


def test_top_k_and_top_p_keep_the_likely_ids() -> None:
    probs = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    grid = (torch.arange(10000) + 0.5) / 10000

    def shares(**values: Any) -> list[float]:
        ids = draw(probs.log().expand(10000, -1).contiguous(), Sampling(temperature=1.0, **values), grid)
        return [round(x, 3) for x in (torch.bincount(ids, minlength=5) / 10000).tolist()]

    assert shares(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0], abs=2e-3)
    assert shares(top_p=0.69) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0], abs=2e-3)
    assert shares(top_p=0.71) == pytest.approx([0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85], abs=2e-3)
    assert shares(top_p=1e-6) == [0, 1, 0, 0, 0]
    assert shares(top_k=3, top_p=0.5) == pytest.approx([0, 4 / 7, 0, 3 / 7, 0], abs=2e-3)
    ends = draw(torch.zeros(2, 4), Sampling(temperature=1.0), torch.tensor([0.0, 1.0]))
    assert ends.tolist() == [0, 3]


def test_byte_level_text_survives_split_characters() -> None:
    codec = Codec(tiny_tokenizer(), 384)
    text = "x = 'naïve 世界 🙂🙃'\n"
    ids, ends = codec.encode(text)
    assert codec.decode(ids) == text
    assert codec.ends(ids) == ends
    assert any(codec.decode([i]) == "\ufffd" for i in ids)


def test_text_of_a_tokenizer_that_strips_leading_spaces() -> None:
    """Llama's form: ▁ for spaces, bytes for unknown characters, the first space of a text dropped."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokenizer.train_from_iterator(
        CORPUS[:4], trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")
    codec = Codec(fast, len(fast))
    text = "def f(a):\n    return 'é' + a\n"
    ids, ends = codec.encode(text)
    spaced = [k for k in range(1, len(ids)) if text[ends[k - 1] :].startswith(" ")]
    assert spaced
    for k in spaced:
        before, after = ids[:k], ids[k:]
        assert codec.decode(after, before) == text[ends[k - 1] :] != codec.decode(after)
        assert codec.ends(after, before)[-1] == len(text) - ends[k - 1]
    assert codec.enders(("\n",))[after[-1]]


def test_a_wrong_model_folder_is_one_sentence(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(RestrlError, match="does not exist"):
        LocalPolicy(tmp_path / "nowhere")
    with pytest.raises(RestrlError, match=r"no config\.json"):
        LocalPolicy(tmp_path)
    bare = make_tiny_qwen2(tmp_path / "bare")
    for file in bare.glob("token*"):
        file.unlink()
    with pytest.raises(RestrlError, match=r"no tokenizer; save") as error:
        LocalPolicy(bare)
    assert "\n" not in str(error.value)
    hollow = make_tiny_qwen2(tmp_path / "hollow")
    (hollow / "model.safetensors").unlink()
    with pytest.raises(RestrlError, match=r"no \*\.safetensors weights"):
        LocalPolicy(hollow)
    damaged = make_tiny_qwen2(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RestrlError, match="cannot load the policy"):
        LocalPolicy(damaged)
    with pytest.raises(RestrlError, match="unknown device"):
        LocalPolicy(folders["qwen2"], device="gpu3")
    with pytest.raises(RestrlError, match="unknown dtype"):
        LocalPolicy(folders["qwen2"], dtype="int3")
    with pytest.raises(RestrlError, match="max_rows"):
        LocalPolicy(folders["qwen2"], max_rows=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"stop": ("",)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_sampling_values_are_named(folders: dict[str, Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(RestrlError, match=next(iter(wrong))):
        LocalPolicy(folders["qwen2"]).complete(prompts(1), 1, Sampling(**wrong))


def test_a_saved_policy_loads_again(folders: dict[str, Path], tmp_path: Path) -> None:
    policy = LocalPolicy(folders["qwen2"], dtype="float32")
    policy.save(tmp_path)
    again = LocalPolicy(tmp_path)
    assert (
        again.complete(prompts(1), 1, GREEDY)[0][0].text == policy.complete(prompts(1), 1, GREEDY)[0][0].text
    )


def test_half_precision_goes_through_transformers(folders: dict[str, Path]) -> None:
    policy = LocalPolicy(folders["qwen2"], dtype="bfloat16")
    assert not supports(policy.model)
    for c in policy.complete(prompts(2), 2, SAMPLING)[0]:
        assert c.log_probs is not None
        assert np.isfinite(c.log_probs).all()


def test_no_requests_and_empty_prompts(folders: dict[str, Path]) -> None:
    policy = LocalPolicy(folders["qwen2"])
    assert policy.complete([], 3, SAMPLING) == []
    c = policy.complete([Prompt("", "", "k")], 1, SAMPLING, scorer)[0][0]
    assert c.prompt_token_ids == (0,)
    assert c.prefix_score == 0
