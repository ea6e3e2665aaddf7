"""The token-additive value head: V(state) = exp(sum of s_t over the program's tokens), s_t <= 0.

s_t comes from a small network on what the frozen policy has computed anyway: its state before token t, the
embedding of token t, and the log-probability of token t. Each score says how much the chance of success
drops with that token; their sum needs no second model and, while the policy decodes, no forward pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from restrl.errors import RestrlError
from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.engine import forward_with_states
from restrl.policy.local import LocalPolicy, TokenScorer
from restrl.records import Problem
from restrl.value import ADDITIVE_CONFIG, LineValues, checked, finished, line_ends, to_values, tries

WEIGHTS = "additive_head.safetensors"
_FIRST_SCORE = (
    -4.0
)  # softplus of it is a new head's loss per token: a program of 50 tokens starts near V = 0.4
_TOKENS = 32768  # of one batch of programs that are scored, padding included
_LOGITS = 1 << 28  # of one such batch: 1 GiB in float32
_LEAST_LOG_PROB = -20.0  # nats; less says nothing more


class AdditiveHead(nn.Module):
    """`[*, H]` state before a token, `[*, E]` its embedding, `[*]` its log-prob -> `[*]` score <= 0."""

    def __init__(self, hidden_size: int, embedding_size: int, width: int) -> None:
        super().__init__()
        self.state_norm = nn.LayerNorm(hidden_size)
        self.embedding_norm = nn.LayerNorm(embedding_size)
        self.mix = nn.Linear(hidden_size + embedding_size + 2, width)
        self.out = nn.Linear(width, 1)
        self.surprise = nn.Parameter(torch.ones(()))  # weight of -log_prob: a new head ranks by likelihood

    def forward(self, hidden: Tensor, embedded: Tensor, log_probs: Tensor) -> Tensor:
        likelihood = log_probs.clamp(min=_LEAST_LOG_PROB)
        features = torch.cat(
            [
                self.state_norm(hidden),
                self.embedding_norm(embedded),
                likelihood[..., None],
                likelihood.exp()[..., None],
            ],
            -1,
        )
        learned = self.out(F.silu(self.mix(features))).squeeze(-1)
        return -F.softplus(learned + _FIRST_SCORE - self.surprise * likelihood)


@dataclass(frozen=True)
class Scored:
    """A program as the head reads it.

    prompt     header and whole program
    token_ids  of both
    first      index of the first token of the program past the problem's prefix
    ends       character offsets into the program
    counts     program tokens up to each end
    """

    prompt: Prompt
    token_ids: tuple[int, ...]
    first: int
    ends: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Traced:
    """The policy's numbers along a program: states `[T, H]` before each token, ids `[T]`, log-probs `[T]`."""

    hidden: Tensor
    token_ids: Tensor
    log_probs: Tensor


