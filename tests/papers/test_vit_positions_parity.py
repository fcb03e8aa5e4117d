"""The kinds of positions that the ViT paper's appendix D.4 compares: none, 1-D, 2-D, relative."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import MAE, ViT, load_pretrained
from vit_pytorch.distill import DistillableViT
from vit_pytorch.layers.offsets import stretch_offsets
from vit_pytorch.layers.relative import TokenBias
from vit_pytorch.layers.tokens import Head
from vit_pytorch.learnable_memory_vit import Adapter
from vit_pytorch.mp3 import MP3
from vit_pytorch.pretrained import to_format

SMALL = {"image_size": 40, "patch_size": 8, "num_classes": 7, "dim": 48, "depth": 2, "heads": 3}
OURS = {**SMALL, "dim_head": 16, "mlp_dim": 192}
THEIRS = {"img_size": 40, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 2, "num_heads": 3}
KINDS = ["none", "learned", "learned_2d", "sincos", "relative", "relative_by_layer", "rope", "rope_mixed"]


def beit(*, shared: bool) -> tuple[ViT, Beit]:
    options = {"use_shared_rel_pos_bias": shared, "use_rel_pos_bias": not shared, "use_abs_pos_emb": False}
    reference = randomise(Beit(**THEIRS, **options, init_values=0.1))
    model = ViT(
        **OURS,
        positions="relative" if shared else "relative_by_layer",
        pool="mean",
        class_token=True,
        head=Head(norm=True),
        layer_scale=0.1,
    )
    assert load_pretrained(model, reference.state_dict()).format == "BEiT"
    return model.eval(), reference


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_relative_positions_are_beits(shared):
    model, reference = beit(shared=shared)
    batch = images(40, 40)
    assert difference(model(batch), reference(batch)) < TOLERANCE
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in reference.parameters()) + (
        # Theirs has no parameter for the biases of keys.
        2 * 48
    )
    state = reference.state_dict()
    written = to_format(model, "BEiT")
    assert written.keys() == state.keys()
    assert all(written[name].equal(state[name]) for name in state)


@torch.no_grad()
def test_relative_positions_fit_other_sizes():
    """Tables of offsets are interpolated in BEiT's way; the numbers of pairs with the class token stay."""
    model, reference = beit(shared=False)
    wide = ViT(**{**model.config, "image_size": 64})
    report = load_pretrained(wide, reference.state_dict())
    name = "blocks.0.attention.position.bias"
    assert report.resized[f"{name}.patches.table"] == ((5, 5), (8, 8))
    ours, theirs = wide.get_submodule(name), model.get_submodule(name)
    assert ours.prefix.equal(theirs.prefix)
    assert ours.patches.table.equal(stretch_offsets(theirs.patches.table, (5, 5), (8, 8)))


@torch.no_grad()
def test_relative_positions_without_prefix_equal_timms():
    reference = randomise(
        VisionTransformerRelPos(**THEIRS, rel_pos_type="bias", shared_rel_pos=True, init_values=None)
    )
    model = ViT(**OURS, positions="relative", pool="mean").eval()
    state = reference.state_dict()
    table = state.pop("shared_rel_pos.relative_position_bias_table")
    plain = ViT(**OURS, positions="none", pool="mean")
    with pytest.warns(UserWarning, match="which positions it was trained with, .* ViT has none"):
        load_pretrained(plain, state)
    model.load_state_dict({**plain.state_dict(), "relative.patches.table": table})
    batch = images(40, 40)
    assert difference(model(batch), reference(batch)) < TOLERANCE
    assert not plain.eval()(batch).isclose(model(batch)).all()


@torch.no_grad()
def test_bias_of_prefix_tokens():
    """Three numbers a head: prefix token to patch, patch to prefix token, prefix token to prefix token."""
    bias = TokenBias((2, 3), 2, prefix=True)
    full = bias(2, 2, 3)
    assert full.shape == (2, 8, 8)
    for head in range(2):
        to_patch, from_patch, within = bias.prefix[:, head]
        assert (full[head, :2, 2:] == to_patch).all()
        assert (full[head, 2:, :2] == from_patch).all()
        assert (full[head, :2, :2] == within).all()
    assert full[:, 2:, 2:].equal(bias.patches())
    with pytest.raises(ValueError, match="knows no prefix tokens, got 2"):
        TokenBias((2, 3), 2, prefix=False)(2, 2, 3)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(2, 3), (1, 5), (4, 1)])
def test_smaller_grid_has_the_biases_of_its_offsets(grid):
    bias = TokenBias((4, 5), 2, prefix=True)
    rows, columns = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    places = 1 + (rows * 5 + columns).flatten()
    places = torch.cat([torch.zeros(1, dtype=torch.long), places])
    assert bias(1, *grid).equal(bias(1, 4, 5)[:, places][:, :, places])


@torch.no_grad()
def test_kept_patches_take_their_rows_and_columns():
    bias = TokenBias((4, 5), 2, prefix=True)
    kept = torch.tensor([[1, 4, 7], [0, 18, 19]])
    found = bias.mask((4, 5), 1, kept)
    full = bias(1, 4, 5)
    for sample, places in zip(found, [[0, 2, 5, 8], [0, 1, 19, 20]], strict=True):
        assert sample.equal(full[:, places][:, :, places])


