"""The 3-D ViT and ViViT compute what transformers and plain loops over space and time compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VivitConfig,
    VivitForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import create_model, load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.registry import entries, find_entry
from vit_pytorch.vit_3d import ViT3D
from vit_pytorch.vivit import ViViT

SMALL = {
    "image_size": (24, 16),
    "frames": 8,
    "image_patch_size": 8,
    "frame_patch_size": 2,
    "num_classes": 7,
    "dim": 48,
    "heads": 4,
    "dim_head": 12,
    "mlp_dim": 96,
}
HUGGING_FACE = {
    "image_size": 32,
    "num_frames": 8,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "num_labels": 7,
}
OURS = {**SMALL, "image_size": 32}
VARIANTS = ("joint", "factorized_encoder", "factorized_self_attention", "factorized_dot_product")
POOLS = [("joint", "cls"), ("joint", "mean"), ("factorized_encoder", "cls"), ("factorized_encoder", "mean")]
POOLS += [(variant, "mean") for variant in VARIANTS[2:]]


AUTHORS = (
    ("attention.to_qkv", "attn.qkv"),
    ("attention.to_out", "attn.proj"),
    ("feedforward.to_hidden", "mlp.fc1"),
    ("feedforward.to_out", "mlp.fc2"),
)


def videos(*size: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))


def build(variant: str, pool: str | None = None, **changes: Any) -> ViViT:
    model = ViViT(**{**SMALL, "spatial_depth": 2, "variant": variant, "pool": pool, **changes})
    randomise(model)
    return model


def depths(variant: str) -> dict[str, int]:
    return {"temporal_depth": 2} if variant == "factorized_encoder" else {}


@pytest.fixture(scope="module")
def vivit() -> VivitForVideoClassification:
    return randomise(VivitForVideoClassification(VivitConfig(**HUGGING_FACE, tubelet_size=[2, 8, 8])))


@pytest.fixture(scope="module")
def videomae() -> VideoMAEForVideoClassification:
    config = VideoMAEConfig(**HUGGING_FACE, patch_size=8, tubelet_size=2, layer_norm_eps=1e-6)
    reference = randomise(VideoMAEForVideoClassification(config))
    # The authors' epsilon, where transformers has PyTorch's.
    reference.fc_norm.eps = 1e-6
    return reference


def joint(kind: type[ViT3D | ViViT]) -> ViT3D | ViViT:
    if kind is ViViT:
        return ViViT(**OURS, spatial_depth=3, variant="joint").eval()
    return ViT3D(**OURS, depth=3, act="gelu_tanh").eval()


@torch.inference_mode()
@pytest.mark.parametrize("kind", [ViT3D, ViViT])
def test_joint_attention_equals_transformers(vivit, kind: type[ViT3D | ViViT], tmp_path: Path) -> None:
    x = videos(8, 32, 32)
    expected = vivit(x.transpose(1, 2)).logits
    vivit.save_pretrained(tmp_path)
    for checkpoint in (vivit.state_dict(), tmp_path):
        model = joint(kind)
        report = load_pretrained(model, checkpoint)
        assert report.format == "transformers"
        assert [*report.kept, *report.dropped, *report.resized] == []
        assert difference(model(x), expected) < TOLERANCE
    written, file = to_format(model, "transformers"), load_file(tmp_path / "model.safetensors")
    assert written.keys() == file.keys()
    assert all(written[name].equal(tensor) for name, tensor in file.items())
    bare = joint(kind)
    bare.reset_classifier(0)
    load_pretrained(bare, vivit.vivit.state_dict())
    tokens = vivit.vivit(x.transpose(1, 2)).last_hidden_state
    assert difference(bare.forward_features(x), tokens) < TOLERANCE


def mae_classifier() -> ViT3D:
    return ViT3D(**OURS, depth=3, pool="mean", positions="sequence", fc_norm=True).eval()


@torch.inference_mode()
def test_logits_equal_transformers_videomae(videomae, tmp_path: Path) -> None:
    x = videos(8, 32, 32)
    expected = videomae(x.transpose(1, 2)).logits
    videomae.save_pretrained(tmp_path)
    for checkpoint in (videomae.state_dict(), tmp_path):
        model = mae_classifier()
        report = load_pretrained(model, checkpoint)
        assert report.format == "transformers VideoMAE"
        assert [*report.kept, *report.dropped, *report.resized] == []
        assert difference(model(x), expected) < TOLERANCE
    written, file = to_format(model, "transformers VideoMAE"), load_file(tmp_path / "model.safetensors")
    assert written.keys() == file.keys()
    assert all(written[name].equal(tensor) for name, tensor in file.items())


def jepa_config(heads: int = 4, **changes: Any) -> VJEPA2Config:
    """Heads of 4: of width 12, whose axes share all channels; heads of 3: of 16, of which four are left."""
    sizes = {"patch_size": 8, "crop_size": 32, "frames_per_clip": 8, "hidden_size": 48, "num_labels": 7}
    predictor = {f"pred_{name}": 2 for name in ("num_attention_heads", "num_hidden_layers")}
    layers = {"num_hidden_layers": 3, "num_attention_heads": heads, "mlp_ratio": 2.0}
    return VJEPA2Config(**sizes, **layers, **predictor, pred_hidden_size=24, **changes)


def jepa(heads: int = 4, **changes: Any) -> ViT3D:
    sizes = {**OURS, "heads": heads, "dim_head": 48 // heads, "depth": 3, "pool": "attentive"}
    return ViT3D(**{**sizes, "positions": "rope_tiled", **changes}).eval()


@torch.inference_mode()
@pytest.mark.parametrize("heads", [4, 3])
def test_logits_equal_transformers_vjepa2(heads: int, tmp_path: Path) -> None:
    reference = randomise(VJEPA2ForVideoClassification(jepa_config(heads)))
    x = videos(8, 32, 32)
    expected = reference(x.transpose(1, 2)).logits
    reference.save_pretrained(tmp_path)
    for checkpoint in (reference.state_dict(), tmp_path):
        model = jepa(heads)
        report = load_pretrained(model, checkpoint)
        assert report.format == "transformers V-JEPA 2"
        assert [*report.kept, *report.resized] == []
        assert all(name.startswith("predictor.") for name in report.dropped)
        assert difference(model(x), expected) < TOLERANCE
    written, file = to_format(model, "transformers V-JEPA 2"), load_file(tmp_path / "model.safetensors")
    assert written.keys() == {name for name in file if "predictor" not in name}
    assert all(file[name].equal(tensor) for name, tensor in written.items())


@torch.inference_mode()
def test_encoders_of_vjepa2() -> None:
    """Without a classifier, by transformers' names and by the authors' own; of fewer frames."""
    reference = randomise(VJEPA2Model(jepa_config()))
    x = videos(8, 32, 32)
    tokens = reference(x.transpose(1, 2), skip_predictor=True).last_hidden_state
    model = jepa(num_classes=0, pool="mean")
    load_pretrained(model, reference.state_dict())
    assert difference(model.forward_features(x), tokens) < TOLERANCE
    assert difference(model(x), tokens.mean(dim=1)) < TOLERANCE
    fewer = reference(x[:, :, :4].transpose(1, 2), skip_predictor=True).last_hidden_state
    assert difference(model.forward_features(x[:, :, :4]), fewer) < TOLERANCE
    with pytest.raises(ValueError, match="no place for biases of keys, which rotations make count"):
        to_format(model, "VideoMAE")
    authors = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in AUTHORS:
            name = name.replace(ours, theirs)
        authors[f"module.backbone.{name}"] = tensor
    again = jepa(num_classes=0, pool="mean")
    load_pretrained(again, authors)
    assert again.forward_features(x).equal(model.forward_features(x))


@pytest.mark.parametrize("positions", ["none", "rope", "learned"])
def test_vjepa2_needs_its_rotations(positions: str) -> None:
    """Tensors do not tell them, and the model of another kind would compute something else."""
    state = VJEPA2ForVideoClassification(jepa_config()).state_dict()
    with pytest.raises(ValueError, match=r"build ViT3D with positions='rope_tiled'"):
        load_pretrained(jepa(positions=positions), state)
    with pytest.raises(ValueError, match=r"build ViT3D with positions='rope_tiled'"):
        to_format(jepa(positions=positions), "transformers V-JEPA 2")


@torch.inference_mode()
def test_attention_pools_the_frames_that_are_seen() -> None:
    for positions in ("rope", "rope_tiled"):
        model = randomise(jepa(positions=positions))
        x, mask = videos(8, 32, 32), torch.tensor([[True] * 4 + [False] * 4] * 2)
        assert difference(model(x, mask=mask), model(x[:, :, :4])) < TOLERANCE
        assert (model(x) - model(x, mask=mask)).abs().max() > 1e-3


@pytest.mark.parametrize("name", [entry for entry in entries() if entry.startswith("vjepa2_")])
def test_parameter_counts_of_vjepa2(name: str) -> None:
    """transformers', for 1,000 classes, without the predictor; of encoders without the pool, too."""
    entry = find_entry(name)
    sizes = {name: entry.config[name] for name in ("dim", "depth", "heads", "mlp_dim")}
    config = VJEPA2Config(
        hidden_size=sizes["dim"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        mlp_ratio=sizes["mlp_dim"] / sizes["dim"],
        num_labels=1000,
    )
    with torch.device("meta"):
        theirs = VJEPA2ForVideoClassification(config)
    pooled = entry.config["pool"] == "attentive"
    left = ("vjepa2.predictor.", *(() if pooled else ("pooler.",)))
    counted = (p.numel() for name, p in theirs.named_parameters() if not name.startswith(left))
    assert entry.parameters == sum(counted)


@torch.inference_mode()
def test_videomae_goes_back_without_biases_of_keys(tmp_path: Path) -> None:
    """They play no role: transformers' model, which has none, computes the same."""
    model = randomise(mae_classifier())
    config = VideoMAEConfig(**HUGGING_FACE, patch_size=8, tubelet_size=2, layer_norm_eps=1e-6)
    config.save_pretrained(tmp_path)
    save_file(to_format(model, "transformers VideoMAE"), tmp_path / "model.safetensors", {"format": "pt"})
    reference = VideoMAEForVideoClassification.from_pretrained(tmp_path).eval()
    reference.fc_norm.eps = 1e-6
    x = videos(8, 32, 32)
    assert difference(model(x), reference(x.transpose(1, 2)).logits) < TOLERANCE
    again = mae_classifier()
    assert load_pretrained(again, to_format(model, "VideoMAE")).format == "VideoMAE"
    assert difference(again(x), model(x)) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "reference", "config", "biases_of_keys"),
    [
        ("vivit_b_16x2", VivitForVideoClassification, VivitConfig, 0),
        ("videomae_base_patch16_224", VideoMAEForVideoClassification, VideoMAEConfig, 12 * 768),
    ],
)
def test_parameter_counts_equal_transformers(
    name: str, reference: type[nn.Module], config: Any, biases_of_keys: int
) -> None:
    with torch.device("meta"):
        theirs = sum(p.numel() for p in reference(config(num_labels=1000)).parameters())
    assert find_entry(name).parameters == theirs + biases_of_keys


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vivit_b_16x2", 88.9),
        ("vivit_b_16x2_fe", 115.1),
        ("vivit_b_16x2_fsa", 117.3),
        ("vivit_b_16x2_fdp", 88.9),
    ],
)
def test_parameter_counts_are_the_papers(name: str, millions: float) -> None:
    """Table 2 of the paper, for the 400 classes of Kinetics, cut or rounded to a tenth."""
    with torch.device("meta"):
        model = create_model(name)
    assert abs(sum(p.numel() for p in model.parameters()) / 1e6 - millions) < 0.06


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def heads_of(attention: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Give what each head of one sequence (n d) mixes, by explicit softmax, before they are joined."""
    q, k, v = (tokens @ attention.to_qkv.weight.T + attention.to_qkv.bias).chunk(3, dim=1)
    width, mixed = attention.dim_head, []
    for head in range(attention.heads):
        own = slice(head * width, (head + 1) * width)
        scores = (q[:, own] @ k[:, own].T / width**0.5).exp()
        mixed.append(scores / scores.sum(1, keepdim=True) @ v[:, own])
    return mixed


def joined(attention: nn.Module, heads: list[Tensor]) -> Tensor:
    return torch.cat(heads, dim=1) @ attention.to_out.weight.T + attention.to_out.bias


def mix(norm: nn.LayerNorm, attention: nn.Module, tokens: Tensor) -> Tensor:
    """One attention on one sequence, added to it."""
    return tokens + joined(attention, heads_of(attention, layer_norm(norm, tokens)))


def feed(block: nn.Module, tokens: Tensor) -> Tensor:
    inner = block.feedforward
    hidden = layer_norm(block.norm2, tokens) @ inner.to_hidden.weight.T + inner.to_hidden.bias
    return tokens + inner.act(hidden) @ inner.to_out.weight.T + inner.to_out.bias


def over_space(cells: Tensor, act: Any) -> Tensor:
    """Apply a function of one sequence to every frame of (t p d)."""
    return torch.stack([act(frame) for frame in cells])


def over_time(cells: Tensor, act: Any) -> Tensor:
    """Apply a function of one sequence to every place of (t p d)."""
    return torch.stack([act(cells[:, place]) for place in range(cells.shape[1])], dim=1)


def embedded(model: ViT3D, video: Tensor) -> Tensor:
    """Project the tubelets of a video (c t h w) one by one; (t p d), without positions."""
    pt, ph, pw = model.grid.patch
    conv = model.patch_embed.proj
    rows = []
    for t in range(0, video.shape[1], pt):
        cut = [
            video[:, t : t + pt, y : y + ph, x : x + pw]
            for y in range(0, video.shape[2], ph)
            for x in range(0, video.shape[3], pw)
        ]
        rows.append(torch.stack([(conv.weight * tubelet).sum((1, 2, 3, 4)) + conv.bias for tubelet in cut]))
    return torch.stack(rows)


def placed(model: ViT3D, cells: Tensor, size: Tensor) -> Tensor:
    """Add the positions of the full grid's places."""
    rows, columns = size[1] // model.grid.patch[1], size[2] // model.grid.patch[2]
    table = model.positions.table[0, model.positions.prefix :].unflatten(0, (-1, *model.grid.shape[1:]))
    return cells + table[: cells.shape[0], :rows, :columns].flatten(1, 2)


def with_token(token: Tensor | None, table: nn.Module, sequence: Tensor) -> Tensor:
    if token is None:
        return sequence
    return torch.cat([token[0] + table.table[0, :1], sequence])


def pooled(model: ViT3D, sequence: Tensor) -> Tensor:
    return sequence[0] if model.pool == "cls" else sequence.mean(0)


def independent(model: ViViT, video: Tensor) -> Tensor:
    """Compute the logits of one video (c t h w) by loops over space and time (the paper's section 3.3)."""
    cells = placed(model, embedded(model, video), video.shape[1:])
    blocks = model.blocks
    if model.variant == "joint":
        sequence = with_token(model.prefix.class_token, model.positions, cells.flatten(0, 1))
        for block in blocks:
            sequence = feed(block, mix(block.norm1, block.attention, sequence))
        return model.head(pooled(model, layer_norm(model.norm, sequence)))
    if model.variant == "factorized_encoder":
        embed = model.temporal_embed
        frames = []
        for frame in cells:
            sequence = with_token(model.prefix.class_token, model.positions, frame)
            for block in blocks[: model.spatial_depth]:
                sequence = feed(block, mix(block.norm1, block.attention, sequence))
            frames.append(pooled(model, layer_norm(embed.norm, sequence)))
        sequence = torch.stack(frames)
        sequence = sequence + embed.positions.table[0, embed.positions.prefix :][: len(frames)]
        sequence = with_token(embed.prefix.class_token, embed.positions, sequence)
        for block in blocks[model.spatial_depth :]:
            sequence = feed(block, mix(block.norm1, block.attention, sequence))
        return model.head(pooled(model, layer_norm(model.norm, sequence)))
    for block in blocks:
        if model.variant == "factorized_self_attention":
            cells = over_space(cells, lambda x, b=block: mix(b.norm1, b.attention, x))
            cells = over_time(cells, lambda x, b=block: mix(b.norm_time, b.time, x))
        else:
            attention, normed = block.attention, layer_norm(block.norm1, cells)
            space = over_space(normed, lambda x, a=attention: torch.cat(heads_of(a, x)[:2], dim=1))
            time = over_time(normed, lambda x, a=attention: torch.cat(heads_of(a, x)[2:], dim=1))
            both = torch.cat([space, time], dim=2).flatten(0, 1)
            cells = cells + joined(attention, [both]).view_as(cells)
        cells = feed(block, cells)
    return model.head(layer_norm(model.norm, cells.flatten(0, 1)).mean(0))


@torch.inference_mode()
@pytest.mark.parametrize("size", [(8, 24, 16), (4, 16, 16)])
@pytest.mark.parametrize(("variant", "pool"), POOLS)
def test_models_equal_plain_loops(variant: str, pool: str, size: tuple[int, ...]) -> None:
    model = build(variant, pool, **depths(variant))
    x = videos(*size)
    want = torch.stack([independent(model, video) for video in x])
    assert difference(model(x), want) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize(("variant", "pool"), POOLS)
@pytest.mark.parametrize("padding", [0.0, float("nan")])
def test_padding_of_frames_has_no_influence(variant: str, pool: str, padding: float) -> None:
    model = build(variant, pool, **depths(variant))
    x = videos(8, 24, 16, batch=3)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[1, 6:] = mask[2, 2:] = False
    x = x.masked_fill(~mask[:, None, :, None, None], padding)
    logits = model(x, mask=mask)
    for video, seen, found in zip(x, mask, logits, strict=True):
        want = model(video[None, :, : int(seen.sum())])
        assert difference(found[None], want) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["learned", "sincos", "sequence", "none"])
