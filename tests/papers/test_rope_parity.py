"""Rotary positions are timm's RoPE-ViT's, and turn by what the formula says, in any number of axes."""

from __future__ import annotations

from math import cos, prod, sin

import pytest
import timm
import torch
from torch import Tensor

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.layers.attention import Attention
from vit_pytorch.layers.offsets import cells
from vit_pytorch.layers.positions import Learned
from vit_pytorch.layers.rotary import AxialRotary, MixedRotary, Rotary, rotate
from vit_pytorch.pretrained import to_format

KINDS = ("rope", "rope_mixed", "rope_ape", "rope_mixed_ape")
SMALL = {"image_size": 40, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 2, "heads": 3}
OURS = {**SMALL, "dim_head": 16, "mlp_dim": 96}
GRIDS = [(11,), (5, 7), (3, 4, 5)]


def reference(kind: str, **options) -> torch.nn.Module:
    """Give timm's small model of a kind, with frequencies that turn tokens by more than a little."""
    sizes = {"img_size": 40, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
    model = randomise(timm.create_model(f"vit_small_patch16_{kind}_224", **sizes, num_classes=7, **options))
    if "mixed" in kind:
        torch.nn.init.normal_(model.rope.freqs)
    return model


def ours(kind: str, **options) -> ViT:
    rope = kind.removesuffix("_ape")
    positions = [Learned(class_token=False), rope] if kind.endswith("ape") else rope
    return ViT(**{**OURS, **options}, positions=positions, layer_scale=1e-5).eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_timms(kind):
    theirs, model = reference(kind), ours(kind)
    assert load_pretrained(model, theirs.state_dict()).format == "timm Eva"
    batch = images(40, 40)
    assert difference(model(batch), theirs(batch)) < TOLERANCE
    written = to_format(model, "timm Eva")
    state = theirs.state_dict()
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rope", "rope_mixed"])
@pytest.mark.parametrize("size", [(24, 40), (40, 16), (64, 24), (48, 56)])
def test_images_of_any_size_equal_timms(kind, size):
    """Patches that are as far apart as before are turned against each other as before."""
    theirs, model = reference(kind, dynamic_img_size=True), ours(kind)
    load_pretrained(model, theirs.state_dict())
    batch = images(*size)
    assert difference(model(batch), theirs(batch)) < TOLERANCE
    wide = ours(kind, image_size=64)
    load_pretrained(wide, theirs.state_dict())
    large = images(64, 56)
    assert difference(wide(large), theirs(large)) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_kept_patches_are_turned_as_timms(kind):
    """The same patches left out give the same outputs, in training."""
    theirs = reference(kind, patch_drop_rate=0.4).train()
    model = ours(kind, patch_dropout=0.4)
    load_pretrained(model, theirs.state_dict())
    seen = []
    theirs.patch_drop.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    batch = images(40, 40)
    want = theirs(batch)
    kept = seen[0]
    assert kept.shape == (2, 15)
    prefix = torch.zeros(2, 1, dtype=torch.long)
    tokens = model.embed(batch).take_along_dim(torch.cat([prefix, 1 + kept], dim=1)[..., None], dim=1)
    got = model.forward_head(model.encode(tokens, (5, 5), kept))
    assert difference(got, want) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rope_mixed", "rope_mixed_ape"])
def test_reads_and_writes_the_authors_names(kind):
    theirs, model = reference(kind), ours(kind)
    state = theirs.state_dict()
    freqs = state.pop("rope.freqs")
    official = {
        **state,
        "freqs": freqs.flatten(2),
        "freqs_t_x": torch.arange(25.0) % 5,
        "freqs_t_y": torch.arange(25.0) // 5,
    }
    report = load_pretrained(model, official)
    assert (report.format, report.dropped, report.kept) == ("RoPE-ViT", (), ())
    assert difference(model(images(40, 40)), theirs(images(40, 40))) < TOLERANCE
    written = to_format(model, "RoPE-ViT")
    assert written.keys() == official.keys()
    assert all(written[name].equal(official[name]) for name in official)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_named_models_equal_timms(kind):
    name = f"vit_small_patch16_{kind}_224"
    theirs = randomise(timm.create_model(name, depth=2))
    model = create_model(name, depth=2).eval()
    load_pretrained(model, theirs.state_dict())
    batch = images(224, 224, batch=1)
    assert difference(model(batch), theirs(batch)) < TOLERANCE


def scores(kind: str, grid: tuple[int, ...]) -> Tensor:
    """Give the products of one query and one key, the same everywhere, for all pairs of places."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    q, k = (torch.randn(1, 2, 1, 24, generator=generator).double() for _ in range(2))
    n = prod(grid)
    if kind == "axial":
        rotation = AxialRotary(grid, 24).double()(grid)
    else:
        rotation = MixedRotary(grid, 24, heads=2, depth=3).double().rotations(grid)[1]
    q, k = (rotate(x.expand(1, 2, n, 24), rotation) for x in (q, k))
    return (q @ k.mT)[0]


@torch.no_grad()
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["axial", "mixed"])
def test_scores_depend_on_the_offset_alone(kind, grid):
    found = scores(kind, grid)
    places = cells(grid)
    apart = (places[:, None] - places[None]).flatten(0, 1)
    number = torch.unique(apart, dim=0, return_inverse=True)[1]
    count = int(number.max()) + 1
    for head in found.flatten(1):
        mean = torch.zeros(count).double().scatter_reduce_(0, number, head, "mean", include_self=False)
        torch.testing.assert_close(mean[number], head, rtol=0, atol=1e-5)
        assert mean.std() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("grid", GRIDS)
def test_axial_angles_are_the_formula(grid):
    """Pair t of an axis is turned by place / 100^(t / pairs); the last axis has the first pairs."""
    found = AxialRotary(grid, 24)(grid)
    pairs = 24 // 2 // len(grid)
    for place, rotation in zip(cells(grid).tolist(), found, strict=True):
        angles = [x / 100 ** (t / pairs) for x in reversed(place) for t in range(pairs)]
        want = torch.tensor([(cos(angle), sin(angle)) for angle in angles])
        torch.testing.assert_close(rotation, want)


@torch.no_grad()
@pytest.mark.parametrize("grid", GRIDS)
def test_mixed_angles_are_the_formula(grid):
    """Each pair is turned by the sum over axes of place times frequency."""
    rotary = MixedRotary(grid, 24, heads=2, depth=3)
    torch.nn.init.normal_(rotary.freqs)
    found = rotary.rotations(grid)
    assert found.shape == (3, 2, prod(grid), 12, 2)
    for layer, head, number, pair in ((0, 0, 3, 0), (1, 1, 5, 11), (2, 0, 10, 7)):
        place = reversed(cells(grid)[number].tolist())
        freqs = rotary.freqs[:, layer, head, pair].tolist()
        angle = sum(x * f for x, f in zip(place, freqs, strict=True))
        torch.testing.assert_close(found[layer, head, number, pair], torch.tensor([cos(angle), sin(angle)]))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_mixed_frequencies_start_as_axial_ones_in_turned_axes(axes):
    """In each head, the frequencies of one magnitude are the axes of one coordinate system, none mirrored."""
    rotary = MixedRotary((4,) * axes, 24, heads=2, depth=3)
    freqs = rotary.freqs.detach().unflatten(3, (axes, -1)).permute(1, 2, 4, 3, 0)
    magnitude = 10 ** (-torch.arange(12 // axes) / (12 // axes))
    directions = freqs / magnitude[:, None, None]
    torch.testing.assert_close(directions, directions[:, :, :1].expand_as(directions))
    eye = torch.eye(axes).expand_as(directions)
    torch.testing.assert_close(directions @ directions.mT, eye, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(directions), torch.ones(directions.shape[:3]))
    assert axes == 1 or directions[0, 0, 0].sub(directions[1, 1, 0]).abs().max() > 1e-3


@torch.no_grad()
def test_prefix_tokens_are_not_turned():
    q, k, _ = Attention(24, heads=2, dim_head=12).project(torch.randn(2, 3 + 20, 24))
    rotation = AxialRotary((4, 5), 12)((4, 5), prefix=3)
    assert rotate(q, rotation)[:, :, :3].equal(q[:, :, :3])
    # The first patch stands in the origin.
    assert rotate(q, rotation)[:, :, 3].equal(q[:, :, 3])
    assert not rotate(k, rotation)[:, :, 4:].isclose(k[:, :, 4:]).all(-1).any()
    torch.testing.assert_close(rotate(q, rotation).norm(dim=-1), q.norm(dim=-1))


@torch.no_grad()
def test_both_ways_to_turn_are_one():
    """Compiled code has no complex numbers."""
    q = torch.randn(2, 3, 20, 16)
    rotation = AxialRotary((4, 5), 16)((4, 5))
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, rotation), rotate(q, rotation))
    low = q.bfloat16()
    assert rotate(low, rotation).dtype == torch.bfloat16
    want = rotate(low.float(), rotation)
    torch.testing.assert_close(rotate(low, rotation).float(), want, rtol=1e-2, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rope", "rope_mixed", "relative", "relative_by_layer", "learned+rope"])
def test_left_out_patches_are_as_if_they_were_hidden(positions):
    """What is kept stands where it stood: its outputs are those of a layer that sees nothing else."""
    torch.manual_seed(0)
    model = randomise(ViT(**{**OURS, "depth": 1}, positions=positions, num_registers=2))
    tokens, grid = model.embed(images(40, 40)), (5, 5)
    kept = torch.tensor([[1, 4, 7, 20, 24], [0, 2, 3, 11, 19]])
    places = torch.cat([torch.arange(3).expand(2, -1), 3 + kept], dim=1)
    got = model.encode(tokens.take_along_dim(places[..., None], dim=1), grid, kept)
    hidden = torch.full((2, 1, 1, 28), -torch.inf).scatter_(3, places[:, None, None], 0.0)
    model.blocks[0].attention.kernel.register_forward_pre_hook(
        lambda module, inputs: (*inputs[:3], hidden + (0.0 if inputs[3] is None else inputs[3]))
    )
    full = model.encode(tokens, grid)
    torch.testing.assert_close(got, full.take_along_dim(places[..., None], dim=1), rtol=1e-4, atol=1e-5)


def test_tables_are_computed_once_and_not_saved():
    model = ours("rope")
    assert [name for name, _ in model.named_buffers()] == ["rotary.table"]
    assert not any("rotary" in name for name in model.state_dict())
    mixed = ours("rope_mixed")
    with torch.no_grad():
        assert mixed.rotary(1, 5, 5) is mixed.rotary(1, 5, 5)
        before = mixed.rotary(1, 5, 5)
        mixed.rotary.freqs.mul_(2)
        assert not mixed.rotary(1, 5, 5).equal(before)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="2 axes need a head dimension of at least 4, got 3"):
        ours("rope", dim_head=3)
    with pytest.raises(ValueError, match="3 axes need a head dimension of at least 6, got 5"):
        MixedRotary((2, 2, 2), 5, heads=2, depth=1)
    with pytest.raises(ValueError, match=r"at most one .* inside attention; got rope, rope"):
        ViT(**OURS, positions="rope+rope_mixed")
    with pytest.raises(ValueError, match=r"positions must be one of none, .*rope_scaled; got 'rotary'"):
        ViT(**OURS, positions="rotary")
    with pytest.raises(ValueError, match=r"theta must be .*, got 0\.0"):
        Rotary(theta=0.0)


@torch.no_grad()
def test_channels_that_the_axes_cannot_share_are_not_rotated():
    q = torch.randn(2, 3, 20, 18)
    turned = rotate(q, AxialRotary((4, 5), 18)((4, 5)))
    assert turned[..., 16:].equal(q[..., 16:])
    assert turned[..., :16].equal(rotate(q[..., :16], AxialRotary((4, 5), 16)((4, 5))))


def test_a_model_that_does_not_turn_refuses_frequencies():
    written = to_format(ViT(**OURS, layer_scale=0.1, positions="rope_mixed"), "RoPE-ViT")
    with pytest.raises(ValueError, match=r"left over \(1\): rotary.freqs"):
        load_pretrained(ViT(**OURS, layer_scale=0.1), written)
