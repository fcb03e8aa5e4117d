"""Masked patch prediction does what appendix B.1.2 of the ViT's paper says; there is no program to run."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from tests.papers.reference import TOLERANCE, images, randomise
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.mpp import MPP, Corruption

SMALL = {"image_size": 48, "patch_size": 8, "num_classes": 0, "heads": 4, "dim_head": 12, "mlp_dim": 96}


def make(*, pool: str = "cls", channels: int = 3, dropout: float = 0.0, **options) -> MPP:
    vit = ViT(**SMALL, dim=48, depth=2, pool=pool, channels=channels, dropout=dropout)
    return MPP(transformer=vit, **options)


def uniform(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, *size)


def test_the_papers_numbers_are_the_defaults():
    method = make()
    assert (method.mask_prob, method.replace_prob, method.random_patch_prob) == (0.5, 0.8, 0.1)
    assert method.head.out_features == 512


def test_half_is_chosen_and_split_80_10_10():
    found = make().draw(torch.empty(4000, 3, 1, 1).expand(-1, -1, 48, 48))
    assert found.chosen.sum(dim=1).unique().tolist() == [18]
    place = torch.arange(36)
    replaced = found.source != place
    assert not (replaced & found.masked).any()
    assert not ((replaced | found.masked) & ~found.chosen).any()
    share = [part.sum() / found.chosen.sum() for part in (found.masked, replaced)]
    # 72,000 draws: six standard deviations are 0.009 and 0.007.
    assert share[0].item() == pytest.approx(0.8, abs=0.009)
    assert share[1].item() == pytest.approx(0.1, abs=0.007)
    # Every other patch serves equally often.
    shifts = ((found.source - place) % 36)[replaced].bincount(minlength=36)
    assert shifts[0] == 0
    assert shifts[1:].min() > 0.6 * replaced.sum() / 35


def test_the_examples_shares():
    """0.3 and 0.5 of the chosen ones, and a fifth stays as it is."""
    method = make(mask_prob=0.15, random_patch_prob=0.3, replace_prob=0.5)
    found = method.draw(torch.empty(4000, 3, 1, 1).expand(-1, -1, 48, 48))
    assert found.chosen.sum(dim=1).unique().tolist() == [6]
    replaced = found.source != torch.arange(36)
    assert (found.masked.sum() / found.chosen.sum()).item() == pytest.approx(0.5, abs=0.02)
    assert (replaced.sum() / found.chosen.sum()).item() == pytest.approx(0.3, abs=0.02)


def test_embeddings_are_corrupted_before_they_have_positions():
    method, pixels = randomise(make()), uniform(48, 48)
    found = method.draw(pixels)
    replaced = found.source != torch.arange(36)
    replaced[0, :2], found.source[0, :2] = True, torch.tensor([7, 9])
    found.masked[0, :2] = False
    seen = []
    method.transformer.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method.predict(pixels, found)
    clean = method.transformer.patch_embed(pixels)
    table = method.transformer.positions.table
    for b in range(2):
        for n in range(36):
            token = method.mask_token[0, 0] if found.masked[b, n] else clean[b, found.source[b, n]]
            torch.testing.assert_close(seen[0][b, 1 + n], token + table[0, 1 + n])
    first = method.transformer.prefix.class_token + table[:, :1]
    torch.testing.assert_close(seen[0][:, :1], first.expand(2, -1, -1))


def test_colours_in_plain_loops():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    method = make(mean=mean, std=std)
    pixels = images(48, 48)
    found = method.colours(pixels)
    for b in range(2):
        for n in range(36):
            y, x = 8 * (n // 6), 8 * (n % 6)
            number = 0
            for c in range(3):
                colour = pixels[b, c, y : y + 8, x : x + 8].mean().item() * std[c] + mean[c]
                number = 8 * number + min(max(int(colour * 8 // 1), 0), 7)
            assert found[b, n] == number
    assert len(found.unique()) > 5


def test_colours_are_held_to_both_ends():
    method = make(max_pixel_val=255.0)
    flat = torch.tensor([-40.0, 0.0, 31.0, 32.0, 255.0, 400.0])
    pixels = flat.view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    assert method.colours(pixels)[:, 0].tolist() == [0, 0, 0, 73, 511, 511]
    rgb = torch.tensor([255.0, 0.0, 100.0]).view(1, 3, 1, 1).expand(-1, -1, 8, 8)
    assert method.colours(rgb).item() == 7 * 64 + 0 * 8 + 3


def test_other_channels_and_bits():
    method = make(channels=1, output_channel_bits=2)
    assert method.head.out_features == 4
    levels = torch.tensor([0.1, 0.3, 0.6, 0.9]).view(4, 1, 1, 1).expand(-1, -1, 8, 8)
    assert method.colours(levels)[:, 0].tolist() == [0, 1, 2, 3]


def test_the_loss_is_that_of_the_chosen_patches():
    """Those that stayed as they are count as well, those that were not chosen do not."""
    method, pixels = randomise(make()), uniform(48, 48)
    found = method.draw(pixels)
    logits = method.predict(pixels, found)
    assert logits.shape == (2, 36, 512)
    want = F.cross_entropy(logits[found.chosen], method.colours(pixels)[found.chosen])
    torch.testing.assert_close(method(pixels, found), want)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_all_weights_learn(pool):
    method = make(pool=pool, dropout=0.1)
    method(uniform(48, 48)).backward()
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_state():
    """Means and deviations of the colours are settings, in the type of the weights."""
    method = make(mean=(0.5,) * 3)
    assert method.to(torch.float64).mean.dtype == torch.float64
    assert {name for name in method.state_dict() if not name.startswith("transformer.")} == {
        "mask_token",
        "head.weight",
        "head.bias",
    }


def test_around_timm():
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", **sizes, num_classes=0))
    wrapped, ours = MPP(transformer=theirs).eval(), make().eval()
    load_pretrained(ours.transformer, theirs.state_dict())
    heads = {k: v for k, v in wrapped.state_dict().items() if not k.startswith("transformer.")}
    ours.load_state_dict(heads, strict=False)
    pixels = uniform(48, 48)
    found = ours.draw(pixels)
    assert (wrapped(pixels, found) - ours(pixels, found)).abs() < TOLERANCE


def test_smaller_images():
    method = make().eval()
    found = method.draw(uniform(16, 48))
    assert found.chosen.shape == (2, 12)
    assert method.predict(uniform(16, 48), found).shape == (2, 12, 512)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mask_prob": 1.0}, r"mask_prob must be .*, got 1\.0"),
        ({"replace_prob": 0.8, "random_patch_prob": 0.3}, "at most 1 together, got 0.3 and 0.8"),
        ({"replace_prob": -0.1}, r"replace_prob must be .*, got -0\.1"),
        ({"patch_size": 16}, r"patch size is \(8, 8\), got patch_size \(16, 16\)"),
        ({"dim": 64}, "width is 48, got dim 64"),
        ({"output_channel_bits": 0}, r"output_channel_bits must be .*, got 0"),
        ({"max_pixel_val": 0.0}, r"max_pixel_val must be .*, got 0\.0"),
        ({"mean": (0.5,)}, "mean has a value for each of 3 channels, got 1"),
    ],
)
def test_wrong_settings(options, error):
    with pytest.raises(ValueError, match=error):
        make(**options)


def test_wrong_input():
    method, pixels = make(), uniform(48, 48)
    found = method.draw(pixels)
    with pytest.raises(
        ValueError, match=r"masked has a value for each patch, shape \(2, 36\); got \(2, 35\)"
    ):
        method(pixels, Corruption(found.chosen, found.masked[:, :35], found.source))
    with pytest.raises(ValueError, match="of which 0 are there"):
        MPP(transformer=create_model("cait_xxs24_224", depth=1))
