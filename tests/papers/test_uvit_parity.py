"""The U-ViT predicts the noise that its authors' program predicts, and learns to."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tests.papers.golden import read_golden
from tests.papers.learning import digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.tolerances import BF16_MODEL, relative_error
from vit_pytorch import ViT, load_pretrained
from vit_pytorch.jumbo_vit import JumboViT
from vit_pytorch.layers.blocks import Block
from vit_pytorch.pretrained import to_format
from vit_pytorch.recorder import Recorder
from vit_pytorch.registry.uvit import NOISE_PREDICTORS, create_noise_predictor
from vit_pytorch.uvit import NoisePredictor, SkipBlock, UViT, embed_times

SMALL = {"image_size": (24, 40), "patch_size": 8, "num_classes": 7, "dim": 32, "heads": 4, "mlp_dim": 48}
TIMES = torch.tensor([3.0, 712.5])


def from_config(config: dict, **options) -> UViT:
    dim = config["embed_dim"]
    return UViT(
        **{
            "image_size": config["img_size"],
            "patch_size": config["patch_size"],
            "num_classes": 0,
            "dim": dim,
            "depth": config["depth"],
            "heads": config["num_heads"],
            "mlp_dim": int(dim * config["mlp_ratio"]),
            **options,
        }
    ).eval()


def predictor(config: dict, **options) -> NoisePredictor:
    return NoisePredictor(
        from_config(config, **options),
        num_labels=max(config["num_classes"], 0),
        time_mlp=config["mlp_time_embed"],
        final_conv=config["conv"],
    ).eval()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["uvit", "uvit_cond"])
def test_noise_equals_the_authors(name: str) -> None:
    config, weights, golden = read_golden(name)
    model = predictor(config)
    report = load_pretrained(model, weights)
    assert report.format == "U-ViT"
    assert [*report.kept, *report.dropped, *report.resized] == []
    noise = model(golden["input"], golden["timesteps"], golden.get("y"))
    assert difference(noise, golden["output"]) < TOLERANCE
    written = to_format(model, "U-ViT")
    assert written.keys() == weights.keys()
    assert all(written[key].equal(tensor) for key, tensor in weights.items())


@torch.inference_mode()
@pytest.mark.parametrize("name", ["uvit", "uvit_cond"])
@pytest.mark.filterwarnings("ignore:.*have their initial values:UserWarning")
def test_classifier_starts_from_the_authors_backbone(name: str) -> None:
    config, weights, golden = read_golden(name)
    model, classifier = predictor(config), from_config(config, num_classes=7)
    load_pretrained(model, weights)
    report = load_pretrained(classifier, weights)
    assert report.kept == ("head.weight", "head.bias")
    images = golden["input"]
    assert classifier.forward_features(images).equal(model.encoder.forward_features(images))
    assert not any(name.startswith(("encoder.", "patch_embed.")) for name in report.dropped)
    with pytest.raises(ValueError, match="a classifier has no place for a time"):
        to_format(classifier, "U-ViT")


@torch.inference_mode()
def test_positions_of_another_grid_are_interpolated_and_conditions_keep_theirs() -> None:
    config, weights, _ = read_golden("uvit_cond")
    model = predictor(config, image_size=24)
    report = load_pretrained(model, weights)
    assert report.resized == {"encoder.positions.table": ((4, 4), (6, 6))}
    assert model.places.equal(weights["pos_embed"][:, :2])


@pytest.mark.parametrize("name", NOISE_PREDICTORS)
def test_published_predictors_by_name(name: str) -> None:
    with torch.device("meta"):
        model = create_noise_predictor(name)
        images = torch.empty(2, model.encoder.channels, *model.encoder.image_size)
        labels = torch.zeros(2, dtype=torch.long) if model.num_labels else None
        assert model(images, torch.empty(2), labels).shape == images.shape
    assert sum(parameter.numel() for parameter in model.parameters()) == NOISE_PREDICTORS[name].parameters


def test_overrides_and_unknown_names() -> None:
    model = create_noise_predictor("cifar10_uvit_small", dim=16, heads=2, depth=2, image_size=(8, 4))
    assert model(torch.randn(1, 3, 8, 4), torch.zeros(1)).shape == (1, 3, 8, 4)
    with pytest.raises(ValueError, match=r"name must be one of cifar10_uvit_small, .*; got 'uvit'"):
        create_noise_predictor("uvit")


@pytest.mark.parametrize(("depth", "blocks"), [(1, 1), (4, 5), (5, 5), (6, 7)])
def test_one_block_stands_in_the_middle(depth: int, blocks: int) -> None:
    model = UViT(**SMALL, depth=depth)
    kinds = [type(block) for block in model.blocks]
    assert kinds == [Block] * (blocks // 2 + 1) + [SkipBlock] * (blocks // 2)


@torch.inference_mode()
@pytest.mark.parametrize("depth", [4, 6])
def test_skips_are_outputs_of_the_early_blocks(depth: int) -> None:
    """The last block takes what the first one gave; the tokens come first in the merge."""
    model = randomise(UViT(**SMALL, depth=depth))
    blocks = list(model.blocks)
    outputs = []
    x = want = model.embed(images(24, 40))
    for layer, block in enumerate(blocks):
        if layer > depth // 2:
            both = torch.cat([want, outputs[depth - layer]], dim=2)
            want = both @ block.merge.weight.T + block.merge.bias
        want = want + block.attention(block.norm1(want))
        want = want + block.feedforward(block.norm2(want))
        outputs.append(want)
    assert difference(model.encode(x), model.norm(want)) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("dim", [8, 9])
def test_embedding_of_times(dim: int) -> None:
    got = embed_times(TIMES, dim)
    for row, time in zip(got, TIMES.tolist(), strict=True):
        angles = [time * 10_000 ** (-i / 4) for i in range(4)]
        want = [*map(math.cos, angles), *map(math.sin, angles), *[0.0] * (dim - 8)]
        torch.testing.assert_close(row, torch.tensor(want), rtol=1e-4, atol=1e-4)
    assert embed_times(torch.tensor([7]), dim).equal(embed_times(torch.tensor([7.0]), dim))


@torch.inference_mode()
def test_label_stands_in_front_of_the_time() -> None:
    model = randomise(NoisePredictor(UViT(**SMALL, depth=2), num_labels=5))
    seen = []
    model.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    labels = torch.tensor([4, 1])
    model(images(24, 40), TIMES, labels)
    tokens = seen[0]
    assert tokens[:, 0].equal(model.labels(labels) + model.places[0, 0])
    assert tokens[:, 1].equal(embed_times(TIMES, 32) + model.places[0, 1])
    assert tokens[:, 2:].equal(model.encoder.embed(images(24, 40)))


def test_every_parameter_has_a_gradient() -> None:
    model = randomise(
        NoisePredictor(UViT(**{**SMALL, "num_classes": 0}, depth=4), num_labels=5, time_mlp=True)
    )
    model.encoder.set_grad_checkpointing()
    noise = model(images(24, 40), TIMES, torch.tensor([4, 1]))
    (noise * torch.randn_like(noise)).sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@torch.inference_mode()
def test_each_image_has_its_own_time_and_label() -> None:
    model = randomise(NoisePredictor(UViT(**SMALL, depth=2), num_labels=5))
    pixels, labels = images(24, 40), torch.tensor([4, 1])
    together = model(pixels, TIMES, labels)
    for i in range(2):
        alone = model(pixels[i : i + 1], TIMES[i : i + 1], labels[i : i + 1])
        assert difference(together[i : i + 1], alone) < TOLERANCE
    assert difference(together, model(pixels, TIMES.flip(0), labels)) > 0.01
    assert difference(together, model(pixels, TIMES, labels.flip(0))) > 0.01


def timm_vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=(24, 40), patch_size=8, embed_dim=32, depth=2, num_heads=4
    )


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:15 patches are few")
@pytest.mark.parametrize(
    "build",
    [
        lambda: UViT(**SMALL, depth=2, pool="cls"),
        lambda: ViT(**SMALL, depth=2, num_registers=3),
        lambda: JumboViT(**SMALL, depth=2),
        timm_vit,
    ],
    ids=["class token", "registers", "jumbo", "timm"],
)
def test_other_models_predict_noise(build: Callable[[], nn.Module]) -> None:
    """Their own prefix tokens stay in front; each patch's output is its own pixels."""
    model = randomise(NoisePredictor(build(), final_conv=False))
    seen = []
    model.to_pixels.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    noise = model(images(24, 40), TIMES)
    assert noise.shape == (2, 3, 24, 40)
    patch = model.to_pixels(seen[0])[1, 7].unflatten(0, (8, 8, 3)).permute(2, 0, 1)
    assert noise[1, :, 8:16, 16:24].equal(patch)