@torch.no_grad()
def test_learned_2d_positions():
    """Half of the channels from the column, half from the row."""
    model = ViT(**OURS, positions="learned_2d")
    positions = model.positions
    assert sum(p.numel() for p in positions.parameters()) == 2 * 5 * 24 + 48
    found = positions.table_for((5, 5))[0].unflatten(0, (5, 5))
    for row in range(5):
        for column in range(5):
            want = torch.cat([positions.columns[0, column], positions.rows[0, row]])
            assert found[row, column].equal(want)
    assert positions.table_for((2, 3)).equal(found[:2, :3].flatten(0, 1)[None])
    assert positions.for_prefix(3)[0, 0].equal(positions.first[0, 0])
    with pytest.raises(ValueError, match="an even dim and a 2-D grid, got 27"):
        ViT(**{**OURS, "dim": 27}, positions="learned_2d")


@torch.no_grad()
def test_learned_2d_positions_are_resized():
    small, wide = (
        ViT(**OURS, positions="learned_2d"),
        ViT(**{**OURS, "image_size": (80, 40)}, positions="learned_2d"),
    )
    report = load_pretrained(wide, small.state_dict())
    assert report.resized == {"positions.table": ((5, 5), (10, 5))}
    want = nn.functional.interpolate(small.positions.rows.mT, 10, mode="linear").mT
    torch.testing.assert_close(wide.positions.rows, want)
    assert wide.positions.columns.equal(small.positions.columns)


@torch.no_grad()
@pytest.mark.parametrize("positions", KINDS)
def test_places_count_but_without_positions(positions):
    """Patches that change places change the logits; without positions they do not."""
    model = randomise(ViT(**OURS, positions=positions))
    if positions == "rope_mixed":
        nn.init.normal_(model.rotary.freqs)
    batch = images(40, 40)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    moved = model.grid.unpatchify(model.patchify(batch)[:, order])
    same = torch.allclose(model(batch), model(moved), atol=1e-4)
    assert same == (positions == "none")


@torch.no_grad()
@pytest.mark.parametrize("positions", ["relative", "relative_by_layer", "rope", "rope_mixed"])
def test_only_offsets_count_inside_attention(positions):
    """A part of an image gives the same logits wherever it is cut from."""
    # A class token stands nowhere: rotations, unlike biases, tell it where patches are.
    pool = "mean" if "rope" in positions else "cls"
    model = randomise(ViT(**OURS, positions=positions, pool=pool))
    batch = images(24, 24)
    tokens = model.embed(batch)
    want = model.encode(tokens, (3, 3))
    for row, column in ((0, 0), (2, 1), (1, 2)):
        kept = torch.tensor([5 * (row + y) + column + x for y in range(3) for x in range(3)])
        got = model.encode(tokens, (5, 5), kept.expand(2, -1))
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_positions_do_not_decay():
    for positions in ("learned_2d+relative", "learned_2d+relative_by_layer", "rope_mixed"):
        model = ViT(**OURS, positions=positions)
        found = model.no_weight_decay()
        assert "positions.rows" in found or positions == "rope_mixed"
        assert any("patches.table" in name or "freqs" in name for name in found)


@torch.no_grad()
def test_qk_scale_is_timms():
    reference = randomise(timm.models.vision_transformer.VisionTransformer(**THEIRS))
    for block in reference.blocks:
        block.attn.scale = 0.4
        block.attn.fused_attn = False
    model = ViT(**OURS, attention={"kind": "multi_head", "scale": 0.4}).eval()
    load_pretrained(model, reference.state_dict())
    batch = images(40, 40)
    assert difference(model(batch), reference(batch)) < TOLERANCE


@pytest.mark.parametrize("positions", KINDS)
def test_a_masked_autoencoder_keeps_places(positions):
    """In whatever order the visible patches come, each keeps its place: the loss is that of any order."""
    vit = randomise(ViT(**OURS, positions=positions))
    method = MAE(encoder=vit, decoder_dim=24, decoder_depth=1, decoder_heads=2, decoder_dim_head=12)
    noise = torch.rand(2, 25, generator=torch.Generator().manual_seed(0))
    other = noise.clone()
    # The same six patches are visible, in another order.
    lowest = noise.argsort(dim=1)[:, :6]
    other.scatter_(1, lowest, noise.gather(1, lowest.flip(1)))
    batch = images(40, 40)
    torch.testing.assert_close(method(batch, noise=other), method(batch, noise=noise))
    method(batch, noise=noise).backward()
    assert vit.blocks[0].attention.to_qkv.weight.grad.any()


@torch.no_grad()
@pytest.mark.parametrize("positions", KINDS)
def test_a_distillation_token_stands_in_front(positions):
    model = randomise(DistillableViT(**OURS, positions=positions))
    batch = images(40, 40)
    tokens = model.forward_features(batch)
    assert tokens.shape == (2, 27, 48)
    plain = model.to_vit()
    torch.testing.assert_close(plain.forward_features(batch), tokens)
    with pytest.raises(ValueError, match=r"classifies its tokens as they are, got pool='cls\+mean'"):
        DistillableViT(**OURS, positions=positions, pool="cls+mean")


@pytest.mark.parametrize("positions", ["relative", "relative_by_layer", "rope", "rope_mixed"])
def test_what_leads_attention_itself_refuses(positions):
    """Memories and position prediction call the steps of attention, and know no places inside it."""
    vit = ViT(**OURS, positions=positions)
    with pytest.raises(ValueError, match="memories"):
        Adapter(vit=vit, num_classes=3)
    with pytest.raises(ValueError, match="position prediction needs a model of plain self-attention"):
        MP3(vit=vit, masking_ratio=0.5)
