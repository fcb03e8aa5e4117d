"""Features of a batch of images by name, as commands offer them."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from vit_pytorch.analysis.report.places import names_of_prefix
from vit_pytorch.base import VisionModel
from vit_pytorch.coat import CoaT
from vit_pytorch.data.transforms import Images
from vit_pytorch.tome import ToMeViT
from vit_pytorch.training.probing import embed

Features = Literal["pooled", "cls", "mean", "patches", "maps"]


def check_features(model: VisionModel, features: Features) -> None:
    """Check that a model has such features.

    Raises:
        ValueError: if it has no class token, and that is asked for.
    """
    if features == "cls" and not "".join(names_of_prefix(model)[:1]).startswith("class token"):
        raise ValueError(f"{type(model).__name__} has no class token here: take --features mean or pooled")


def compute_features(model: VisionModel, images: Images, features: Features) -> Float[Tensor, "b *n d"]:
    """Compute features of a batch.

    Args:
        model: has been checked by `check_features`.
        images: as the model takes them.
        features: "pooled" for what enters the classifier; after the final norm, "cls" for the class token
            (that of the coarsest scale, if each has one), "mean" for the mean of the patches, "patches" for
            the patches (b, n, d), "maps" for them as maps (b, d, h, w).
    """
    if features == "pooled":
        return embed(model, images)
    if features == "cls":
        # not of a layer: class tokens may come after the last one
        tokens = model.forward_features(images)  # type: ignore[arg-type]
        return tokens[:, model.num_prefix_tokens - 1 if isinstance(model, CoaT) else 0]
    if isinstance(model, ToMeViT):
        # between its blocks there is nothing to hook
        tokens, count = model.forward_features(images), model.num_prefix_tokens  # type: ignore[arg-type]
        patches = tokens[:, count:]
        if features == "maps":
            return patches.mT.unflatten(2, model.vit.grid.fit(images.shape[2:]))  # type: ignore[union-attr]
        return _reduced(patches, features)
    found: Any = model.forward_intermediates(
        images,  # type: ignore[arg-type]
        indices=1,
        return_prefix_tokens=features != "maps",
        norm=True,
        output_fmt="NCHW" if features == "maps" else "NLC",
        intermediates_only=True,
    )
    if features == "maps":
        return found[0]
    ((patches, _),) = found
    return _reduced(patches, features)


def _reduced(patches: Float[Tensor, "b n d"], features: Features) -> Float[Tensor, "b *n d"]:
    """Return the mean of the patches, or these themselves."""
    return patches.mean(dim=1) if features == "mean" else patches
