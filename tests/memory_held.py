"""What a child process holds in a test of measured memory; a module of its own, for the child to import."""

import torch


def hold_80_mb() -> None:
    torch.ones(10_000_000)
    both = torch.ones(10_000_000), torch.ones(10_000_000)
    del both
