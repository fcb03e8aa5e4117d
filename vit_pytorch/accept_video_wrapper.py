"""A model of images that takes videos: frame by frame, with optional embeddings of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.wrapper import eval_mode


class AcceptVideoWrapper(nn.Module):
    """Apply a model of images to each frame of videos.

    Outputs are those of the model, a tensor or tensors in tuples, lists and dictionaries, with an axis of
    time after the batch. Scalars, such as losses, stay as they are.

    Args:
        image_net: the model.
        forward_function: name of the method that is called.
        add_time_pos_emb: add a learned embedding of the frame's place to an output.
        dim_emb: dimension of that output.
        time_seq_len: number of frames at most, with embeddings of time.
        embed_is_channel_first: the channels of that output are its first axis after batch and time,
            instead of the last.
        output_pos_add_pos_emb: index of that output among the tensors, in the order in which they come.
        proj_embed_to_dim: project that output to this dimension, before embeddings of time are added.

    Raises:
        ValueError: if `dim_emb` or `time_seq_len` is missing for what is asked, or there is no such method.
    """

    @checks_arguments
    def __init__(
        self,
        image_net: nn.Module,
        forward_function: str = "forward",
        add_time_pos_emb: bool = False,
        dim_emb: int | None = None,
        time_seq_len: int | None = None,
        embed_is_channel_first: bool = False,
        output_pos_add_pos_emb: int = 0,
        proj_embed_to_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(getattr(image_net, forward_function, None)):
            raise ValueError(f"{type(image_net).__name__} has no method {forward_function}")
        self.image_net = image_net
        self.forward_function = forward_function
        self.channel_first = embed_is_channel_first
        self.index = output_pos_add_pos_emb
        self.embed_proj: nn.Linear | None = None
        self.pos_emb: nn.Parameter | None = None
        if (add_time_pos_emb or proj_embed_to_dim is not None) and dim_emb is None:
            raise ValueError("embeddings of time and a projection need dim_emb, the dimension of the output")
        if proj_embed_to_dim is not None:
            self.embed_proj = nn.Linear(dim_emb or 0, proj_embed_to_dim)
        if add_time_pos_emb:
            if time_seq_len is None:
                raise ValueError("embeddings of time need time_seq_len, the number of frames at most")
            self.pos_emb = nn.Parameter(torch.empty(time_seq_len, proj_embed_to_dim or dim_emb or 0))
            nn.init.normal_(self.pos_emb, std=0.01)

    def forward(
        self,
        video: Float[Tensor, "b c t h w"],
        eval_with_no_grad: bool = False,
        forward_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute the model's outputs for each frame.

        Args:
            video: videos.
            eval_with_no_grad: run the model in eval mode and without gradients.
            forward_kwargs: other arguments of the model's method.

        Raises:
            ValueError: if the videos have another rank or too many frames, an output is not one for each
                frame, or there is no output of that index.
        """
        if video.ndim != 5:
            raise ValueError(f"expected videos of rank 5 (b, c, t, h, w), got shape {tuple(video.shape)}")
        batch, frames = video.shape[0], video.shape[2]
        if self.pos_emb is not None and frames > len(self.pos_emb):
            raise ValueError(f"a video must have at most {len(self.pos_emb)} frames, got {frames}")
        function = getattr(self.image_net, self.forward_function)
        with ExitStack() as stack:
            if eval_with_no_grad:
                stack.enter_context(eval_mode(self.image_net))
                stack.enter_context(torch.no_grad())
            outputs = function(video.transpose(1, 2).flatten(0, 1), **(forward_kwargs or {}))
        count = 0

        def finish(output: Tensor) -> Tensor:
            nonlocal count
            index, count = count, count + 1
            if output.ndim == 0:
                return output
            if len(output) != batch * frames:
                raise ValueError(
                    f"outputs must be one for each of {batch * frames} frames, got {tuple(output.shape)}"
                )
            output = output.unflatten(0, (batch, frames))
            return self.embed_time(output) if index == self.index else output

        finished = map_tensors(outputs, finish)
        if (self.embed_proj is not None or self.pos_emb is not None) and self.index >= count:
            raise ValueError(f"output_pos_add_pos_emb must be in [0, {count - 1}], got {self.index}")
        return finished

    def embed_time(self, output: Float[Tensor, "b t *d"]) -> Float[Tensor, "b t *e"]:
        """Project an output and add embeddings of time, where wanted."""
        x = output.movedim(2, -1) if self.channel_first else output
        if self.embed_proj is not None:
            x = self.embed_proj(x)
        if self.pos_emb is not None:
            places = self.pos_emb[: x.shape[1]]
            x = x + places.reshape(len(places), *[1] * (x.ndim - 3), -1)
        return x.movedim(-1, 2) if self.channel_first else x


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change each tensor in tuples, lists and dictionaries, in order; everything else stays as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(part, change) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(part, change) for part in value)
    if isinstance(value, dict):
        return {name: map_tensors(part, change) for name, part in value.items()}
    return value
