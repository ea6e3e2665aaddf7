"""How the tokens of a loss are weighted: normalisers, the weights of the entropy bonus, the entropy mask."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from restrl.errors import RestrlError
from restrl.reference.spec import LossSpec


class Totals(NamedTuple):
    """Sizes of the batch that a loss is normalised over; it may be larger than the part at hand.

    rows            B, fully masked rows included
    tokens          sum of the mask
    entropy_tokens  sum of the mask where the entropy mask lets tokens through; None: there is no such mask
    """

    rows: float
    tokens: float
    entropy_tokens: float | None = None

    @staticmethod
    def of(mask: Tensor, entropy_mask: Tensor | None = None) -> Totals:
        """Of a whole batch `[B, T]`."""
        seen = None if entropy_mask is None else float((entropy_mask & (mask > 0)).sum())
        return Totals(mask.shape[0], float(mask.sum()), seen)

    @staticmethod
    def as_trl(
        mask: Tensor,
        spec: LossSpec,
        *,
        gradient_accumulation_steps: int = 1,
        num_processes: int = 1,
        steps_per_generation: int | None = None,
        num_items_in_batch: float | None = None,
        entropy_mask: Tensor | None = None,
        release: Literal["1.8", "1.16"] = "1.16",
    ) -> Totals:
        """The totals under which the loss of one forward pass, `mask` `[B, T]`, is TRL's.

        steps_per_generation  forward passes per generation batch; None: gradient_accumulation_steps. In
                              evaluation both are 1.
        num_items_in_batch    sum of the mask of the generation batch, over all processes; None: this forward
                              pass is all of it
        release               "1.8": Z and the weight of the entropies of dapo, cispo and vespo as up to 1.8
        """
        part = Totals.of(mask, entropy_mask)
        accumulated = gradient_accumulation_steps
        tokens = max(1.0, part.tokens) * accumulated
        if spec.loss_type in ("dapo", "cispo", "vespo"):
            items = max(1.0, part.tokens if num_items_in_batch is None else num_items_in_batch)
            tokens = items / num_processes
            if release == "1.8":
                return Totals(part.rows * accumulated, tokens, tokens)
            tokens *= accumulated / (steps_per_generation or accumulated)
        seen = part.tokens if part.entropy_tokens is None else part.entropy_tokens
        return Totals(part.rows * accumulated, tokens, max(1.0, seen) * accumulated)


def loss_weights(mask: Tensor, spec: LossSpec, totals: Totals) -> Tensor:
    """W of loss = sum of W m f, in a shape that broadcasts with `[B, T]`. It depends neither on the model nor
    on the token within the row.

    grpo, sapo                  1 / (B n_i)       mean of the rows' token means (n_i: tokens of row i)
    bnpo, dapo, cispo, vespo    1 / sum m         token mean
    dr_grpo                     1 / (B L_max)     constant
    luspo                       1 / B             mean of the rows' token sums

    `totals` holds B and sum m of the optimiser's batch, so that parts of it add up to the whole: how it is
    cut into forward passes does not matter. bnpo and dapo are then the same; they differ in TRL, whose bnpo
    takes the mean over each forward pass (`Totals.as_trl`).
    """
    rows = max(1.0, totals.rows)
    if spec.loss_type in ("grpo", "sapo"):
        return 1 / (rows * mask.sum(1, keepdim=True).clamp(min=1))
    if spec.loss_type == "luspo":
        weight = 1 / rows
    elif spec.loss_type == "dr_grpo":
        assert spec.max_completion_length is not None  # checked by LossSpec
        weight = 1 / (rows * spec.max_completion_length)
    else:
        weight = 1 / totals.tokens if totals.tokens > 0 else 1.0
    return torch.tensor(weight, dtype=mask.dtype if mask.is_floating_point() else None, device=mask.device)


def entropy_weights(
    mask: Tensor, spec: LossSpec, totals: Totals, entropy_mask: Tensor | None = None
) -> Tensor:
    """`[B, T]` weights w of the entropy bonus: the loss is lowered by sum of w H, entropy_coef times the mean
    of H over the unmasked tokens that the entropy mask lets through.

    Raises RestrlError when there is an entropy mask and `totals` does not count what it lets through.
    """
    seen = totals.tokens if totals.entropy_tokens is None else totals.entropy_tokens
    live = mask > 0
    if entropy_mask is not None:
        live = live & entropy_mask
        if totals.entropy_tokens is None:
            raise RestrlError(
                f"entropy_coef {spec.entropy_coef} with top_entropy_quantile {spec.top_entropy_quantile} "
                "divides by the tokens that the entropy mask lets through; totals.entropy_tokens is not set"
            )
    dtype = mask.dtype if mask.is_floating_point() else torch.get_default_dtype()
    return live.to(dtype) * (spec.entropy_coef / (seen if seen > 0 else 1.0))


def entropy_mask(entropies: Tensor, mask: Tensor, rho: float) -> Tensor:
    """Where the entropy is at least the (1 - rho)-quantile of the entropies at unmasked positions (bool).

    entropies and mask are of one shape, of the whole batch; compared in float32.
    """
    live, entropies = mask > 0, entropies.detach().float()
    seen = entropies[live]
    if seen.numel() == 0:
        return live
    return live & (entropies >= seen.quantile(1 - rho))