@torch.no_grad()
def test_noise_predictors_compile_export_and_are_recorded() -> None:
    model = randomise(NoisePredictor(UViT(**SMALL, depth=2), num_labels=5, time_mlp=True))
    inputs = (torch.cat([images(24, 40)] * 2)[:3], torch.tensor([1.0, 20.0, 999.0]), torch.tensor([0, 4, 2]))
    want = model(*inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), want)
    torch.compiler.reset()
    batch = {0: Dim("batch", max=4096)}
    program = export(
        model, tuple(tensor[:2] for tensor in inputs), dynamic_shapes=(batch, batch, batch), strict=True
    )
    torch.testing.assert_close(program.module()(*inputs), want)
    recorded, maps = Recorder(model)(*inputs)
    torch.testing.assert_close(recorded, want)
    # Label, time and 15 patches, in each of three blocks.
    assert maps.shape == (3, 3, 4, 17, 17)


@torch.no_grad()
def test_noise_predictors_take_bf16() -> None:
    model = randomise(NoisePredictor(UViT(**SMALL, depth=2), num_labels=5, time_mlp=True))
    inputs = (images(24, 40), TIMES, torch.tensor([4, 1]))
    want = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(model(*inputs), want) < BF16_MODEL
    noise = model.bfloat16()(inputs[0].bfloat16(), *inputs[1:])
    assert noise.dtype == torch.bfloat16
    assert relative_error(noise, want) < BF16_MODEL


