"""Files shipped with restrl."""

from __future__ import annotations

from pathlib import Path

BASE_POLICY = Path(__file__).parent / "pipelines-base"
"""The small base policy for generated problems: Hugging Face format, made by restrl.recipes.base_policy."""
