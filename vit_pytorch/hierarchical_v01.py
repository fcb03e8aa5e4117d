"""What models in stages share: a map that narrows from stage to stage while its cells widen.

Maps travel with their channels last, as linear layers, norms and attention want them, and leave the model
with their channels first; both are views of the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.base import Intermediates, VisionModel, resolve_indices
from vit_pytorch.layers_v01.blocks import Encoder
from vit_pytorch.layers_v01.conv import pool_map
from vit_pytorch.layers_v01.options import check_choice
from vit_pytorch.layers_v01.tokens import make_classifier

State = Tensor | tuple[Tensor, Tensor]


class Stage(nn.Module):
    """Narrow the map, then transform it.

    Args:
        down: gives the map of this stage from that of the one before.
        encoder: the blocks.
    """

    def __init__(self, down: nn.Module, encoder: Encoder) -> None:
        super().__init__()
        self.down = down
        self.encoder = encoder

    def forward(self, x: Any) -> Any:
        """Give the map behind the stage."""
        return self.encoder(self.down(x))


class HierarchicalModel(VisionModel):
    """A model in stages, each of which has a map of its own; the base of the pyramids.

    The constructor of a subclass calls this one, then sets `stages`, whatever else of the attributes below
    differs from nothing, and calls `reset_classifier` last. What passes from stage to stage is a map
    (b, h, w, d), or a map and tokens in front of it, (b, k, d) or a map of their own.

    Attributes:
        dims: width of a cell in each stage.
        strides: pixels from one cell to the next in each stage.
        size_multiple: what the height and the width of an input are multiples of.
        min_size: what the height and the width of an input are at least.
        any_size: whether an input may be larger than `image_size`, which is then only the customary one.
        stem: acts on the image, its channels last, in front of the stages.
        stages: give the map of each stage from that of the one before.
        norm: acts on the last map.
        fc_norm: acts on the pooled vector.
        pre_logits: acts on the normed pooled vector.
        head_width: width of what enters the classifier.
        head: the classifier.
    """

    head: nn.Module

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        num_classes: int,
        dims: Sequence[int],
        strides: Sequence[int],
        channels: int = 3,
        size_multiple: tuple[int, int] = (1, 1),
        min_size: tuple[int, int] = (1, 1),
        any_size: bool = True,
    ) -> None:
        super().__init__(
            num_classes=num_classes, num_features=dims[-1], channels=channels, image_size=image_size
        )
        self.dims = tuple(dims)
        self.strides = tuple(strides)
        self.size_multiple = size_multiple
        self.min_size = min_size
        self.any_size = any_size
        self.num_prefix_tokens = 0
        self.stem: nn.Module = nn.Identity()
        self.stages = nn.ModuleList()
        self.norm: nn.Module = nn.Identity()
        self.fc_norm: nn.Module = nn.Identity()
        self.pre_logits: nn.Module = nn.Identity()
        self.head = nn.Identity()
        self.head_width = dims[-1]
        self.check_size(image_size)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What the map of each stage is: module, num_chs, reduction (stride in pixels)."""
        return [
            {"module": f"stages.{i}", "num_chs": dim, "reduction": stride}
            for i, (dim, stride) in enumerate(zip(self.dims, self.strides, strict=True))
        ]

    @property
    def head_hidden_size(self) -> int:
        """Width of what enters the classifier."""
        return self.head_width

    def check_size(self, size: Sequence[int]) -> None:
        """Hold the size of an input against what the architecture can take.

        Raises:
            ValueError: where the input is too small or too large, or not the multiple that the stages need.
        """
        if any(s < least for s, least in zip(size, self.min_size, strict=True)):
            least = tuple(map(max, self.min_size, self.size_multiple))
            raise ValueError(f"an image is at least {least}, got image size {tuple(size)}")
        if not self.any_size and any(s > most for s, most in zip(size, self.image_size, strict=True)):
            raise ValueError(
                f"image size {tuple(size)} exceeds the largest that the model takes, {self.image_size}"
            )
        if any(s % m for s, m in zip(size, self.size_multiple, strict=True)):
            raise ValueError(f"image size {tuple(size)} is not a multiple of {self.size_multiple}")

    def embed(self, images: Float[Tensor, "b c h w"]) -> State:
        """Turn images into what enters the first stage."""
        self.check_images(images)
        self.check_size(images.shape[2:])
        # Channels come last in memory, too: convolutions are faster so, and the maps behind them contiguous.
        return self.stem(images.permute(0, 2, 3, 1).contiguous())

    def finish(self, state: State) -> State:
        """Apply the final norm to what leaves the last stage."""
        if isinstance(state, tuple):
            return self.norm(state[0]), self.norm(state[1])
        return self.norm(state)

    def forward_features(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Compute the last map, or a sequence (b, k + h * w, d) of its cells behind prefix tokens."""
        last, _ = take_stages(self.steps(images), (), len(self.stages), self.finish)
        return self.join(last)

    def steps(self, images: Float[Tensor, "b c h w"]) -> Iterator[State]:
        """Give what leaves every stage in turn."""
        state = self.embed(images)
        for stage in self.stages:
            state = stage(state)
            yield state

    def join(self, state: State) -> Tensor:
        """Make of a state what leaves the model: a channels-first map, or all tokens in one sequence."""
        x, prefix = _part(state)
        if isinstance(state, tuple):
            return torch.cat([prefix, x.flatten(1, 2)], dim=1)
        return x.permute(0, 3, 1, 2)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Float[Tensor, "b k"]:
        """Pool the last map and classify it.

        Args:
            features: what `forward_features` gives.
            pre_logits: whether to stop before the classifier.
        """
        x = self.pre_logits(self.fc_norm(self.pool_features(features)))
        return x if pre_logits else self.head(x)

    def pool_features(self, features: Tensor) -> Float[Tensor, "b d"]:
        """Give one vector for each image: the mean of the map, or of the prefix tokens, if any."""
        if features.ndim == 3:
            return features[:, : self.num_prefix_tokens].mean(dim=1)
        return pool_map(features)

    def forward_intermediates(
        self,
        images: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Intermediates | tuple[Tensor, Intermediates]:
        """Compute the map of every stage; see `VisionModel.forward_intermediates`.

        The final norm has the last stage's width and acts on no other.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        layers = resolve_indices(indices, len(self.stages))
        last, taken = take_stages(
            self.steps(images), layers, len(self.stages), self.finish, norm=norm, stop_early=stop_early
        )
        found = give_stages([_part(state) for state in taken], output_fmt, return_prefix_tokens)
        return found if intermediates_only else (self.join(last), found)

    def get_classifier(self) -> nn.Module:
        """Give the layer that computes the logits; the identity where there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of logits; 0 for the pooled embedding.
            global_pool: "mean" (timm's "avg"), the only pooling.
        """
        if global_pool not in (None, "mean", "avg"):
            raise ValueError(f"{type(self).__name__} pools by the mean; pooling cannot be {global_pool!r}")
        self.head = make_classifier(self.head_width, num_classes, like=next(self.parameters()))
        self.num_classes = num_classes
        self._record(num_classes=num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        for module in self.stages.modules():
            if isinstance(module, Encoder):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Name the parameters of more than one axis that weight decay leaves alone: tokens and places."""
        kept = (".table", ".positions.conv.weight", ".class_token")
        return {name for name, _ in self.named_parameters() if name.endswith(kept)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Give patterns that sort parameters by depth; the coarse ones by stage."""
        stage, block = (r"^stages\.(\d+)\.", None), (r"^stages\.(\d+)\.encoder\.blocks\.(\d+)", None)
        return {
            "stem": r"^(?:stem|stages\.0\.down)\.",
            "blocks": [*([] if coarse else [block]), stage, (r"^norm\.", (99999,))],
        }


def take_stages(
    states: Iterable[Any],
    layers: Collection[int],
    stages: int,
    finish: Callable[[Any], Any],
    *,
    norm: bool = False,
    stop_early: bool = False,
) -> tuple[Any, list[Any]]:
    """Give what leaves the model, and what leaves the stages asked for.

    Args:
        states: what leaves every stage in turn; stages run as these are asked for.
        layers: indices of stages, in order.
        stages: number of stages.
        finish: applies the final norm, to what leaves the last stage alone.
        norm: whether what is given of the last stage is finished, too.
        stop_early: whether to leave out the stages behind the last one asked for.
    """
    taken: list[Any] = []
    last = None
    for i, state in enumerate(states):
        last = finish(state) if i == stages - 1 else state
        if i in layers:
            taken.append(last if norm else state)
        if stop_early and i == max(layers):
            break
    return last, taken


def give_stages(
    parts: Iterable[tuple[Float[Tensor, "b _ _ _"], Float[Tensor, "b _ _"]]],
    output_fmt: str,
    return_prefix_tokens: bool,
) -> Intermediates:
    """Give maps and the tokens in front of them as `VisionModel.forward_intermediates` does."""
    pairs = [
        (x.permute(0, 3, 1, 2) if output_fmt == "NCHW" else x.flatten(1, 2), prefix) for x, prefix in parts
    ]
    return pairs if return_prefix_tokens else [x for x, _ in pairs]


def _part(state: State) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b k d"]]:
    """Part a state into its map and the tokens in front of it, none as a rule."""
    if isinstance(state, tuple):
        x, prefix = state
        return x, prefix.flatten(1, -2)
    return state, state.new_empty(state.shape[0], 0, state.shape[3])