@torch.inference_mode()
def test_smaller_images() -> None:
    model = randomise(NoisePredictor(UViT(**SMALL, depth=2)))
    assert model(images(16, 24), TIMES).shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    ("num_labels", "times", "labels", "message"),
    [
        (0, 2, 2, r"labels must be passed if num_labels is not 0, and only then; it is 0, got shape \(2,\)"),
        (5, 2, None, "labels must be passed if num_labels is not 0, and only then; it is 5, got none"),
        (5, 2, 3, r"labels must be one for each of 2 images, got shape \(3,\)"),
        (0, 1, None, r"timesteps must be one for each of 2 images, got shape \(1,\)"),
    ],
)
def test_wrong_conditions_are_refused(num_labels: int, times: int, labels: int | None, message: str) -> None:
    model = NoisePredictor(UViT(**SMALL, depth=2), num_labels=num_labels)
    given = None if labels is None else torch.zeros(labels, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        model(images(24, 40), torch.zeros(times), given)


def test_encoder_is_a_model_of_one_sequence() -> None:
    with pytest.raises(ValueError, match="expected a model of one sequence of tokens"):
        NoisePredictor(nn.Linear(2, 2))


def diffusion_loss(model: nn.Module, images: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
    """Compute the DDPM loss (Ho et al. 2020, arXiv:2006.11239, equation 14) at random times."""
    times = torch.randint(len(kept), (len(images),), generator=generator)
    noise = torch.randn(images.shape, generator=generator)
    share = kept[times, None, None, None]
    return (model(share.sqrt() * images + (1 - share).sqrt() * noise, times) - noise).square().mean()


def test_learns_to_tell_the_noise_of_digits() -> None:
    """Predicting nothing has loss 1."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, _, test, _ = digits(8)
    sizes = {
        "image_size": 8,
        "patch_size": 2,
        "channels": 1,
        "dim": 64,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 128,
    }
    model = NoisePredictor(UViT(**sizes, num_classes=0), final_conv=False)
    kept = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    for _ in range(120):
        chosen = torch.randint(len(train), (64,), generator=generator)
        loss = diffusion_loss(model, train[chosen], kept, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        assert diffusion_loss(model, test.repeat(4, 1, 1, 1), kept, generator) < 0.25
