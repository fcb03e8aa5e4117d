"""Models of one's own: what a subclass hands on is part of its configuration."""

import pytest
import torch

from vit_pytorch import ViT

SIZES = {"image_size": 20, "patch_size": 4, "num_classes": 3, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 8}


class Doubled(ViT):
    """A ViT with an argument of its own, which hands all others on."""

    def __init__(self, *, factor: float = 2.0, **options) -> None:
        super().__init__(**options)
        self.factor = factor

    def forward(self, images):
        """Return logits."""
        return self.factor * super().forward(images)


def test_what_is_handed_on_is_saved(tmp_path):
    model = Doubled(**SIZES, factor=3.0, pool="mean").eval()
    assert model.config == {**model.config, **SIZES, "factor": 3.0, "pool": "mean"}
    model.save_pretrained(tmp_path)
    again = Doubled.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 20, 20)
    assert again(images).equal(model(images))
    assert again.pool == "mean"
    assert Doubled.from_pretrained(tmp_path, factor=6.0)(images).allclose(2 * model(images), atol=1e-5)


class Held(ViT):
    """A ViT that holds an object."""

    def __init__(self, **options) -> None:
        self.held = options.pop("held")
        super().__init__(**options)


def test_what_no_file_can_hold_is_named(tmp_path):
    model = Held(**SIZES, held=object())
    with pytest.raises(ValueError, match=r"arguments of Held that no configuration file can hold: held$"):
        model.save_pretrained(tmp_path)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="hight"):
        Doubled(**SIZES, hight=3)
