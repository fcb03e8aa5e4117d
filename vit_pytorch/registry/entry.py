"""What the registry knows of a named model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from torch import nn

from vit_pytorch.base import INPUT_SIZES, TIMM_POOL, VisionModel
from vit_pytorch.layers.options import read_option
from vit_pytorch.layers.patches import pair
from vit_pytorch.layers.tokens import AttentionPooling, Head
from vit_pytorch.legacy import upgrade_arguments
from vit_pytorch.registry.words import check_known, own_words

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

# what takes the image in a model
FIRST = re.compile(r"(branches\.\d+\.)?patch_embed|stem|stages\.0\.down")
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A named model as data.

    Args:
        name: timm's name where timm has the model, the official code's otherwise.
        architecture: the class.
        config: its arguments.
        parameters: exact number of parameters that the optimizer sees, with 1000 classes.
        tiny: overrides that make it small enough to test every promise in moments.
        default_cfg: how images are prepared: mean, std, interpolation, crop_pct; and input_size where that
            is not the largest size of the configuration.
        hub_id: repository of the published weights on the Hugging Face Hub, where there are any.
        releases: repositories, by tag, of releases that are not in one of timm's own.
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
    releases: Mapping[str, str] = field(default_factory=dict)
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
        if not tag or (self.hub_id or "").endswith(f".{tag}"):
            return self.hub_id
        if tag in self.releases:
            return self.releases[tag]
        known = (
            self.hub_id
            if self.hub_id is not None and self.hub_id.startswith("timm/")
            else f"timm/{self.name}"
        )
        return f"{known.partition('.')[0]}.{tag}"

    def upgrade(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the architecture from those of version 0.1 and from other libraries' words.

        See `upgrade_arguments` and `own_words`.
        """
        parameters = self.architecture._hub_mixin_init_parameters
        return upgrade_arguments(
            own_words(arguments, parameters, owner=self.architecture.__name__), parameters
        )

    def build(self, **overrides: Any) -> VisionModel:
        """Build the model, with some arguments changed.

        Args:
            overrides: arguments of the architecture, or of timm and transformers that mean the same
                (`words.SYNONYMS`).

        Raises:
            UnknownArgumentError: where an override is not an argument of the architecture.
        """
        parameters = self.architecture._hub_mixin_init_parameters
        known, owner = [name for name in parameters if name != "self"], self.architecture.__name__
        # of a class that always pools in one way, it can only confirm that
        pooling = overrides.pop("global_pool") if "global_pool" in overrides and "pool" not in known else None
        named = own_words(overrides, known, owner=owner)
        arguments = upgrade_arguments({**self.config, **named}, parameters, owner=owner)
        if "image_size" in named and "lg_image_size" in {*self.config} - {*named}:
            # CrossViT's large branch sees the image at the same scale
            scale = Fraction(self.config["lg_image_size"], self.config["image_size"])
            arguments["lg_image_size"] = [int(side * scale) for side in pair(arguments["image_size"])]
        theirs = overrides.get("global_pool")
        before = self.config.get("pool", parameters["pool"].default) if theirs and "head" in known else None
        if before and theirs in ("avg", "token", "map") and TIMM_POOL.get(theirs, theirs) != before:
            # timm's models keep their class token and have the final norm behind the mean, but for those with
            # logarithmic biases; in those with rotations an attention pool takes the class token, too
            positions = str(self.config.get("positions"))
            arguments = {"class_token": before == "cls", **arguments}
            if theirs == "map":
                arguments["pool"] = AttentionPooling(prefix="rope" in positions)
            head = read_option("head", arguments.get("head", "linear"), {"linear": Head})
            if head.norm is not None and "head" not in named:
                normed = theirs == "avg" and "relative_log" not in positions
                arguments["head"] = replace(head, norm=overrides.get("fc_norm", normed))
        check_known(arguments, known, owner=owner)
        model = self.architecture(**arguments)
        if pooling is not None and TIMM_POOL.get(pooling, pooling) != model.pool:
            model.change_pool(pooling)
        cfg = dict(self.default_cfg)
        for key in ("mean", "std"):
            if len(cfg.get(key, ())) != model.channels:
                cfg.pop(key, None)
        if {*INPUT_SIZES, "channels"} & {*named}:
            cfg.pop("input_size", None)
        model.default_cfg.update(
            cfg,
            architecture=self.name,
            first_conv=first_layers(model),
            classifier=classifier_layers(model),
            fixed_input_size=not takes_sizes(model),
        )
        return model


def takes_sizes(model: VisionModel) -> bool:
    """Return whether inputs may have other sizes: those that are multiples of 32 pixels."""
    multiple = getattr(getattr(model, "grid", None), "patch", getattr(model, "size_multiple", ()))
    return getattr(model, "any_size", False) and not any(32 % side for side in multiple)


def first_layers(model: VisionModel) -> tuple[str, ...]:
    """Return the names of the layers that take the image, whose kernels depend on its channels."""
    roots = [name for name, _ in model.named_modules() if FIRST.fullmatch(name)]
    found = []
    for root in roots:
        parts = model.get_submodule(root).named_modules(prefix=root)
        layers = [(name, part) for name, part in parts if isinstance(part, (nn.Linear, *CONVS))]
        found += [name for name, part in layers if getattr(part, "in_channels", None) == model.channels] or [
            name for name, _ in layers[:1]
        ]
    return tuple(found)


def classifier_layers(model: VisionModel) -> tuple[str, ...]:
    """Return the names of the linear layers that compute logits."""
    classifier = model.get_classifier()
    (root,) = [name for name, module in model.named_modules() if module is classifier]
    layers = classifier.named_modules(prefix=root)
    weights = ((name, getattr(part, "weight", None)) for name, part in layers)
    # A hidden layer of the classifier has other rows.
    return tuple(
        name
        for name, weight in weights
        if weight is not None and weight.ndim > 1 and len(weight) == model.num_classes
    )
