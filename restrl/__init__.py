"""ReST-RL for code-writing language models: reinforced self-training and value-guided tree search."""

__version__ = "0.1.0"
