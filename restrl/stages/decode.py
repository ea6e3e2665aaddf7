"""Answer problems with every decoding method, at equal budgets, and keep what each one cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from restrl.config import VALUE_METHODS, DecodeConfig
from restrl.decode import Answer, Draws, answers_at, decode, decode_trees, draw
from restrl.errors import RestrlError
from restrl.policy import Policy
from restrl.progress import Progress
from restrl.prompts import PromptFormat
from restrl.records import SCHEMA_VERSION, Problem
from restrl.rows import Appender, Row, write_json
from restrl.sandbox import Verifier
from restrl.stages.collect import wave
from restrl.value import ValueModel


def decode_problems(
    policy: Policy,
    form: PromptFormat,
    problems: Sequence[Problem],
    cfg: DecodeConfig,
    out: Path,
    *,
    seed: int,
    values: Mapping[str, ValueModel],
    verifier: Verifier,
) -> list[Row]:
    """Decode with every method of `cfg.methods`; methods that need a value model once for each of `values`.

    Writes one row per problem to `out`: {"schema", "task_id", "answers": [{"decoding", "value_head",
    "budget", "programs", "generated", "generated_tokens", "value_tokens", "verifier_seconds", "seconds"}]}.
    An answer has one program, except "sample": all the budget's samples, so that its accuracy is the mean
    over them (its cost is that of one). Methods that choose among completions also answer at the budgets
    1, 2, 4, ... below cfg.budget, from the same run. The first search tree of each value model is written to
    `out` with the suffix .<head>.tree.json.
    """
    needing = [m for m in cfg.methods if m in VALUE_METHODS]
    if needing and not values:
        raise RestrlError(
            f"the decoding methods {', '.join(needing)} need a value model, and there is none: run the "
            "stages collect and train-value first, or leave them out of decode.methods"
        )
    size = wave(cfg.trees_in_flight)
    with Appender(out, size) as file:
        with Progress("decode", len(problems), len(file.rows)) as bar:
            for start in range(len(file.rows), len(problems), size):
                chunk = problems[start : start + size]
                rows: list[Row] = [
                    {"schema": SCHEMA_VERSION, "task_id": p.task_id, "answers": []} for p in chunk
                ]
                for head, answers, draws in _chunk(policy, form, chunk, cfg, out, seed, values, verifier):
                    for row, answer, drawn in zip(rows, answers, draws, strict=True):
                        row["answers"].append(_row(head, answer, drawn))
                file.append(rows)
                bar.update(len(chunk))
        return file.finish()


def _chunk(
    policy: Policy,
    form: PromptFormat,
    problems: Sequence[Problem],
    cfg: DecodeConfig,
    out: Path,
    seed: int,
    values: Mapping[str, ValueModel],
    verifier: Verifier,
) -> list[tuple[str | None, Sequence[Answer], Sequence[Draws | None]]]:
    """(value head, one answer per problem, their samples for "sample") of every method and budget."""
    free = values.get("additive")  # scores the shared samples while they are drawn
    draws = draw(problems, policy, cfg, cfg.budget, form=form, seed=seed, value=free)
    none: list[None] = [None] * len(problems)
    found: list[tuple[str | None, Sequence[Answer], Sequence[Draws | None]]] = []
    for method in cfg.methods:
        for head in list(values) if method in VALUE_METHODS else [None]:
            value = values[head] if head else None
            if method == "orm-mcts" or method == "vm-mcts":
                assert value is not None
                pairs = decode_trees(method, problems, policy, cfg, form=form, value=value, seed=seed)
                answers = [a for a, _ in pairs]
                tree = out.with_suffix(f".{head}.tree.json")
                if method == "vm-mcts" and not tree.exists():
                    write_json(tree, pairs[0][1].to_json())
            else:
                answers = decode(
                    method, problems, policy, cfg, form=form, seed=seed, value=value, verifier=verifier,
                    draws=draws,
                )  # fmt: skip
            if method == "sample" or method == "greedy":
                found.append((head, answers, draws if method == "sample" else none))
            else:
                for at in answers_at(answers, budgets(cfg.budget)).values():
                    found.append((head, at, none))
    return found


def budgets(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return [b for b in (2**i for i in range(most.bit_length())) if b < most] + [most]


def _row(head: str | None, answer: Answer, drawn: Draws | None) -> Row:
    row = answer.to_row()
    programs = [s.program for s in drawn.samples] if drawn else [answer.program]
    return {
        "decoding": answer.method,
        "value_head": head,
        "budget": answer.budget,
        "programs": programs,
        **{k: row[k] for k in ("generated", "generated_tokens", "value_tokens")},
        "verifier_seconds": round(answer.verifier_seconds, 6),
        "seconds": round(answer.seconds, 6),
    }
