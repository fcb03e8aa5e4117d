"""What version 0.1 wrote otherwise: arguments that are now settings of an option, and names of weights."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import wraps
from operator import not_
from typing import Any, TypeVar

from torch import Tensor

from vit_pytorch.layers.options import to_json

Init = TypeVar("Init", bound=Callable[..., None])


@dataclass(frozen=True)
class FlatOption:
    """An argument of version 0.1 that is a setting of an option now.

    Args:
        name: the argument.
        option: the argument that takes the option.
        setting: the setting.
        kinds: strings of the options that have the setting; the first is the default.
        default: the argument's default in version 0.1.
        convert: returns the setting's value from the argument's.
    """

    name: str
    option: str
    setting: str
    kinds: tuple[str, ...]
    default: Any = False
    convert: Callable[[Any], Any] | None = None

    def apply(self, option: Any, value: Any) -> Any:
        """Return the option with the setting.

        Raises:
            ValueError: if the option is of a kind that does not have it.
        """
        parts = option.split("+") if isinstance(option, str) else to_json(option)
        if isinstance(parts, int):
            parts = {"kind": self.kinds[0], "streams": parts}
        parts = [parts] if isinstance(parts, Mapping) else list(parts or [])
        parts = [{"kind": part} if isinstance(part, str) else dict(part) for part in parts]
        found = [part for part in parts if part["kind"] in self.kinds]
        if not found:
            kinds = ", ".join(repr(kind) for kind in self.kinds)
            raise ValueError(
                f"{self.name} is a setting of {self.option}={kinds}, got {self.option}={option!r}"
            )
        found[0][self.setting] = value if self.convert is None else self.convert(value)
        return parts[0] if len(parts) == 1 else parts


ROTARY, LEARNED, LINEAR = ("rope", "rope_mixed"), ("learned", "learned_2d"), ("linear", "dual_norm")
CVT = ("authors", "transformers")
FLAT_OPTIONS = (
    FlatOption("rope_theta", "positions", "theta", ROTARY, default=None),
    FlatOption("no_embed_class", "positions", "class_token", LEARNED, convert=not_),
    FlatOption("patch_norm", "stem", "patch_norm", LINEAR),
    FlatOption("pre_norm", "stem", "pre_norm", LINEAR),
    FlatOption("fc_norm", "head", "norm", ("linear",)),
    FlatOption("representation_size", "head", "hidden_dim", ("linear",), default=None),
    FlatOption("head_zero_init", "head", "zero_init", ("linear",)),
    FlatOption("hyper_static", "hyper_connections", "dynamic", ("hyper",), convert=not_),
    # CvT's
    FlatOption("class_token", "variant", "class_token", CVT, default=[False, False, True], convert=tuple),
    FlatOption("qkv_bias", "variant", "qkv_bias", CVT, default=True),
    FlatOption("attn_dropout", "variant", "attn_dropout", CVT, default=0.0),
    FlatOption("norm_eps", "variant", "norm_eps", CVT, default=1e-5),
    FlatOption("act", "variant", "act", CVT, default="quickgelu"),
)


@dataclass(frozen=True)
class RemovedArgument:
    """An argument of version 0.1 that an architecture no longer has.

    Args:
        name: the argument.
        marker: an argument that only this architecture has.
        replace: returns the arguments that replace it, from its value and the arguments by name, defaults
            included.
    """

    name: str
    marker: str
    replace: Callable[[Any, Mapping[str, Any]], dict[str, Any]]


def twins_heads(dim_head: int | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of heads of each stage from the head dimension, as `TwinsSVT` took it.

    Raises:
        ValueError: if the heads do not share the channels of each stage.
    """
    dims = [arguments[f"s{stage}_emb_dim"] for stage in range(1, 5)]
    heads = arguments["heads"]
    if dim_head is None:
        return {}
    if any(dim % dim_head for dim in dims):
        raise ValueError(f"emb_dims must be multiples of dim_head, got {dims} and {dim_head}")
    if heads is not None and list(heads) != [dim // dim_head for dim in dims]:
        raise ValueError(f"heads must share the channels, got heads={tuple(heads)}, {dim_head=} and {dims}")
    return {"heads": tuple(dim // dim_head for dim in dims)}


def always_biased(qkv_bias: bool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check that queries, keys and values have biases.

    Raises:
        ValueError: if they were to have none.
    """
    if not qkv_bias:
        raise ValueError("queries, keys and values always have biases here: qkv_bias=False is not supported")
    return {}


REMOVED_ARGUMENTS = (
    RemovedArgument("dim_head", "s4_emb_dim", twins_heads),
    RemovedArgument("qkv_bias", "s4_emb_dim", always_biased),
)


def upgrade_arguments(
    arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of a constructor from those of version 0.1, and what changed, for a message.

    Args:
        arguments: arguments by name.
        parameters: the constructor's parameters; those that it still has are left alone.

    Raises:
        ValueError: if an argument does not go with the option that it is a setting of.
    """
    upgraded, changes = dict(arguments), []
    for flat in FLAT_OPTIONS:
        if flat.name in parameters or flat.option not in parameters or flat.name not in upgraded:
            continue
        value = upgraded.pop(flat.name)
        if value != flat.default:
            option = upgraded.get(flat.option, parameters[flat.option].default)
            upgraded[flat.option] = flat.apply(option, value)
            changes.append(f"{flat.name}={value!r} is {flat.option}={upgraded[flat.option]!r}")
    for removed in REMOVED_ARGUMENTS:
        if removed.marker in parameters and removed.name in upgraded:
            value = upgraded.pop(removed.name)
            defaults = {name: parameter.default for name, parameter in parameters.items()}
            replaced = removed.replace(value, {**defaults, **upgraded})
            upgraded |= replaced
            new = ", ".join(f"{name}={each!r}" for name, each in replaced.items())
            changes.append(f"{removed.name}={value!r} is {new or 'always so'}")
    return upgraded, changes


def flat_options(init: Init) -> Init:
    """Decorate a constructor so that it takes the arguments of version 0.1, with a `DeprecationWarning`."""
    parameters = inspect.signature(init).parameters

    @wraps(init)
    def construct(self: Any, *args: Any, **arguments: Any) -> None:
        upgraded, changes = upgrade_arguments(arguments, parameters)
        # None meant: where the pooling uses one.
        if upgraded.get("class_token", False) is None:
            upgraded["class_token"] = False
        if upgraded != arguments:
            gone = arguments.keys() - upgraded.keys()
            config = {name: value for name, value in self.config.items() if name not in gone}
            changed = {name: value for name, value in upgraded.items() if arguments.get(name) is not value}
            self._hub_mixin_config = {**config, **{k: to_json(v) for k, v in changed.items() if k in config}}
        if changes:
            name = type(self).__name__
            warnings.warn(f"arguments of {name} have a new form: {'; '.join(changes)}", DeprecationWarning, 2)
        init(self, *args, **upgraded)

    return construct  # type: ignore[return-value]


# In this order, each to what the one before it returned.
RENAMED = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"(^|\.)encoder\.blocks\.", r"\1blocks."),
        (r"(^|\.)class_encoder\.blocks\.", r"\1class_blocks."),
        (r"\.attention\.norm\.", ".norm1."),
        (r"\.feedforward\.norm\.", ".norm2."),
        (r"\.attention\.tail\.0\.", ".scale1."),
        (r"\.feedforward\.tail\.0\.", ".scale2."),
        (r"\.attention\.connection\.", ".connect1."),
        (r"\.feedforward\.connection\.", ".connect2."),
        (r"\.attention\.branch\.mix\.", ".attention.value_mix."),
        (r"\.attention\.branch\.bias\.(patches|prefix)", r".attention.position.bias.\1"),
        (r"\.(attention|feedforward)\.branch\.", r".\1."),
        (r"\.attend\.", ".kernel."),
        # MaxViT's MBConv
        (r"\.conv\.branch\.", ".conv.bottleneck."),
        # LeViT's classifiers
        (r"^head\.(distilled\.)?(weight|bias)$", r"head.\1linear.\2"),
    )
]


def upgrade_state(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return a state dict under a model's names from one of version 0.1; others are returned as they are.

    Args:
        state: weights by name.
        names: the model's names; what it knows keeps its name.
    """
    upgraded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in names:
            upgraded[name] = tensor
            continue
        new = name
        for pattern, replacement in RENAMED:
            new = pattern.sub(replacement, new)
        if new in names:
            upgraded[new] = tensor
        else:
            upgraded |= split_fused(new, tensor, names) or {name: tensor}
    return upgraded


def split_fused(name: str, tensor: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Return the parts of a fused projection that a model has as separate layers; nothing if it does not.

    Args:
        name: name of the fused weight or bias.
        tensor: the fused one, its parts one after the other.
        names: the model's names.
    """
    parts = [name.replace(".to_qkv.", f".to_{part}.") for part in "qkv"]
    if ".to_qkv." not in name or not set(parts) <= set(names):
        return {}
    return dict(zip(parts, tensor.chunk(3), strict=True))
