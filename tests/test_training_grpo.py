"""The GRPO and SFT trainers on tiny models: whole-batch gradients against an implementation of their own,
resume.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_llama, make_tiny_qwen2
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM

from restrl.config import TrainConfig
from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.local import LocalPolicy
from restrl.records import Asserts, Calls, Problem
from restrl.reference import LossSpec, grouped_advantages, grpo_loss, log_probs_from_logits
from restrl.sandbox import Verifier
from restrl.stages.train_policy import rewards
from restrl.training import checkpoint
from restrl.training.batch import Row, caches_plainly, check_model, completion_log_probs, micro_batches
from restrl.training.grpo import train_grpo
from restrl.training.hf import batch_positions
from restrl.training.rollout import TrainState, cut_at_stop, shaped_reward, up_to_end
from restrl.training.sft import train_sft


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("qwen2"))


def states(count: int = 5, partial: str = "    b = ") -> list[TrainState]:
    problem = Problem(task_id="t", source="s", prompt="p", mode="instruct", tests=Asserts(asserts=[]))
    prompts = [
        Prompt("# " + "q" * i + f": {i}\n", partial if i % 2 else "", f"state {i}") for i in range(count)
    ]
    return [TrainState(problem, p, "partial" if p.state else "bare", ("\n",)) for p in prompts]


def config(**changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "num_generations": 4,
        "prompts_per_step": 3,
        "max_completion_length": 9,
        "temperature": 0.8,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "max_steps": 2,
        "save_steps": 1,
        "beta": 0.3,
    }
    return TrainConfig(**{**options, **changes})


def reward(chosen: Any, completions: list[list[Completion]]) -> list[list[float | None]]:
    """Deterministic and varied; one in seven cannot be scored."""
    return [
        [None if sum(c.token_ids) % 7 == 0 else (sum(c.token_ids) % 5) / 4 for c in group]
        for group in completions
    ]


class Recorder:
    """What a run saw: requests and completions of every generation, weights and gradients before every
    update.
    """

    def __init__(self, policy: LocalPolicy) -> None:
        self.policy = policy
        self.requests: list[tuple[list[Prompt], Sampling]] = []
        self.completions: list[list[list[Completion]]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []
        inner = policy.complete

        def complete(requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
            self.requests.append((requests, sampling))
            self.completions.append(inner(requests, n, sampling))
            return self.completions[-1]

        policy.complete = complete  # type: ignore[method-assign,assignment]

    def __enter__(self) -> Recorder:
        self.hook = register_optimizer_step_pre_hook(self._before_update)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _before_update(self, *_: Any) -> None:
        named = dict(self.policy.model.named_parameters())
        self.weights.append({k: p.detach().clone() for k, p in named.items()})
        self.gradients.append({k: p.grad.detach().clone() for k, p in named.items() if p.grad is not None})


def token_log_probs(model: Any, completion: Completion, temperature: float) -> Tensor:
    """Of one completion, from the model's own float64 logits, one row at a time."""
    prompt = list(completion.prompt_token_ids)
    ids = torch.tensor([prompt + completion.token_ids.tolist()])
    log_p = (model(input_ids=ids, use_cache=False).logits[0] / temperature).log_softmax(-1)
    return log_p[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])[:, 0]


