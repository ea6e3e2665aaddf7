"""The losses of restrl in plain torch, as the equations are written: the one definition everything else must
match.

    spec         options and presets               LossSpec, PRESETS
    advantages   from raw rewards                  grouped_advantages, advantages_by_group, ...
    log_probs    from logits                       log_probs_from_logits
    weights      normalisers, entropy mask         Totals, loss_weights, entropy_weights, entropy_mask
    terms        the loss, by autograd             grpo_loss and the terms it is made of, sampler_ratio
    derivatives  the loss and its derivatives      token_gradients

Vocabulary: `B` rows (completions), `T` tokens of a completion, `P` prompts, `G` completions per prompt, `N`
flat tokens, `H` hidden size, `V` vocabulary. Log-probabilities are in nats. l is the policy's log-prob of a
token, l_old that of the policy which sampled it, l_ref that of the frozen start policy, m in {0, 1} the loss
mask, r the ratio, P the policy term, K the KL. docs/losses.md writes the equations out.

Sources: GRPO (arXiv 2402.03300), Dr. GRPO (2503.20783), DAPO (2503.14476), GSPO (2507.18071), the two-sided
clip (INTELLECT-2, 2505.07291), CISPO (2506.13585), SAPO (2511.20347), LUSPO (2602.05261), VESPO (2602.10693),
the entropy mask (2506.01939), the off-policy mask (DeepSeek-V3.2), GDPO; and the details of TRL's releases.
"""

from restrl.reference.advantages import (
    ADVANTAGE_EPS,
    Aggregation,
    Scale,
    advantages_by_group,
    group_std,
    grouped_advantages,
    multi_objective_advantages,
)
from restrl.reference.derivatives import TokenGradients, token_gradients
from restrl.reference.log_probs import TokenLogProbs, log_probs_from_logits
from restrl.reference.spec import PRESETS, Level, LossSpec, LossType, Preset
from restrl.reference.terms import (
    EXPONENT_BOUND,
    GrpoLoss,
    SamplerMode,
    grpo_loss,
    kl_term,
    log_ratios,
    off_policy_mask,
    sampler_ratio,
    vespo_weight,
)
from restrl.reference.weights import Totals, entropy_mask, entropy_weights, loss_weights

__all__ = [
    "ADVANTAGE_EPS",
    "EXPONENT_BOUND",
    "PRESETS",
    "Aggregation",
    "GrpoLoss",
    "Level",
    "LossSpec",
    "LossType",
    "Preset",
    "SamplerMode",
    "Scale",
    "TokenGradients",
    "TokenLogProbs",
    "Totals",
    "advantages_by_group",
    "entropy_mask",
    "entropy_weights",
    "group_std",
    "grouped_advantages",
    "grpo_loss",
    "kl_term",
    "log_probs_from_logits",
    "log_ratios",
    "loss_weights",
    "multi_objective_advantages",
    "off_policy_mask",
    "sampler_ratio",
    "token_gradients",
    "vespo_weight",
]
