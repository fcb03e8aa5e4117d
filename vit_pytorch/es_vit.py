"""Efficient Self-supervised Vision Transformers for Representation Learning.

C. Li, J. Yang, P. Zhang, M. Gao, B. Xiao, X. Dai, L. Yuan, J. Gao 2021, arXiv:2106.09785.

DINO for models in stages, which are cheaper but lose what regions of the two views correspond. Beside the
views, regions are compared: every cell of the student's map learns what the teacher says of the cell of the
other view that is most like it.

Family: learning
Differs from the paper: what `vit_pytorch.dino` says of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.dino import Dino, DinoLoss, Layer, MakeHead, Student
from vit_pytorch.extractor import find_layer
from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.positions import interpolated_positions
from vit_pytorch.ssl.center import Centre
from vit_pytorch.ssl.views import join_by_size


class Regions(NamedTuple):
    """What a model and its two heads say of the crops of a batch.

    That is the logits of every crop, and for each crop the logits and the features of its cells.
    """

    views: Float[Tensor, "v b k"]
    cells: list[Float[Tensor, "b _ k"]]
    features: list[Float[Tensor, "b _ d"]]


class EsViTLoss(nn.Module):
    """The mean of DINO's loss of views and of the same of regions that are matched (section 3.2).

    Args:
        num_classes: number of logits, of views and of regions.
        student_temp: the student's temperature.
        center_decay: how much of the old centres stays at an update.
        region_weight: weight of the regions' loss, in [0, 1]; the views' has the rest.
    """

    @checks_arguments
    def __init__(
        self,
        num_classes: int,
        *,
        student_temp: float = 0.1,
        center_decay: float = 0.9,
        region_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.region_weight = region_weight
        self.views = DinoLoss(num_classes, student_temp=student_temp, center_decay=center_decay)
        self.student_temp = student_temp
        self.region_centre = Centre(num_classes, decay=center_decay)

    def forward(self, student: Regions, teacher: Regions, teacher_temp: float) -> Float[Tensor, ""]:
        """Compute the loss.

        Args:
            student: what the student says of all views.
            teacher: what the teacher says of the first of these, the global ones.
            teacher_temp: the teacher's temperature.
        """
        views = self.views(student.views, teacher.views, teacher_temp)
        regions = self.compare_regions(student, teacher, teacher_temp)
        return (1 - self.region_weight) * views + self.region_weight * regions

    def compare_regions(self, student: Regions, teacher: Regions, teacher_temp: float) -> Float[Tensor, ""]:
        """Compute the regions' loss: the mean over pairs of views, the batch, and the student's cells."""
        heard = [(logits.float() / self.student_temp).log_softmax(dim=-1) for logits in student.cells]
        losses = []
        for q, logits in enumerate(teacher.cells):
            said = self.region_centre(logits, teacher_temp)
            for v, answer in enumerate(heard):
                if v == q:
                    continue
                match = match_regions(student.features[v], teacher.features[q])
                with torch.autocast(said.device.type, enabled=False):
                    every = -answer @ said.transpose(1, 2)
                losses.append(every.gather(2, match[..., None]).mean())
        return torch.stack(losses).mean()

    def update_centre(self) -> None:
        """Move both centres on, once after each step."""
        self.views.update_centre()
        self.region_centre.update()


@torch.no_grad()
def match_regions(student: Float[Tensor, "b n d"], teacher: Float[Tensor, "b m d"]) -> Int[Tensor, "b n"]:
    """Give, for each of the student's cells, the teacher's with the greatest cosine (equation 3)."""
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = (F.normalize(x.float(), dim=-1) for x in (student, teacher))
        return (ours @ theirs.transpose(1, 2)).argmax(dim=2)


class RegionStudent(Student):
    """A model, a head on its embedding, and one on the cells of its map; takes the arguments of `Student`."""

    end = "layers"

    def find(self, layer: Layer) -> int:
        """Return the index in `feature_info` of a layer that is asked for by index, by name, or as a
        module."""
        name = find_layer(self.net, layer)
        info: Any = getattr(self.net, "feature_info", [])
        modules = [entry["module"] for entry in info]
        if name not in modules:
            raise ValueError(f"layers that give a map are {', '.join(modules) or 'none'}; got {name}")
        return modules.index(name)

    def add_heads(self, make_head: MakeHead, embedded: tuple[Tensor, Tensor]) -> None:
        """Build the heads of the embedding and of the cells."""
        view, cells = embedded
        if not cells.shape[1]:
            raise ValueError(f"regions are cells of a map, and {type(self.net).__name__} gives none")
        self.head = make_head(view.shape[1])
        self.region_head = make_head(cells.shape[2])

    def embed(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b n d"]]:
        """Compute the embeddings of images of one size, and the features of their cells."""
        net: Any = self.net
        if self.layer is not None:
            maps = net.forward_intermediates(images, indices=[self.layer], intermediates_only=True)
            cells = maps[0].flatten(2).transpose(1, 2)
            return cells.mean(dim=1), cells
        features = net.forward_features(images)
        view = net.forward_head(features, pre_logits=True)
        if features.ndim == 3:
            return view, features[:, net.num_prefix_tokens :]
        if getattr(net, "output_fmt", "NCHW") == "NHWC":
            return view, features.flatten(1, 2)
        return view, features.flatten(2).transpose(1, 2)

    def forward(
        self, crops: Sequence[Float[Tensor, "b c _ _"]], *, freeze_last_layer: bool = False
    ) -> Regions:
        """Compute logits of all crops and of all their cells; the model runs once for each size, heads once.

        Args:
            crops: views of one batch, those of one size beside each other.
            freeze_last_layer: whether the heads' last layers are given no gradients.
        """
        batch = len(crops[0])
        with interpolated_positions(self.net):
            embedded = [self.embed(joined) for joined in join_by_size(crops)]
        views = self.head(torch.cat([view for view, _ in embedded]), freeze_last_layer=freeze_last_layer)
        features = [cells for _, joined in embedded for cells in joined.split(batch)]
        rows = torch.cat([cells.flatten(0, 1) for cells in features])
        logits = self.region_head(rows, freeze_last_layer=freeze_last_layer)
        parts = logits.split([cells.shape[0] * cells.shape[1] for cells in features])
        return Regions(
            views=views.unflatten(0, (len(crops), -1)),
            cells=[part.unflatten(0, (batch, -1)) for part in parts],
            features=features,
        )


class EsViTTrainer(Dino):
    """Learning without labels from a teacher's views and regions; takes the arguments of `Dino`.

    It is used as `Dino` is. What differs:

    Args:
        net: a model of this package in stages, or any that gives a map or tokens; or one of timm, a Swin made
            with `strict_img_size=False`.
        hidden_layer: what gives the map. "layers", as None, is all layers: the map, or the tokens behind the
            prefix, that `forward_features` gives, with what enters the classifier as embedding; otherwise it
            is a layer of the model's `feature_info`, by index or name, with the mean of its map as embedding.
    """

    def make_student(
        self, net: nn.Module, layer: Layer | None, make_head: MakeHead, sizes: Sequence[tuple[int, int]]
    ) -> nn.Module:
        """Put a head on the model's embedding, and another on the cells of its map."""
        return RegionStudent(net, layer, make_head, sizes)

    def make_criterion(self, num_classes: int, *, student_temp: float, center_decay: float) -> EsViTLoss:
        """Build what compares views and regions."""
        return EsViTLoss(num_classes, student_temp=student_temp, center_decay=center_decay)
