"""What timm has, too: a row for each family; `test_timm_families` checks what all rows have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.papers.reference import images, randomise, settle
from vit_pytorch import load_pretrained
from vit_pytorch.base import VisionModel

__all__ = ["Family", "Named"]

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Named:
    """A named model: what makes it small, in our words and in timm's, and the images that it is given."""

    name: str
    ours: Changes = field(default_factory=dict)
    theirs: Changes = field(default_factory=dict)
    size: tuple[int, int] | None = None
    """Default: the model's own."""

    def __str__(self) -> str:
        return "-".join([self.name, *map(str, self.ours.values()), *map(str, self.size or ())])


@dataclass(frozen=True)
class Family:
    """A row of the table: a small model of ours and timm's, and all in which they can differ."""

    model: type[VisionModel]
    reference: Callable[..., nn.Module]
    """Builds timm's model from keyword arguments."""
    ours: Changes
    theirs: Changes
    options: Mapping[str, tuple[Changes, Changes]]
    """What changes in our arguments, and in timm's for it."""
    module: str | None
    """Module of timm's, all of whose names are ours; None if it has those of several papers."""
    named: Sequence[Named]
    others: tuple[str, ...] = ()
    """Our names of this class that timm has not."""
    maps: Sequence[str] = ()
    """Options of which intermediate features are compared."""
    norms: Sequence[tuple[bool, bool]] = ((False, False),)
    """Whether they are normed: ours, and timm's."""
    layers: bool = True
    """Whether timm's model sorts its parameters by depth."""
    trained: Sequence[str] = ()
    """Options of which ten steps are compared."""
    dtype: torch.dtype = torch.float32
    prepare: Callable[[Any, Any], object] = lambda model, reference: None
    """Changes timm's model for ours."""
    batch: int | None = None
    """Number of images that give batch norms their statistics; default: random ones."""

    def __str__(self) -> str:
        return self.model.__name__

    def images(self, size: Sequence[int], batch: int = 2) -> Tensor:
        """Draw images in the precision of the comparison."""
        return images(*size, batch=batch).to(self.dtype)

    def ready(self, model: VisionModel, reference: nn.Module) -> nn.Module:
        """Draw the weights of timm's model, in the precision of the comparison."""
        self.prepare(model, reference)
        randomise(reference)
        for part in reference.modules():
            if hasattr(part, "attention_bias_idxs"):
                # timm's keeps biases of a call without gradients for those with them.
                part.get_attention_biases = lambda device, part=part: part.attention_biases[
                    :, part.attention_bias_idxs
                ]
        if self.batch:
            settle(reference, images(*model.image_size, batch=self.batch, seed=5))
        model.to(self.dtype).eval()
        return reference.to(self.dtype)

    def build(self, option: str, **theirs: Any) -> tuple[Any, Any]:
        """Build ours, and timm's with random weights."""
        mine, changes = self.options[option]
        model = self.model(**{**self.ours, **mine})
        return model, self.ready(model, self.reference(**{**self.theirs, **changes, **theirs}))

    def pair(self, option: str, **theirs: Any) -> tuple[Any, Any]:
        """Build ours and timm's with the same weights."""
        model, reference = self.build(option, **theirs)
        load_pretrained(model, reference.state_dict(), grid="model", strict=True)
        return model, reference
