"""What tests of the kernels share: on a GPU they run compiled, elsewhere in Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal float32 numbers."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return numbers.to(DEVICE)


def integers(seed: int, below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number where that is above 1."""
    if expected.numel() == 0:
        return 0.0
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
