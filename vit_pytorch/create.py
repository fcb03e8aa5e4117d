"""Building a named model, with published weights where wanted."""

from __future__ import annotations

import os
from typing import Any

from vit_pytorch.model import VisionModel
from vit_pytorch.pretrained.load import load_pretrained
from vit_pytorch.pretrained.source import HUB
from vit_pytorch.registry import find_entry


def create_model(
    name: str,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    num_classes: int | None = None,
    **overrides: Any,
) -> VisionModel:
    """Build a named model.

    Args:
        name: one of `list_models()`.
        pretrained: True for the published weights, from the Hugging Face Hub; or a checkpoint of any
            known format: a weight file, a folder, or `hf-hub:organisation/name` (see `load_pretrained`).
        num_classes: number of logits; where it is not the checkpoint's, the classifier starts anew.
        overrides: arguments of the architecture that shall differ from the named model's.

    Raises:
        ValueError: where no model has that name, an override is not an argument of it, there are no
            published weights, or the checkpoint does not fit.
        OSError: where the checkpoint cannot be read, or the Hub cannot be reached and nothing is cached.
    """
    entry = find_entry(name)
    if pretrained is True and entry.hub_id is None:
        raise ValueError(f"no published weights are known for {name}; pass a checkpoint as `pretrained`")
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    model = entry.build(**overrides)
    if pretrained is not False:
        load_pretrained(model, f"{HUB}{entry.hub_id}" if pretrained is True else pretrained)
    return model
