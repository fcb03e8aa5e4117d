"""LeVJEPA.

L. Kuhn et al. 2026, arXiv:2608.27395.

LeJEPA (arXiv:2511.08544) on videos: embeddings of small, distorted crops are drawn to that of the whole
video, and those of a batch to an isotropic Gaussian. The encoder sees few of the tokens, which keeps it
cheap, and no frame sees later ones.

Family: learning
Differs from the paper: the paper was not compared; the function is the public vit-pytorch package's. There,
views of different videos are compared where a batch has more than one; here, those of the same video. Crops
have no low-pass, are drawn for each video, and colours change in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Generator, Tensor, nn

from vit_pytorch.dino import Views
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.patches import pair
from vit_pytorch.levjepa_nd import LeVJEPANDLosses as LeVJEPALosses
from vit_pytorch.levjepa_nd import NDTransformer, ViewLearner
from vit_pytorch.ssl.backbone_utils import normalisation_of
from vit_pytorch.ssl.views import MultiCrop, View


class VideoTransformer(NDTransformer):
    """An encoder of videos (b c t h w) whose tokens are patches of single frames.

    Args:
        image_size: the largest height and width, one number or (height, width) in pixels.
        patch_size: size of a patch, one number or (height, width) in pixels.
        frames: the largest number of frames.
        rotary_max_freq: see `NDTransformer`.
        block_causal: whether patches see only patches of their own frame and of earlier ones.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        frames: int,
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        rotary_max_freq: float = 10.0,
        block_causal: bool = True,
    ) -> None:
        super().__init__(
            ndim=3,
            input_shape=(frames, *pair(image_size)),
            patch_size=(1, *pair(patch_size)),
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            channels=channels,
            dim_head=dim_head,
            dropout=dropout,
            emb_dropout=emb_dropout,
            rotary_max_freq=rotary_max_freq,
            causal_dims=(0,) if block_causal else (),
        )


class LeVJEPA(ViewLearner):
    """Learning without labels from videos.

    A step is `loss = learner(videos)`, its backward pass, and the optimizer's step. Videos are those that the
    encoder takes, normalised. Further arguments are those of `ViewLearner`. `views` takes the place of the
    public package's `local_augment_fn`, `global_augment_fn` and `crop_ratio_range`.

    Args:
        encoder: such as `VideoTransformer`.
        image_size: height and width of the global view, one number or (height, width) in pixels.
        local_size: the same of the local views.
        num_local_views: number of local views.
        local_crop_scale: least and greatest part of the area in a local view.
        global_crop_scale: least and greatest part of the area in the global view.
        views: gives the views of a batch from the videos and a generator, or None, the global one first;
            default one without distortions, and local ones that are mirrored and change their colours.
    """

    @checks_arguments
    def __init__(
        self,
        encoder: nn.Module,
        image_size: int | Sequence[int],
        local_size: int | Sequence[int] = 96,
        num_local_views: int = 4,
        *,
        local_crop_scale: tuple[float, float] = (0.02, 0.4),
        global_crop_scale: tuple[float, float] = (0.8, 1.0),
        views: Views | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, **options)
        still: dict[str, Any] = {"flip": 0.0, "colour": 0.0, "grey": 0.0, "blur": 0.0}
        drawn = (
            View(pair(image_size), global_crop_scale, **still),
            *[View(pair(local_size), local_crop_scale, blur=0.0)] * num_local_views,
        )
        self.views = MultiCrop(drawn, *normalisation_of(encoder)) if views is None else views

    def forward(
        self,
        videos: Float[Tensor, "b c t h w"],
        return_embedding: bool = False,
        return_loss_breakdown: bool = False,
        *,
        generator: Generator | None = None,
    ) -> Tensor | tuple[Tensor, LeVJEPALosses]:
        """Compute the loss of a batch, or embeddings.

        Args:
            videos: videos.
            return_embedding: return the class tokens (b d) instead.
            return_loss_breakdown: return the two parts of the loss in addition.
            generator: random numbers of the views and of SIGReg's directions; default torch's.
        """
        if return_embedding:
            return self.embed(videos)
        parts = self.losses(self.views(videos, generator), generator)
        loss = parts.invariance_loss + parts.sigreg_loss
        return (loss, parts) if return_loss_breakdown else loss
