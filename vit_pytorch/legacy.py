"""What version 0.1 wrote otherwise: arguments that are now settings of an option, and names of weights."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from operator import not_
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from vit_pytorch.layers.arguments import UnknownArgumentError, check_arguments, check_names
from vit_pytorch.layers.options import to_json

Init = TypeVar("Init", bound=Callable[..., None])


class FlatOption(NamedTuple):
    """An argument of version 0.1 that is a setting of an option now.

    Args:
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

    def undoes(self, option: Any) -> bool:
        """Return whether the argument's default is another value than the option, written out, has."""
        parts = [part for part in parts_of(option, self.kinds[0]) if part["kind"] in self.kinds]
        return self.convert in (None, not_) and any(self.setting in part for part in parts)

    def apply(self, option: Any, value: Any) -> Any:
        """Return the option with the setting.

        Raises:
            ValueError: if the option is of a kind that does not have it.
        """
        parts = parts_of(option, self.kinds[0])
        found = [part for part in parts if part["kind"] in self.kinds]
        if not found:
            wanted = f"{self.option}={', '.join(map(repr, self.kinds))}"
            raise ValueError(f"{self.name} is a setting of {wanted}, got {self.option}={option!r}")
        found[0][self.setting] = value if self.convert is None else self.convert(value)
        return parts[0] if len(parts) == 1 else parts


def parts_of(option: Any, kind: str) -> list[dict[str, Any]]:
    """Return the mappings that an option consists of, such as those of "learned+rope".

    Args:
        option: an option in any of its forms.
        kind: what it is if it is a number, which is then its first setting.
    """
    parts = option.split("+") if isinstance(option, str) else to_json(option)
    if isinstance(parts, int):
        parts = {"kind": kind, "streams": parts}
    parts = [parts] if isinstance(parts, Mapping) else list(parts or [])
    return [{"kind": part} if isinstance(part, str) else dict(part) for part in parts]


ROTARY, LEARNED, LINEAR = ("rope", "rope_mixed"), ("learned", "learned_2d"), ("linear", "dual_norm")
CVT = ("authors", "transformers")
FLAT_OPTIONS = (
    FlatOption("rope_theta", "positions", "theta", ROTARY, default=None),
    FlatOption("no_embed_class", "positions", "class_token", LEARNED, convert=not_),
    FlatOption("patch_norm", "stem", "patch_norm", LINEAR),
    FlatOption("pre_norm", "stem", "pre_norm", (*LINEAR, "conv")),
    FlatOption("fc_norm", "head", "norm", ("linear",)),
    FlatOption("representation_size", "head", "hidden_dim", ("linear",), default=None),
    FlatOption("head_zero_init", "head", "zero_init", ("linear",)),
    FlatOption("pool_mlp", "pool", "kind", ("map",), default=True, convert=lambda _: "query"),
    FlatOption("pool_residual", "pool", "residual", ("query",), default=True),
    FlatOption("zero_centered_norm", "norm", "form", ("layer",), convert=lambda _: "zero_centered"),
    FlatOption("qk_scale", "attention", "scale", ("multi_head", "grouped_query"), default=None),
    FlatOption("hyper_static", "hyper_connections", "dynamic", ("hyper",), convert=not_),
    # CvT's
    FlatOption("class_token", "variant", "class_token", CVT, default=[False, False, True], convert=tuple),
    FlatOption("qkv_bias", "variant", "qkv_bias", CVT, default=True),
    FlatOption("attn_dropout", "variant", "attn_dropout", CVT, default=0.0),
    FlatOption("norm_eps", "variant", "norm_eps", CVT, default=1e-5),
    FlatOption("act", "variant", "act", CVT, default="quickgelu"),
)

# Arguments of the public package's constructors that those of the papers here have under another name, or
# not at all.
SHARED_HEADS = "not an argument here: the heads share the dimension, as in the paper"
PUBLIC_WORDS = {
    "n_input_channels": "`channels` here",
    **dict.fromkeys(("dropout_rate", "ff_dropout"), "`dropout` here"),
    "attention_dropout": "`attn_dropout` here",
    "stochastic_depth_rate": "`drop_path` here",
    **dict.fromkeys(("ff_mult", "mlp_mult", "ff_expansion_factor"), "`mlp_ratio` here"),
    "use_flash_attn": "not needed: attention is PyTorch's fused one",
    "num_distill_classes": "`distilled=True` here, a second classifier of as many classes",
    "qk_rmsnorm": "`qk_norm` here: 'rms', or 'layer' for qk_rmsnorm=False",
    "jumbo_cls_k": "`jumbo_pieces` here",
    "jumbo_ff_mult": "`jumbo_mult` here",
    **dict.fromkeys(("sm_enc_dim_head", "lg_enc_dim_head", "cross_attn_dim_head"), SHARED_HEADS),
    **dict.fromkeys(("iwsa_dim_key", "iwsa_dim_value", "ssa_dim_value"), SHARED_HEADS),
    "local_patch_size": "not an argument here: local patches have the paper's size",
}


