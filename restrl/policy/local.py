"""The local policy: any transformers causal language model, decoded in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from restrl.errors import RestrlError
from restrl.policy import Ask, Completion, Prompt, Sampling
from restrl.policy.batch import Batch, Request, TokenScorer
from restrl.policy.codec import Codec
from restrl.policy.engine import Engine, ModuleEngine, forward_with_states
from restrl.policy.fast import FastEngine, supports
from restrl.policy.stream import LocalStream
from restrl.prompts import PromptFormat

__all__ = ["LocalPolicy", "TokenScorer", "Trace"]

_TRACE_TOKENS = 32768  # of one teacher-forced batch, padding included
_TRACE_LOGITS = 1 << 28  # of one teacher-forced batch: 1 GiB in float32
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


@dataclass(frozen=True)
class Trace:
    """A teacher-forced pass over header + state + completion, `T` tokens in all.

    ids            `[T]` token ids
    hidden         `[T, H]` final-norm state *before* each token, as token scorers get it (first: zeros)
    last           `[H]` state after the last token; the state after token t is hidden[t + 1]
    log_probs      `[T]` of each token at temperature 1 (nats, float32; 0 for the first token)
    ends           `[T]` end character of each token in header + state + completion
    program        first token that belongs to the program (its end lies behind prompt.answer_from)
    answer         first token of the completion
    """

    ids: Tensor
    hidden: Tensor
    last: Tensor
    log_probs: Tensor
    ends: Tensor
    program: int
    answer: int


class LocalPolicy:
    """A causal LM and its tokenizer. The trainer changes `model` in place: the next call sees its weights."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_rows: int = 256,
        fast: bool = True,
    ) -> None:
        """Load a folder or hub id (safetensors only, no remote code).

        device    "cpu", "cuda", "cuda:1", ...; "auto" is cuda where there is one
        dtype     "float32", "bfloat16", "float16"; "auto" is the checkpoint's on a GPU and float32 on a CPU
        max_rows  completions decoded at once, at most
        fast      small decoders by restrl's own forward pass (fast.py); False: always by transformers

        Raises RestrlError for a folder that is missing or lacks weights or tokenizer, and for unknown names.
        """
        where = _device(device)
        name = str(path)
        _check_folder(name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model = AutoModelForCausalLM.from_pretrained(
                name, dtype=_dtype(dtype, where), use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0]
            raise RestrlError(
                f"cannot load the policy {name!r} ({reason}); give a folder in Hugging Face format with "
                "safetensors weights and a tokenizer, or a hub id that this machine can reach"
            ) from error
        model.eval().to(where)
        self._set(model, tokenizer, max_rows, fast)

    @classmethod
    def from_parts(cls, model: Any, tokenizer: Any, *, max_rows: int = 256, fast: bool = True) -> LocalPolicy:
        """A policy of a model and a tokenizer in memory, shared and not copied."""
        policy = cls.__new__(cls)
        policy._set(model, tokenizer, max_rows, fast)
        return policy

    def _set(self, model: Any, tokenizer: Any, max_rows: int, fast: bool) -> None:
        if max_rows < 1:
            raise RestrlError(f"max_rows must be at least 1, not {max_rows}")
        self.model, self.tokenizer, self.max_rows, self.fast = model, tokenizer, max_rows, fast
        config = model.config.get_text_config()
        self.codec = Codec(tokenizer, int(config.vocab_size))
        self.format = PromptFormat(tokenizer)
        values = config.to_dict()
        self.context: int | None = next((int(values[n]) for n in _POSITIONS if values.get(n)), None)
        named = [tokenizer.eos_token_id, values.get("eos_token_id")]
        if model.generation_config is not None:
            named.append(model.generation_config.eos_token_id)
        self.end_ids = frozenset(
            int(i) for ids in named if ids is not None for i in (ids if isinstance(ids, list) else [ids])
        )
        """Ids that end a completion: those of tokenizer, config and generation config."""

    @property
    def device(self) -> torch.device:
        return torch.device(self.model.device)

    def save(self, folder: str | Path) -> None:
        """Model and tokenizer in Hugging Face format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokenize_with_offsets(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """(ids of header + state, end character of each). prompt.token_ids are used as they are."""
        if prompt.token_ids is not None:
            ids = list(prompt.token_ids)
            return ids, self.codec.ends(ids, literal=True)
        ids, ends = self.codec.encode(prompt.text, special=not (self.format.chat and prompt.header))
        if not ids:
            start = self.tokenizer.bos_token_id
            start = self.tokenizer.eos_token_id if start is None else start
            if start is None:
                raise RestrlError(f"{prompt.key}: the prompt is empty and the tokenizer has no start token")
            return [int(start)], [0]
        return ids, ends

    def complete(
        self,
        requests: Sequence[Prompt],
        n: int,
        sampling: Sampling,
        token_scorer: TokenScorer | None = None,
        on_group: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions of each request, in order; see Policy. All requests share full batches.

        With a token scorer completions carry their `scores` and `prefix_score`. `on_group` is called with
        the number of a request and its completions as soon as they are there. New tokens are limited to
        what the context leaves; RestrlError for a prompt that leaves no room, and for bad sampling values.
        """
        _check_sampling(sampling, n)
        lines = min(self.max_rows, n * len(requests))
        stream = self._stream(sampling, token_scorer, lines)
        asks = [Ask(prompt, n, sampling.stop) for prompt in requests]
        numbers = {ask: number for number, ask in enumerate(asks)}
        found: dict[Ask, list[Completion]] = {}
        new = asks
        while new or stream.busy:
            for ask, group in stream.advance(new):
                found[ask] = group
                if on_group is not None:
                    on_group(numbers[ask], group)
            new = []
        return [found[ask] for ask in asks]

    def stream(self, sampling: Sampling, token_scorer: TokenScorer | None = None) -> LocalStream:
        """A running batch of up to max_rows rows, with the weights as they are now; see StreamingPolicy."""
        _check_sampling(sampling, 1)
        return self._stream(sampling, token_scorer, self.max_rows)

    def _stream(self, sampling: Sampling, scorer: TokenScorer | None, lines: int) -> LocalStream:
        width = sampling.max_new_tokens
        batch = Batch(
            self._engine(),
            self.codec,
            sampling,
            ends=self.end_ids,
            lines=lines,
            width=width if self.context is None else min(width, self.context),
            device=self.device,
            scorer=scorer,
        )
        return LocalStream(batch, lambda ask: self._request(ask, sampling), self._evaluating, self.max_rows)

    def _engine(self) -> Engine:
        if self.fast and supports(self.model):
            return FastEngine(self.model)
        return ModuleEngine(self.model, self.context)

    def _request(self, ask: Ask, sampling: Sampling) -> Request:
        prompt, copies = ask.prompt, 1 if sampling.temperature == 0 else ask.n
        _check_sampling(dataclasses.replace(sampling, stop=ask.stop), ask.n)
        ids, ends = self.tokenize_with_offsets(prompt)
        limit = sampling.max_new_tokens
        if self.context is not None:
            limit = min(limit, self.context - len(ids))
        if limit < 1:
            raise RestrlError(
                f"{prompt.key}: the prompt has {len(ids)} tokens and the model's context {self.context}, "
                "which leaves no room for a completion; shorten it or take a model with a longer context"
            )
        return Request(
            prompt, ids, max(1, _program_start(ends, prompt.answer_from)), limit, 0, copies, ask.stop
        )

    @torch.no_grad()
    def trace(self, items: Sequence[tuple[Prompt, str | Sequence[int]]]) -> list[Trace]:
        """Teacher-forced states and log-probs of completions (texts or sampled ids), batched, in order.

        A text is tokenised together with its prompt, unless the prompt brings its ids. RestrlError for one
        that is longer than the context.
        """
        encoded = [self._encode(prompt, completion) for prompt, completion in items]
        order = sorted(range(len(items)), key=lambda i: -len(encoded[i][0]))
        out: list[Trace | None] = [None] * len(items)
        with self._evaluating():
            while order:
                width = len(encoded[order[0]][0])
                tokens = min(_TRACE_TOKENS, _TRACE_LOGITS // self.codec.vocab)
                count = max(1, min(self.max_rows, tokens // max(1, width)))
                group, order = order[:count], order[count:]
                hidden, logs = self._teacher_forced([encoded[i][0] for i in group])
                for row, i in enumerate(group):
                    ids, ends, answer = encoded[i]
                    size = len(ids)
                    out[i] = Trace(
                        ids=torch.tensor(ids),
                        hidden=torch.cat((torch.zeros_like(hidden[row, :1]), hidden[row, : size - 1])),
                        last=hidden[row, size - 1],
                        log_probs=torch.cat((logs.new_zeros(1), logs[row, : size - 1])),
                        ends=torch.tensor(ends),
                        program=_program_start(ends, items[i][0].answer_from),
                        answer=answer,
                    )
        return [trace for trace in out if trace is not None]

    def _encode(self, prompt: Prompt, completion: str | Sequence[int]) -> tuple[list[int], list[int], int]:
        """(ids, end characters, first token of the completion) of a prompt with its completion."""
        at = len(prompt.text)
        if isinstance(completion, str) and prompt.token_ids is None:
            whole = dataclasses.replace(prompt, state=prompt.state + completion)
            ids, ends = self.tokenize_with_offsets(whole)
            answer = _program_start(ends, at)
        else:
            ids, ends = self.tokenize_with_offsets(prompt)
            answer = len(ids)
            if isinstance(completion, str):
                more, more_ends = self.codec.encode(completion, special=False)
            else:
                more = [int(i) for i in completion]
                more_ends = self.codec.ends(more, ids)
            ids, ends = ids + more, ends + [at + end for end in more_ends]
        if self.context is not None and len(ids) > self.context:
            raise RestrlError(
                f"{prompt.key}: prompt and completion have {len(ids)} tokens, more than the model's context "
                f"({self.context}); shorten them or take a model with a longer context"
            )
        return ids, ends, answer

    def _teacher_forced(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """States after each token `[B, T, H]`, float32 log-probs of the next `[B, T - 1]`; padded right."""
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden, logits = forward_with_states(
            self.model, {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        )
        logs = [
            torch.log_softmax(logits[i, :-1].float(), -1).gather(-1, ids[i, 1:, None])[:, 0]
            for i in range(len(rows))
        ]
        return hidden, torch.stack(logs)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No gradients and no dropout; the model's mode is put back afterwards."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)


def _program_start(ends: Sequence[int], character: int) -> int:
    """The first token that ends behind `character`; len(ends) if none does."""
    return next((t for t, end in enumerate(ends) if end > character), len(ends))


def _check_sampling(sampling: Sampling, n: int) -> None:
    if n < 1:
        raise RestrlError(f"the number of samples must be at least 1, not {n}")
    if sampling.temperature < 0:
        raise RestrlError(f"sampling.temperature must be >= 0 (0 is greedy), not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise RestrlError(f"sampling.top_p must be in (0, 1] (1 is off), not {sampling.top_p}")
    if sampling.top_k < 0:
        raise RestrlError(f"sampling.top_k must be >= 0 (0 is off), not {sampling.top_k}")
    if sampling.max_new_tokens < 1:
        raise RestrlError(f"sampling.max_new_tokens must be at least 1, not {sampling.max_new_tokens}")
    if "" in sampling.stop:
        raise RestrlError("sampling.stop holds an empty string; leave it out")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RestrlError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RestrlError(f"device {name!r} was asked for and torch sees no GPU here; use cpu or auto")
    return device


def _dtype(name: str, device: torch.device) -> Any:
    if name == "auto":
        return "auto" if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise RestrlError(f"unknown dtype {name!r}; use auto, {', '.join(known)}")
    return known[name]


def _check_folder(name: str) -> None:
    """One sentence for what a model folder lacks. A name without a folder that may be a hub id passes."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
            raise RestrlError(f"the model folder {name!r} does not exist; give a folder or a hub id")
        return
    if not (folder / "config.json").is_file():
        raise RestrlError(f"{name} has no config.json; a model folder is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")):
        raise RestrlError(f"{name} has no *.safetensors weights; save the model again with save_pretrained")
    if not any(
        (folder / part).is_file() for part in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        raise RestrlError(f"{name} has no tokenizer; save the model's tokenizer there with save_pretrained")
