"""The GRPO losses on hidden states and on logits: rewards or advantages in, loss and gradients out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.ops.arguments import (
    BackendName,
    Options,
    backend_for,
    check_token_ids,
    flat_tokens,
    live_rows,
    plan_for,
    scatter,
)
from restrl.ops.linear import Plan, Wanted, attach, gradient_pass, log_probs_pass, recomputed_log_probs
from restrl.ops.logits import LogitPlan, loss_of_logits
from restrl.ops.rule import Batch, GrpoRule, Layout
from restrl.reference import LossSpec, Scale, Totals
from restrl.reference.advantages import SCALES
from restrl.reference.spec import check_choice


class GrpoOutput(NamedTuple):
    """loss: differentiable scalar. The rest is detached; all but `advantages` have the tokens' shape.

    log_probs     l in nats, 0 where not computed
    entropies     nats, likewise; None where not asked for
    advantages    `[B]` A
    computed      bool: the row counts and was computed; the others cost nothing and have no gradient
    kl            estimate of KL(policy || reference), nats; None where beta is 0
    clipped_low, clipped_high  bool: the ratio is past a bound that A pulls it over
    """

    loss: Tensor
    log_probs: Tensor
    entropies: Tensor | None
    advantages: Tensor
    computed: Tensor
    kl: Tensor | None
    clipped_low: Tensor
    clipped_high: Tensor


def grouped_advantages(
    rewards: Tensor, groups: Tensor, scale: Scale = "group", *, backend: BackendName = "auto"
) -> Tensor:
    """`[B]` advantages of raw `rewards` `[B]` within `groups` `[B]` (integer ids, any sizes and order).

    As `restrl.reference.advantages_by_group`: equal rewards give exactly 0, NaN is left out and gives 0.
    """
    if rewards.dim() != 1 or not rewards.is_floating_point():
        raise RestrlError(
            f"rewards must be [B] floats; they are {rewards.dtype} of shape {list(rewards.shape)}"
        )
    if groups.shape != rewards.shape or groups.is_floating_point():
        raise RestrlError(
            f"groups must be {len(rewards)} integers, one per reward; they are {groups.dtype} of shape "
            f"{list(groups.shape)}"
        )
    check_choice("scale_rewards", scale, SCALES)
    return backend_for(backend, rewards).grouped_advantages(rewards, groups.to(rewards.device), scale)


def grpo_loss(
    hidden: Tensor,
    lm_head: Tensor,
    tokens: Tensor,
    *,
    spec: LossSpec,
    rewards: Tensor | None = None,
    groups: Tensor | None = None,
    advantages: Tensor | None = None,
    scale_rewards: Scale = "group",
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    sampler: Tensor | None = None,
    importance_ratio: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    totals: Totals | None = None,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk_rows: int | None = None,
    drop_zero_advantages: bool = True,
    entropies: bool = True,
    backend: BackendName = "auto",
) -> GrpoOutput:
    """The GRPO loss of `B` completions from hidden states and the head, without `[N, V]` logits.

    The logits of a row are cap((h W^T + bias) * logit_scale) / temperature, with cap(x) = softcap tanh(x /
    softcap). The equations of the loss: docs/losses.md.

    hidden            `[B, T, H]`, or `[N, H]` packed: final hidden states, each the one before its token
    lm_head           `[V, H]`, of the same dtype, unless autocast is on, whose dtype the matmuls then have
    tokens            `[B, T]`, or `[N]`: ids; what stands in rows that do not count is never read
    spec              which loss
    rewards, groups   `[B]` raw rewards and group ids (`grouped_advantages`, with `scale_rewards`), or
    advantages        `[B]`
    mask              of the tokens' shape, above 0 = counts; None: all do. No argument is read where it is 0
    lengths           `[B]` of the packed completions, in order
    old, ref, sampler of the tokens' shape: log-probs of the policy that sampled (None: this one), of the
                      reference (needed where beta > 0), of the sampling engine (off-policy mask)
    importance_ratio  of the tokens' shape, or `[B, 1]`: multiplies the policy term
    entropy_mask      bool, of the optimiser's batch; None: made from this call's tokens, if rho < 1
    totals            of the optimiser's batch, None: this call is all of it
    bias              `[V]`
    vocab_size        rows of the head that count; None: all. Those past it are padding, with gradient 0
    chunk_rows        rows whose logits exist at a time; None: the backend's choice. Results do not depend on
                      it beyond rounding
    drop_zero_advantages  leave out completions with A = 0, where these have no gradient: log-probs are not
                      computed there
    entropies         False: not returned, which saves a little
    backend           "auto" (triton for tensors on a GPU, else torch), "torch", "triton"

    Gradients of hidden, lm_head and bias, where they require them, are formed in the forward pass (3 matmuls)
    unless a token's gradient depends on more of its sequence than a chunk holds, or on the whole batch; then
    the backward pass computes the logits again (4). They are summed in float32, and the backward pass can be
    run once.

    Raises RestrlError for arguments that do not fit together, and for token ids outside the vocabulary.
    """
    flat = flat_tokens(tokens, hidden, "hidden")
    rows = hidden.reshape(-1, hidden.shape[-1])
    batch = _batch(
        tokens, spec, rewards, groups, advantages, scale_rewards, mask, lengths, old, ref, sampler,
        importance_ratio, entropy_mask, totals, backend,
    )  # fmt: skip
    options = Options(bias, logit_scale, softcap, temperature, vocab_size, chunk_rows, backend)
    plan = plan_for(rows, lm_head, flat, batch.live(spec, drop_zero_advantages), options)
    rule = GrpoRule(batch, spec, plan.live, plan.accumulator, plan.backend.token_gradients)
    loss = _linear_loss(plan, rows, lm_head, bias, rule, entropies or spec.needs_entropies)
    return _output(loss, rule, plan.live, batch, entropies)


def grpo_loss_from_logits(
    logits: Tensor,
    tokens: Tensor,
    *,
    spec: LossSpec,
    rewards: Tensor | None = None,
    groups: Tensor | None = None,
    advantages: Tensor | None = None,
    scale_rewards: Scale = "group",
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    sampler: Tensor | None = None,
    importance_ratio: Tensor | None = None,
    entropy_mask: Tensor | None = None,
    totals: Totals | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    drop_zero_advantages: bool = True,
    entropies: bool = True,
    inplace: bool = False,
    backend: BackendName = "auto",
) -> GrpoOutput:
    """`grpo_loss` of logits `[B, T, V]` (`[N, V]` packed) that exist already; any strides.

    inplace  the gradient takes the logits' memory, in the forward pass: they are lost to everybody else, and
             autograd refuses a backward pass that needs them. Not for float16 with a loss scaler: the
             gradient is rounded before its factor comes
    """
    flat = flat_tokens(tokens, logits, "logits")
    options = Options(None, logit_scale, softcap, temperature, vocab_size, None, backend)
    options.check()
    batch = _batch(
        tokens, spec, rewards, groups, advantages, scale_rewards, mask, lengths, old, ref, sampler,
        importance_ratio, entropy_mask, totals, backend,
    )  # fmt: skip
    if inplace and (logits.stride(-1) != 1 or (logits.dim() > 0 and 0 in logits.stride())):
        raise RestrlError("inplace needs logits whose rows are contiguous and of their own; leave it False")
    live = live_rows(batch.live(spec, drop_zero_advantages))
    vocabulary = options.vocabulary(logits.shape[-1])
    check_token_ids(flat if live is None else flat[live], vocabulary)
    if live is not None:
        flat = torch.full_like(flat, -1).index_copy(0, live, flat[live])
    module = backend_for(backend, logits)
    plan = LogitPlan(
        flat,
        live,
        vocabulary,
        module.logit_rows(float(logit_scale), softcap, float(temperature)),
        module,
    )
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    rule = GrpoRule(batch, spec, live, dtype, module.token_gradients)
    entropy = entropies or spec.needs_entropies
    loss = loss_of_logits(plan, logits, rule, entropy=entropy, inplace=inplace)
    return _output(loss, rule, live, batch, entropies)


def _batch(
    tokens: Tensor,
    spec: LossSpec,
    rewards: Tensor | None,
    groups: Tensor | None,
    advantages: Tensor | None,
    scale_rewards: Scale,
    mask: Tensor | None,
    lengths: Tensor | None,
    old: Tensor | None,
    ref: Tensor | None,
    sampler: Tensor | None,
    importance_ratio: Tensor | None,
    entropy_mask: Tensor | None,
    totals: Totals | None,
    backend: BackendName,
) -> Batch:
    """Checked and flat. Raises RestrlError for what does not fit together."""
    layout = Layout.of(tokens, lengths)
    if (advantages is None) == (rewards is None) or (groups is None) != (rewards is None):
        raise RestrlError("give either rewards and groups, or advantages")
    if advantages is not None and scale_rewards != "group":
        raise RestrlError(f"scale_rewards {scale_rewards!r} is of rewards, and advantages are given")
    if rewards is not None and groups is not None:
        advantages = grouped_advantages(
            layout.of_rows(rewards, "rewards"), groups, scale_rewards, backend=backend
        )
    assert advantages is not None
    advantages = layout.of_rows(advantages, "advantages")
    if not bool(advantages.isfinite().all()):
        raise RestrlError("advantages hold NaN or infinite values; rewards may (they are left out)")
    if spec.beta > 0 and ref is None:
        raise RestrlError(f"beta {spec.beta} needs the reference policy's log-probs, and ref is None")
    if entropy_mask is not None and not spec.needs_batch:
        raise RestrlError(
            "entropy_mask has no meaning with top_entropy_quantile 1.0, which keeps every token"
        )
    of_rows = importance_ratio is not None and importance_ratio.shape == (layout.rows, 1) != tokens.shape
    if of_rows:
        assert importance_ratio is not None
        if spec.loss_type == "vespo":
            raise RestrlError("loss_type 'vespo' needs an importance_ratio per token; it has shape [B, 1]")
        ratio: Tensor | None = importance_ratio.detach().to(tokens.device)[:, 0][layout.row]
    else:
        ratio = layout.flat(importance_ratio, "importance_ratio")
    return Batch(
        layout,
        advantages,
        layout.flat(mask, "mask"),
        layout.flat(old, "old"),
        layout.flat(ref, "ref"),
        layout.flat(sampler, "sampler"),
        ratio,
        of_rows,
        layout.flat(entropy_mask, "entropy_mask"),
        totals,
    )


def _linear_loss(
    plan: Plan, hidden: Tensor, lm_head: Tensor, bias: Tensor | None, rule: GrpoRule, entropy: bool
) -> Tensor:
    """The loss in as few matmuls as its spec allows; `rule` has seen all live rows afterwards."""
    wanted = Wanted.of(hidden, lm_head, bias)
    spans = None
    if any(wanted) and not rule.waits_for_batch:
        spans = plan.spans() if rule.by_token else plan.spans_of_sequences(rule.live_lengths.tolist())
    if spans is not None:
        gradients = gradient_pass(
            plan, hidden, lm_head, bias, rule, spans=spans, entropy=entropy, wanted=wanted
        )
        return attach(rule.loss, gradients, (hidden, lm_head, bias), plan.backend)
    if any(wanted):
        found = recomputed_log_probs(plan, hidden, lm_head, bias, entropy)
    else:
        found = log_probs_pass(plan, hidden, lm_head, bias, entropy)
    if rule.waits_for_batch:
        assert found.entropies is not None
        rule.see_batch(found.entropies.detach())
    g, c = rule(slice(0, None), found.map(torch.Tensor.detach))
    if not any(wanted):
        return rule.loss
    return attach(
        rule.loss, (g, c), (found.log_probs, found.entropies if c is not None else None), plan.backend
    )


def _output(loss: Tensor, rule: GrpoRule, live: Tensor | None, batch: Batch, entropies: bool) -> GrpoOutput:
    tokens = batch.layout.tokens
    empty = torch.zeros(0, dtype=rule.dtype, device=tokens.device)

    def spread(values: Tensor | None, dtype: torch.dtype) -> Tensor:
        found = scatter((empty if values is None else values).to(dtype), live, tokens)
        assert found is not None
        return found

    computed = torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
    if live is not None:
        computed = torch.zeros_like(computed).reshape(-1).index_fill(0, live, True).reshape(tokens.shape)
    return GrpoOutput(
        loss,
        spread(rule.column_of(lambda s, r: s.log_probs), rule.dtype),
        spread(rule.column_of(lambda s, r: s.entropies), rule.dtype) if entropies else None,
        batch.advantages,
        computed,
        spread(rule.column_of(lambda s, r: r.kl), rule.dtype) if rule.spec.beta > 0 else None,
        spread(rule.column_of(lambda s, r: r.clipped_low), torch.bool),
        spread(rule.column_of(lambda s, r: r.clipped_high), torch.bool),
    )
