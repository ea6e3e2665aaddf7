"""Losses on log-probabilities of a language-model head, without the `[N, V]` logits: the public face."""
