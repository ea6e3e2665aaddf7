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
from restrl.recipes.measure import measure_checkpoint

CONTEXT = 512  # tokens; a specification and program of 12 operations has about 330
EOS, PAD = "<eos>", "<pad>"
_BUCKET = 32  # batches that are sorted by length together, so that a batch has little padding


@dataclass(frozen=True)
class Recipe:
    """What is trained. `steps` x `batch` programs are seen once each; `lr` is the peak of the cosine.

    ramp         share of the steps in which the longest text grows from 1 operation to `longest`, slowly at
                 first: copying an argument is learned on short programs in a tenth of the time
    spec_weight  weight of a specification token in the loss (a program token has 1): its words are random
    """

    steps: int = 4400
    batch: int = 16
    lr: float = 4e-3
    warmup: int = 200
    ramp: float = 0.4
    longest: int = 6
    spec_weight: float = 0.1
    weight_decay: float = 0.01
    hidden: int = 96
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4
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
        unk_token=EOS,  # bytes are never unknown; unset, Qwen2's loader adds a token without an embedding
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
        initializer_range=recipe.hidden
        ** -0.5,  # at the usual 0.02 so narrow a model learns no copying in time
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    torch.manual_seed(recipe.seed)
    return Qwen2ForCausalLM(config)


def length_limit(recipe: Recipe, step: int) -> int:
    """The most operations of a text in this step."""
    done = min(1.0, step / max(1.0, recipe.ramp * recipe.steps))
    return 1 + int(done**2 * (recipe.longest - 1))


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """`steps` batches (ids `[B, T]` int64, weights `[B, T]` float32), padded on the right with weight 0.

    A row is a text and its end token; a weight says how much the prediction of its token counts in the loss.
    """
    rng = random.Random(recipe.seed)
    streams: dict[int, Iterator[str]] = {}
    newline = tokenizer("\n")["input_ids"][0]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for start in range(0, recipe.steps, _BUCKET):
        count = min(_BUCKET, recipe.steps - start)
        limit = length_limit(recipe, start)
        if limit not in streams:
            streams[limit] = pipelines.corpus(recipe.steps * recipe.batch, recipe.seed, (1, limit))
        rows = tokenizer([next(streams[limit]) for _ in range(count * recipe.batch)])["input_ids"]
        rows.sort(key=len)
        bucket = [rows[i * recipe.batch : (i + 1) * recipe.batch] for i in range(count)]
        rng.shuffle(bucket)
        for group in bucket:
            length = len(group[-1]) + 1
            ids = torch.tensor([row + [eos] + [pad] * (length - len(row) - 1) for row in group])
            lines = (ids == newline).cumsum(1) - (ids == newline).long()  # line ends before each token
            weights = torch.where(lines < 2, recipe.spec_weight, 1.0) * (ids != pad)
            yield ids, weights


def train(recipe: Recipe) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast, dict[str, float]]:
    """The model, its tokenizer, and "loss" (nats a program token, last 100 steps), "seconds" and "tokens"."""
    tokenizer = train_tokenizer(pipelines.corpus(4000, recipe.seed), recipe.vocabulary)
    model = new_model(recipe, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )

    def rate(step: int) -> float:
        done = max(0, step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * done))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses: list[float] = []
    tokens = 0
    start = time.perf_counter()
    bar = tqdm(batches(recipe, tokenizer), total=recipe.steps, desc="base policy", unit="step", mininterval=5)
    for ids, weights in bar:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        weights = weights[:, 1:]
        ((nats * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        tokens += int((weights > 0).sum())
        losses = [*losses[-99:], nats.detach()[weights == 1.0].mean().item()]
        bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", refresh=False)
    stats = {"loss": sum(losses) / len(losses), "seconds": time.perf_counter() - start, "tokens": tokens}
    return model.eval(), tokenizer, stats


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the small base policy on the pipelines corpus.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    for name, default in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--measure", type=int, default=200, metavar="N", help="held-out problems (0: none)")
    args = vars(parser.parse_args(argv))
    out: Path = args.pop("out")
    held_out: int = args.pop("measure")
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
    if held_out:
        metrics["test"] = measure_checkpoint(
            out, split="test", n=held_out, difficulty=(2, 6), samples=25, seed=recipe.seed
        )
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
