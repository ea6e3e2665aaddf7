"""The shipped base policy: a small Qwen2 model trained from scratch on the imperfect pipelines corpus.

    python -m restrl.recipes.base_policy --out runs/base --seed 0

Language modelling over specification and program, fresh texts in every step, AdamW with a cosine schedule,
one thread, float32. The folder it writes is an ordinary Hugging Face model with its tokenizer, and
`metrics.json` beside it has the loss and what the policy does on held-out problems.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from restrl.problems import pipelines

CONTEXT = 512  # tokens; a specification and program of 12 operations has about 330
EOS, PAD = "<eos>", "<pad>"
_BUCKET = 32  # batches that are sorted by length together, so that a batch has little padding


@dataclass(frozen=True)
class Recipe:
    """What is trained. `steps` x `batch` programs are seen once each; `lr` is the peak of the cosine."""

    steps: int = 3000
    batch: int = 32
    lr: float = 4e-3
    warmup: int = 100
    weight_decay: float = 0.01
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 256
    vocabulary: int = 512
    seed: int = 0


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose line ends are tokens of their own: text cut there tokenises as the whole does.

    `AutoTokenizer` gives every qwen2 model Qwen2's pre-tokenizer, whatever the folder says. The words here
    are Qwen2's too, cut at line ends; since no merge holds a line end, both ways of loading give equal ids.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """The model with random weights drawn from the recipe's seed."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(recipe.seed)
    return Qwen2ForCausalLM(config)


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Tensor]:
    """`steps` batches of token ids `[B, T]` int64 with their end token, padded on the right."""
    texts = pipelines.corpus(recipe.steps * recipe.batch, recipe.seed)
    rng = random.Random(recipe.seed)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for start in range(0, recipe.steps, _BUCKET):
        count = min(_BUCKET, recipe.steps - start)
        rows = tokenizer([next(texts) for _ in range(count * recipe.batch)])["input_ids"]
        rows.sort(key=len)
        bucket = [rows[i * recipe.batch : (i + 1) * recipe.batch] for i in range(count)]
        rng.shuffle(bucket)
        for group in bucket:
            length = len(group[-1]) + 1
            yield torch.tensor([ids + [eos] + [pad] * (length - len(ids) - 1) for ids in group])


def train(recipe: Recipe) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast, dict[str, float]]:
    """The trained model, its tokenizer, and "loss" (nats a token, last 100 steps), "seconds" and "tokens"."""
    tokenizer = train_tokenizer(pipelines.corpus(4000, recipe.seed), recipe.vocabulary)
    model = new_model(recipe, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )

    def rate(step: int) -> float:
        done = max(0, step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    pad = tokenizer.pad_token_id
    losses: list[float] = []
    tokens = 0
    start = time.perf_counter()
    bar = tqdm(batches(recipe, tokenizer), total=recipe.steps, desc="base policy", unit="step", mininterval=5)
    for ids in bar:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        targets = ids[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        tokens += int((targets != pad).sum())
        losses = [*losses[-99:], loss.item()]
        bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", refresh=False)
    stats = {"loss": sum(losses) / len(losses), "seconds": time.perf_counter() - start, "tokens": tokens}
    return model.eval(), tokenizer, stats


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the small base policy on the pipelines corpus.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = vars(parser.parse_args(argv))
    out: Path = args.pop("out")
    recipe = Recipe(**args)
    torch.set_num_threads(1)
    model, tokenizer, stats = train(recipe)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    metrics: dict[str, Any] = {
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train": stats,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
