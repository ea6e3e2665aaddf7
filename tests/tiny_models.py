"""Tiny random checkpoints with a byte-level BPE trained on the fly, saved in Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLOSING = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""A template without generation prompt that closes the assistant's turn with the end-of-sequence token."""

CORPUS = [
    "# b: keep items at least 5; c: reverse the order; return the list\ndef f(a):\n"
    "    b = [x for x in a if x >= 5]\n",
    "    c = b[::-1]\n    return c\n",
    "def add(x, y):\n    return x + y\n\n\nclass Solution:\n"
    "    def solve(self, n: int) -> int:\n        if n > 1:\n",
    "import sys\nfor line in sys.stdin:\n    print(sum(int(v) for v in line.split()))\n",
    "```python\nprint('Grüße, 世界 🙂')\n```\n",
]


def tiny_tokenizer(vocab: int = 384, chat_template: bool | str = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab` ids. chat_template: True is ChatML, a string is the template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    if chat_template:
        fast.chat_template = CHATML if chat_template is True else chat_template
    return fast


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def make_tiny_qwen2(
    folder: str | Path,
    vocab: int = 384,
    chat_template: bool | str = False,
    *,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    context: int = 512,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A random Qwen2 (weights large enough that its samples vary) with its tokenizer; the folder."""
    tokenizer = tiny_tokenizer(vocab, chat_template)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab,
            hidden_size=hidden,
            intermediate_size=hidden * 2,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=context,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,
            **config,
        )
    )
    return _save(model, tokenizer, folder)


def make_tiny_llama(
    folder: str | Path, vocab: int = 384, chat_template: bool | str = False, *, seed: int = 0, **config: Any
) -> Path:
    """A random Llama with its tokenizer; the folder."""
    tokenizer = tiny_tokenizer(vocab, chat_template)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,
            **config,
        )
    )
    return _save(model, tokenizer, folder)
