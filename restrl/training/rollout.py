"""One generation batch of GRPO: states in; completions, rewards, advantages and their statistics out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from restrl.config import TrainConfig
from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.local import LocalPolicy
from restrl.prompts import find_stop
from restrl.records import Problem
from restrl.reference import group_std, grouped_advantages
from restrl.seeds import derive
from restrl.training.batch import Row
from restrl.training.hf import batch_positions
from restrl.training.loop import Log

STD_BINS, STD_BIN_WIDTH = 12, 0.05  # of the histogram of reward_std over groups: 0 to 0.6


@dataclass(frozen=True)
class TrainState:
    """A starting state: a problem, the prompt (partial program included) and the domain's stop strings."""

    problem: Problem
    prompt: Prompt
    kind: Literal["bare", "partial"] = "bare"
    stops: tuple[str, ...] = ()


RewardFn = Callable[[Sequence[TrainState], list[list[Completion]]], list[list[float | None]]]


@dataclass(frozen=True)
class EagerReward:
    """A RewardFn that scores a group while others are still being sampled.

    begin  starts with one group; what it returns waits for its rewards
    """

    begin: Callable[[TrainState, list[Completion]], Callable[[], list[float | None]]]

    def __call__(
        self, states: Sequence[TrainState], completions: list[list[Completion]]
    ) -> list[list[float | None]]:
        begun = [self.begin(state, group) for state, group in zip(states, completions, strict=True)]
        return [rewards() for rewards in begun]


class Cut(NamedTuple):
    """text: up to the first stop string; stopped: whether there was one; after: characters behind it."""

    text: str
    stopped: bool
    after: int


def cut_at_stop(text: str, stops: Sequence[str], state: str = "") -> Cut:
    """Split a completion of `state` at its first stop string: `text` is what is verified.

    The stop strings are found as sampling finds them: one may begin in the state's last characters.
    """
    found = find_stop(text, tuple(stops), state)
    return Cut(text, False, 0) if found is None else Cut(text[: found[0]], True, len(text) - found[1])


def shaped_reward(
    reward: float, completion: Completion, stops: Sequence[str], cfg: TrainConfig, state: str = ""
) -> float:
    """What GRPO trains on: `reward`, a bonus for a stop string and a penalty per character after it.

    In a domain without stop strings the end-of-sequence token is the stop.
    """
    cut = cut_at_stop(completion.text, stops, state)
    stopped = cut.stopped if stops else completion.finish == "eos"
    return reward + cfg.stop_bonus * stopped - cfg.after_stop_penalty * cut.after


