"""LookupViT: equal to the paper's formulas in plain loops, and the properties that they promise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import MAE, create_model, list_models, load_pretrained
from vit_pytorch import ViT as PlainViT
from vit_pytorch.layers.blocks import collect_outputs
from vit_pytorch.look_vit import GatherKernel, LookupViT, SpreadKernel
from vit_pytorch.pretrained import to_format
from vit_pytorch.recorder import Recorder
from vit_pytorch.registry import find_entry
from vit_pytorch.registry.vit import SIZES

SMALL: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 24,
    "depth": 3,
    "heads": 3,
    "dim_head": 8,
    "mlp_dim": 48,
    "num_compressed": 9,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "one of each": {"num_compressed": 1, "depth": 1, "heads": 1, "dim_head": 24},
    "as many as patches": {"num_compressed": (6, 6)},
    "logits": {"reuse": "logits", "num_compressed": (2, 5)},
    "both, mean": {"head_on": "both", "pool": "mean"},
    "both, class token": {"head_on": "both", "reuse": "logits", "lookup_mlp_dim": 10, "qkv_bias": False},
}


def build(**options: Any) -> LookupViT:
    model = LookupViT(**{**SMALL, **options})
    randomise(model)
    return model


def shrinking(old: int, new: int) -> Tensor:
    """What each of `new` cells takes from `old`: a triangle as wide as two of the larger cells."""
    ratio = old / new
    reach = max(ratio, 1.0)
    rows = torch.zeros(new, old, dtype=torch.float64)
    for cell in range(new):
        centre = (cell + 0.5) * ratio
        for place in range(old):
            rows[cell, place] = max(0.0, 1 - abs(place + 0.5 - centre) / reach)
    return rows / rows.sum(dim=1, keepdim=True)


class Written:
    """The paper's formulas on one image, head by head, in double precision."""

    def __init__(self, model: LookupViT, heads: int, reuse: str, head_on: str, pool: str) -> None:
        self.weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.model, self.heads, self.reuse, self.head_on, self.pool = model, heads, reuse, head_on, pool

    def linear(self, name: str, x: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        out = x @ self.weights[f"{name}.weight"].chunk(parts)[part].T
        bias = self.weights.get(f"{name}.bias")
        return out if bias is None else out + bias.chunk(parts)[part]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.to_hidden", x)
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        return self.linear(f"{name}.to_out", hidden)

    def scores(self, q: Tensor, k: Tensor) -> list[Tensor]:
        pairs = zip(q.chunk(self.heads, dim=-1), k.chunk(self.heads, dim=-1), strict=True)
        return [a @ b.T / math.sqrt(a.shape[1]) for a, b in pairs]

    def mixed(self, maps: list[Tensor], v: Tensor) -> Tensor:
        parts = zip(maps, v.chunk(self.heads, dim=-1), strict=True)
        return torch.cat([found @ part for found, part in parts], dim=-1)

    def normalised(self, scores: Tensor) -> Tensor:
        return scores.exp() / scores.exp().sum(dim=1, keepdim=True)

    def block(self, name: str, few: Tensor, lookup: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        x, z = self.norm(f"{name}.gather_norm", few), self.norm(f"{name}.lookup_norm", lookup)
        q = self.linear(f"{name}.gather.to_q", x)
        k, v = (self.linear(f"{name}.gather.to_kv", z, part, 2) for part in range(2))
        scores = self.scores(q, k)
        maps = [self.normalised(head) for head in scores]
        few = few + self.linear(f"{name}.gather.to_out", self.mixed(maps, v))

        x = self.norm(f"{name}.norm1", few)
        q, k, v = (self.linear(f"{name}.attention.to_qkv", x, part, 3) for part in range(3))
        attended = self.mixed([self.normalised(head) for head in self.scores(q, k)], v)
        few = few + self.linear(f"{name}.attention.to_out", attended)
        few = few + self.mlp(f"{name}.feedforward", self.norm(f"{name}.norm2", few))
        if last and self.head_on == "compressed":
            return few, lookup

        back = [
            found.T if self.reuse == "weights" else self.normalised(head.T)
            for found, head in zip(maps, scores, strict=True)
        ]
        v = self.linear(f"{name}.infusion.to_v", self.norm(f"{name}.infusion_norm", few))
        lookup = lookup + self.linear(f"{name}.infusion.to_out", self.mixed(back, v))
        x = self.norm(f"{name}.lookup_feedforward_norm", lookup)
        return few, lookup + self.mlp(f"{name}.lookup_feedforward", x)

    def logits(self, image: Tensor) -> Tensor:
        size, grid = SMALL["patch_size"], [extent // SMALL["patch_size"] for extent in image.shape[1:]]
        kernel = self.weights["patch_embed.proj.weight"].flatten(1)
        patches = [
            kernel @ image[:, y * size : (y + 1) * size, x * size : (x + 1) * size].flatten()
            for y in range(grid[0])
            for x in range(grid[1])
        ]
        table = self.weights["positions.table"][0].unflatten(0, self.model.grid.shape)
        places = table[: grid[0], : grid[1]].flatten(0, 1)
        lookup = torch.stack(patches) + self.weights["patch_embed.proj.bias"] + places

        rows, columns = (shrinking(old, new) for old, new in zip(grid, self.model.compressed, strict=True))
        few = torch.einsum("yr,xc,rcd->yxd", rows, columns, lookup.unflatten(0, grid)).flatten(0, 1)
        token = self.pool == "cls"
        if token:
            few = torch.cat([self.weights["prefix.class_token"][0], few])
        depth = len(self.model.blocks)
        for layer in range(depth):
            few, lookup = self.block(f"blocks.{layer}", few, lookup, layer == depth - 1)
        few = self.norm("norm", few)
        pooled = few[0] if token else few.mean(dim=0)
        if self.head_on == "both":
            pooled = pooled + self.norm("lookup_norm", lookup).mean(dim=0)
        return self.linear("head", pooled)


def in_full(model: LookupViT, x: Tensor) -> Tensor:
    config = {"heads": 3, "reuse": "weights", "head_on": "compressed", "pool": "cls", **model.config}
    written = Written(model, *(config[name] for name in ("heads", "reuse", "head_on", "pool")))
    return torch.stack([written.logits(image) for image in x.double()]).float()


@torch.inference_mode()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("size", [(48, 48), (24, 40)])
def test_equals_the_formulas(options: dict[str, Any], size: tuple[int, int]) -> None:
    model = build(**options)
    x = images(*size)
    assert difference(model(x), in_full(model, x)) < TOLERANCE


@torch.inference_mode()
def test_any_number_of_compressed_tokens_serves_a_trained_model() -> None:
    """They have no parameters, so one model works with several numbers, of which its configuration knows."""
    model, x = build(), images(48, 48)
    logits = []
    for number, grid in ((4, (2, 2)), ((1, 3), (1, 3)), (25, (5, 5)), ((6, 6), (6, 6))):
        model.set_num_compressed(number)
        assert model.compressed == grid
        assert model.config["num_compressed"] == number
        assert model.forward_features(x).shape == (2, 1 + math.prod(grid), 24)
        other = build(num_compressed=number)
        other.load_state_dict(model.state_dict())
        assert other(x).equal(model(x))
        assert difference(model(x), in_full(model, x)) < TOLERANCE
        logits.append(model(x))
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(logits))


@torch.inference_mode()
def test_the_way_back_reuses_the_weights() -> None:
    """Each compressed token gives away once in all what it has; re-normed logits give each patch a mean."""
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    mixed, weights = GatherKernel()(q, k, v)
    given = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close((weights.mT @ given).sum(dim=2), given.sum(dim=2))
    same, scores = GatherKernel(reuse="logits")(q, k, v)
    torch.testing.assert_close(same, mixed)
    torch.testing.assert_close(scores, q @ k.mT / 8**0.5)
    spread = SpreadKernel()(scores, given.mean(dim=2, keepdim=True).expand(-1, -1, 4, -1))
    torch.testing.assert_close(spread, given.mean(dim=2, keepdim=True).expand(-1, -1, 9, -1))


@torch.inference_mode()
@pytest.mark.parametrize("reuse", ["weights", "logits"])
def test_maps_are_recorded(reuse: str) -> None:
    x = images(48, 48)
    recording = Recorder(build(reuse=reuse)).record(x)
    gather, attend = (2, 3, 10, 36), (2, 3, 10, 10)
    back = [(2, 3, 36, 10)] if reuse == "logits" else []
    assert [tuple(found.shape) for found in recording.maps] == [gather, attend, *back] * 2 + [gather, attend]


@torch.inference_mode()
def test_patches_are_a_residual_stream() -> None:
    """Where neither way back nor feed-forward adds anything, they pass a block to the bit, not normed."""
    model = build()
    block = model.blocks[0]
    for linear in (block.infusion.to_out, block.lookup_feedforward.to_out):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    few, lookup = torch.randn(2, 10, 24), 5 + 3 * torch.randn(2, 36, 24)
    refined, passed = block(torch.cat([few, lookup], dim=1), model.block_inputs((6, 6))).split(
        (10, 36), dim=1
    )
    assert passed.equal(lookup)
    assert not refined.equal(few)


@torch.inference_mode()
def test_patches_are_embedded_apart() -> None:
    """By the linear projection of each: a change of one patch changes one token."""
    model, x = build(), images(48, 48)
    other = x.clone()
    other[:, :, 8:16, 16:24] += 1
    changed = (model.embed(x) != model.embed(other)).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [1 + 6 + 2]


@torch.inference_mode()
def test_compressed_tokens_are_classified() -> None:
    """The head reads nothing but the class token, or the compressed tokens' mean; patches where told."""
    x = images(48, 48)
    for pool, options in (("cls", {}), ("mean", {}), ("mean", {"class_token": True})):
        model = build(pool=pool, **options)
        features = model.forward_features(x)
        prefix = int(pool == "cls" or bool(options))
        assert features.shape == (2, prefix + 9, 24)
        pooled = features[:, 0] if pool == "cls" else features[:, prefix:].mean(dim=1)
        assert model.forward_head(features, pre_logits=True).equal(pooled)
    assert build(head_on="both").forward_features(x).shape == (2, 1 + 9 + 36, 24)


@pytest.mark.parametrize("head_on", ["compressed", "both"])
def test_nothing_is_dead(head_on: str) -> None:
    """Positions are used; the last block has no way back where nothing reads the patches behind it."""
    model = build(head_on=head_on)
    model(images(48, 48)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    last = model.blocks[-1]
    assert (last.infusion is None) == (head_on == "compressed")
    assert (last.lookup_feedforward is None) == (head_on == "compressed")
    assert len(model.feature_info) == (2 if head_on == "compressed" else 3)


@torch.inference_mode()
def test_intermediates_are_maps_of_patches() -> None:
    model, x = build(), images(48, 32)
    final, taken = model.forward_intermediates(x, return_prefix_tokens=True)
    assert final.equal(model.forward_features(x))
    assert [found.shape for found, _ in taken] == [(2, 24, 6, 4)] * 2
    with collect_outputs(model.blocks) as outputs:
        model(x)
    streams = [output.split((10, 24), dim=1) for output in outputs]
    for (found, prefix), (few, lookup) in zip(taken, streams, strict=False):
        assert found.flatten(2).mT.equal(lookup)
        assert prefix.equal(few[:, :1])


def multiplications(model: torch.nn.Module, size: int = 48) -> int:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def test_cost_by_the_number_of_compressed_tokens() -> None:
    """All products, counted: linear in the patches, quadratic in the compressed tokens alone."""
    patches, dim, hidden, narrow, inner = 36, 24, 48, 12, 24
    for side in (1, 2, 3, 6):
        few = side * side + 1
        gather = 2 * few * dim * inner + 2 * patches * dim * inner + 2 * few * patches * inner
        refine = few * dim * (4 * inner + 2 * hidden) + 2 * few * few * inner
        back = few * dim * inner + few * patches * inner + patches * dim * (inner + 2 * narrow)
        embed = patches * dim * 3 * 8 * 8
        with torch.device("meta"):
            model = LookupViT(**{**SMALL, "num_compressed": side * side})
        assert multiplications(model) == embed + 3 * (gather + refine) + 2 * back + 7 * dim


def test_cost_beside_a_plain_vit() -> None:
    """Base size: 5 x 5 compressed tokens take less than half of ViT's products, 10 x 10 nearly all."""
    with torch.device("meta"):
        plain = multiplications(create_model("vit_base_patch16_224"), 224)
        part = {
            side: multiplications(create_model(f"lookupvit_base_patch16_224_{side}x{side}"), 224) / plain
            for side in (3, 5, 7, 10)
        }
        finer = LookupViT(image_size=448, patch_size=16, num_classes=1000, **SIZES["base"], num_compressed=25)
        plain_finer = PlainViT(image_size=448, patch_size=16, num_classes=1000, **SIZES["base"])
    assert [round(part[side], 2) for side in (3, 5, 7, 10)] == [0.37, 0.47, 0.63, 0.96]
    # Four times the patches: attention among them, which is quadratic, is saved whole.
    assert multiplications(finer, 448) / multiplications(plain_finer, 448) < 0.34


@pytest.mark.parametrize("name", list_models("lookupvit_*"))
def test_parameter_count_in_closed_form(name: str) -> None:
    config = find_entry(name).config
    dim, depth, hidden = config["dim"], config["depth"], config["mlp_dim"]
    linear = dim * dim + dim
    norm = 2 * dim
    narrow = dim * dim + dim // 2 + dim
    plain = 4 * linear + 2 * dim * hidden + hidden + dim + 2 * norm
    gather, back = 4 * linear + 2 * norm, 2 * linear + norm + narrow + norm
    embed = 3 * 16 * 16 * dim + dim + 196 * dim + dim
    blocks = depth * (gather + plain) + (depth - 1) * back
    assert embed + blocks + norm + 1000 * (dim + 1) == find_entry(name).parameters


@torch.inference_mode()
def test_own_checkpoints_load_at_another_size() -> None:
    model = build()
    state = to_format(model, "vit_pytorch")
    assert state.keys() == model.state_dict().keys()
    same, larger = build(), LookupViT(**{**SMALL, "image_size": 64, "num_compressed": 16}).eval()
    load_pretrained(same, state)
    x = images(48, 48)
    assert same(x).equal(model(x))
    assert load_pretrained(larger, state).dropped == ()
    assert larger.positions.table.shape == (1, 64, 24)
    assert larger(images(64, 64)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_compressed": 8}, "square of an integer or .rows, columns., got 8"),
        ({"num_compressed": -4}, r"num_compressed must be .*, got -4"),
        ({"num_compressed": 49}, r"1 to \(6, 6\) along each axis, got num_compressed=\(7, 7\)"),
        ({"num_compressed": (0, 3)}, r"num_compressed must be .*, got \(0, 3\)"),
        ({"reuse": "keys"}, "reuse must be one of weights, logits; got 'keys'"),
        ({"head_on": "patches"}, "head_on must be one of compressed, both; got 'patches'"),
        ({"pool": "map"}, "pool must be one of cls, mean; got 'map'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LookupViT(**{**SMALL, **arguments})


def test_some_of_the_patches_are_no_grid() -> None:
    learner = MAE(encoder=build(), decoder_dim=32, masking_ratio=0.75, decoder_depth=1)
    with pytest.raises(ValueError, match="the whole grid of patches, got 9 of 36"):
        learner(images(48, 48))
