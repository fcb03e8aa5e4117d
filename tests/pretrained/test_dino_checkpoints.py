"""DINO's checkpoints, of the student and the teacher with their heads, into the ViT that was taught."""

from argparse import Namespace

import pytest
import timm
import torch

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, load_pretrained

SMALL = {"image_size": 32, "patch_size": 4, "dim": 48, "depth": 2, "heads": 4, "dim_head": 12, "mlp_dim": 96}
HEAD = {
    "head.mlp.0.weight": torch.randn(16, 48),
    "head.mlp.0.bias": torch.randn(16),
    "head.last_layer.weight_g": torch.ones(32, 1),
    "head.last_layer.weight_v": torch.randn(32, 16),
}


def backbone(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    return randomise(timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes), seed=seed)


@pytest.fixture
def checkpoint() -> dict[str, object]:
    """What the authors' program writes: both networks, the optimizer, the loss's centre and the settings."""
    student, teacher = (
        {f"{prefix}{name}": t for name, t in {**_under(backbone(seed)), **HEAD}.items()}
        for seed, prefix in ((1, "module."), (2, ""))
    )
    rest = {"optimizer": {"state": {}}, "epoch": 100, "args": Namespace(arch="vit_small")}
    return {"student": student, "teacher": teacher, **rest, "dino_loss": {"center": torch.zeros(1, 32)}}


def _under(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(("part", "seed"), [("file", 2), ("teacher", 2), ("student", 1), ("backbone", 2)])
@pytest.mark.parametrize("num_classes", [0, 7])
@pytest.mark.filterwarnings("ignore:.*have their initial values:UserWarning")
def test_features_are_those_of_the_part_asked_for(checkpoint, part, seed, num_classes, tmp_path):
    """The whole file gives the teacher; the projection head is left out, a classifier stays as it is."""
    model = ViT(**SMALL, num_classes=num_classes).eval()
    before = [parameter.clone() for parameter in model.head.parameters()]
    if part == "file":
        torch.save(checkpoint, tmp_path / "checkpoint.pth")
        report = load_pretrained(model, tmp_path / "checkpoint.pth")
    elif part == "backbone":
        report = load_pretrained(model, backbone(2).state_dict())
    else:
        report = load_pretrained(model, checkpoint[part])
    want = backbone(seed).eval().forward_features(images(32, 32))
    assert difference(model.forward_features(images(32, 32)), want) < TOLERANCE
    left_out = set() if part == "backbone" else {f"/{name}" for name in HEAD}
    assert set(report.dropped) == left_out
    assert all(new.equal(old) for new, old in zip(model.head.parameters(), before, strict=True))
