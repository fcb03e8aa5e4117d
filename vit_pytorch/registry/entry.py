"""What the registry knows of a named model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_pytorch.base import INPUT_SIZES, VisionModel
from vit_pytorch.legacy import upgrade_arguments

# The mean and standard deviation of ImageNet's colours, by which most published models prepare images.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# What a model without attention cannot keep.
NO_ATTENTION = {"recorder": "there is no attention to record"}

# Promises that tools of other libraries cannot keep for a kind of model.
FOLDED = {
    "gradients_per_sample": "Opacus takes windows that are folded into the batch for samples, and maps whose "
    "channels come last for maps whose channels come first"
}
NO_BATCH = {
    "gradients_per_sample": "Opacus needs parameters to meet a tensor of the batch in their own module"
}


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A named model as data.

    Args:
        name: timm's name where timm has the model, the official code's otherwise.
        architecture: the class.
        config: its arguments.
        parameters: exact number of parameters that the optimizer sees, with 1000 classes.
        tiny: overrides that make it small enough to test every promise in moments.
        default_cfg: how images are prepared: mean, std, interpolation, crop_pct.
        hub_id: repository of the published weights on the Hugging Face Hub, where there are any.
        exceptions: promises of the interface that the model cannot keep, each with the reason: names of
            contracts, or how the names of several begin.
    """

    name: str
    architecture: type[VisionModel]
    config: Mapping[str, Any]
    parameters: int
    tiny: Mapping[str, Any]
    default_cfg: Mapping[str, Any] = field(default_factory=dict)
    hub_id: str | None = None
    exceptions: Mapping[str, str] = field(default_factory=dict)

    @property
    def image_size(self) -> Any:
        """The largest input of the named model, as its class takes it."""
        return next(self.config[name] for name in INPUT_SIZES if name in self.config)

    def repository(self, tag: str = "") -> str | None:
        """Name the repository on the Hub of a release, or of that which is known; None where none is.

        Args:
            tag: what stands behind the point in the release's name.
        """
        if not tag:
            return self.hub_id
        known = (
            self.hub_id
            if self.hub_id is not None and self.hub_id.startswith("timm/")
            else f"timm/{self.name}"
        )
        return f"{known.partition('.')[0]}.{tag}"

    def upgrade(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the architecture from those of version 0.1; see `upgrade_arguments`."""
        return upgrade_arguments(arguments, self.architecture._hub_mixin_init_parameters)

    def build(self, **overrides: Any) -> VisionModel:
        """Build the model, with some arguments changed.

        Raises:
            ValueError: where an override is not an argument of the architecture.
        """
        parameters = self.architecture._hub_mixin_init_parameters
        known = [name for name in parameters if name != "self"]
        owner = self.architecture.__name__
        arguments = upgrade_arguments({**self.config, **overrides}, parameters, owner=owner)
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise ValueError(
                f"{self.architecture.__name__} has no argument {', '.join(unknown)}, only {', '.join(known)}"
            )
        model = self.architecture(**arguments)
        cfg = dict(self.default_cfg)
        for key in ("mean", "std"):
            if len(cfg.get(key, ())) != model.channels:
                cfg.pop(key, None)
        model.default_cfg.update(cfg, architecture=self.name)
        return model
