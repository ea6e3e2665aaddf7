"""The paper's value model: a backbone with a scalar head, transformers'
AutoModelForSequenceClassification(num_labels=1).

A causal model's one pass over a program gives a value at every line end: the `score` head is applied to the
hidden state of the last token of every line. The value of the whole program is what the class itself returns
(the head at the text's last token), so that a checkpoint trained anywhere in that class keeps its scores.
Texts that are scored together share the pass over their common prefixes (tries.py).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DynamicCache

from restrl.errors import RestrlError
from restrl.ops.value import value_score
from restrl.policy.local import LocalPolicy
from restrl.prompts import value_text
from restrl.records import Problem
from restrl.training.hf import save_model
from restrl.value import LineValues, checked, line_ends, to_values, tries
from restrl.value.starts import Starts, batch_tokens, cache, common, read_off


@dataclass(frozen=True)
class Encoded:
    """A program as the scalar model reads it.

    token_ids  of the text in the value model's format
    ends       character offsets into the program
    positions  index of the token whose hidden state gives the value at each end
    """

    token_ids: tuple[int, ...]
    ends: tuple[int, ...]
    positions: tuple[int, ...]


class ScalarValue:
    """A model of the class with num_labels = 1, and its tokenizer.

    Raises RestrlError for a model with more labels or without a `score` head on a causal backbone, and for a
    tokenizer without character offsets.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_rows: int = 64, max_length: int = 2048) -> None:
        name = type(model).__name__
        if model.config.num_labels != 1 or "score" not in dict(model.named_children()):
            raise RestrlError(
                f"{name}: a scalar value model needs num_labels = 1 and a `score` head on a causal backbone "
                f"(num_labels is {model.config.num_labels}); use a causal model's own class"
            )
        if not tokenizer.is_fast:
            raise RestrlError(f"{name}: its tokenizer gives no character offsets; use a fast tokenizer")
        self.model, self.tokenizer = model, tokenizer
        self.max_rows = max_rows
        self.shares = tries.shareable(model)
        self._starts: Starts | None = None
        context = model.config.get_text_config().to_dict().get("max_position_embeddings")
        self.max_length = max_length if context is None else min(max_length, int(context))

    @classmethod
    def from_policy(cls, policy: LocalPolicy, *, max_length: int = 2048, seed: int = 0) -> ScalarValue:
        """The policy's backbone, copied, with a new head."""
        config = copy.deepcopy(policy.model.config)
        config.num_labels = 1
        _set_padding(config, policy.tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_config(config)
        model.base_model.load_state_dict(policy.model.base_model.state_dict())
        model.to(device=policy.model.device, dtype=policy.model.dtype)
        return cls(model, policy.tokenizer, max_rows=policy.max_rows, max_length=max_length)

    @classmethod
    def load(cls, folder: str | Path, policy: LocalPolicy, *, max_length: int = 2048) -> ScalarValue:
        """A checkpoint in Hugging Face format; the policy's tokenizer is used if the folder has none.

        A causal language model's folder gives a backbone: its head is new and untrained.
        """
        folder = Path(folder)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=policy.model.dtype, use_safetensors=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            raise RestrlError(f"{folder}: not a scalar value model in Hugging Face format: {first}") from None
        own = (folder / "tokenizer_config.json").exists() or (folder / "tokenizer.json").exists()
        tokenizer = AutoTokenizer.from_pretrained(folder) if own else policy.tokenizer
        _set_padding(model.config, tokenizer)
        model.to(policy.model.device)
        return cls(model, tokenizer, max_rows=policy.max_rows, max_length=max_length)

    def save(self, folder: str | Path) -> None:
        """Model and tokenizer in Hugging Face format."""
        save_model(self.model, self.tokenizer, Path(folder))

    def encode(self, problem: Problem, program: str, ends: Sequence[int] | None = None) -> Encoded:
        """Tokens and the positions to read, at `ends` (every line end past the problem's prefix if None)."""
        checked(problem, program)
        text, start = value_text(problem, program)
        encoding = self.tokenizer(text, return_offsets_mapping=True)
        ids = encoding["input_ids"]
        if ends is None:
            ends = line_ends(program, len(problem.prefix))
        positions = token_positions(encoding["offset_mapping"], [start + end for end in ends])
        if ends[-1] == len(program):
            positions[-1] = len(ids) - 1
        return Encoded(tuple(ids), tuple(ends), tuple(positions))

    @torch.no_grad()
    def score(self, items: Sequence[tuple[Problem, str]]) -> list[LineValues]:
        """See ValueModel.score. Raises RestrlError for a text longer than max_length tokens."""
        encoded = [self.encode(problem, program) for problem, program in items]
        for (problem, _), e in zip(items, encoded, strict=True):
            if len(e.token_ids) > self.max_length:
                raise RestrlError(
                    f"{problem.task_id}: a program to be scored has {len(e.token_ids)} tokens with its "
                    f"problem, more than the {self.max_length} of value.max_length or the model's context"
                )
        self.model.eval()
        longest = max((len(e.token_ids) for e in encoded), default=0)
        if self.shares and longest <= tries.LONGEST:
            read = self._shared(encoded, [value_text(problem, problem.prefix)[0] for problem, _ in items])
        else:
            read = self._padded(encoded)
        return [
            to_values(problem, e.ends, values, tokens)
            for (problem, _), e, (values, tokens) in zip(items, encoded, read, strict=True)
        ]

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within it, `score` keeps what the model computed for the problems and does not read them again.

        For the calls of one search; the weights must not change. Values agree with those of a fresh pass to
        rounding. One thread at a time may score.
        """
        before, self._starts = self._starts, Starts()
        try:
            yield
        finally:
            self._starts = before

    def _shared(self, encoded: Sequence[Encoded], names: Sequence[str]) -> list[tuple[list[float], int]]:
        """(unclamped values, tokens read) of each text; what texts of one name begin with is read once."""
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            groups.setdefault(name, []).append(i)
        rows = [row for name, members in groups.items() for row in self._rows(name, members, encoded)]
        limit = self.max_rows * 512
        if self._starts is not None:
            limit = min(limit, batch_tokens(self.model))
        values: list[list[float]] = [[]] * len(encoded)
        for batch in tries.batches(rows, max_rows=self.max_rows, max_tokens=limit):
            filled = None if self._starts is None else cache(self.model, [row.start for row in batch])
            hidden = self.model.base_model(
                **tries.inputs(batch, self.model), past_key_values=filled, use_cache=filled is not None
            ).last_hidden_state  # [B, T, H]
            texts, row, column = tries.gather(batch, [e.positions for e in encoded])
            flat = self._read(hidden, torch.from_numpy(row), torch.from_numpy(column)).cpu()
            for i, own in zip(texts, flat.split([len(encoded[i].positions) for i in texts]), strict=True):
                values[i] = own.tolist()
            if filled is not None:
                self._remember(batch, filled, names, encoded, groups)
        return list(zip(values, tries.charges(rows, len(encoded)), strict=True))

    def _rows(self, name: str, members: Sequence[int], encoded: Sequence[Encoded]) -> list[tries.Row]:
        """The tries of the texts of one name, behind the start that is remembered of it."""
        texts = [encoded[i].token_ids for i in members]
        first_read = min(encoded[i].positions[0] for i in members)
        start = None if self._starts is None else self._starts.take(name, texts, first_read)
        behind = 0 if start is None else len(start)
        rest = {i: text[behind:] for i, text in zip(members, texts, strict=True)}
        return tries.pack(rest, tries.quadratic_scale(self.model), start)

    def _remember(
        self,
        batch: Sequence[tries.Row],
        filled: DynamicCache,
        names: Sequence[str],
        encoded: Sequence[Encoded],
        groups: Mapping[str, Sequence[int]],
    ) -> None:
        """Keep the starts that the batch has read for the first time."""
        assert self._starts is not None
        behind = max(0 if row.start is None else len(row.start) for row in batch)
        for b, row in enumerate(batch):
            number = next(iter(row.paths))
            members = groups[names[number]]
            if row.start is None:
                n = common([encoded[i].token_ids for i in members])
                ids, columns = (
                    np.asarray(encoded[number].token_ids[:n], np.int64),
                    behind + row.paths[number][:n],
                )
                self._starts.keep(names[number], read_off(filled, b, columns, ids))

    def _padded(self, encoded: Sequence[Encoded]) -> list[tuple[list[float], int]]:
        """As `_shared`, every text on its own: for a model that cannot read tries."""
        values: list[list[float]] = [[]] * len(encoded)
        for rows in self.batches([len(e.token_ids) for e in encoded]):
            for i, own in zip(rows, self.values([encoded[i] for i in rows]), strict=True):
                values[i] = own.tolist()
        return [(own, len(e.token_ids)) for own, e in zip(values, encoded, strict=True)]

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices in batches of similar length: at most max_rows rows and max_rows * 512 padded tokens."""
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batch and (
                len(batch) == self.max_rows or (len(batch) + 1) * lengths[batch[0]] > self.max_rows * 512
            ):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def values(self, encoded: Sequence[Encoded]) -> list[Tensor]:
        """Unclamped values `[ends]` float32 of each row, in one pass with right padding; differentiable."""
        lengths = torch.tensor([len(e.token_ids) for e in encoded])
        ids = nn.utils.rnn.pad_sequence([torch.tensor(e.token_ids) for e in encoded], batch_first=True)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self.model.device
        hidden = self.model.base_model(
            input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
        ).last_hidden_state  # [B, T, H]
        row = torch.tensor([b for b, e in enumerate(encoded) for _ in e.positions])
        position = torch.tensor([p for e in encoded for p in e.positions])
        flat = self._read(hidden, row, position)
        return list(flat.split([len(e.positions) for e in encoded]))

    def _read(self, hidden: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """Unclamped values `[n]` float32 of the normed states `[B, T, H]` at the pairs; differentiable."""
        head, at = self.model.score, (row.to(hidden.device), position.to(hidden.device))
        return value_score(hidden, at, head.weight, head.bias, clamp=None)


def token_positions(spans: Sequence[tuple[int, int]], ends: Sequence[int]) -> list[int]:
    """Index of the last token that covers the character before each end.

    spans: (start, end) in characters of every token, in order. Several tokens share the span of a character
    that takes several of them; a token that covers a line end and white space of the next line counts for
    the line end.
    """
    positions: list[int] = []
    last = -1
    for end in ends:
        while last + 1 < len(spans) and spans[last + 1][0] < end:
            last += 1
        positions.append(last)
    return positions


def _set_padding(config: Any, tokenizer: Any) -> None:
    """The class finds the last token by the padding id: one must be set, and no text may contain it."""
    if config.get_text_config().pad_token_id is None and tokenizer.pad_token_id is not None:
        config.get_text_config().pad_token_id = tokenizer.pad_token_id