def test_padding_of_the_plain_model(positions: str) -> None:
    for options in ({"pool": "mean", "fc_norm": True}, {"pool": "mean", "class_token": True}, {}):
        model = randomise(ViT3D(**SMALL, depth=2, positions=positions, **options))
        x, mask = videos(8, 24, 16), torch.tensor([[True] * 4 + [False] * 4] * 2)
        assert difference(model(x, mask=mask), model(x[:, :, :4])) < TOLERANCE
        assert difference(model(x, mask=torch.ones_like(mask)), model(x)) < TOLERANCE
        assert (model(x) - model(x, mask=mask)).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_learns_nothing_and_compiles(variant: str) -> None:
    model = build(variant, **depths(variant))
    x, mask = videos(8, 24, 16).requires_grad_(), torch.tensor([[True] * 6 + [False] * 2] * 2)
    logits = model(x, mask=mask)
    (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    assert not gradient[:, :, 6:].any()
    assert gradient[:, :, :6].abs().amax((1, 3, 4)).min() > 0
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, mask=mask), logits)
    torch.compiler.reset()


def test_masks_that_make_no_sense_are_refused() -> None:
    model, x = build("joint"), videos(8, 24, 16)
    whole = torch.ones(2, 8, dtype=torch.bool)
    cut, empty = whole.clone(), whole.clone()
    cut[0, 5:] = False
    empty[1] = False
    for mask, words in (
        (whole.float(), r"boolean mask of \(2, 8\) \(videos, frames\), got torch.float32"),
        (whole[:, :6], r"mask of \(2, 8\) .*got torch.bool of \(2, 6\)"),
        (cut, "the 2 frames of a patch are masked together"),
        (empty, "at least one frame"),
    ):
        with pytest.raises(ValueError, match=words):
            model(x, mask=mask)


