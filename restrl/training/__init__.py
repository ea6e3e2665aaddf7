"""Training: one loop (loop.py), GRPO (grpo.py) and SFT (sft.py) on top of it."""