class AdditiveValue:
    """The head on one policy. `score` runs the policy teacher-forced; `complete` draws and scores at once."""

    def __init__(self, policy: LocalPolicy, head: AdditiveHead, *, max_length: int = 2048) -> None:
        self.policy, self.head = policy, head.to(policy.device)
        context = max_length if policy.context is None else policy.context
        self.max_length = min(max_length, context)

    @classmethod
    def new(cls, policy: LocalPolicy, width: int, *, seed: int, max_length: int = 2048) -> AdditiveValue:
        """An untrained head with weights drawn from `seed`."""
        sizes = _sizes(policy)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = AdditiveHead(sizes["hidden_size"], sizes["embedding_size"], width)
        return cls(policy, head, max_length=max_length)

    @classmethod
    def load(cls, folder: str | Path, policy: LocalPolicy, *, max_length: int = 2048) -> AdditiveValue:
        """A saved head on `policy`. Raises RestrlError if it was trained on a policy of another shape."""
        path = Path(folder) / ADDITIVE_CONFIG
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            sizes, width = {key: int(saved[key]) for key in _sizes(policy)}, int(saved["width"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RestrlError(f"{path}: not the description of an additive value head: {error!r}") from None
        if sizes != _sizes(policy):
            raise RestrlError(
                f"{path}: the head was trained on a policy with {sizes}, this one has {_sizes(policy)}; "
                "train a head for this policy"
            )
        head = AdditiveHead(sizes["hidden_size"], sizes["embedding_size"], width)
        model = cls(policy, head, max_length=max_length)
        model.load_weights(Path(folder))
        return model

    def load_weights(self, folder: Path) -> None:
        """Read what `save` wrote into the live head, bit for bit."""
        path = folder / WEIGHTS
        try:
            self.head.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            raise RestrlError(f"{path}: not the weights of this additive value head: {first}") from None

    def save(self, folder: str | Path) -> None:
        """Description and weights of the head; the policy is not written."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"schema": 1, **_sizes(self.policy), "width": self.head.mix.out_features}
        (folder / ADDITIVE_CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()}, folder / WEIGHTS
        )

    # Teacher-forced: any program, one pass of the policy.

    def encode(self, problem: Problem, program: str, ends: Sequence[int] | None = None) -> Scored:
        """Tokens, and how many of the program's lie before each of `ends` (None: its line ends)."""
        checked(problem, program)
        form = self.policy.format.prompt(problem, program, problem.task_id)
        ids, characters = self.policy.tokenize_with_offsets(form)
        if ends is None:
            ends = line_ends(program, len(problem.prefix))
        start = len(form.header)
        first = max(1, int(np.searchsorted(characters, form.answer_from, side="right")))
        last = len(ids) if ends[-1] == len(program) else None
        upto = [covering(characters, start + end) for end in ends[:-1]]
        upto.append(covering(characters, start + ends[-1]) if last is None else last)
        counts = [
            0 if end <= len(problem.prefix) else max(0, n - first) for n, end in zip(upto, ends, strict=True)
        ]
        return Scored(form, tuple(ids), first, tuple(ends), tuple(counts))

    def trace(self, programs: Sequence[Scored]) -> list[Traced]:
        """The policy's own numbers along each program, by teacher forcing."""
        traces = self.policy.trace([(p.prompt, "") for p in programs])
        return [
            Traced(t.hidden[p.first :].clone(), t.ids[p.first :], t.log_probs[p.first :].clone())
            for p, t in zip(programs, traces, strict=True)
        ]

    def log_values(self, traced: Sequence[Traced], counts: Sequence[Sequence[int]]) -> list[Tensor]:
        """log V `[ends]` of each row: sums of the first counts[i] scores; differentiable in the head."""
        scores = self._scores(
            torch.cat([t.hidden for t in traced]),
            torch.cat([t.token_ids for t in traced]),
            torch.cat([t.log_probs for t in traced]),
        )
        rows = scores.split([len(t.token_ids) for t in traced])
        return [
            torch.cat([row.new_zeros(1), row.cumsum(0)])[torch.tensor(list(own), device=row.device)]
            for row, own in zip(rows, counts, strict=True)
        ]

    @torch.no_grad()
    def score(self, items: Sequence[tuple[Problem, str]]) -> list[LineValues]:
        """See ValueModel.score. Raises RestrlError for a program longer than max_length tokens."""
        self.head.eval()
        out: list[LineValues] = []
        for start in range(0, len(items), self.policy.max_rows):
            chunk = items[start : start + self.policy.max_rows]
            encoded = [self.encode(problem, program) for problem, program in chunk]
            for (problem, _), e in zip(chunk, encoded, strict=True):
                if len(e.token_ids) > self.max_length:
                    raise RestrlError(
                        f"{problem.task_id}: a program to be scored has {len(e.token_ids)} tokens with its "
                        f"problem, more than {self.max_length}: value.max_length or the policy's context"
                    )
            traced, tokens = self._read(encoded)
            rows = self.log_values(traced, [e.counts for e in encoded])
            for (problem, program), e, row, read in zip(chunk, encoded, rows, tokens, strict=True):
                values = _not_for_nothing(problem, program, row.double().exp().tolist())
                out.append(to_values(problem, e.ends, values, read))
        return out

    def _read(self, programs: Sequence[Scored]) -> tuple[list[Traced], list[int]]:
        """As `trace`, and the tokens read for each; prefixes that programs share are read once."""
        model, lengths = self.policy.model, [len(p.token_ids) for p in programs]
        if not tries.shareable(model) or max(lengths) > tries.LONGEST:
            return self.trace(programs), lengths
        rows = tries.pack({i: p.token_ids for i, p in enumerate(programs)}, tries.quadratic_scale(model))
        limit = min(_TOKENS, _LOGITS // self.policy.codec.vocab)
        traced: dict[int, Traced] = {}
        for batch in tries.batches(rows, max_rows=self.policy.max_rows, max_tokens=limit):
            with tries.evaluating(model):
                hidden, logits = forward_with_states(model, tries.inputs(batch, model) | {"use_cache": False})
            for b, row in enumerate(batch):
                ids, before = torch.from_numpy(row.ids), torch.from_numpy(row.parent).to(logits.device)
                logs = torch.log_softmax(logits[b].float(), -1)
                log_probs = logs[before, ids.to(logits.device)]  # of a first token: no use is made of it
                for i, path in row.paths.items():
                    own = torch.from_numpy(path[programs[i].first :])
                    at = own.to(logits.device)
                    traced[i] = Traced(hidden[b, before[at]], ids[own], log_probs[at])
        return [traced[i] for i in range(len(programs))], tries.charges(rows, len(programs))

    # Free: while the policy decodes.

    def token_scorer(self, policy: LocalPolicy) -> TokenScorer:
        """What policy.complete takes as token_scorer. Raises RestrlError if the head does not fit it."""
        if _sizes(policy) != _sizes(self.policy):
            raise RestrlError(
                f"the value head reads a policy with {_sizes(self.policy)}, this one has {_sizes(policy)}; "
                "train a head for this policy"
            )
        embed = policy.model.get_input_embeddings()

        def scorer(hidden: Tensor, token_ids: Tensor, log_probs: Tensor) -> Tensor:
            embedded: Tensor = embed(token_ids).float()
            scores: Tensor = self.head(hidden.float(), embedded, log_probs.float())
            return scores

        return scorer

    def complete(self, requests: list[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """`policy.complete` with scores."""
        self.head.eval()
        return self.policy.complete(requests, n, sampling, token_scorer=self.token_scorer(self.policy))

    def line_values_from_completion(
        self, problem: Problem, prompt: Prompt, completion: Completion
    ) -> LineValues:
        """Values of `finished(prompt.state, completion.text)` at its line ends past the prompt's state,
        without a pass.

        They equal those of `score` where the sampled tokens are the ones that the text tokenises to. A last
        newline that the policy did not write itself has no score. Raises ValueError for a completion without
        scores.
        """
        if completion.scores is None:
            raise ValueError(
                f"{problem.task_id}: the completion carries no scores; draw it with the head's `complete`"
            )
        program = finished(prompt.state, completion.text)
        ends = line_ends(program, len(prompt.state))
        count = len(completion.token_ids) - (completion.finish == "eos")
        characters = self.policy.codec.ends(
            completion.token_ids[:count].tolist(), completion.prompt_token_ids
        )
        sums = np.concatenate([[0.0], np.cumsum(completion.scores[:count], dtype=np.float64)])
        upto = [covering(characters, end - len(prompt.state)) for end in ends[:-1]]
        written = len(program) - len(prompt.state)
        if completion.text[written - 1 : written] == "\n":
            upto.append(covering(characters, written))
        else:
            upto.append(int(np.searchsorted(characters, written - 1, side="right")))
        values = np.exp(completion.prefix_score + sums[upto]).tolist()
        return to_values(problem, ends, _not_for_nothing(problem, program, values))

    def _scores(self, hidden: Tensor, token_ids: Tensor, log_probs: Tensor) -> Tensor:
        scores: Tensor = self.token_scorer(self.policy)(
            hidden.to(self.policy.device), token_ids.to(self.policy.device), log_probs.to(self.policy.device)
        )
        return scores


def _not_for_nothing(problem: Problem, program: str, values: list[float]) -> list[float]:
    """`values`, the last one 0 if the program is finished and adds nothing to the problem's code.

    It has no token whose score could lower its value from 1: it would be the best of all answers. The
    problem's code itself, without a line end more, is the start of every program and keeps its 1.
    """
    added = program[len(problem.prefix) :]
    return values if added.strip() or not added else [*values[:-1], 0.0]


def covering(ends: Sequence[int], character: int) -> int:
    """How many tokens reach up to `character`: all before, and the one that covers the character before it.

    ends: end character of each token, never falling.
    """
    return min(len(ends), int(np.searchsorted(ends, character, side="left")) + 1)


def _sizes(policy: LocalPolicy) -> dict[str, int]:
    vocab_size, embedding_size = policy.model.get_input_embeddings().weight.shape
    hidden_size = policy.model.get_output_embeddings().weight.shape[1]
    return {"hidden_size": hidden_size, "embedding_size": embedding_size, "vocab_size": vocab_size}


def target_loss(log_values: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of V = exp(log_values) with targets in [0, 1], each: -y log V - (1 - y) log(1 - V)."""
    bounded = log_values.clamp(max=-1e-6)
    return -(targets * bounded + (1 - targets) * torch.log(-torch.expm1(bounded)))


def pairwise_loss(log_values: Tensor, rewards: Tensor, groups: Tensor) -> Tensor:
    """Mean of -log sigmoid(S_i - S_j) over all pairs of one group with reward i > reward j; 0 if there is
    none.

    log_values `[B]`, rewards `[B]`, groups `[B]` (which problem).
    """
    better = (rewards[:, None] > rewards[None, :]) & (groups[:, None] == groups[None, :])
    if not bool(better.any()):
        return log_values.sum() * 0.0
    return F.softplus(log_values[None, :] - log_values[:, None])[better].mean()