def test_options_that_contradict_each_other_are_refused() -> None:
    for options, words in (
        ({"variant": "divided"}, "one of joint, .*got 'divided'"),
        ({"variant": "factorized_encoder"}, "over space and over time; got spatial_depth=2 .*=None"),
        ({"variant": "joint", "temporal_depth": 3}, "acts on space and time; .*temporal_depth=3"),
        ({"variant": "factorized_self_attention", "pool": "cls"}, "no class token"),
        ({"variant": "factorized_dot_product", "heads": 3}, "half of the heads .* got 3 heads"),
    ):
        with pytest.raises(ValueError, match=words):
            build(**options)
    for variant in VARIANTS:
        model = build(variant, **depths(variant))
        with pytest.raises(ValueError, match="pooling is chosen at construction"):
            model.reset_classifier(3, global_pool="avg" if model.pool == "cls" else "token")
        model.reset_classifier(3, global_pool=model.pool)


def test_factorised_models_need_whole_frames() -> None:
    for variant in VARIANTS[1:]:
        model = build(variant, **depths(variant))
        tokens = model.embed(videos(8, 24, 16))
        with pytest.raises(ValueError, match="patches of whole frames"):
            model.encode(tokens[:, :5], ids_keep=torch.arange(5).expand(2, -1))


