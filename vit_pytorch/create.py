"""Building a named model, with published weights where wanted."""

from __future__ import annotations

from typing import Any

from vit_pytorch.model import VisionModel
from vit_pytorch.registry import find_entry


def create_model(name: str, **overrides: Any) -> VisionModel:
    """Build a named model.

    Args:
        name: one of `list_models()`.
        overrides: arguments of the architecture that shall differ from the named model's.

    Raises:
        ValueError: where no model has that name, or an override is not an argument of it.
    """
    return find_entry(name).build(**overrides)
