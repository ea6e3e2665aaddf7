"""The decode loop: rows of many requests in one batch; rows that end leave it, waiting ones join it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from restrl.policy import Completion, Prompt, Sampling
from restrl.policy.codec import Codec
from restrl.policy.draw import draw, uniforms
from restrl.policy.engine import Engine, Start
from restrl.prompts import cut_at_stop

TokenScorer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(`[R, H]` final-norm state before each token, `[R]` ids, `[R]` log-probs at T = 1) -> `[R]` scores <= 0."""

_LEAVE = 16  # finished rows leave the batch once they are 1/16 of it
_JOIN = 8  # waiting rows join once 1/8 of the rows have ended: reading prompts in larger groups is cheaper


@dataclass
class Request:
    """A prompt, tokenised, and its samples first..first+copies-1.

    scored   first token of the prompt that belongs to the program (never token 0, which no state precedes);
             len(ids) where the prompt holds none
    limit    tokens each sample may have
    stop     strings that end a completion
    owner    what the request is a part of
    done     the samples that have ended
    """

    prompt: Prompt
    ids: list[int]
    scored: int
    limit: int
    first: int
    copies: int
    stop: tuple[str, ...]
    owner: int = 0
    prefix_score: float = 0.0
    done: dict[int, Completion] = field(default_factory=dict)


