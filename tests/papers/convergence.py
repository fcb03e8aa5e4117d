"""Reference convergence points: how many steps models take to a stated accuracy on scikit-learn's digits.

`benchmarks/convergence.py` measures ten seeds of each case, `test_convergence_learning.py` another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from tests.papers.learning import digits
from vit_pytorch import MAE, Dino, ViT
from vit_pytorch.cct import CCT
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.max_vit import MaxViT
from vit_pytorch.na_vit import NaViT
from vit_pytorch.ssl.views import MultiCrop, View

BATCH, MOST = 32, 1500
SEEDS = 10
# of Student's t with nine degrees of freedom, which lies 0.999 of its distribution from the mean at most
REACH = 4.781

PLAIN: dict[str, Any] = {"image_size": 24, "patch_size": 4, "channels": 1, "dim": 64, "depth": 3, "heads": 2}
SHAPES = ((24, 24), (16, 32), (32, 16))


Data = tuple[Tensor, Tensor, Tensor, Tensor]
Prepare = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Case:
    """What learns, and when it has arrived.

    Args:
        build: makes the model, or the method around one.
        goal: the figure to reach, in [0, 1].
        measure: gives the figure from what learns and the data; by itself, the accuracy on the test images.
        labels: whether the model learns the labels; else it gives its loss itself.
        size: side of the images in pixels.
        lr: learning rate of AdamW; the rest is PyTorch's defaults, without a schedule.
        prepare: makes the model's input of a batch of images.
        every: steps between two measurements.
    """

    build: Callable[[], nn.Module]
    goal: float
    measure: Callable[[Any, Data, Prepare], float]
    labels: bool = True
    size: int = 24
    lr: float = 1e-3
    prepare: Prepare = lambda images: images
    every: int = 10


def classified(learner: nn.Module, data: Data, prepare: Prepare) -> float:
    """Return the share of the test images that a classifier gives the right class."""
    return (learner(prepare(data[2])).argmax(dim=1) == data[3]).float().mean().item()


def reconstructed(learner: Any, data: Data, prepare: Prepare) -> float:
    """Return the share of the variance of the test images' hidden pixels that is reconstructed."""
    loss = learner(data[2], generator=torch.Generator().manual_seed(0))
    return 1 - (loss / data[2].var()).item()


def clustered(learner: Any, data: Data, prepare: Prepare) -> float:
    """Return the normalised mutual information of test images' classes and the teacher's largest logits."""
    chosen = learner.teacher([data[2]])[0] - learner.criterion.centre.value
    return normalized_mutual_info_score(data[3].numpy(), chosen.argmax(dim=1).numpy())


def unequal(images: Tensor) -> list[Tensor]:
    """Resize a batch of images to three shapes in turn."""
    sizes = (SHAPES[i % len(SHAPES)] for i in range(len(images)))
    pairs = zip(images, sizes, strict=True)
    return [
        F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0] for image, size in pairs
    ]


def make_max_vit() -> nn.Module:
    """Build a MaxViT of two stages."""
    return MaxViT(
        image_size=16,
        num_classes=10,
        channels=1,
        dim=24,
        depth=(1, 1),
        dim_conv_stem=16,
        dim_head=8,
        window_size=2,
    )


def make_dino() -> nn.Module:
    """Build DINO with two global and two local views."""
    changes: dict[str, Any] = {"flip": 0.0, "grey": 0.0, "colour": 0.5, "blur": 0.1, "sigma": (0.1, 0.5)}
    views = (*[View((24, 24), (0.6, 1.0), **changes)] * 2, *[View((12, 12), (0.4, 0.7), **changes)] * 2)
    return Dino(
        ViT(**PLAIN, num_classes=0, mlp_dim=128),
        image_size=24,
        projection_hidden_size=128,
        bottleneck_dim=32,
        num_classes_K=64,
        moving_average_decay=0.98,
        views=MultiCrop(views),
    )


CASES = {
    "ViT": Case(lambda: ViT(**PLAIN, num_classes=10, mlp_dim=128), goal=0.95, measure=classified),
    "CCT": Case(
        lambda: CCT(img_size=16, channels=1, embedding_dim=64, num_layers=2, num_heads=2, num_classes=10),
        goal=0.95,
        measure=classified,
        size=16,
    ),
    "NaViT": Case(
        lambda: NaViT(**{**PLAIN, "image_size": 32}, num_classes=10, mlp_dim=128),
        goal=0.85,
        measure=classified,
        prepare=unequal,
        every=20,
    ),
    "MaxViT": Case(make_max_vit, goal=0.95, measure=classified, size=16),
    "MAE": Case(
        lambda: MAE(encoder=ViT(**PLAIN, num_classes=0, mlp_dim=128), decoder_dim=32, decoder_depth=1),
        goal=0.55,
        measure=reconstructed,
        labels=False,
    ),
    "DINO": Case(make_dino, goal=0.25, measure=clustered, labels=False, every=20),
}


def steps_to_goal(case: Case, seed: int, *, most: int = MOST) -> int | None:
    """Return after how many steps a case first reaches its goal, as measured every few steps.

    Args:
        most: steps after which it is given up.

    Returns:
        The steps, or `None` where the goal was not reached.
    """
    data = images, labels, *_ = digits(case.size)
    torch.manual_seed(seed)
    learner = case.build()
    learning = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=case.lr)
    learner.train()
    for step in range(1, most + 1):
        chosen = torch.randint(len(labels), (BATCH,))
        output = learner(case.prepare(images[chosen]))
        loss = F.cross_entropy(output, labels[chosen]) if case.labels else output
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if isinstance(learner, Dino):
            learner.update_moving_average()
        if step % case.every == 0:
            with torch.no_grad(), eval_mode(learner):
                if case.measure(learner, data, case.prepare) >= case.goal:
                    return step
    return None


def bounds(steps: Sequence[int], every: int) -> tuple[float, float]:
    """Return between which steps another seed arrives, but for one in a thousand.

    It is the prediction interval of a normal distribution of the logarithms.

    Args:
        steps: those of ten seeds.
        every: steps between two measurements, which is the least deviation that is believed.
    """
    logs = [math.log(some) for some in steps]
    middle = mean(logs)
    reach = REACH * max(stdev(logs), every / math.exp(middle)) * (1 + 1 / SEEDS) ** 0.5
    return math.exp(middle - reach), math.exp(middle + reach)
