"""What features are worth before and after learning without labels, by every method, on small data.

    python benchmarks/pretraining.py digits idx:/usr/share/datasets/fashion-mnist \
        --json docs/measured/pretraining.json

Three seeds each: all digits, and 3000 pictures of clothes (1000 asked). Features are read by the 20 nearest
neighbours and by a linear classifier, which know the labels of the images learned from. EsViT teaches a
Twins-SVT, the others a ViT of width 64. `--fine-tune` measures what MAE's weights are worth as a start,
where a tenth of the labels is known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from small_data import Data, accuracy, learn_labels, read_data, train
from torch import Tensor, nn

from vit_pytorch import MAE, Dino, ViT
from vit_pytorch.es_vit import EsViTTrainer
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.mp3 import MP3
from vit_pytorch.mpp import MPP
from vit_pytorch.simmim import SimMIM
from vit_pytorch.ssl.probes import extract, knn_accuracy, linear_accuracy
from vit_pytorch.ssl.schedules import CosineSchedule
from vit_pytorch.ssl.views import MultiCrop, View
from vit_pytorch.twins_svt import TwinsSVT

BATCH = 64
DISTORTIONS: dict[str, Any] = {"flip": 0.0, "grey": 0.0, "colour": 0.5, "blur": 0.1, "sigma": (0.1, 0.5)}
# epochs on the digits and on the clothes
MASKED, PAINTED, VIEWED, STAGED = (60, 15), (60, 45), (40, 10), (12, 3)
FINE_TUNING = 40


def make_vit(size: int) -> ViT:
    """Build the ViT that most methods teach."""
    return ViT(
        image_size=size,
        patch_size=4,
        num_classes=0,
        dim=64,
        depth=2,
        heads=4,
        dim_head=16,
        mlp_dim=128,
        channels=1,
        pool="mean",
    )


def make_twins() -> TwinsSVT:
    """Build the model in stages that EsViT teaches."""
    stages: dict[str, Any] = {}
    for i, (dim, patch) in enumerate(zip((32, 64, 64, 64), (2, 2, 1, 1), strict=True), start=1):
        stages |= {f"s{i}_emb_dim": dim, f"s{i}_patch_size": patch, f"s{i}_local_patch_size": 5}
        stages |= {f"s{i}_global_k": 2, f"s{i}_depth": 1}
    return TwinsSVT(num_classes=0, channels=1, **stages)


def make_mae(net: nn.Module, size: int, steps: int) -> nn.Module:
    """Put the masked autoencoder around a model."""
    return MAE(encoder=net, decoder_dim=32, decoder_depth=1, decoder_heads=4)


def make_dino(kind: type[Dino], net: nn.Module, size: int, steps: int) -> Dino:
    """Put DINO, or EsViT, around a model: two global crops and two local ones."""
    local = 4 * round(0.6 * size / 4)
    views = (
        *[View((size, size), (0.6, 1.0), **DISTORTIONS)] * 2,
        *[View((local, local), (0.4, 0.7), **DISTORTIONS)] * 2,
    )
    return kind(
        net,
        image_size=size,
        projection_hidden_size=128,
        bottleneck_dim=32,
        num_classes_K=64,
        moving_average_decay=CosineSchedule(0.98, 1.0, steps),
        views=MultiCrop(views),
    )


# method: what makes it, the epochs, the learning rate
METHODS: Mapping[str, tuple[Callable[[Any, int, int], nn.Module], tuple[int, int], float]] = {
    "MAE": (make_mae, MASKED, 5e-3),
    "SimMIM": (lambda net, *_: SimMIM(encoder=net, masking_ratio=0.6, mask_patch_size=4), PAINTED, 5e-3),
    "MPP": (lambda net, *_: MPP(transformer=net, mean=(0.5,), std=(0.5,)), MASKED, 5e-3),
    "MP3": (lambda net, *_: MP3(vit=net, masking_ratio=0.5), MASKED, 5e-3),
    "DINO": (partial(make_dino, Dino), VIEWED, 5e-3),
    "EsViT": (partial(make_dino, EsViTTrainer), STAGED, 2e-3),
}


def worth(net: Any, data: Data) -> tuple[float, float]:
    """Read the features that enter the classifier: by nearest neighbours, and by a linear classifier."""

    def features(images: Tensor) -> Tensor:
        return net.forward_head(net.forward_features(images), pre_logits=True)

    with eval_mode(net):
        known, asked = extract(features, data.images), extract(features, data.test_images)
    parts = known, data.labels, asked, data.test_labels
    return knn_accuracy(*parts), linear_accuracy(*parts)


def learn(method: str, net: nn.Module, data: Data, seed: int) -> None:
    """Teach a model by a method."""
    make, epochs, lr = METHODS[method]
    passes = epochs[len(data.images) > 2000]
    learner: Any = make(net, data.size, passes * (len(data.images) // BATCH))
    train(
        learner,
        lambda images, _: learner(images),
        data.images,
        data.labels,
        epochs=passes,
        lr=lr,
        batch=BATCH,
        seed=seed,
        moved=not isinstance(learner, Dino),
        after=learner.update_moving_average if isinstance(learner, Dino) else lambda: None,
    )


def measure(method: str, data: Data, seed: int) -> dict[str, float]:
    """Give what a model's features are worth before it learns by a method, and after."""
    torch.manual_seed(seed)
    net = make_twins() if method == "EsViT" else make_vit(data.size)
    before = worth(net, data)
    learn(method, net, data, seed)
    after = worth(net, data)
    return dict(
        zip(("knn before", "linear before", "knn after", "linear after"), before + after, strict=True)
    )


def fine_tune(data: Data, seed: int) -> dict[str, float]:
    """Give the accuracy that a tenth of the labels teaches, from scratch and from MAE's weights."""
    few = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))[
        : len(data.labels) // 10
    ]
    known = data._replace(images=data.images[few], labels=data.labels[few])
    found = {}
    for start in ("scratch", "MAE"):
        torch.manual_seed(seed)
        net = make_vit(data.size)
        if start == "MAE":
            learn("MAE", net, data, seed)
        torch.manual_seed(seed)
        net.reset_classifier(10)
        learn_labels(net, known, epochs=FINE_TUNING, lr=2e-3, seed=seed, batch=32)
        found[start] = accuracy(net, data.test_images, data.test_labels)
    return found


def main() -> None:
    """Measure the methods, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="+", help="digits, or idx:FOLDER")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fine-tune", action="store_true")
    parser.add_argument("--json", type=Path, help="where all figures are written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(given.json.read_text()) if given.json and given.json.is_file() else []
    found = {(row["data"], row["method"]): row for row in rows}
    for source in given.data:
        kind = source.partition(":")[0]
        digits = source == "digits"
        data = read_data(
            source, 20 if digits else 28, train=None if digits else 3000, test=None if digits else 1000
        )
        methods = ["fine-tuning"] if given.fine_tune else given.methods
        for method in methods:
            measured = fine_tune if given.fine_tune else partial(measure, method)
            runs = [measured(data, seed) for seed in range(given.seeds)]
            found[kind, method] = {"data": kind, "method": method, "runs": runs, **provenance()}
            print(json.dumps(found[kind, method]), flush=True)
            if given.json is not None:
                given.json.write_text(json.dumps([*found.values()], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
