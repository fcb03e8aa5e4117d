"""SimMIM computes what the authors' code and transformers compute."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor
from transformers import ViTConfig, ViTForMaskedImageModeling

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.simmim import SimMIM

SMALL = {"image_size": 32, "patch_size": 8, "num_classes": 0, "heads": 4, "dim_head": 12, "mlp_dim": 192}

pytestmark = pytest.mark.filterwarnings("ignore:16 patches are few")


def make(*, depth: int = 3, **options) -> SimMIM:
    return SimMIM(encoder=ViT(**SMALL, dim=48, depth=depth), **{"mask_patch_size": 16, **options})


def load_decoder(method: SimMIM, weight: Tensor, bias: Tensor, token: Tensor) -> None:
    """Load a 1 x 1 convolution whose channels (channel, row, column) a shuffle turns into pixels."""
    order = torch.arange(192).view(3, 8, 8).permute(1, 2, 0).flatten()
    state = {"to_pixels.weight": weight.flatten(1)[order], "to_pixels.bias": bias[order], "mask_token": token}
    method.load_state_dict(state, strict=False)


def test_equals_the_authors_code():
    _, weights, tensors = read_golden("simmim")
    encoder = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    token = encoder.pop("mask_token")
    for layer in range(3):
        attention = f"blocks.{layer}.attn"
        q, v = encoder.pop(f"{attention}.q_bias"), encoder.pop(f"{attention}.v_bias")
        encoder[f"{attention}.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    method = make().eval()
    load_pretrained(method.encoder, encoder)
    load_decoder(method, weights["decoder.0.weight"], weights["decoder.0.bias"], token)
    predicted = method.predict(tensors["input"], tensors["mask"])
    assert difference(method.encoder.grid.unpatchify(predicted), tensors["reconstruction"]) < TOLERANCE
    assert (method(tensors["input"], tensors["mask"]) - tensors["loss"]).abs() < TOLERANCE
    assert (method(tensors["input"], tensors["mask"].flatten(1)) - tensors["loss"]).abs() < TOLERANCE


def test_relative_positions_equal_the_authors_code():
    """As the authors train it: one bias for all layers, LayerScale, and nothing added to the tokens."""
    _, weights, tensors = read_golden("simmim_relpos")
    encoder = ViT(**SMALL, dim=48, depth=2, positions="relative", layer_scale=0.1)
    method = SimMIM(encoder=encoder, mask_patch_size=16).eval()
    report = load_pretrained(encoder, weights)
    assert report.format == "BEiT"
    assert report.kept == ()
    token = weights["encoder.mask_token"]
    load_decoder(method, weights["decoder.0.weight"], weights["decoder.0.bias"], token)
    predicted = method.predict(tensors["input"], tensors["mask"])
    assert difference(encoder.grid.unpatchify(predicted), tensors["reconstruction"]) < TOLERANCE
    assert (method(tensors["input"], tensors["mask"]) - tensors["loss"]).abs() < TOLERANCE
    written = to_format(encoder, "BEiT")
    assert all(weights[f"encoder.{name}"].equal(tensor) for name, tensor in written.items())


def test_equals_transformers():
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        encoder_stride=8,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    theirs = randomise(ViTForMaskedImageModeling(config))
    state = theirs.state_dict()
    method = make().eval()
    load_pretrained(method.encoder, state)
    token = state["vit.embeddings.mask_token"]
    load_decoder(method, state["decoder.0.weight"], state["decoder.0.bias"], token)
    mask = torch.rand(2, 16) < 0.5
    pixels = images(32, 32)
    want = theirs(pixels, bool_masked_pos=mask)
    got = method.encoder.grid.unpatchify(method.predict(pixels, mask))
    assert difference(got, want.reconstruction) < TOLERANCE
    loss = method(pixels, mask)
    assert (loss - want.loss).abs() < TOLERANCE
    loss.backward()
    want.loss.backward()
    grad = theirs.vit.embeddings.patch_embeddings.projection.weight.grad
    torch.testing.assert_close(method.encoder.patch_embed.proj.weight.grad, grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        method.mask_token.grad, theirs.vit.embeddings.mask_token.grad, rtol=1e-4, atol=1e-6
    )


def test_base_has_transformers_size():
    with torch.device("meta"):
        method = SimMIM(encoder=create_model("vit_base_patch16_224", num_classes=0))
    assert sum(p.numel() for p in method.parameters()) == 86_390_016


def test_squares_of_the_paper():
    """Squares of 32 pixels, 60 % of them, rounded up: 30 of 49, each of four patches."""
    with torch.device("meta"):
        method = SimMIM(encoder=create_model("vit_base_patch16_224", num_classes=0))
    mask = method.draw_mask(torch.zeros(3, 3, 224, 224))
    assert mask.sum(dim=1).tolist() == [4 * 30] * 3
    squares = mask.view(3, 7, 2, 7, 2).transpose(2, 3).flatten(3)
    assert squares.all(-1).equal(squares.any(-1))


def test_the_loss_is_the_mean_over_covered_pixels():
    """Once: a mask of twice as many patches does not halve it, and images count by what is covered."""
    method, pixels = randomise(make()), images(32, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, :9] = mask[1, 3] = True
    apart = (method.predict(pixels, mask) - method.encoder.patchify(pixels)).abs()
    torch.testing.assert_close(method(pixels, mask), apart[mask].mean())
    assert method(pixels, torch.zeros_like(mask)) == 0


def test_covered_pixels_are_not_seen():
    method, pixels = randomise(make()), images(32, 32)
    mask = method.draw_mask(pixels)
    patches = method.encoder.patchify(pixels)
    other = method.encoder.grid.unpatchify(torch.where(mask[..., None], torch.randn_like(patches), patches))
    assert method.predict(other, mask).equal(method.predict(pixels, mask))
    assert not method.predict(other, ~mask).equal(method.predict(pixels, ~mask))


def test_covered_patches_keep_their_places():
    """The token is put in before positions are added: two covered patches differ by their positions alone."""
    method = randomise(make())
    seen = []
    method.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.predict(images(32, 32), torch.ones(2, 16, dtype=torch.bool))
    want = method.mask_token + method.encoder.positions.table[:, 1:]
    torch.testing.assert_close(seen[0][:, 1:], want.expand(2, -1, -1))
    assert seen[0].shape[1] == 17


def test_dropout_of_the_model_is_on_in_training():
    vit = ViT(**SMALL, dim=48, depth=1, dropout=0.5)
    method = SimMIM(encoder=vit, mask_patch_size=8)
    mask, pixels = torch.rand(2, 16) < 0.5, images(32, 32)
    assert method(pixels, mask) != method(pixels, mask)
    method.eval()
    assert method(pixels, mask) == method(pixels, mask)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_all_weights_learn(pool):
    method = SimMIM(encoder=ViT(**SMALL, dim=48, depth=2, pool=pool, num_registers=1), mask_patch_size=8)
    method(images(32, 32)).backward()
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_masks_are_drawn_anew():
    method, pixels = make().eval(), images(32, 32)
    masks = {tuple(method.draw_mask(pixels).flatten().tolist()) for _ in range(8)}
    assert len(masks) > 1


def test_around_timm():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 0}
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **sizes))
    wrapped, ours = SimMIM(encoder=theirs, mask_patch_size=16).eval(), make().eval()
    load_pretrained(ours.encoder, theirs.state_dict())
    ours.load_state_dict(
        {k: v for k, v in wrapped.state_dict().items() if not k.startswith("encoder.")}, strict=False
    )
    mask = torch.rand(2, 16) < 0.5
    loss = wrapped(images(32, 32), mask)
    assert (loss - ours(images(32, 32), mask)).abs() < TOLERANCE
    loss.backward()
    assert theirs.patch_embed.proj.weight.grad.any()


def test_smaller_images():
    method = make().eval()
    mask = method.draw_mask(images(16, 32))
    assert mask.shape == (2, 8)
    assert method.predict(images(16, 32), mask).shape == (2, 8, 192)


def test_wrong_input():
    method = make()
    with pytest.raises(ValueError, match=r"shape \(2, 16\); got \(2, 15\)"):
        method(images(32, 32), torch.ones(2, 15, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 4\); got \(2, 2, 8\)"):
        method(images(32, 32), torch.ones(2, 2, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"dtype torch\.bool, got torch\.float32"):
        method(images(32, 32), torch.ones(2, 16))
    with pytest.raises(
        ValueError, match=r"mask_patch_size \(12, 12\) is not a multiple of patch size \(8, 8\)"
    ):
        make(mask_patch_size=12)
    with pytest.raises(ValueError, match=r"\(32, 32\) is not a multiple of mask_patch_size \(24, 24\)"):
        make(mask_patch_size=24)
    with pytest.raises(ValueError, match=r"masking_ratio must be .*, got 0\.0"):
        make(masking_ratio=0.0)
    with pytest.raises(ValueError, match="of which 0 are there"):
        SimMIM(encoder=create_model("cait_xxs24_224", depth=1))