def loss_by_hand(
    model: Any, old: Any, start: Any, groups: list[list[Completion]], cfg: TrainConfig
) -> Tensor:
    """The loss of a whole batch as its definition has it, in float64 (epsilon .2, group scaling)."""
    rewards = []
    for group, raw in zip(groups, reward(None, groups), strict=True):
        for completion, r in zip(group, raw, strict=True):
            _, stop, tail = completion.text.partition("\n")
            bonus = 1e-3 * bool(stop) - 1e-6 * len(tail)
            rewards.append(math.nan if r is None else r + bonus)
    table = np.array(rewards).reshape(len(groups), -1)
    flat = [c for group in groups for c in group]
    truncated = [cfg.mask_truncated_completions and c.finish == "length" for c in flat]
    lengths = [0 if out else len(c.token_ids) for c, out in zip(flat, truncated, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for i, completion in enumerate(flat):
        scored = table[i // cfg.num_generations]
        scored = scored[~np.isnan(scored)]
        unknown = math.isnan(rewards[i]) or len(scored) < 2
        a = 0.0 if unknown else (rewards[i] - scored.mean()) / (scored.std(ddof=1) + 1e-4)
        if truncated[i]:
            continue
        weight = {
            "bnpo": 1 / max(1, sum(lengths)),
            "dapo": 1 / max(1, sum(lengths)),
            "grpo": 1 / (len(flat) * max(1, lengths[i])),
            "dr_grpo": 1 / (len(flat) * cfg.max_completion_length),
        }[cfg.loss_type]
        logs = token_log_probs(model, completion, cfg.temperature)
        with torch.no_grad():
            old_logs = token_log_probs(old, completion, cfg.temperature)
            ref_logs = token_log_probs(start, completion, cfg.temperature)
        for t in range(lengths[i]):
            d = logs[t] - old_logs[t]
            if cfg.importance_sampling_level == "sequence":
                d = (logs - old_logs).mean()
            r = d.exp()
            policy = -torch.min(r * a, r.clamp(0.8, 1.2) * a)
            x = ref_logs[t] - logs[t]
            kl = (x.exp() - x - 1) * (r if cfg.preset == "1.16" else 1)
            total = total + weight * (policy + cfg.beta * kl)
    return total


def with_weights(model: Any, weights: dict[str, Tensor]) -> Any:
    other = copy.deepcopy(model)
    other.load_state_dict(weights, strict=False)
    return other.double()


CASES: list[dict[str, Any]] = [
    {},
    {"beta": 0.0},
    {"loss_type": "grpo", "num_iterations": 2},
    {"loss_type": "dr_grpo", "mask_truncated_completions": True},
    {"loss_type": "dapo", "preset": "1.16", "num_iterations": 2, "micro_batch_size": 5},
    {"preset": "1.16", "importance_sampling_level": "sequence", "num_iterations": 2, "micro_batch_size": 3},
    {"beta": 0.0, "micro_batch_size": 1, "loss_type": "grpo", "mask_truncated_completions": True},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_loss_and_gradient_of_the_batch(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Two steps against `loss_by_hand`; with num_iterations 2 the second has another l_old than l."""
    cfg = config(**changes)
    policy = LocalPolicy(folder)
    with Recorder(policy) as seen:
        rows = train_grpo(policy, states(), reward, cfg, tmp_path, seed=5).rows
    assert len(seen.gradients) == len(rows) == 2
    assert any(c.finish == "eos" for g in seen.completions for group in g for c in group)
    assert any(c.finish == "length" for g in seen.completions for group in g for c in group)
    start = with_weights(policy.model, seen.weights[0])
    for step in range(2):
        model = with_weights(policy.model, seen.weights[step])
        old = start if cfg.num_iterations == 2 else model
        loss = loss_by_hand(model, old, start, seen.completions[step // cfg.num_iterations], cfg)
        loss.backward()
        assert rows[step]["loss"] == pytest.approx(loss.item(), abs=2e-5)
        expected = {k: p.grad for k, p in model.named_parameters()}
        largest = max(1e-4, *(float(g.abs().max()) for g in expected.values()))
        for key, gradient in seen.gradients[step].items():
            torch.testing.assert_close(gradient.double(), expected[key], rtol=0, atol=2e-4 * largest)
        norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
        assert rows[step]["grad_norm"] == pytest.approx(norm, rel=1e-3, abs=1e-8)


def loss_by_reference(
    model: Any, old: Any, start: Any, groups: list[list[Completion]], cfg: TrainConfig
) -> Tensor:
    """The loss of a whole batch by `restrl.reference`, in float64, from the model's own full logits."""
    flat = [c for group in groups for c in group]
    raw = [[math.nan if r is None else r for r in rs] for rs in reward(None, groups)]
    shaped = torch.tensor(
        [
            [
                r + 1e-3 * bool(c.text.partition("\n")[1]) - 1e-6 * len(c.text.partition("\n")[2])
                for r, c in zip(rs, group, strict=True)
            ]
            for rs, group in zip(raw, groups, strict=True)
        ],
        dtype=torch.float64,
    )

    def padded(which: Any) -> tuple[Tensor, Tensor]:
        found = []
        for c in flat:
            ids = torch.tensor([[*c.prompt_token_ids, *c.token_ids.tolist()]])
            logits = which(input_ids=ids, use_cache=False).logits[0, len(c.prompt_token_ids) - 1 : -1]
            found.append(
                log_probs_from_logits(
                    logits, ids[0, len(c.prompt_token_ids) :], cfg.temperature, entropy_gradient=True
                )
            )
        columns = zip(*found, strict=True)
        log_probs, entropies = (torch.nn.utils.rnn.pad_sequence(list(x), batch_first=True) for x in columns)
        return log_probs, entropies

    log_probs, entropies = padded(model)
    with torch.no_grad():
        old_log_probs, ref = padded(old)[0], padded(start)[0]
    lengths = torch.tensor([len(c.token_ids) for c in flat])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).double()
    spec = LossSpec.from_config(cfg)
    advantages = grouped_advantages(shaped).flatten()
    return grpo_loss(log_probs, mask, advantages, spec, entropies=entropies, old=old_log_probs, ref=ref).loss


LOSSES: list[dict[str, Any]] = [
    {"loss_type": "cispo", "epsilon_high": 1.5, "beta": 0.0},
    {"loss_type": "sapo"},
    {"loss_type": "vespo", "beta": 0.0},
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "dapo", "entropy_coef": 0.1, "beta": 0.0},
    {"loss_type": "grpo", "entropy_coef": 0.1, "top_entropy_quantile": 0.4},
    {"loss_type": "bnpo", "top_entropy_quantile": 0.4, "beta": 0.0},
    {"loss_type": "grpo", "off_policy_mask_threshold": 1e-4},
]


@pytest.mark.parametrize("changes", LOSSES, ids=str)
def test_every_loss_of_the_batch(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Two steps on one batch, in forward passes of 5, against the whole batch at once."""
    cfg = config(preset="1.16", num_iterations=2, micro_batch_size=5, **{"delta": None, **changes})
    policy = LocalPolicy(folder)
    with Recorder(policy) as seen:
        rows = train_grpo(policy, states(), reward, cfg, tmp_path, seed=5).rows
    start = with_weights(policy.model, seen.weights[0])
    for step in range(2):
        model = with_weights(policy.model, seen.weights[step])
        loss = loss_by_reference(model, start, start, seen.completions[0], cfg)
        loss.backward()
        assert rows[step]["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=2e-5)
        expected = {k: p.grad for k, p in model.named_parameters()}
        largest = max(float(g.abs().max()) for g in expected.values())
        assert largest > 1e-4
        for key, gradient in seen.gradients[step].items():
            torch.testing.assert_close(gradient.double(), expected[key], rtol=0, atol=2e-4 * largest)


@pytest.mark.parametrize("options", [{}, {"preset": "1.16", "top_entropy_quantile": 0.5}], ids=str)
def test_the_size_of_a_forward_pass_does_not_matter(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    found = []
    for size in (1, 5, 64):
        policy = LocalPolicy(folder)
        cfg = config(micro_batch_size=size, loss_type="bnpo", **options)
        with Recorder(policy) as seen:
            train_grpo(policy, states(), reward, cfg, tmp_path / str(size), seed=5)
        found.append(seen.gradients[0])
    for other in found[1:]:
        for key, gradient in found[0].items():
            torch.testing.assert_close(other[key], gradient, rtol=1e-4, atol=1e-6)


def test_sampling_and_order(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    with Recorder(policy) as seen:
        rows = train_grpo(policy, states(), reward, config(max_steps=4), tmp_path, seed=5).rows
    keys = [prompt.key for requests, _ in seen.requests for prompt in requests]
    assert len(set(keys)) == len(keys) == 12  # a state that comes again draws anew
    texts = [prompt.text for requests, _ in seen.requests for prompt in requests]
    everything = {state.prompt.text for state in states()}
    assert set(texts[:5]) == set(texts[5:10]) == everything  # epochs end to end
    assert texts[:5] != texts[5:10]
    for _, sampling in seen.requests:
        assert (sampling.stop, sampling.temperature, sampling.max_new_tokens) == ((), 0.8, 9)
        assert (sampling.top_p, sampling.top_k) == (1.0, 0)
    assert len({sampling.seed for _, sampling in seen.requests}) == 4
    assert rows[-1]["epoch"] == pytest.approx(12 / 5)


def test_epochs_set_the_number_of_steps(folder: Path, tmp_path: Path) -> None:
    cfg = config(max_steps=-1, num_train_epochs=1.0, num_iterations=2)
    rows = train_grpo(LocalPolicy(folder), states(), reward, cfg, tmp_path, seed=5).rows
    assert len(rows) == 2 * math.ceil(5 / 3)


def test_metrics(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    with Recorder(policy) as seen:
        rows = train_grpo(policy, states(), reward, config(), tmp_path, seed=5).rows
    groups = seen.completions[0]
    raw = [[math.nan if r is None else r for r in rs] for rs in reward(None, groups)]
    stds = [np.nanstd(g, ddof=1) if np.isfinite(g).sum() > 1 else 0.0 for g in raw]
    flat = [c for g in groups for c in g]
    row = rows[0]
    assert row["rewards/verifier/mean"] == pytest.approx(np.nanmean(raw))
    assert row["reward_std"] == pytest.approx(np.mean(stds))
    assert row["frac_reward_zero_std"] == pytest.approx(np.mean([s == 0 for s in stds]))
    assert row["rewards/unscorable"] == pytest.approx(np.mean(np.isnan(raw)))
    assert row["reward"] != row["rewards/verifier/mean"]
    assert row["completions/mean_length"] == pytest.approx(np.mean([len(c.token_ids) for c in flat]))
    assert row["completions/clipped_ratio"] == pytest.approx(np.mean([c.finish == "length" for c in flat]))
    tokens = [sum(len(c.token_ids) + len(c.prompt_token_ids) for g in b for c in g) for b in seen.completions]
    assert [r["num_tokens"] for r in rows] == [tokens[0], sum(tokens)]
    assert row["kl"] == 0
    assert rows[1]["kl"] > 0
    model = with_weights(policy.model, seen.weights[0])
    with torch.no_grad():
        p = [
            (model(input_ids=torch.tensor([[*c.prompt_token_ids, *c.token_ids]])).logits[0] / 0.8).softmax(
                -1
            )[len(c.prompt_token_ids) - 1 : -1]
            for c in flat
        ]
    entropies = torch.cat([-(q * q.log()).sum(-1) for q in p])
    assert row["entropy"] == pytest.approx(entropies.mean().item(), rel=1e-4)


def test_clipping_is_reported_when_the_policy_moves_within_a_batch(folder: Path, tmp_path: Path) -> None:
    cfg = config(num_iterations=3, max_steps=3, learning_rate=2e-2, beta=0.0)
    rows = train_grpo(LocalPolicy(folder), states(), reward, cfg, tmp_path, seed=5).rows
    assert rows[0]["clip_ratio/region_mean"] == 0
    last = rows[2]
    assert last["clip_ratio/region_mean"] > 0
    both = last["clip_ratio/low_mean"] + last["clip_ratio/high_mean"]
    assert last["clip_ratio/region_mean"] == pytest.approx(both)
    assert rows[0]["reward"] == rows[2]["reward"]


def test_states_that_are_too_long_are_dropped_and_counted(folder: Path, tmp_path: Path) -> None:
    long = TrainState(states()[0].problem, Prompt("# " + "xyz " * 400, "", "long"))
    rows = train_grpo(LocalPolicy(folder), [*states(), long], reward, config(), tmp_path, seed=5).rows
    assert rows[0]["dropped_states"] == 1
    with pytest.raises(RestrlError, match="all 1 are longer than the 503 tokens"):
        train_grpo(LocalPolicy(folder), [long], reward, config(), tmp_path / "none", seed=5)


def test_nothing_scorable_is_no_signal(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    with Recorder(policy) as seen:
        nothing = lambda chosen, groups: [[None] * len(g) for g in groups]  # noqa: E731
        rows = train_grpo(policy, states(), nothing, config(beta=0.0), tmp_path, seed=5).rows
    assert rows[0]["loss"] == 0
    assert rows[0]["reward"] is None
    assert all((g == 0).all() for g in seen.gradients[0].values())


def test_a_reward_function_of_the_wrong_shape(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RestrlError, match="must return 3 lists of 4 rewards"):
        train_grpo(LocalPolicy(folder), states(), lambda s, c: [[1.0]], config(), tmp_path, seed=5)


def test_a_group_of_one_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RestrlError, match="num_generations is 1"):
        train_grpo(LocalPolicy(folder), states(), reward, config(num_generations=1), tmp_path, seed=5)


def test_training_raises_the_reward(folder: Path, tmp_path: Path) -> None:
    def short(chosen: Any, groups: list[list[Completion]]) -> list[list[float | None]]:
        return [[1 - len(c.token_ids) / 9 for c in group] for group in groups]

    cfg = config(max_steps=25, num_generations=8, beta=0.0, learning_rate=1e-2, max_grad_norm=1.0)
    rows = train_grpo(LocalPolicy(folder), states(), short, cfg, tmp_path, seed=5).rows
    first, last = (np.mean([row["rewards/verifier/mean"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert last > first + 0.3


# --- resume ---


def stable(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_time")} for row in checkpoint.read_metrics(out)]


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 3, "beta": 0.1}])
def test_resume_is_exact(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Stopped between two steps, in the middle of a batch's iterations too."""
    cfg = config(max_steps=7, **changes)
    whole = train_grpo(LocalPolicy(folder), states(), reward, cfg, tmp_path / "whole", seed=5)
    for limit in (2, 2):
        with stopping_after(limit), pytest.raises(ZeroDivisionError):
            train_grpo(LocalPolicy(folder), states(), reward, cfg, tmp_path / "torn", seed=5)
    torn = train_grpo(LocalPolicy(folder), states(), reward, cfg, tmp_path / "torn", seed=5)
    for name in ("model.safetensors", "config.json"):
        assert (torn.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert stable(tmp_path / "torn") == stable(tmp_path / "whole")


@contextmanager
def stopping_after(updates: int) -> Iterator[None]:
    """An exception in place of the update that follows `updates` others."""
    left = iter(range(updates))

    def before_update(*_: Any) -> None:
        if next(left, None) is None:
            raise ZeroDivisionError

    hook = register_optimizer_step_pre_hook(before_update)
    try:
        yield
    finally:
        hook.remove()


def test_resuming_from_another_policy_is_refused_when_there_is_a_kl(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    with stopping_after(1), pytest.raises(ZeroDivisionError):
        train_grpo(policy, states(), reward, config(), tmp_path, seed=5)
    with pytest.raises(RestrlError, match="started from another policy"):
        train_grpo(policy, states(), reward, config(), tmp_path, seed=5)  # its weights have moved


def test_final_loads_and_memory_holds_it(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    result = train_grpo(policy, states(), reward, config(), tmp_path, seed=5)
    saved = AutoModelForCausalLM.from_pretrained(result.path)
    again = LocalPolicy(folder)
    assert train_grpo(again, states(), reward, config(), tmp_path, seed=5) == result
    for model in (saved, again.model):
        for a, b in zip(model.parameters(), policy.model.parameters(), strict=True):
            assert torch.equal(a, b)
    assert LocalPolicy(result.path).tokenizer.eos_token_id == policy.tokenizer.eos_token_id


# --- pieces ---


def test_shaped_reward() -> None:
    cfg = TrainConfig()
    ends = ("\nclass ", "\n```")
    stopped = Completion(text="x = 1\n```\nclass after", finish="eos")
    assert cut_at_stop(stopped.text, ends) == ("x = 1", True, len("\nclass after"))
    assert shaped_reward(0.5, stopped, ends, cfg) == pytest.approx(0.5 + 1e-3 - 12e-6, abs=1e-12)
    assert shaped_reward(0.5, Completion(text="x = 1", finish="eos"), ends, cfg) == 0.5
    assert shaped_reward(0.5, Completion(text="x = 1", finish="eos"), (), cfg) == pytest.approx(0.501)
    assert shaped_reward(0.5, Completion(text="x = 1", finish="length"), (), cfg) == 0.5


def test_a_state_that_is_the_whole_program_may_be_ended_by_the_fence_alone() -> None:
    """The stop string begins in the state's line end, as it does where completions are sampled."""
    closed = Completion(text="```\nwords", finish="eos")
    state = "def f(x):\n    return x + 1\n"
    assert cut_at_stop(closed.text, ("\n```",), state) == ("", True, len("\nwords"))
    assert shaped_reward(1.0, closed, ("\n```",), TrainConfig(), state) == pytest.approx(1.001 - 6e-6)

    calls = Calls(fn_name="f", args=[[1]], expected=[2])
    problem = Problem(task_id="t", source="s", prompt="p", mode="instruct", tests=calls)
    start = TrainState(problem, Prompt("```python\n", state, "t"), "partial", ("\n```",))
    with Verifier(workers=1) as verifier:
        assert rewards(verifier)([start], [[closed]]) == [[1.0]]


def test_the_end_token_is_trained_and_nothing_after_it() -> None:
    assert up_to_end([5, 6, 1, 7, 1], {1, 2}) == [5, 6, 1]
    assert up_to_end([5, 6], {1}) == [5, 6]


def test_positions_are_permutations_end_to_end() -> None:
    taken = [p for step in range(7) for p in batch_positions(step, 3, 7, seed=1)]
    for epoch in range(3):
        part = taken[epoch * 7 : epoch * 7 + 7]
        assert [(e, p) for e, p, _ in part] == [(epoch, i) for i in range(7)]
        assert sorted(item for _, _, item in part) == list(range(7))
    assert [i for _, _, i in taken[:7]] != [i for _, _, i in taken[7:14]]
    assert batch_positions(0, 3, 7, seed=1) != batch_positions(0, 3, 7, seed=2)


def test_micro_batches_hold_every_row_once() -> None:
    rows = [Row([1] * (i % 3 + 1), [2] * (i * 7 % 11 + 1)) for i in range(20)]
    parts = micro_batches(rows, range(1, 20), 6)
    assert sorted(i for part in parts for i in part) == list(range(1, 20))
    assert max(map(len, parts)) <= 6


@pytest.mark.parametrize("make", [make_tiny_qwen2, make_tiny_llama])
def test_log_probs_equal_the_model_s_own(tmp_path: Path, make: Any) -> None:
    model = LocalPolicy(make(tmp_path)).model.double()
    check_model(model)
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    lengths = (4, 1, 7, 2, 3, 5, 1)
    rows = [Row(prompts[i % 3], list(range(20, 20 + n))) for i, n in enumerate(lengths)]
    for share in (False, True):
        found = completion_log_probs(model, rows, 0.7, share_prompts=share)
        for row, own in zip(rows, found.log_probs.split(lengths), strict=True):
            completion = Completion("", np.array(row.completion), prompt_token_ids=tuple(row.prompt))
            expected = token_log_probs(model, completion, 0.7)
            torch.testing.assert_close(own, expected)


def test_sliding_windows_take_the_plain_path(tmp_path: Path) -> None:
    path = make_tiny_qwen2(
        tmp_path, use_sliding_window=True, sliding_window=4, max_window_layers=0, layer_types=None
    )
    model = LocalPolicy(path).model.double()
    check_model(model)
    assert not caches_plainly(model)
    # padding between prompt and completion would move the windows
    prompts = ([5, 6, 7, 8, 9, 10, 11, 12], [5, 6], [5, 6, 7])
    rows = [Row(prompt, completion) for prompt in prompts for completion in ([11, 12, 13], [3])]
    found = completion_log_probs(model, rows)
    for row, own in zip(rows, found.log_probs.split([3, 1] * 3), strict=True):
        completion = Completion("", np.array(row.completion), prompt_token_ids=tuple(row.prompt))
        expected = token_log_probs(model, completion, 1.0)
        torch.testing.assert_close(own, expected)


# --- SFT ---

EXAMPLES = [(f"# b: {i}\n", f"b = {i * 3 % 7}\n") for i in range(6)]


def sft_config(**changes: Any) -> TrainConfig:
    return config(**{"method": "sft", "prompts_per_step": 6, "micro_batch_size": 4, **changes})


def test_sft_gradient_is_the_mean_over_completion_tokens_and_the_end(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    with Recorder(policy) as seen:
        rows = train_sft(policy.model, policy.tokenizer, EXAMPLES, sft_config(), tmp_path, seed=0).rows
    model = with_weights(policy.model, seen.weights[0])
    logs = []
    for prompt, completion in EXAMPLES:
        ids = [*policy.tokenizer(completion)["input_ids"], policy.tokenizer.eos_token_id]
        prompt_ids = tuple(policy.tokenizer(prompt)["input_ids"])
        logs.append(token_log_probs(model, Completion("", np.array(ids), prompt_token_ids=prompt_ids), 1.0))
    loss = -torch.cat(logs).mean()
    loss.backward()
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for key, p in model.named_parameters():
        torch.testing.assert_close(seen.gradients[0][key].double(), p.grad, rtol=1e-3, atol=1e-5)


def test_sft_learns(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    cfg = sft_config(max_steps=60, learning_rate=1e-2, lr_scheduler_type="cosine", max_grad_norm=1.0)
    rows = train_sft(policy.model, policy.tokenizer, EXAMPLES, cfg, tmp_path, seed=0).rows
    assert rows[-1]["loss"] < 0.05
    greedy = policy.complete([Prompt(EXAMPLES[3][0], "", "k")], 1, Sampling(temperature=0, max_new_tokens=20))
    assert greedy[0][0].text == EXAMPLES[3][1]
    assert greedy[0][0].finish == "eos"


def test_sft_drops_and_counts_what_is_too_long(folder: Path, tmp_path: Path) -> None:
    policy = LocalPolicy(folder)
    long = ("# x\n", "y = 1\n" * 300)
    rows = train_sft(policy.model, policy.tokenizer, [*EXAMPLES, long], sft_config(), tmp_path, seed=0).rows
    assert rows[0]["dropped"] == 1
    with pytest.raises(RestrlError, match="1 of 1 are longer"):
        train_sft(policy.model, policy.tokenizer, [long], sft_config(), tmp_path / "none", seed=0)
    with pytest.raises(RestrlError, match="empty prompt"):
        train_sft(policy.model, policy.tokenizer, [("", "x")], sft_config(), tmp_path / "empty", seed=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
