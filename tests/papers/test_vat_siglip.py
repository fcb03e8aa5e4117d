"""VAT around SigLIP: equal to the public package's, its tower to transformers'."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.vat_siglip import LinearFiLM, SigLIPVAT

SIZES: dict[str, Any] = {
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "dim_action": 5,
    "mlp_dim": 32,
    "action_chunk_len": 6,
    "siglip_image_size": 28,
    "siglip_patch_size": 4,
    "siglip_dim": 32,
    "siglip_depth": 2,
    "siglip_heads": 2,
    "siglip_mlp_dim": 48,
}


def build(**options: Any) -> SigLIPVAT:
    policy = SigLIPVAT(**{**SIZES, **options})
    randomise(policy)
    return policy


@torch.inference_mode()
def test_equals_the_public_package() -> None:
    config, state, golden = read_golden("public_vat_siglip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = SigLIPVAT(**config).eval()
    load_pretrained(policy, state, strict=True, grid="model")
    given = {name: golden[name] for name in ("tasks", "extra", "advantages")}
    actions, hiddens = policy(golden["input"], **given, return_hiddens=True)
    assert difference(actions, golden["output"]) < TOLERANCE
    assert difference(hiddens, golden["hiddens"]) < TOLERANCE
    assert difference(policy(golden["input"]), golden["plain"]) < TOLERANCE
    loss = policy(golden["input"], **given, actions=golden["actions"])
    torch.testing.assert_close(loss, golden["loss"])


@torch.inference_mode()
def test_tower_has_the_weights_of_transformers() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 60000, "num_hidden_layers": 1}
    config = SiglipConfig(vision_config={**vision, "image_size": 28, "patch_size": 4}, text_config=text)
    theirs = SiglipModel(config).eval()
    randomise(theirs)
    policy = SigLIPVAT(**{**SIZES, "vit_layer_indices": (1, 2)}).eval()
    policy.load_siglip(theirs.state_dict())
    images = torch.randn(2, 3, 28, 28)
    expected = theirs.vision_model(images, output_hidden_states=True)
    layers = policy.see(images)
    assert difference(layers[1], expected.hidden_states[1]) < TOLERANCE
    assert difference(layers[2], expected.last_hidden_state) < TOLERANCE


def test_learns_with_and_without_its_tower() -> None:
    policy = build(num_tasks=3, num_views=2, num_advantage_bins=2)
    images, actions = torch.randn(2, 2, 3, 28, 28), torch.randn(2, 6, 5)
    given: dict[str, Any] = {"tasks": torch.tensor([0, 2]), "advantages": -1, "actions": actions}
    policy(images, **given, freeze_vit=True).backward()
    own = {n: p for n, p in policy.named_parameters() if not n.startswith("vit.")}
    assert all(p.grad is None for n, p in policy.named_parameters() if n.startswith("vit."))
    assert all(p.grad is not None and p.grad.any() for p in own.values())
    policy(images, **given).backward()
    assert policy.vit.patch_embed.proj.weight.grad.any()


def test_film_starts_as_the_identity() -> None:
    tokens = torch.randn(2, 3, 8)
    assert LinearFiLM(8)(tokens, torch.randn(2, 1, 8)).equal(tokens)


def images(**shape: int) -> Tensor:
    return torch.randn(2, 3, 28, 28)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"tasks": torch.tensor([0, 0])}, "takes no tasks: build it with num_tasks"),
        ({}, {"extra": torch.zeros(2, 4)}, "takes no extra: build it with dim_extra_token"),
        ({}, {"advantages": 1}, "takes no advantages: build it with num_advantage_bins"),
        ({"num_tasks": 2}, {"tasks": torch.tensor([0, 2])}, r"tasks must be 2 integers in \[0, 1\], got"),
        ({"num_advantage_bins": 2}, {"advantages": 2}, r"advantages must be 2 integers in \[-1, 1\], got"),
        ({}, {"actions": torch.zeros(2, 5, 5)}, r"expected actions of shape \(2, 6, 5\), got \(2, 5, 5\)"),
    ],
)
def test_what_calls_refuse(options: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)(images(), **given)


@pytest.mark.parametrize("reads", [(0,), (0, 3)])
def test_layers_outside_the_tower_are_refused(reads: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"vit_layer_indices must be 2 numbers in \[0, 2\]"):
        build(vit_layer_indices=reads)
