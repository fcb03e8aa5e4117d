"""The normalized ViT computes the paper's equations, written out in loops, and stays on its sphere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.normalized_vit import NormalizedViT
from vit_pytorch.training.optim import OptimizerConfig, make_optimizer

SMALL: dict[str, Any] = {
    "image_size": (24, 32),
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 40,
    "dim_head": 10,
}


def norm(x: Tensor) -> Tensor:
    return x / math.sqrt(sum(float(value) ** 2 for value in x))


def written_out(model: NormalizedViT, image: Tensor) -> Tensor:
    """Compute the logits of one image, one token and head at a time, from the stored weights."""
    weights = dict(model.named_parameters())
    root = SMALL["dim"] ** 0.5
    rows, columns = (extent // 8 for extent in image.shape[1:])
    positions = weights["positions.table"][0]
    kernel = weights["patch_embed.proj.weight"]
    h = []
    if model.prefix.class_token is not None:
        h.append(norm(weights["prefix.class_token"][0, 0] + positions[0]))
    for row in range(rows):
        for column in range(columns):
            patch = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            place = positions[row * 4 + column + len(positions) - 12]
            h.append(norm(norm((kernel * patch).sum(dim=(1, 2, 3))) + place))
    for layer in range(SMALL["depth"]):
        name = f"blocks.{layer}"
        attention, mlp = f"{name}.attention", f"{name}.feedforward"
        w_q, w_k, w_v = weights[f"{attention}.to_qkv.weight"].chunk(3)
        s_qk = weights[f"{attention}.s_qk.stored"] * root
        mixed = [[] for _ in h]
        for head in range(3):
            part = slice(10 * head, 10 * head + 10)
            q = [norm(w_q[part] @ token) * s_qk[part] for token in h]
            k = [norm(w_k[part] @ token) * s_qk[part] for token in h]
            v = [w_v[part] @ token for token in h]
            for place, query in enumerate(q):
                scores = [math.exp(math.sqrt(10) * float(query @ key)) for key in k]
                shares = [score / sum(scores) for score in scores]
                mixed[place].append(sum(share * value for share, value in zip(shares, v, strict=True)))
        w_o, w_uv, w_out = (
            weights[f"{part}.weight"] for part in (f"{attention}.to_out", f"{mlp}.to_uv", f"{mlp}.to_out")
        )
        alpha_a = (weights[f"{name}.attention_rate.stored"] * 0.05 * root).abs()
        alpha_m = (weights[f"{name}.feedforward_rate.stored"] * 0.05 * root).abs()
        w_u, w_v = w_uv.chunk(2)
        s_u, s_v = weights[f"{mlp}.s_u.stored"], weights[f"{mlp}.s_v.stored"]
        for place, heads in enumerate(mixed):
            target = norm(w_o @ torch.cat(heads))
            h[place] = norm(h[place] + alpha_a * (target - h[place]))
            u, v = (w_u @ h[place]) * s_u, (w_v @ h[place]) * s_v * root
            target = norm(w_out @ (u * v * torch.sigmoid(v)))
            h[place] = norm(h[place] + alpha_m * (target - h[place]))
    pooled = h[0] if model.pool == "cls" else norm(sum(h) / len(h))
    return weights["head.s_z.stored"] * root * (weights["head.linear.weight"] @ pooled)


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_equals_the_equations(pool: str) -> None:
    model = randomise(NormalizedViT(**SMALL, pool=pool))
    assert isinstance(model, NormalizedViT)
    for name, parameter in model.named_parameters():
        # Some rates are negative, so that only their size counts.
        if name.endswith("stored"):
            parameter.uniform_(-0.4 if "rate" in name else 0.1, 0.5)
    model.normalize_weights()
    x = images(24, 32)
    ours, theirs = model(x), torch.stack([written_out(model, image) for image in x])
    assert difference(ours, theirs) < TOLERANCE


def test_tokens_and_pooled_vectors_are_on_the_sphere() -> None:
    model = NormalizedViT(**SMALL, pool="mean", num_registers=2).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    final, taken = model.forward_intermediates(images(24, 32), output_fmt="NLC", return_prefix_tokens=True)
    pooled = model.forward_head(final, pre_logits=True)
    for vectors in (model.embed(images(24, 32)), *sum(taken, ()), final, pooled):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(()), atol=1e-6)
    cosines = pooled @ model.head.linear.weight.T
    assert torch.allclose(model(images(24, 32)), model.head.s_z(cosines), atol=1e-5)


def lengths(model: NormalizedViT) -> Tensor:
    return torch.cat([weight.norm(dim=axis).flatten() for weight, axis in model.vectors()])


def test_starts_as_the_paper_says() -> None:
    model = NormalizedViT(**SMALL)
    assert torch.allclose(lengths(model), torch.ones(()))
    assert {id(weight) for weight, _ in model.vectors()} == {
        id(parameter) for parameter in model.parameters() if parameter.ndim > 1
    }
    for name, module in model.named_modules():
        if hasattr(module, "stored"):
            expected = 0.05 if name.endswith("rate") else 1.0
            assert torch.allclose(module.stored * module.ratio, torch.full_like(module.stored, expected))
            size = 1.0 if name.endswith(("s_u", "s_v")) else 24**-0.5
            assert torch.allclose(module.stored, torch.full_like(module.stored, size))
    assert not any(name.endswith("bias") for name in model.state_dict())
    feedforward = model.blocks[0].feedforward
    assert feedforward.to_uv.weight.shape == (80, 24)
    assert feedforward.to_out.weight.shape == (24, 40)


def test_optimizers_put_the_weights_back_and_do_not_decay_them() -> None:
    model = NormalizedViT(**{**SMALL, "image_size": 24})
    optimizer = make_optimizer(model, OptimizerConfig(lr=0.1, weight_decay=0.5))
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    before = [weight.detach().clone() for weight, _ in model.vectors()]
    F.cross_entropy(model(images(24, 24)), torch.tensor([1, 2])).backward()
    optimizer.step()
    assert torch.allclose(lengths(model), torch.ones(()))
    moved = [(weight - old).abs().max() for (weight, _), old in zip(model.vectors(), before, strict=True)]
    assert min(moved) > 0.01


def test_new_classifiers_are_on_the_sphere() -> None:
    model = NormalizedViT(**SMALL)
    model.reset_classifier(5, "avg")
    assert torch.allclose(lengths(model), torch.ones(()))
    assert model(images(24, 32)).shape == (2, 5)
    model.reset_classifier(0)
    assert torch.allclose(model(images(24, 32)).norm(dim=1), torch.ones(2))
    assert len(list(model.vectors())) == 11


def test_loads_its_own_checkpoints() -> None:
    model, other = NormalizedViT(**SMALL), NormalizedViT(**SMALL)
    load_pretrained(other, model.state_dict(), grid="model")
    assert other(images(24, 32)).equal(model(images(24, 32)))


@pytest.mark.parametrize("wrong", [{"base_scale": 0.0}, {"alpha_init": -0.1}, {"sz_init": 0.0}])
def test_wrong_scales(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a number in"):
        NormalizedViT(**SMALL, **wrong)


def test_named_models_have_the_sizes_of_the_vits() -> None:
    model = create_model("nvit_small_patch16_224", depth=1)
    # qkv, output, u and v, output; s_qk, s_u and s_v, two rates.
    block = 3 * 384**2 + 384**2 + 2 * 1536 * 384 + 1536 * 384 + 384 + 2 * 1536 + 2 * 384
    rest = 768 * 384 + 196 * 384 + 1000 * 384 + 1000
    assert sum(parameter.numel() for parameter in model.parameters()) == block + rest
