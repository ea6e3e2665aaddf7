"""Text to token ids and back: offsets in, exact text out, and where stop strings may end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restrl.errors import RestrlError

_CONTEXT = (
    6  # ids before a piece that its text may depend on (byte fallback spells a character in up to four)
)


class Codec:
    """A fast tokenizer as the decode loop needs it."""

    def __init__(self, tokenizer: Any, vocab: int) -> None:
        """`vocab` is the number of the model's output ids; ids that the tokenizer lacks decode to ""."""
        if not tokenizer.is_fast:
            raise RestrlError(
                f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json; save a fast tokenizer "
                "(restrl needs its character offsets)"
            )
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer
        self.vocab = vocab
        self.special = frozenset(int(i) for i in tokenizer.all_special_ids)
        self._pieces = _byte_pieces(self.backend, vocab) if _is_byte_level(self.backend) else None
        self._enders: dict[tuple[str, ...], NDArray[np.bool_]] = {}

    def encode(self, text: str, special: bool = True) -> tuple[list[int], list[int]]:
        """(ids, end character of each id in `text`); `special` adds what the tokenizer puts before a text."""
        encoding = self.backend.encode(text, add_special_tokens=special)
        ids, ends = list(encoding.ids), [end for _, end in encoding.offsets]
        mask = encoding.special_tokens_mask
        while special and ids and mask[len(ids) - 1] and ends[-1] == 0 and text:
            ids.pop()  # an end-of-sequence token behind the text: the text is to be continued
            ends.pop()
        return ids, list(np.maximum.accumulate(ends)) if ends else []

    def decode(self, ids: Sequence[int], before: Sequence[int] = ()) -> str:
        """The text of `ids` when they follow `before`, without special tokens."""
        if self._pieces is not None:
            data = b"".join(self._pieces[i] for i in ids if i not in self.special)
            return data.decode("utf-8", errors="replace")
        head = list(before[-_CONTEXT:])
        return self._plain(head + list(ids))[len(self._plain(head)) :]

    def ends(self, ids: Sequence[int], before: Sequence[int] = (), literal: bool = False) -> list[int]:
        """End character of each id in decode(ids, before); `literal`: special tokens count as their text."""
        out, at = [], 0
        for t, i in enumerate(ids):
            if i in self.special:
                at += len(self.tokenizer.convert_ids_to_tokens(i)) if literal else 0
            elif self._pieces is not None:
                at += sum(byte & 0xC0 != 0x80 for byte in self._pieces[i])
            else:
                at += len(self.decode([i], [*before, *ids[:t]]))
            out.append(at)
        return out

    def enders(self, stops: tuple[str, ...]) -> NDArray[np.bool_]:
        """`[V]` ids that may hold the last character of a stop string: only there need one look."""
        if stops not in self._enders:
            table = np.zeros(self.vocab, dtype=bool)
            if self._pieces is not None:
                last = {stop.encode()[-1] for stop in stops}
                for i, piece in enumerate(self._pieces):
                    table[i] = not last.isdisjoint(piece)
            else:
                chars = {stop[-1] for stop in stops} | {"\ufffd"}
                for i in range(min(self.vocab, self.backend.get_vocab_size())):
                    table[i] = not chars.isdisjoint(self._plain([i]) or "\ufffd")
            self._enders[stops] = table
        return self._enders[stops]

    def _plain(self, ids: list[int]) -> str:
        return str(self.backend.decode(ids, skip_special_tokens=True))


def _is_byte_level(backend: Any) -> bool:
    decoder = json.loads(backend.to_str())["decoder"] or {}
    return decoder.get("type") == "ByteLevel"


def _byte_pieces(backend: Any, vocab: int) -> list[bytes]:
    """The bytes of every id of a byte-level BPE; b"" for ids that the tokenizer does not have."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    table = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    added = {i: token.content.encode() for i, token in backend.get_added_tokens_decoder().items()}
    pieces = [b""] * max(vocab, backend.get_vocab_size())
    for token, i in backend.get_vocab(with_added_tokens=True).items():
        if i >= len(pieces):
            pieces.extend([b""] * (i + 1 - len(pieces)))
        pieces[i] = added[i] if i in added else bytes(table[c] for c in token)
    return pieces[:vocab]
