"""Tokens per CPU-second of LocalPolicy and of transformers' `generate`, one thread, the shipped policy.

    python benchmarks/bench_policy.py [ROWS ...]

One JSON row per number of rows: 8 samples a prompt, prompts of the pipelines family, both in the same run.
"""

from __future__ import annotations

import json
import platform
import sys
import time

import torch

from restrl.assets import BASE_POLICY
from restrl.policy import Sampling
from restrl.policy.local import LocalPolicy
from restrl.problems import pipelines

SAMPLES, NEW_TOKENS = 8, 160


def measure(rows: int) -> dict[str, object]:
    policy = LocalPolicy(BASE_POLICY, device="cpu", dtype="float32", max_rows=rows)
    problems = pipelines.generate("dev", rows // SAMPLES, seed=0)
    prompts = [policy.format.prompt(p, p.prefix, p.task_id) for p in problems]
    sampling = Sampling(temperature=0.7, max_new_tokens=NEW_TOKENS)
    policy.complete(prompts[:2], SAMPLES, sampling)  # warm up
    start = time.process_time()
    groups = policy.complete(prompts, SAMPLES, sampling)
    ours = sum(len(c.token_ids) for group in groups for c in group) / (time.process_time() - start)

    tokenizer = policy.tokenizer
    tokenizer.padding_side = "left"
    inputs = tokenizer([p.text for p in prompts for _ in range(SAMPLES)], return_tensors="pt", padding=True)
    start = time.process_time()
    with torch.no_grad():
        out = policy.model.generate(**inputs, do_sample=True, temperature=0.7, max_new_tokens=NEW_TOKENS)
    new = out[:, inputs["input_ids"].shape[1] :]
    theirs = int((new != tokenizer.pad_token_id).sum()) / (time.process_time() - start)
    return {
        "rows": rows,
        "restrl_tokens_per_cpu_s": round(ours),
        "generate_tokens_per_cpu_s": round(theirs),
        "ratio": round(ours / theirs, 2),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for count in [int(word) for word in sys.argv[1:]] or [64, 256, 512]:
        print(json.dumps(measure(count)), flush=True)