@dataclass
class Batch:
    """Completions of one generation batch, `B` rows in the order of the states.

    masked  rows that the loss leaves out (truncated, with mask_truncated_completions)
    old     l_old of a row, once the batch has been trained on; ref: l_ref. Both `[T]`
    """

    rows: list[Row]
    advantages: Tensor
    masked: list[bool]
    log: Log
    old: dict[int, Tensor] = field(default_factory=dict)
    ref: dict[int, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens in the loss mask."""
        return sum(len(r.completion) for r, masked in zip(self.rows, self.masked, strict=True) if not masked)

    def to_state(self) -> dict[str, Any]:
        """Plain data that `from_state` takes."""
        plain = [(list(row.prompt), list(row.completion)) for row in self.rows]
        return {**vars(self), "rows": plain}

    @staticmethod
    def from_state(state: dict[str, Any]) -> Batch:
        return Batch(**{**state, "rows": [Row(*row) for row in state["rows"]]})


def roll_out(
    policy: LocalPolicy,
    states: Sequence[TrainState],
    reward_fn: RewardFn,
    cfg: TrainConfig,
    generation: int,
    seed: int,
) -> Batch:
    """Sample `num_generations` completions for each of the next `prompts_per_step` states and score them.

    Generation `generation` (0-based) depends on the weights, `seed` and cfg.data_seed alone. A state that
    comes again draws anew: the key of its prompt names epoch and position.
    """
    positions = batch_positions(generation, cfg.prompts_per_step, len(states), cfg.data_seed)
    chosen = [states[item] for _, _, item in positions]
    prompts = [
        replace(state.prompt, key=f"{state.prompt.key}#{epoch}.{position}")
        for state, (epoch, position, _) in zip(chosen, positions, strict=True)
    ]
    sampling = Sampling(
        temperature=cfg.temperature,
        max_new_tokens=cfg.max_completion_length,
        seed=derive(seed, "generation", generation),
    )
    start = time.perf_counter()
    if isinstance(reward_fn, EagerReward):
        begun: dict[int, Callable[[], list[float | None]]] = {}

        def begin(number: int, group: list[Completion]) -> None:
            begun[number] = reward_fn.begin(chosen[number], group)

        completions = policy.complete(prompts, cfg.num_generations, sampling, on_group=begin)
        generated = time.perf_counter()
        raw = [begun[number]() for number in range(len(chosen))]
    else:
        completions = policy.complete(prompts, cfg.num_generations, sampling)
        generated = time.perf_counter()
        raw = reward_fn(chosen, completions)
    scored = time.perf_counter()
    _check_shape(raw, chosen, cfg)
    shaped = [
        [
            float("nan") if r is None else shaped_reward(r, c, state.stops, cfg, state.prompt.state)
            for r, c in zip(rs, cs, strict=True)
        ]
        for state, rs, cs in zip(chosen, raw, completions, strict=True)
    ]
    rewards = torch.tensor(shaped, dtype=torch.float64)
    raw_rewards = torch.tensor([[float("nan") if r is None else r for r in rs] for rs in raw]).double()
    flat = [c for group in completions for c in group]
    return Batch(
        rows=[Row(list(c.prompt_token_ids), up_to_end(c.token_ids.tolist(), policy.end_ids)) for c in flat],
        advantages=grouped_advantages(rewards, cfg.scale_rewards).float().flatten(),
        masked=[cfg.mask_truncated_completions and c.finish == "length" for c in flat],
        log={
            **_reward_log(rewards, raw_rewards),
            **_completion_log(flat),
            "partial_states": sum(state.kind == "partial" for state in chosen) / len(chosen),
            "generate_time": generated - start,
            "reward_time": scored - generated,
        },
    )


def up_to_end(token_ids: list[int], ends: Collection[int]) -> list[int]:
    """`token_ids` up to the first end-of-sequence token, which is included."""
    for i, token in enumerate(token_ids):
        if token in ends:
            return token_ids[: i + 1]
    return token_ids


def _check_shape(rewards: list[list[float | None]], states: Sequence[TrainState], cfg: TrainConfig) -> None:
    if [len(group) for group in rewards] != [cfg.num_generations] * len(states):
        raise RestrlError(
            f"the reward function must return {len(states)} lists of {cfg.num_generations} rewards, "
            f"and returned lists of {[len(group) for group in rewards]}"
        )


def _reward_log(rewards: Tensor, raw: Tensor) -> Log:
    std = group_std(raw)
    top = STD_BINS * STD_BIN_WIDTH  # a group of two can reach .707: it counts in the last bin
    counts = torch.histc(std.clamp(max=top), bins=STD_BINS, min=0.0, max=top)
    return {
        "reward": float(rewards.nanmean()),
        "rewards/verifier/mean": float(raw.nanmean()),
        "reward_std": float(std.mean()),
        "frac_reward_zero_std": float((std == 0).double().mean()),
        "rewards/unscorable": float(raw.isnan().double().mean()),
        **{f"reward_std/bin_{i:02d}": float(count) for i, count in enumerate(counts)},
    }


def _completion_log(completions: Sequence[Completion]) -> Log:
    lengths = [len(c.token_ids) for c in completions]
    ended = [len(c.token_ids) for c in completions if c.finish != "length"]
    log = {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - len(ended) / len(lengths),
    }
    if ended:
        log["completions/mean_terminated_length"] = sum(ended) / len(ended)
    return log
