"""Reports of small models."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_pytorch import ViT
from vit_pytorch.analysis.report import Subject, explain_image, write_report
from vit_pytorch.base import VisionModel


def make_vit(**changes: Any) -> VisionModel:
    """A small ViT with maps that are far from uniform."""
    sizes = {"image_size": (40, 56), "patch_size": 8, "dim": 24, "depth": 3, "heads": 2, "dim_head": 12}
    model = ViT(**{**sizes, "mlp_dim": 32, "num_classes": 4, **changes})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "to_qkv" in name:
                parameter.mul_(4)
    return model.eval()


def make_report(folder: Path, model: VisionModel, images: Tensor, **options: Any) -> Path:
    """Write a report of some images; classes are numbered."""
    shown = [
        explain_image(model, image, name=f"image {i}.png", picture=((image + 1) * 127.5).clamp(0, 255).byte())
        for i, image in enumerate(images)
    ]
    subject = Subject("a model", ["small"], [f"class {i}" for i in range(model.num_classes)])
    write_report(folder / "report.html", subject, shown, count=len(shown), **options)
    return folder / "report.html"