@torch.inference_mode()
def test_intermediates_of_the_factorised_encoder() -> None:
    """Maps of a video from the blocks over space, one cell a frame from those over time."""
    model = build("factorized_encoder", temporal_depth=2)
    x = videos(4, 16, 16)
    taken = model.forward_intermediates(x, return_prefix_tokens=True, norm=True, intermediates_only=True)
    assert [tuple(part.shape) for part, _ in taken] == [(2, 48, 2, 2, 2)] * 2 + [(2, 48, 2, 1, 1)] * 2
    assert [tuple(prefix.shape) for _, prefix in taken] == [(2, 2, 48)] * 2 + [(2, 1, 48)] * 2
    embed = model.temporal_embed
    frames = taken[1][1] + embed.positions.table_for((2,))
    first = embed.prefix.class_token + embed.positions.for_prefix(1)
    tokens = model.blocks[2](torch.cat([first.expand(2, -1, -1), frames], dim=1))
    torch.testing.assert_close(model.norm(tokens)[:, 1:].mT[..., None, None], taken[2][0])


def test_paths_are_dropped_as_in_the_authors_code() -> None:
    """The probability rises linearly from 0 in each encoder by itself."""
    for variant, want in (
        ("joint", [0, 0.2, 0.4]),
        ("factorized_encoder", [0, 0.2, 0.4, 0, 0.4]),
        ("factorized_self_attention", [0, 0.2, 0.4]),
    ):
        model = build(variant, **depths(variant), spatial_depth=3, drop_path=0.4)
        assert [getattr(block.drop_path, "p", 0) for block in model.blocks] == pytest.approx(want)