def refuse_public_words(
    names: Iterable[str], parameters: Mapping[str, inspect.Parameter], owner: str
) -> None:
    """Refuse arguments of the public package that a constructor has not.

    Args:
        names: names of the arguments given.
        parameters: the constructor's parameters.
        owner: name of the class, for errors.

    Raises:
        UnknownArgumentError: saying what the argument is here.
    """
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for name in names:
        shared = (
            name == "dim_head" and "heads" in parameters and not {"dim_key", "s4_emb_dim"} & {*parameters}
        )
        if shared and name not in parameters:
            raise UnknownArgumentError(f"{owner} has no argument {name}: it is {SHARED_HEADS}")
        if name in PUBLIC_WORDS and name not in parameters:
            raise UnknownArgumentError(f"{owner} has no argument {name}: it is {PUBLIC_WORDS[name]}")


def upgrade_twins(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `TwinsSVT`, which took `dim_head` instead of `heads`, and `qkv_bias`.

    Raises:
        ValueError: if the heads do not share the channels of each stage, or projections were to have no bias.
    """
    upgraded = dict(arguments)
    if not upgraded.pop("qkv_bias", True):
        raise ValueError("queries, keys and values always have biases here: qkv_bias=False is not supported")
    dim_head = upgraded.pop("dim_head", None)
    if dim_head is None:
        return upgraded
    known = {**defaults, **upgraded}
    dims, heads = [known[f"s{stage}_emb_dim"] for stage in range(1, 5)], known["heads"]
    if any(dim % dim_head for dim in dims):
        raise ValueError(f"emb_dims must be multiples of dim_head, got {dims} and {dim_head}")
    if heads is not None and list(heads) != [dim // dim_head for dim in dims]:
        raise ValueError(f"heads must share the channels, got heads={tuple(heads)}, {dim_head=} and {dims}")
    return {**upgraded, "heads": tuple(dim // dim_head for dim in dims)}


def upgrade_arguments(
    arguments: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], *, owner: str | None = None
) -> dict[str, Any]:
    """Return the arguments of a constructor from those of version 0.1.

    Args:
        arguments: arguments by name.
        parameters: the constructor's parameters; arguments that it still has are left alone.
        owner: name of the class, with which to warn of arguments that have a new form; default no warning.

    Raises:
        ValueError: if an argument does not go with the option that it is a setting of.
    """
    upgraded, changes = dict(arguments), []
    for flat in FLAT_OPTIONS:
        if flat.name in parameters or flat.option not in parameters or flat.name not in upgraded:
            continue
        value = upgraded.pop(flat.name)
        option = upgraded.get(flat.option, parameters[flat.option].default)
        if to_json(value) != to_json(flat.default) or flat.undoes(option):
            upgraded[flat.option] = flat.apply(option, value)
            changes.append(f"{flat.name}={value!r} is now {flat.option}={upgraded[flat.option]!r}")
    # No other class has an argument of this name.
    if "s4_emb_dim" in parameters:
        before, defaults = upgraded, {name: parameter.default for name, parameter in parameters.items()}
        upgraded = upgrade_twins(before, defaults)
        if before.get("dim_head") is not None:
            changes.append(f"dim_head={before['dim_head']!r} is now heads={upgraded['heads']!r}")
    # None meant: where the pooling uses one.
    if upgraded.get("class_token", False) is None and "stem" in parameters:
        upgraded["class_token"] = False
    if changes and owner is not None:
        message = f"arguments of {owner} have a new form: {'; '.join(changes)}"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
    return upgraded


def flat_options(init: Init) -> Init:
    """Decorate a constructor so that it takes the arguments of version 0.1, with a `DeprecationWarning`."""
    parameters = inspect.signature(init).parameters

    @wraps(init)
    def construct(self: Any, *args: Any, **arguments: Any) -> None:
        upgraded = upgrade_arguments(arguments, parameters, owner=type(self).__name__)
        if upgraded != arguments:
            gone = arguments.keys() - upgraded.keys()
            self.given_arguments = tuple(name for name in self.given_arguments if name not in gone)
            config = {name: value for name, value in self.config.items() if name not in gone}
            changed = {name: value for name, value in upgraded.items() if name in config}
            self._hub_mixin_config = {**config, **{name: to_json(value) for name, value in changed.items()}}
        check_names(init, upgraded, owner=type(self).__name__)
        check_arguments(init, *args, **upgraded)
        init(self, *args, **upgraded)

    return construct  # type: ignore[return-value]


# In this order, each to what the one before it returned.
RENAMED = (
    (r"^multi_scale_encoder\.blocks\.", "multi_scale_encoder."),
    (r"(^|\.)encoder\.blocks\.", r"\1blocks."),
    (r"(^|\.)class_encoder\.blocks\.", r"\1class_blocks."),
    (r"(^|\.)decoder\.blocks\.", r"\1decoder."),
    (r"^encoder\.merger\.", "merger."),
    (r"^patch_embed\.blocks\.(\d+)\.norm\.", r"patch_embed.blocks.\1.norm1."),
    (r"\.(attention|feedforward)\.branches\.(\d+)\.", r".\1.\2."),
    (r"\.(attention|feedforward)\.(\d+)\.tail\.0\.", r".\1.\2.scale."),
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
    (r"\.encoders\.0\.blocks\.", ".small."),
    (r"\.encoders\.1\.blocks\.", ".large."),
    (r"\.turns\.(\d+)\.branch\.", r".turns.\1.attention."),
    (r"^head\.layers\.(\d+)\.branch\.0\.", r"head.layers.\1.linear."),
    (r"^encoder\.blocks\.(\d+)\.norm\.", r"blocks.\1.norm1."),
    (r"\.mix\.norm\.", ".self_norm."),
    (r"\.mix\.branch\.", ".self_attention."),
    (r"\.(attention|feedforward)\.rate\.", r".\1_rate."),
    (r"(^|\.)encoder\.shared\.", r"\1jumbo_feedforward."),
    (r"\.jumbo\.norm\.", ".jumbo_norm."),
    (r"\.local\.norm\.", ".norm3."),
    (r"\.local\.tail\.0\.", ".scale3."),
    (r"\.local\.branch\.", ".local."),
    (r"\.attention_(norm|scale)\.", r".\g<1>1."),
    (r"\.feedforward_(norm|scale)\.", r".\g<1>2."),
    # ViViT
    (r"(^|\.)encoder\.(norm|prefix|positions)\.", r"\1temporal_embed.\2."),
    (r"\.time\.norm\.", ".norm_time."),
    (r"\.time\.branch\.", ".time."),
    (r"^stages\.(\d+)\.pool\.", r"stages.\1.down."),
    # MaxViT's MBConv
    (r"\.conv\.branch\.", ".conv.bottleneck."),
    # `DistilledHead`
    (r"(^|\.)head\.(weight|bias)$", r"\1head.classifier.\2"),
)
# One of them, where a model does not have the name that the others lead to.
MOVED = (
    # An encoder of another library is one block (`efficient.ViT`).
    (r"^blocks\.0\.", "blocks.0.transformer."),
    (r"\.kernel\.temperature$", ".kernel.temperature.factors"),
    # LeViT's classifiers have norms before them, the normalised ViT's has a scale.
    (r"^head\.classifier\.(weight|bias)$", r"head.linear.\1"),
    (r"^head\.distilled\.(weight|bias)$", r"head.distilled.linear.\1"),
)


# LookupViT's, before those: its blocks have a feed-forward of the patches in addition to a plain block's.
LOOKUP_RENAMED = (
    (r"^encoder\.blocks\.(\d+)\.norm\.", r"blocks.\1.gather_norm."),
    (r"^encoder\.blocks\.(\d+)\.feedforward\.norm\.", r"blocks.\1.lookup_feedforward_norm."),
    (r"^encoder\.blocks\.(\d+)\.feedforward\.branch\.", r"blocks.\1.lookup_feedforward."),
    (r"\.refine\.", "."),
)


def upgrade_state(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return a state dict under a model's names from one of version 0.1; others are returned as they are.

    Args:
        state: weights by name.
        names: the model's names; what it knows keeps its name.
    """
    # Other formats have names that begin alike; an encoder of another library has names of its own.
    external = any(name.startswith("blocks.0.transformer.") for name in names)
    if not external and not any(".branch." in name for name in state):
        return dict(state)
    renamed = (*LOOKUP_RENAMED, *RENAMED) if "blocks.0.gather_norm.weight" in names else RENAMED
    upgraded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in names:
            upgraded[name] = tensor
            continue
        new = name
        for pattern, replacement in renamed:
            new = re.sub(pattern, replacement, new)
        tried = [new, *(re.sub(pattern, replacement, new) for pattern, replacement in MOVED)]
        found = next((known for known in tried if known in names), None)
        upgraded |= split_fused(new, tensor, names) or {name: tensor} if found is None else {found: tensor}
    if "head.small.weight" in names and "head.weight" in upgraded:
        # CrossViT's classifier was one layer.
        weight, bias = upgraded.pop("head.weight"), upgraded.pop("head.bias")
        parts = weight.tensor_split([upgraded["branches.0.norm.weight"].shape[0]], dim=1)
        for branch, part, offset in zip(("small", "large"), parts, bias, strict=True):
            upgraded[f"head.{branch}.weight"] = part.clone()
            upgraded[f"head.{branch}.bias"] = offset.clone()
    return upgraded


def upgrade_on_load(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Rename what version 0.1 named otherwise, in a state dict that is about to be loaded."""
    own = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
    bare = {name.removeprefix(prefix): value for name, value in own.items()}
    upgraded = upgrade_state(bare, model.state_dict())
    state.update({f"{prefix}{name}": value for name, value in upgraded.items()})


def split_fused(name: str, tensor: Tensor, names: Collection[str]) -> dict[str, Tensor]:
    """Return the parts of a fused projection that a model has as separate layers; nothing if it does not."""
    parts = [name.replace(".to_qkv.", f".to_{part}.") for part in "qkv"]
    if ".to_qkv." not in name or not set(parts) <= set(names):
        return {}
    return dict(zip(parts, tensor.chunk(3), strict=True))