class Batch:
    """Up to `lines` rows of one engine. Arrays have one place per row: `[rows]` or `[rows, T]`.

    Which rows run together follows from the requests and from when they came alone, never from the clock.
    """

    def __init__(
        self,
        engine: Engine,
        codec: Codec,
        sampling: Sampling,
        *,
        ends: frozenset[int],
        lines: int,
        width: int,
        device: torch.device,
        scorer: TokenScorer | None,
    ) -> None:
        """At most `lines` rows at once, of `width` tokens. `sampling.stop` does not count here."""
        self.engine, self.codec, self.sampling, self.scorer, self.device = (
            engine,
            codec,
            sampling,
            scorer,
            device,
        )
        self._is_end = np.zeros(codec.vocab, dtype=bool)
        self._is_end[[i for i in ends if i < codec.vocab]] = True
        self._kinds: dict[tuple[str, ...], int] = {}  # stop strings -> line of the table below
        self._may_stop = np.zeros((0, codec.vocab), dtype=bool)  # ids that a stop string may end in
        self._rows: list[tuple[Request, int]] = []
        self._places = np.zeros(0, np.int64)  # row -> line of the buffers below
        self._counts = np.zeros(0, np.int64)
        self._limits = np.zeros(0, np.int64)
        self._kind = np.zeros(0, np.int64)
        self._alive = np.zeros(0, dtype=bool)
        self._tokens = torch.zeros(0, dtype=torch.long, device=device)
        self._free = list(range(lines))
        self._ids = np.zeros((lines, width), np.int64)
        self._logs = np.zeros((lines, width), np.float32)
        self._scores = np.zeros((lines, width), np.float32) if self.scorer else None
        self._uniforms = np.zeros((lines, width), np.float64)
        self._waiting: deque[Request] = deque()
        self._ended: list[Request] = []

    @property
    def busy(self) -> bool:
        """Whether rows are running or waiting."""
        return bool(self._rows or self._waiting)

    @property
    def hungry(self) -> bool:
        """Whether more requests would find a place at the next call of `advance`."""
        if self._rows and not self.engine.joins:
            return False
        ended = len(self._rows) - int(self._alive.sum())
        return len(self._free) + ended > sum(request.copies for request in self._waiting)

    def advance(self, requests: Sequence[Request]) -> list[Request]:
        """Let requests of at most `lines` samples join; decode until some have ended, and return those.

        It returns when an eighth of the rows that ran at its start, or after the last join, have ended, and
        at least one request; or when no row is left.
        """
        self._waiting.extend(requests)
        running = int(self._alive.sum()) + self._join()  # what joined may have ended with its first token
        while self._rows:
            if (running - int(self._alive.sum())) * _JOIN >= running:
                if self._ended:
                    break
                running = int(self._alive.sum()) + self._join()
            self._advance(*self.engine.step(self._tokens))
            self._leave(_LEAVE)
        ended, self._ended = self._ended, []
        return ended

    def _join(self) -> int:
        """Read the prompts of as many waiting requests as there are places, and draw their first tokens.

        The number of rows that joined.
        """
        joined = 0
        while self._waiting and (self.engine.joins or not self._rows):
            self._leave(len(self._rows) + 1)
            joining: list[Request] = []
            room = len(self._free)
            while self._waiting and self._waiting[0].copies <= room:
                joining.append(self._waiting.popleft())
                room -= joining[-1].copies
            if not joining:
                break
            self._read(sorted(joining, key=lambda r: -len(r.ids)))
            joined += sum(request.copies for request in joining)
            if self._rows:
                break
        return joined

    def _read(self, joining: list[Request]) -> None:
        starts = [Start(r.ids, r.copies, r.scored if self.scorer else len(r.ids)) for r in joining]
        read = self.engine.read(starts, max(r.limit for r in joining))
        if self.scorer:
            self._score_prefixes(joining, starts, read.scored)
        new = sum(r.copies for r in joining)
        places = np.array([self._free.pop() for _ in range(new)], np.int64)
        rows = [(r, i) for r in joining for i in range(r.copies)]
        if self.sampling.temperature > 0:
            for place, (r, i) in zip(places, rows, strict=True):
                self._uniforms[place, : r.limit] = uniforms(
                    self.sampling.seed, r.prompt.key, r.first + i, r.limit
                )
        self._rows += rows
        self._places = np.concatenate((self._places, places))
        self._counts = np.concatenate((self._counts, np.zeros(new, np.int64)))
        self._limits = np.concatenate((self._limits, [r.limit for r, _ in rows]))
        self._kind = np.concatenate((self._kind, [self._kind_of(r.stop) for r, _ in rows]))
        self._alive = np.concatenate((self._alive, np.ones(new, dtype=bool)))
        self._tokens = torch.cat((self._tokens, self._tokens.new_zeros(new)))
        repeat = torch.repeat_interleave(
            torch.arange(len(joining), device=self.device),
            torch.tensor([r.copies for r in joining], device=self.device),
        )
        self._advance(read.hidden[repeat], read.logits[repeat], len(self._rows) - new)
        self._leave(_LEAVE)

    def _kind_of(self, stop: tuple[str, ...]) -> int:
        if stop not in self._kinds:
            self._kinds[stop] = len(self._kinds)
            ids = self.codec.enders(stop) if stop else np.zeros(self.codec.vocab, dtype=bool)
            self._may_stop = np.vstack((self._may_stop, ids))
        return self._kinds[stop]

    def _score_prefixes(
        self, joining: list[Request], starts: list[Start], scored: list[tuple[Tensor, Tensor]]
    ) -> None:
        assert self.scorer is not None
        sizes = [len(logs) for _, logs in scored]
        if sum(sizes) == 0:
            return
        ids = torch.cat([torch.as_tensor(s.ids[s.scored :], dtype=torch.long) for s in starts]).to(
            self.device
        )
        scores = self.scorer(torch.cat([h for h, _ in scored]), ids, torch.cat([logs for _, logs in scored]))
        for r, part in zip(joining, scores.double().split(sizes), strict=True):
            r.prefix_score = float(part.sum())

    def _advance(self, hidden: Tensor, logits: Tensor, start: int = 0) -> None:
        """Draw the next token of the rows from `start` on, record it, and mark the rows that end with it."""
        places, counts = self._places[start:], self._counts[start:]
        column = np.minimum(counts, self._limits[start:] - 1)
        uniform = torch.from_numpy(self._uniforms[places, column]).to(self.device, torch.float32)
        drawn = draw(logits, self.sampling, uniform)
        logs = torch.log_softmax(logits, -1).gather(-1, drawn[:, None])[:, 0]
        self._tokens[start:] = drawn
        tokens = drawn.cpu().numpy()
        alive = self._alive[start:]
        at = (places[alive], counts[alive])
        self._ids[at] = tokens[alive]
        self._logs[at] = logs.cpu().numpy()[alive]
        if self._scores is not None and self.scorer is not None:
            self._scores[at] = self.scorer(hidden, drawn, logs).float().cpu().numpy()[alive]
        self._counts[start:] += alive
        ended = self._is_end[tokens] & alive
        stopped = self._may_stop[self._kind[start:], tokens] & alive & ~ended
        for row in np.flatnonzero(stopped):
            stopped[row] = self._stops_here(start + int(row))
        full = (self._counts[start:] >= self._limits[start:]) & alive
        for row in np.flatnonzero(ended | stopped | full):
            self._finish(start + int(row), "eos" if ended[row] else "stop" if stopped[row] else "length")

    def _stops_here(self, row: int) -> bool:
        """Whether a stop string ends in the row's last token."""
        request, _ = self._rows[row]
        count = int(self._counts[row])
        begin = max(0, count - 4 - max(len(stop.encode()) for stop in request.stop))
        ids = self._ids[self._places[row], begin:count].tolist()
        state = request.prompt.state if begin == 0 else ""
        return cut_at_stop(self.codec.decode(ids, request.ids), request.stop, state)[1]

    def _finish(self, row: int, finish: Literal["eos", "stop", "length"]) -> None:
        request, sample = self._rows[row]
        place, count = self._places[row], int(self._counts[row])
        ids = self._ids[place, :count].copy()
        text = self.codec.decode(ids[:-1].tolist() if finish == "eos" else ids.tolist(), request.ids)
        text, stopped = cut_at_stop(text, request.stop, request.prompt.state)
        request.done[sample] = Completion(
            text=text,
            token_ids=ids,
            log_probs=self._logs[place, :count].copy(),
            finish="stop" if stopped else finish,
            prompt_token_ids=tuple(request.ids),
            scores=None if self._scores is None else self._scores[place, :count].copy(),
            prefix_score=request.prefix_score,
        )
        self._alive[row] = False
        if len(request.done) == request.copies:
            self._ended.append(request)

    def _leave(self, share: int) -> None:
        """Drop finished rows once they are 1 / share of all: the last rows move to their places."""
        dead = len(self._rows) - int(self._alive.sum())
        if dead == 0 or dead * share < len(self._rows):
            return
        kept = len(self._rows) - dead
        rows = np.arange(kept)
        holes = np.flatnonzero(~self._alive[:kept])
        rows[holes] = kept + np.flatnonzero(self._alive[kept:])
        self._free += self._places[~self._alive].tolist()
        self._rows = [self._rows[i] for i in rows]
        self._places, self._counts = self._places[rows], self._counts[rows]
        self._limits, self._alive = self._limits[rows], self._alive[rows]
        self._kind = self._kind[rows]
        index: Tensor = torch.from_numpy(rows).to(self.device)
        self._tokens = self._tokens[index]
        self.engine.select(index)


def split(request: Request, size: int) -> list[Request]:
    """The request in parts of at most `size` samples."""
    return [
        Request(
            request.prompt,
            request.ids,
            request.scored,
            request.limit,
            first,
            min(size, request.copies - first),
            request.stop,
            request.owner,
        )
        for first in range(0, request.copies, size)
    ]
