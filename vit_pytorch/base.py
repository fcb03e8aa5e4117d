"""What every model promises: checked input, features and head, a configuration, saving and loading.

Arguments mean the same in all models and in the parts of which they consist, whose docstrings describe what
is their own. Constructors raise `ValueError` if a number is of another type or outside its range
(`layers.arguments`), sizes do not divide, an option is unknown, or options contradict each other.

Args:
    image_size: the largest input, one number or (height, width) in pixels; the largest frame of a video.
    patch_size: size of a patch, one number or (height, width); divides the image size.
    frames: number of frames (slices of a volume) at most.
    image_patch_size: size of a patch in a frame, one number or (height, width); divides the image size.
    frame_patch_size: frames of a patch; divides `frames`.
    channels: channels of the input.
    num_classes: number of logits; 0 for the pooled embedding.
    dim: token dimension; where a part changes it, that of the input.
    out_dim: output dimension.
    depth: number of blocks; of each stage, in models that have stages.
    heads: number of attention heads; they share `dim` where there is no `dim_head`.
    dim_head: head dimension; where it has no default of its own, `dim / heads`.
    mlp_dim: hidden dimension of the feed-forward.
    hidden_dim: dimension between two linear layers.
    dropout: dropout after the linear layers of a model's blocks, on the output of a part, or on the weights
        in a kernel of attention, in [0, 1).
    emb_dropout: dropout on the embedded tokens, in [0, 1).
    attn_dropout: dropout on the attention weights, in [0, 1).
    drop_path: probability of dropping a residual branch of a sample in training, in [0, 1); a model's is that
        of the last block, to which it rises linearly from 0.
    layer_scale: initial value of LayerScale's factors; None for no LayerScale.
    qkv_bias: use biases for queries, keys and values.
    out_bias: use a bias for the attention's output projection.
    act: activation: "gelu", "gelu_tanh", "quickgelu", "hardswish", "relu", "relu2" (its square), "relu6",
        "silu" or "star_relu".
    norm_eps: epsilon of the LayerNorms.
    pool: "cls" classifies the class token, "mean" the mean of the patches.
    class_token: have a class token even if `pool` does not use it.
    num_registers: number of register tokens.
    patch_norm: apply LayerNorm before and after the patch projection.
    fc_norm: the final norm acts on the pooled vector instead of on the tokens.
    head_zero_init: the classifier starts at zero.
    norm: builds a norm from a dimension.
    attention: mixes tokens.
    feedforward: transforms each token on its own.
    kernel: builds the kernel that attends.
    grid: how the input is cut, or patches along each axis; default those of the largest input.
    prefix: number of prefix tokens.
    ids_keep: positions in the grid, in row-major order, of the patches that are among the tokens; default
        all of them.
    scale: factor on the attention scores; default 1 / sqrt(head dimension).
    options: arguments of the base class, such as the norm, LayerScale and stochastic depth of a `Block`.
    generator: where random numbers are drawn from, instead of torch's global generator.
"""

from __future__ import annotations

import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from jaxtyping import Float
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.fx import Proxy

from vit_pytorch.layers.arguments import check_arguments, check_integer, check_names
from vit_pytorch.layers.attention import jit_is_tracing
from vit_pytorch.layers.blocks import collect_outputs, set_grad_checkpointing
from vit_pytorch.layers.options import Option, check_choice, to_json
from vit_pytorch.layers.resizing import take_size
from vit_pytorch.layers.tokens import make_classifier
from vit_pytorch.legacy import refuse_public_words, upgrade_arguments, upgrade_on_load
from vit_pytorch.weights import (
    CHECKSUMS,
    hub_errors_described,
    init_empty_weights,
    load_weights,
    read_safetensors,
    read_settings,
    verify_checksum,
    verify_hub_checksum,
    write_bundle,
)

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
# what a configuration holds beside the constructor's arguments
CONFIG_KEYS = ("architecture", "default_cfg", *CHECKSUMS)
# what timm's tools look for in `default_cfg`, and the model itself knows
TIMM_KEYS = ("pool_size", "first_conv", "classifier", "fixed_input_size")
# settings of `default_cfg` that fit a trained classifier only
OF_CLASSIFIER = ("label_names", "problem")
# what its `default_cfg` may hold: how images are prepared, and what the outputs of a classifier mean
CFG_KEYS = (
    *("architecture", "input_size", "num_classes", "mean", "std", "interpolation", "crop_pct", "crop_mode"),
    *("max_tokens", "patch_size", "window", "video", "volume"),
    *OF_CLASSIFIER,
    *TIMM_KEYS,
)
Model = TypeVar("Model", bound="VisionModel")
Intermediates = list[Tensor] | list[tuple[Tensor, Tensor]]
INPUT_SIZES = ("image_size", "img_size", "seq_len")
TIMM_POOL = {"token": "cls", "avg": "mean"}
# the pooling of a model without any, as timm has it
UNPOOLED = ""


class VisionModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="vit_pytorch",
    pipeline_tag="image-classification",
    tags=["vision-transformer"],
):
    """A model from images to logits; the base of every architecture here.

    A subclass sets the attributes below in its constructor and writes `forward_features` and the other
    abstract methods.

    Attributes:
        num_classes: number of logits; 0 for the pooled embedding.
        num_features: dimension of the features.
        channels: channels of the input.
        image_size: the largest input, (height, width) in pixels.
        classifier_dim: dimension of what enters the classifier.
        undecayed: pattern of the names of parameters of more than one axis without weight decay.
        returns_maps: features are maps, channels first.
        pools_prefix: the attention pool takes prefix tokens, too.
        unpooled: the output is that of `forward_features` (see `reset_classifier`).
        pruned: layers are missing (see `prune_intermediate_layers`).
        needs_last_layers: what follows the layers works on the output of the last one only.
        dims: channels of each stage, in models in stages.
        strides: pixels from one cell to the next in each stage, in models in stages.
        norm: acts on the output of the last layer.
        fc_norm: acts on the pooled vector.
        pre_logits: acts on the normed pooled vector.
        head: the classifier.
        default_cfg: how images are prepared for the model, under the names that timm's tools read.
        load_report: what was loaded into the model and what kept its initial values (see `load_pretrained`);
            None for a model without weights from elsewhere.
    """

    # Strings and objects of the constructor's arguments that are options with settings of their own.
    option_kinds: ClassVar[Mapping[str, Mapping[str, type[Option] | Option]]] = {}
    undecayed: ClassVar[str]

    num_classes: int
    num_features: int
    classifier_dim: int
    channels: int
    image_size: tuple[int, ...]
    pool: str
    num_prefix_tokens: int
    attention_pool: nn.Module | None
    returns_maps: ClassVar[bool] = False
    pools_prefix: bool = False
    unpooled: bool = False
    pruned: bool = False
    needs_last_layers: ClassVar[bool] = False
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    norm: nn.Module
    fc_norm: nn.Module
    pre_logits: nn.Module
    head: nn.Module
    default_cfg: dict[str, Any]
    load_report: Any = None
    given_arguments: tuple[str, ...]

    def __new__(cls: type[Model], *args: Any, **kwargs: Any) -> Model:
        """Check the constructor's arguments before anything is built; `flat_options` does so by itself."""
        refuse_public_words(kwargs, cls._hub_mixin_init_parameters, cls.__name__)
        if not hasattr(cls.__init__, "__wrapped__"):
            check_names(cls.__init__, kwargs, owner=cls.__name__)
            check_arguments(cls.__init__, *args, **kwargs)
        model = super().__new__(cls, *args, **kwargs)
        # those too that a subclass hands on as `**options`
        model.given_arguments = tuple(kwargs)
        return model

    def __init__(
        self, *, num_classes: int, num_features: int, channels: int, image_size: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(upgrade_on_load)  # type: ignore[no-untyped-call]
        # A name for what enters the classifier, which wrappers ask for.
        self.to_latent = nn.Identity()
        self.num_classes = num_classes
        self.num_features = self.classifier_dim = num_features
        self.channels = channels
        self.image_size = image_size
        self.default_cfg = {
            "architecture": type(self).__name__,
            "input_size": (channels, *image_size),
            "mean": (0.5,) * channels,
            "std": (0.5,) * channels,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": num_classes,
        }

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as they build this model again."""
        config: Any = self._hub_mixin_config
        return dict(config or {})

    @property
    def in_chans(self) -> int:
        """The same as `channels`, as timm calls them."""
        return self.channels

    @property
    def head_hidden_size(self) -> int:
        """Dimension of what enters the classifier."""
        return self.classifier_dim

    @property
    def native_patch(self) -> tuple[int, ...] | None:
        """Patch of a model that takes lists of images of different sizes; None where it takes one size."""
        return None

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The same as `default_cfg`; tools written for timm look under either name."""
        return self.default_cfg

    def forward(self, images: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k ..."]:
        """Compute logits; the pooled embedding if `num_classes` is 0, or features if pooling was removed.

        Raises:
            ValueError: if rank, channels, size or dtype of the images are not what the model takes.
        """
        return self.forward_head(self.forward_features(images))

    @property
    @abstractmethod
    def feature_info(self) -> list[dict[str, Any]]:
        """What each intermediate feature is: module, num_chs, reduction (stride in pixels)."""

    @abstractmethod
    def forward_features(self, images: Float[Tensor, "b c *size"]) -> Tensor:
        """Compute tokens or a feature map, before pooling."""

    def forward_head(self, features: Any, pre_logits: bool = False) -> Float[Tensor, "b k ..."]:
        """Pool features and classify them; if pooling was removed, return them.

        Args:
            features: output of `forward_features`.
            pre_logits: stop before the classifier.
        """
        if self.unpooled:
            # A norm behind the pooling acts on single tokens, as in timm, but for that of two vectors.
            if self.pool == "cls+mean":
                return features
            return (
                self.fc_norm(features.movedim(1, -1)).movedim(-1, 1)
                if self.returns_maps
                else self.fc_norm(features)
            )
        x = self.to_latent(self.pre_logits(self.fc_norm(self.pool_features(features))))
        return x if pre_logits else self.head(x)

    def pool_features(self, features: Any) -> Float[Tensor, "b e"]:
        """Return one vector per image: the class token, the mean of the patches, both, or their attention
        pool."""
        if self.pool == "cls":
            return features[:, 0]
        patches = features[:, self.num_prefix_tokens :]
        if self.attention_pool is not None:
            return self.attention_pool(features if self.pools_prefix else patches)
        mean = patches.mean(dim=1)
        return mean if self.pool == "mean" else torch.cat([features[:, 0], mean], dim=1)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c *size"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates] | dict[str, Any]:
        """Compute features between the layers, as timm's models do.

        Args:
            images: input.
            indices: which layers, negative ones from the end; an int for the last so many, None for all.
            return_prefix_tokens: return (features, prefix tokens) for each layer.
            norm: apply the final norm to each.
            stop_early: skip the layers after the last one of `indices`, with `intermediates_only`; the final
                features need them.
            output_fmt: "NCHW" for maps, "NLC" for tokens.
            intermediates_only: leave out the final features.
            output_dict: return a dictionary of what else stands in a tuple: "image_features",
                "image_intermediates" and, with `return_prefix_tokens`, "image_intermediates_prefix".

        Returns:
            The final features and the list of intermediates, or the list only.

        Raises:
            ValueError: if a layer is outside the model, or maps are asked for while patches are dropped.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        layers = resolve_indices(indices, len(self.feature_info))
        features, outputs = self.collect_layers(images, layers, stop_early=stop_early and intermediates_only)
        found: Any = []
        prefixes = []
        for layer, output in zip(layers, outputs, strict=True):
            patches, prefix, grid = self.split_output(output, layer, images.shape[2:], norm=norm)
            if output_fmt == "NCHW":
                if not jit_is_tracing() and patches.shape[1] != prod(grid):
                    raise ValueError(
                        f"a map needs all {prod(grid)} patches, and patch_dropout leaves {patches.shape[1]} "
                        "of them: use output_fmt='NLC', or eval mode"
                    )
                patches = patches.transpose(1, 2).unflatten(2, tuple(grid))
            found.append((patches, prefix) if return_prefix_tokens and not output_dict else patches)
            prefixes.append(prefix)
        if output_dict:
            named = {
                "image_features": None if intermediates_only else features,
                "image_intermediates": found,
                "image_intermediates_prefix": prefixes if return_prefix_tokens else None,
            }
            return {name: value for name, value in named.items() if value is not None}
        if intermediates_only:
            return found
        assert features is not None
        return features, found

    def get_intermediate_layers(
        self,
        images: Float[Tensor, "b c *size"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> Intermediates:
        """Compute the tokens of layers, as DINO's and timm's models do; see `forward_intermediates`.

        Args:
            images: input.
            n: the last so many layers, or which ones.
            reshape: return maps, channels first, instead of tokens.
            return_prefix_tokens: return (features, prefix tokens) for each layer.
            norm: apply the final norm to each.

        Raises:
            ValueError: if a layer is outside the model.
        """
        found: Any = self.forward_intermediates(
            images,
            n,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )
        return found

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last of some, in place, as timm's models do.

        What `forward_intermediates` returns for the layers that stay does not change. Weights are loaded
        before: a checkpoint no longer fits, and the model cannot be saved.

        Args:
            indices: which layers stay, with those before them: as in `forward_intermediates`.
            prune_norm: remove the final norm, too; that of a model in stages fits the last stage only, and
                goes with it.
            prune_head: remove the pooling and the classifier, too; those of a model in stages go with the
                last stage. The model returns what `forward_features` does then.

        Returns:
            The indices, in order.

        Raises:
            ValueError: if a layer is outside the model, or the model cannot do without its last layers.
        """
        known = self.feature_info
        layers = resolve_indices(indices, len(known))
        name, _, _ = known[layers[-1]]["module"].partition(".")
        end, ends_early = layers[-1] + 1, layers[-1] + 1 < len(known)
        if ends_early:
            if self.needs_last_layers or name not in ("blocks", "stages"):
                raise ValueError(f"{type(self).__name__} cannot do without its last layers")
            setattr(self, name, self.get_submodule(name)[:end])  # type: ignore[index]
        if ends_early and name == "stages":
            self.dims, self.strides = self.dims[:end], self.strides[:end]
            self.num_features = self.classifier_dim = self.dims[-1]
            prune_norm = prune_head = True
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.fc_norm = nn.Identity()
            self.reset_classifier(0, UNPOOLED)
        self.pruned = True
        return layers

    @abstractmethod
    def split_output(
        self, output: Any, layer: int, size: Sequence[int], *, norm: bool
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"], Sequence[int]]:
        """Return the patches and the prefix tokens in the output of a layer, and the patches' grid.

        Args:
            output: what the layer returned.
            size: size of the images along each axis.
            norm: apply the final norm.
        """

    def collect_layers(
        self, images: Float[Tensor, "b c *size"], layers: Sequence[int], *, stop_early: bool = False
    ) -> tuple[Tensor | None, list[Any]]:
        """Compute the final features and the outputs of some of the layers that `feature_info` names.

        Args:
            layers: indices of layers, in order.
            stop_early: skip the layers after the last one; there are no final features then.
        """
        modules = [self.get_submodule(self.feature_info[layer]["module"]) for layer in layers]
        features = None
        with collect_outputs(modules, stop_early=stop_early) as outputs:
            features = self.forward_features(images)
        return features, outputs

    def get_classifier(self) -> nn.Module:
        """Return the layer that computes the logits; the identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, and the pooling if given.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: another pooling, where the architecture has one: "cls" (timm's "token") or "mean"
                (timm's "avg"); "", without classes, for none: the model returns what `forward_features` does,
                tokens after the norm behind the pooling if there is one, until it gets a classifier.

        Raises:
            ValueError: if the number is none of classes, or the model cannot pool so.
        """
        check_arguments(VisionModel.reset_classifier, num_classes=num_classes, global_pool=global_pool)
        if global_pool == UNPOOLED and num_classes:
            raise ValueError(
                f"a classifier needs pooled features, got {num_classes} classes and global_pool=''"
            )
        if global_pool and TIMM_POOL.get(global_pool, global_pool) != self.pool:
            self.change_pool(global_pool)
        self.unpooled = not num_classes and (
            global_pool == UNPOOLED or (self.unpooled and global_pool is None)
        )
        self.head = self.make_head(num_classes).train(self.training)
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def make_head(self, num_classes: int) -> nn.Module:
        """Build a new classifier; the identity for no classes."""
        return make_classifier(self.classifier_dim, num_classes, like=next(self.parameters()))

    def change_pool(self, global_pool: str) -> None:
        """Pool in another way, in architectures that have several (see `reset_classifier`).

        Raises:
            ValueError: if the model cannot pool so.
        """
        raise ValueError(
            f"{type(self).__name__} pools by {self.pool!r} only; pooling cannot be {global_pool!r}"
        )

    def set_input_size(
        self,
        image_size: int | Sequence[int] | None = None,
        *,
        antialias: bool = True,
        img_size: int | Sequence[int] | None = None,
    ) -> None:
        """Make the largest input another one, in place: positions and biases are interpolated to it.

        Parameters that have the size already stay the same objects; an optimizer is built anew for others.

        Args:
            image_size: one number for a square, or (height, width), in pixels; of signals, their length.
            antialias: low-pass before positions of images shrink, as timm does; transformers does not.
            img_size: the same as `image_size`, as timm calls it.

        Raises:
            ValueError: if the architecture has no such size, the constructor refuses it, or modules were
                exchanged after it.
        """
        if (image_size is None) == (img_size is None):
            raise ValueError(f"set_input_size needs image_size, got {image_size} and img_size={img_size}")
        image_size = img_size if image_size is None else image_size
        names = [name for name in INPUT_SIZES if name in self._hub_mixin_init_parameters]
        if not names:
            raise ValueError(f"{type(self).__name__} takes inputs of any size")
        size = tuple(image_size) if isinstance(image_size, list) else image_size
        prepared, known = self.default_cfg, self.config
        with init_empty_weights():
            like, before = type(self)(**{**known, names[0]: size}), type(self)(**known)
        take_size(self, like, before, antialias=antialias)
        sized = {k: v for k, v in like.default_cfg.items() if k in ("input_size", "pool_size")}
        self.default_cfg = {**prepared, **sized}
        self._record(**{names[0]: size})

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        set_grad_checkpointing(self, enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters of more than one axis without weight decay: tokens and positions."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim > 1 and re.search(self.undecayed, name)
        }

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, for layer-wise learning rates, as timm reads
        them."""

    def _record(self, **arguments: Any) -> None:
        """Record arguments that changed after construction, so that the configuration builds what is
        there; a new classifier has no names of classes yet."""
        if "num_classes" in arguments:
            self.default_cfg = {k: v for k, v in self.default_cfg.items() if k not in OF_CLASSIFIER}
        known = {name: value for name, value in arguments.items() if name in self._hub_mixin_init_parameters}
        self._hub_mixin_config = {**self.config, **known}
        self.default_cfg.update({name: value for name, value in known.items() if name in self.default_cfg})

    def check_images(self, images: Tensor) -> None:
        """Check rank, channels and dtype of an input; its size is checked where it is cut.

        Raises:
            ValueError: naming what was expected and what came.
        """
        # Checks would become part of a traced graph, or end the trace.
        if torch.compiler.is_compiling() or jit_is_tracing() or isinstance(images, Proxy):
            return
        rank = 2 + len(self.image_size)
        if not isinstance(images, Tensor) or images.layout != torch.strided:
            kind = images.layout if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"expected images as a dense tensor of rank {rank}, got {kind}")
        if images.ndim != rank:
            raise ValueError(
                f"expected images of rank {rank} (batch, {self.channels} channels, "
                f"{' x '.join(map(str, self.image_size))}), got shape {tuple(images.shape)}"
            )
        if images.shape[1] != self.channels:
            raise ValueError(f"expected {self.channels} channels, got {images.shape[1]}")
        want = next(self.parameters()).dtype
        if images.dtype != want and not (
            images.is_floating_point() and torch.is_autocast_enabled(images.device.type)
        ):
            raise ValueError(f"expected images of dtype {want}, got {images.dtype}")

    @classmethod
    def _is_jsonable(cls, value: Any) -> bool:
        """Return whether a configuration file can hold an argument."""
        return super()._is_jsonable(to_json(value))

    @classmethod
    def _encode_arg(cls, arg: Any) -> Any:
        """Return an argument as a configuration file holds it."""
        return super()._encode_arg(to_json(arg))

    @classmethod
    def _handed_on(cls) -> list[str]:
        """Return the name of arguments that a class hands on, such as `options`, if there is one."""
        return [
            each.name for each in cls._hub_mixin_init_parameters.values() if each.kind is each.VAR_KEYWORD
        ]

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.pruned:
            raise ValueError("no configuration file can hold that layers were removed: save the model before")
        if self.unpooled:
            raise ValueError(
                "no configuration file can hold that the pooling was removed: save the model before"
            )
        names = [*self._hub_mixin_init_parameters, *self.given_arguments]
        lost = [
            name for name in dict.fromkeys(names) if name not in {"self", *self.config, *self._handed_on()}
        ]
        if lost:
            raise ValueError(
                f"arguments of {type(self).__name__} that no configuration file can hold: {', '.join(lost)}"
            )
        check_default_cfg(self.default_cfg, type(self).__name__)
        config = {**self.config, "architecture": type(self).__name__, "default_cfg": self.default_cfg}
        weights = save_directory / WEIGHTS_NAME
        write_bundle(weights, save_directory / CONFIG_NAME, config, partial(save_model, self))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> VisionModel:
        """Build a model from a folder that `save_pretrained` wrote, or from a repository on the Hub.

        Args:
            pretrained_model_name_or_path: the folder, or the repository's name.
            options: `revision`, `cache_dir`, `force_download`, `local_files_only` and `token`, of a
                repository; and arguments of the class that shall differ.

        Returns:
            The model in eval mode.

        Raises:
            ValueError: where it holds another architecture, or files are damaged or do not fit.
            OSError: where there is no such model, or the Hub cannot be reached and nothing is cached.
        """
        name = str(pretrained_model_name_or_path)
        with hub_errors_described(name, options.get("cache_dir") or constants.HF_HUB_CACHE):
            return super().from_pretrained(name, **options)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> VisionModel:
        if config is None:
            raise FileNotFoundError(f"no {CONFIG_NAME} at {model_id}")
        if config.get("architecture", cls.__name__) != cls.__name__:
            raise ValueError(f"{model_id} holds a {config['architecture']}, not a {cls.__name__}")
        folder = Path(model_id)
        weights, config_file = folder / WEIGHTS_NAME, folder / CONFIG_NAME
        if not folder.is_dir():
            download = partial(hf_hub_download, model_id, revision=revision, cache_dir=cache_dir, token=token)
            weights = Path(
                download(WEIGHTS_NAME, force_download=force_download, local_files_only=local_files_only)
            )
            verify_hub_checksum(weights)
            # `from_pretrained` has fetched it
            config_file = Path(download(CONFIG_NAME, local_files_only=True))
        check_default_cfg(read_settings(config_file).get("default_cfg", {}), str(config_file))
        verify_checksum(weights, config)
        # What version 0.1 wrote is not among the arguments, which are those that the class has.
        parameters = cls._hub_mixin_init_parameters
        arguments = {name: value for name, value in arguments.items() if name not in CONFIG_KEYS}
        upgraded = upgrade_arguments({k: v for k, v in config.items() if v is not None}, parameters)
        unknown = [name for name in upgraded if name not in parameters and name not in CONFIG_KEYS]
        if unknown and not cls._handed_on():
            raise ValueError(
                f"{CONFIG_NAME} of {model_id}: {cls.__name__} has no argument {', '.join(unknown)}"
            )
        changed = {k: v for k, v in upgraded.items() if k in parameters and config.get(k) != v}
        try:
            with init_empty_weights():
                model = cls(**{**arguments, **changed})
        except (ValueError, MemoryError):
            raise
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{CONFIG_NAME} of {model_id} describes no {cls.__name__}: {what}") from error
        if "default_cfg" not in config:
            warnings.warn(
                f"{CONFIG_NAME} of {model_id} has no default_cfg: images are prepared as is usual for a "
                f"{cls.__name__}, and classes are numbers, whatever the model was trained with",
                stacklevel=2,
            )
        for name, value in config.get("default_cfg", {}).items():
            model.default_cfg[name] = tuple(value) if isinstance(value, list) else value
        load_weights(model, read_safetensors(weights), source=str(weights))
        return model.eval()


def check_default_cfg(cfg: Any, source: str) -> None:
    """Check what a model says of the preparation of its images and of its classes.

    Raises:
        ValueError: if it is no mapping, or has other settings than those of `CFG_KEYS`.
    """
    if not isinstance(cfg, Mapping):
        raise ValueError(f"{source}: default_cfg must hold settings, got {cfg!r}")
    unknown = [str(key) for key in cfg if key not in CFG_KEYS]
    if unknown:
        raise ValueError(
            f"{source}: default_cfg has no setting {', '.join(unknown)}; it has {', '.join(CFG_KEYS)}"
        )


def resolve_indices(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Return the layers that the `indices` of `forward_intermediates` stand for, in order.

    Raises:
        ValueError: if an index is no integer or outside the model, or there is none.
    """
    if indices is None:
        return list(range(depth))
    if not isinstance(indices, Sequence) or isinstance(indices, str):
        check_integer("the number of last layers", indices, most=depth)
        indices = range(depth - int(indices), depth)
    if not len(indices):
        raise ValueError("indices of layers must be at least one, got none")
    for index in indices:
        check_integer("indices of layers", index, least=-depth, most=depth - 1)
    return sorted({index % depth for index in indices})
