"""The schedule of the published search, as a plain script would write it: the baseline of bench_decode.py.

One problem at a time and one leaf at a time; k completions a call; every child and every completion is scored
by a call of the value model of its own. The tree is algorithm VM-MCTS in value mode, nothing left out:
tests/test_bench_decode.py shows that restrl's forest grows the same one from the same answers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from restrl.config import DecodeConfig
from restrl.policy import Sampling
from restrl.policy.engine import forward_with_states
from restrl.policy.local import LocalPolicy
from restrl.prompts import cut_at_stop, value_text
from restrl.records import Problem
from restrl.seeds import derive
from restrl.value import ValueModel, finished
from restrl.value.additive import AdditiveValue
from restrl.value.scalar import ScalarValue

Sample = Callable[[str, int], list[str]]
"""(state, number of the simulation) -> k completions."""


@dataclass(frozen=True)
class Outcome:
    """What decoding one problem gave and took.

    seconds       wall time, where problems are decoded one by one; 0 where many are at once
    samples       completions drawn from the policy; `reused` ones served a second time and cost nothing
    value_tokens  tokens that passes of the value model read, beyond the policy's own passes
    """

    task_id: str
    seed: int
    program: str
    seconds: float
    samples: int
    reused: int
    generated_tokens: int
    value_tokens: int


@dataclass(eq=False)
class Node:
    """A partial program. N visits, W sum of values, V = W / N; children by their line."""

    state: str
    parent: Node | None = None
    terminal: bool = False
    visible: bool = False
    N: int = 0
    W: float = 0.0
    V: float = 0.0
    children: dict[str, Node] = field(default_factory=dict)
    completions: list[tuple[str, float]] = field(default_factory=list)


def serial_search(
    state: str,
    *,
    simulations: int,
    num_decisions: int,
    c: float,
    eps: float,
    sample: Sample,
    score: Callable[[str], float],
) -> Node:
    """The root of the tree after so many simulations from `state`; of equal children the first is taken."""
    root = Node(state, visible=True)
    for simulation in range(simulations):
        leaf = _select(root, c, eps)
        if leaf.terminal:
            _back_up(leaf, 1, leaf.V)
            continue
        _expand(leaf, sample(leaf.state, simulation), num_decisions, score)
        visits, total = 0, 0.0
        for child in leaf.children.values():
            visits += child.N
            total += child.W
        _back_up(leaf, visits, total)
    return root


def _select(root: Node, c: float, eps: float) -> Node:
    node = root
    while node.children:
        bonus = 1 + math.log(node.N)
        visible = [child for child in node.children.values() if child.visible]
        node = max(visible, key=lambda child: child.V + c * math.sqrt(bonus / (eps + child.N)))
    return node


def _expand(leaf: Node, texts: Sequence[str], num_decisions: int, score: Callable[[str], float]) -> None:
    for text in texts:
        program = finished(leaf.state, text)
        added = program[len(leaf.state) :]
        line = added[: added.index("\n") + 1]
        leaf.completions.append((program, score(program)))
        if line not in leaf.children:
            child = leaf.children[line] = Node(leaf.state + line, leaf, terminal=line == added)
            child.V = score(child.state)
        child = leaf.children[line]
        child.N += 1
        child.W += child.V
    for child in sorted(leaf.children.values(), key=lambda child: -child.V)[:num_decisions]:
        child.visible = True


def _back_up(node: Node | None, visits: int, total: float) -> None:
    while node is not None:
        node.N += visits
        node.W += total
        node.V = node.W / node.N
        node = node.parent


def preorder(root: Node) -> list[Node]:
    """All nodes, children in the order of their first completion."""
    nodes, stack = [], [root]
    while stack:
        nodes.append(stack.pop())
        stack.extend(reversed(nodes[-1].children.values()))
    return nodes


def answer(root: Node) -> str:
    """The completion with the highest value, on ties the first in pre-order."""
    completions = [completion for node in preorder(root) for completion in node.completions]
    return max(completions, key=lambda completion: completion[1])[0]


@dataclass
class Sampler:
    """k completions of one state by one call: of transformers' `generate`, or of restrl's decode loop."""

    kind: Literal["generate", "policy"]
    policy: LocalPolicy
    problem: Problem
    cfg: DecodeConfig
    seed: int
    tokens: int = 0
    samples: int = 0

    def __call__(self, state: str, simulation: int) -> list[str]:
        prompt = self.policy.format.prompt(self.problem, state, f"{self.problem.task_id}/{simulation}")
        stops = self.policy.format.stops(self.problem)
        cfg, policy = self.cfg, self.policy
        self.samples += cfg.k
        if self.kind == "policy":
            sampling = Sampling(
                cfg.temperature, max_new_tokens=cfg.max_new_tokens, stop=stops, seed=self.seed
            )
            drawn = policy.complete([prompt], cfg.k, sampling)[0]
            self.tokens += sum(len(completion.token_ids) for completion in drawn)
            return [completion.text for completion in drawn]
        ids, _ = policy.tokenize_with_offsets(prompt)
        room = cfg.max_new_tokens if policy.context is None else policy.context - len(ids)
        inputs = torch.tensor([ids], device=policy.device)
        torch.manual_seed(derive(self.seed, prompt.key))
        with torch.inference_mode():
            rows = policy.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=True,
                temperature=cfg.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=min(cfg.max_new_tokens, room),
                num_return_sequences=cfg.k,
                pad_token_id=policy.tokenizer.pad_token_id,
                **({"stop_strings": list(stops), "tokenizer": policy.tokenizer} if stops else {}),
            )
        return [self._text(row, state, stops) for row in rows[:, len(ids) :].tolist()]

    def _text(self, row: list[int], state: str, stops: tuple[str, ...]) -> str:
        """The text of sampled ids up to the end token or stop string; counts the tokens up to there."""
        end = next((i for i, token in enumerate(row) if token in self.policy.end_ids), len(row))
        self.tokens += min(end + 1, len(row))
        text = self.policy.tokenizer.decode(row[:end], clean_up_tokenization_spaces=False)
        return cut_at_stop(text, stops, state)[0]


@dataclass
class Scorer:
    """The value of one text by one plain forward pass over all of it."""

    value: ValueModel
    problem: Problem
    tokens: int = 0

    @torch.inference_mode()
    def __call__(self, program: str) -> float:
        if isinstance(self.value, AdditiveValue):
            return self._additive(self.value, program)
        if isinstance(self.value, ScalarValue):
            return self._scalar(self.value, program)
        raise TypeError(f"no plain way to score with a {type(self.value).__name__}")

    def _scalar(self, value: ScalarValue, program: str) -> float:
        text, _ = value_text(self.problem, program)
        inputs = value.tokenizer(text, return_tensors="pt").to(value.model.device)
        self.tokens += inputs["input_ids"].shape[1]
        return min(1.0, max(0.0, float(value.model(**inputs, use_cache=False).logits[0, 0])))

    def _additive(self, value: AdditiveValue, program: str) -> float:
        if not program[len(self.problem.prefix) :].strip():
            return 0.0  # finished without a line of its own
        policy = value.policy
        prompt = policy.format.prompt(self.problem, program, "")
        row, ends = policy.tokenize_with_offsets(prompt)
        first = max(1, sum(end <= prompt.answer_from for end in ends))
        self.tokens += len(row)
        ids = torch.tensor([row], device=policy.device)
        hidden, logits = forward_with_states(policy.model, {"input_ids": ids, "use_cache": False})
        before, target = slice(first - 1, len(row) - 1), ids[0, first:]
        logs = torch.log_softmax(logits[0, before].float(), -1).gather(-1, target[:, None])[:, 0]
        return float(value.token_scorer(policy)(hidden[0, before], target, logs).double().sum().exp())


def decode_serial(
    kind: Literal["generate", "policy"],
    problems: Sequence[Problem],
    policy: LocalPolicy,
    value: ValueModel,
    cfg: DecodeConfig,
    seed: int,
) -> list[Outcome]:
    """One problem after the other."""
    outcomes = []
    for problem in problems:
        clock = time.perf_counter()
        sampler = Sampler(kind, policy, problem, cfg, seed)
        scorer = Scorer(value, problem)
        root = serial_search(
            problem.prefix,
            simulations=cfg.simulations,
            num_decisions=cfg.num_decisions,
            c=cfg.c,
            eps=cfg.eps,
            sample=sampler,
            score=scorer,
        )
        outcomes.append(
            Outcome(
                task_id=problem.task_id,
                seed=seed,
                program=answer(root),
                seconds=time.perf_counter() - clock,
                samples=sampler.samples,
                reused=0,
                generated_tokens=sampler.tokens,
                value_tokens=scorer.tokens,
            )
        )
    return outcomes
