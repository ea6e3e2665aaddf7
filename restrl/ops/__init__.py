"""Losses on the log-probabilities of a language-model head, without its `[N, V]` logits: the public face.

    grpo_loss                 every loss of the GRPO family, from hidden states
    grpo_loss_from_logits     the same, from logits that exist already
    token_log_probs           log-probs and entropies of tokens, from hidden states
    cross_entropy_loss        supervised fine-tuning, from hidden states
    grouped_advantages        advantages of raw rewards
    value_score               scores of states by a scalar head; fold_scalar_head makes one from logits

Every operation takes `backend="auto" | "torch" | "triton"`. On any backend the meaning is that of
`restrl.reference`; docs/kernels.md says what is computed how, and how fast.
"""

from restrl.ops.grpo import GrpoOutput, grouped_advantages, grpo_loss, grpo_loss_from_logits
from restrl.ops.likelihood import CrossEntropy, cross_entropy_loss, token_log_probs
from restrl.ops.value import LineEnds, ScalarHead, fold_scalar_head, value_score

__all__ = [
    "CrossEntropy",
    "GrpoOutput",
    "LineEnds",
    "ScalarHead",
    "cross_entropy_loss",
    "fold_scalar_head",
    "grouped_advantages",
    "grpo_loss",
    "grpo_loss_from_logits",
    "token_log_probs",
    "value_score",
]
