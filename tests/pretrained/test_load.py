"""What does not fit is named, and nothing is loaded by halves."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Thread
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.pretrained.conftest import build
from vit_pytorch import ViT, create_model, load_pretrained
from vit_pytorch.layers.tokens import Head
from vit_pytorch.pretrained import to_format
from vit_pytorch.weights import init_empty_weights, load_weights

KEPT = "head.weight, head.bias are not from .* and have their initial values"


def snapshot(model: ViT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: ViT, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 96}, r"sizes differ \(\d+\): .*expects \(1, 1, 96\), got \(1, 1, 48\), .* and \d+ more"),
        ({"depth": 3}, r"missing \(12\): blocks\.2\.norm1\.weight, .* and 8 more"),
        ({"depth": 1}, r"left over \(12\): blocks\.1\.norm1\.weight"),
        ({"pool": "mean"}, r"left over \(1\): prefix\.class_token"),
        ({"qk_norm": True}, r"missing \(8\): blocks\.0\.attention\.q_norm\.weight"),
        ({"mlp_dim": 64}, r"sizes differ \(6\)"),
        ({"positions": "none"}, r"left over \(1\): positions\.table"),
        ({"head": Head(hidden_dim=20)}, r"missing \(2\): pre_logits.*\n.*head\.weight expects \(7, 20\)"),
    ],
)
@pytest.mark.parametrize("name", ["vit_pytorch", "timm"])
def test_misfit_is_described(model: ViT, change: dict[str, Any], message: str, name: str) -> None:
    target = build(**change)
    before = snapshot(target)
    with pytest.raises(ValueError, match=rf"\(format {name}\) does not fit ViT:\n[\s\S]*{message}") as caught:
        load_pretrained(target, to_format(model, name))
    assert len(str(caught.value)) < 900
    assert_unchanged(target, before)


@pytest.mark.parametrize(
    "wrong", [torch.tensor(1.0), torch.ones(2), torch.ones(2, 3, 4), torch.ones(1, 1, 1, 1)]
)
@pytest.mark.parametrize("name", ["vit_pytorch", "timm", "torchvision", "transformers", "vit_jax"])
def test_every_tensor_of_a_wrong_shape_is_refused(model: ViT, name: str, wrong: torch.Tensor) -> None:
    state = to_format(model, name)
    target = build()
    before = snapshot(target)
    for key in state:
        if "head" in key or "classifier" in key:
            continue
        with pytest.raises(ValueError, match=r"sizes differ|cannot be|no square grid"):
            load_pretrained(target, {**state, key: wrong})
    assert_unchanged(target, before)


@torch.inference_mode()
def test_one_head_without_a_projection() -> None:
    """The public package has no output projection where the only head has the model's dimension."""
    arguments: dict[str, Any] = {"dim": 24, "heads": 1, "dim_head": 24, "stem": "dual_norm"}
    model, again = (build(**arguments, qkv_bias=False) for _ in range(2))
    randomise(model)
    for block in model.blocks:
        nn.init.eye_(block.attention.to_out.weight)
        nn.init.zeros_(block.attention.to_out.bias)
    state = to_format(model, "vit-pytorch ViT")
    bare = {name: tensor for name, tensor in state.items() if "to_out" not in name}
    assert len(state) - len(bare) == 4
    report = load_pretrained(again, bare)
    assert len(report.identities) == 4
    assert "identities, as the checkpoint has none: blocks.0.attention.to_out.weight" in str(report)
    x = images(*model.image_size)
    assert again.eval()(x).equal(model.eval()(x))
    one = {name: tensor for name, tensor in state.items() if "layers.1.0.to_out" not in name}
    with pytest.raises(ValueError, match=r"missing \(2\): blocks.1.attention.to_out"):
        load_pretrained(again, one)


def test_one_bad_tensor_leaves_the_model_unchanged(model: ViT) -> None:
    state = to_format(model, "torchvision")
    state["encoder.ln.weight"] = torch.ones(49)
    target = build()
    before = snapshot(target)
    with pytest.raises(ValueError, match=r"sizes differ \(1\): norm\.weight expects \(48,\), got \(49,\)"):
        load_pretrained(target, state)
    assert_unchanged(target, before)


@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_named_model_that_a_checkpoint_fits_is_told(name: str) -> None:
    state = to_format(create_model("vit_tiny_patch32_224", num_classes=10), name)
    with pytest.raises(ValueError, match=r"does not fit ViT:[\s\S]*\nit fits vit_tiny_patch32_224$"):
        load_pretrained(create_model("vit_small_patch32_224", depth=1), state)


def test_format_unknown_to_the_model_is_told_with_its_own(model: ViT) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_pretrained(model, {"a": torch.ones(1)})
    assert "it fits" not in str(caught.value)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_pytorch", "timm", "transformers", "vit_jax"])
def test_classifier_of_other_classes_stays_new(
    model: ViT, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = build(num_classes=5).eval()
    before = snapshot(target)
    with caplog.at_level(logging.INFO, logger="vit_pytorch"), pytest.warns(UserWarning, match=f"ViT: {KEPT}"):
        report = load_pretrained(target, to_format(model, name))
    assert report.kept == ("head.weight", "head.bias")
    assert target.load_report == report
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert "kept as they were: head.weight, head.bias" in caplog.text
    assert torch.equal(target.head.weight, before["head.weight"])
    x = images(48, 48)
    assert difference(target.forward_features(x), model.forward_features(x)) == 0


def test_classifier_is_dropped_for_embeddings(model: ViT) -> None:
    target = build(num_classes=0)
    report = load_pretrained(target, model.state_dict())
    assert report.kept == ()
    assert set(report.dropped) == {"head.weight", "head.bias"}


def test_classifier_stays_where_the_checkpoint_has_none(model: ViT) -> None:
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head")}
    target = build()
    head = target.head.weight.clone()
    with pytest.warns(UserWarning, match=KEPT):
        assert load_pretrained(target, state).kept == ("head.weight", "head.bias")
    assert torch.equal(target.head.weight, head)


def test_hidden_layer_of_the_head_goes_with_it() -> None:
    state = to_format(build(head=Head(hidden_dim=20)), "vit_jax")
    with pytest.warns(UserWarning, match=KEPT):
        report = load_pretrained(build(num_classes=3), state)
    assert {"pre_logits.0.weight", "pre_logits.0.bias"} <= set(report.dropped)
    with pytest.raises(ValueError, match=r"left over \(2\): pre_logits"):
        load_pretrained(build(), state)


@pytest.mark.parametrize("change", [{"num_classes": 5}, {"image_size": 64}])
def test_strict_refuses_what_changes(model: ViT, change: dict[str, Any]) -> None:
    target = build(**change)
    before = snapshot(target)
    with pytest.raises(ValueError, match="does not fit ViT strictly"):
        load_pretrained(target, model.state_dict(), strict=True)
    assert_unchanged(target, before)
    load_pretrained(build(), model.state_dict(), strict=True)


def test_dtype_of_the_model_stays(model: ViT) -> None:
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    target = build()
    load_pretrained(target, half)
    assert target.head.weight.dtype == torch.float32
    assert (target.head.weight - model.head.weight).abs().max() < 1e-3


@torch.inference_mode()
def test_longer_report_is_one_line(model: ViT) -> None:
    with pytest.warns(UserWarning, match=KEPT):
        report = load_pretrained(build(image_size=64, num_classes=5), model.state_dict())
    assert "positions.table resized from (6, 6) to (8, 8)" in str(report)
    assert "\n" not in str(report)


@torch.inference_mode()
def test_checkpoint_with_the_tensors_of_a_different_seed_changes_the_output(model: ViT) -> None:
    other = build()
    randomise(other, seed=8)
    x = images(48, 48)
    assert difference(other.eval()(x), model(x)) > 0.1
    load_pretrained(other, model.state_dict())
    assert difference(other(x), model(x)) < TOLERANCE


def test_no_weights_are_drawn_that_a_checkpoint_replaces(tmp_path: Path) -> None:
    """Neither from a folder nor for a named model; and the file may be written again afterwards."""
    sizes = {"dim": 24, "depth": 1, "heads": 2, "dim_head": 12, "mlp_dim": 48}
    model = create_model("vit_tiny_patch16_224", **sizes).eval()
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    for again in (create_model(tmp_path), create_model("vit_tiny_patch16_224", pretrained=tmp_path, **sizes)):
        assert all(parameter.requires_grad and not parameter.is_meta for parameter in again.parameters())
        again.save_pretrained(tmp_path)
        again.eval()
        x = images(224, 224)
        assert again(x).equal(model(x))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("told", [{}, {"num_classes": 1000}])
def test_a_classifier_that_no_checkpoint_replaces_is_drawn(tmp_path: Path, told: dict[str, int]) -> None:
    sizes = {"dim": 24, "depth": 1, "heads": 2, "dim_head": 12, "mlp_dim": 48}
    create_model("vit_tiny_patch16_224", num_classes=3, **sizes).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=rf"ViT: head\.weight, head\.bias are not from {tmp_path} and have"):
        model = create_model("vit_tiny_patch16_224", pretrained=tmp_path, **sizes, **told)
    assert model.load_report.kept == ("head.weight", "head.bias")
    assert model(images(224, 224)).shape == (2, 1000)
    assert 0.01 < model.head.weight.std() < 0.03


def test_values_are_left_out_in_one_thread_alone() -> None:
    built: list[nn.Module] = []
    with init_empty_weights():
        thread = Thread(target=lambda: built.append(nn.Linear(3, 3)))
        thread.start()
        thread.join()
        here = nn.Linear(3, 3)
    assert here.weight.is_meta
    assert not built[0].weight.is_meta
    assert not nn.Linear(3, 3).weight.is_meta


def test_dtype_of_a_model_without_values_is_its_own() -> None:
    with init_empty_weights():
        layer = nn.Linear(3, 2)
    load_weights(layer, {"weight": torch.ones(3, 2).bfloat16().T, "bias": torch.ones(2)}, source="here")
    assert layer.weight.dtype == torch.float32
    assert layer.weight.is_contiguous()


def test_a_saved_model_with_another_classifier_says_so(tmp_path: Path, model: ViT) -> None:
    assert model.load_report is None
    model.save_pretrained(tmp_path)
    assert create_model(tmp_path).load_report.kept == ()
    assert create_model(tmp_path, num_classes=7).load_report.kept == ()
    with pytest.warns(UserWarning, match=f"ViT: {KEPT}"):
        again = create_model(tmp_path, num_classes=3)
    assert again.load_report.kept == again.load_report.dropped == ("head.weight", "head.bias")
    assert create_model(tmp_path, num_classes=0).load_report.dropped == ("head.weight", "head.bias")


def test_no_warning_where_the_caller_sets_the_classifier(model: ViT) -> None:
    target = build(num_classes=5)
    assert load_pretrained(target, model.state_dict(), new_classifier=True).kept == (
        "head.weight",
        "head.bias",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["vit_pytorch", "timm", "transformers"])
def test_weights_that_are_not_finite_are_refused_by_name(model: ViT, name: str, value: float) -> None:
    model.blocks[1].attention.to_qkv.weight.data[0, 1] = value
    target = build()
    before = snapshot(target)
    message = r"weights must be finite, they are not in \S*(qkv|query)\.weight \(1 of \d+ values\)"
    with pytest.raises(ValueError, match=message):
        load_pretrained(target, to_format(model, name))
    assert_unchanged(target, before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.uint8])
@pytest.mark.parametrize("name", ["vit_pytorch", "timm", "transformers"])
def test_integers_are_no_weights(model: ViT, name: str, dtype: torch.dtype) -> None:
    """One of three parts that are concatenated would become a floating-point number."""
    state = to_format(model, name)
    key = next(key for key in state if "qkv.weight" in key or "key.weight" in key)
    state[key] = state[key].to(dtype)
    message = rf"weights must be floating-point numbers, got .*weight \({dtype}\); quantised weights"
    with pytest.raises(ValueError, match=message):
        load_pretrained(build(), state)


def test_saved_models_with_such_weights_are_refused(tmp_path: Path, model: ViT) -> None:
    model.head.bias.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"model\.safetensors: weights must be finite, .* head\.bias \(1 of 7"
    ):
        create_model(tmp_path)


def test_numbers_of_8_bits_are_read(model: ViT) -> None:
    state = {**model.state_dict(), "head.weight": model.head.weight.data.to(torch.float8_e4m3fn)}
    target = build()
    load_pretrained(target, state)
    assert (target.head.weight - model.head.weight).abs().max() < 0.07 * model.head.weight.abs().max()


def test_a_checkpoint_of_lightning_with_other_modules_beside_the_model(tmp_path: Path, model: ViT) -> None:
    class Training(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.criterion = nn.CrossEntropyLoss(weight=torch.ones(7))
            self.projection = nn.Linear(3, 3)

    trainer = L.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.strategy.connect(Training())
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    target = build()
    report = load_pretrained(target, tmp_path / "last.ckpt")
    assert target.head.weight.equal(model.head.weight)
    assert set(report.dropped) == {"/criterion.weight", "/projection.weight", "/projection.bias"}
    del model.blocks[1]
    trainer.save_checkpoint(tmp_path / "less.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"missing \(12\): blocks\.1.*[\s\S]*left over \(3\): /criterion"):
        load_pretrained(target, tmp_path / "less.ckpt")


def test_a_key_chooses_the_model(tmp_path: Path, model: ViT) -> None:
    other = build()
    torch.save({"model": other.state_dict(), "model_ema": model.state_dict()}, tmp_path / "both.pth")
    with pytest.raises(
        ValueError, match=r"both\.pth holds several state dicts, pass key= one of model, model_ema"
    ):
        load_pretrained(build(), tmp_path / "both.pth")
    target = build()
    load_pretrained(target, tmp_path / "both.pth", key="model_ema")
    assert target.head.weight.equal(model.head.weight)
    pair = {
        f"{name}.{key}": t
        for name, m in (("ema", model), ("net", other))
        for key, t in m.state_dict().items()
    }
    with pytest.raises(
        ValueError, match=r"'ema\.', 'net\.' stand before its names; pass one of them as key="
    ):
        load_pretrained(build(), pair)
    load_pretrained(target, pair, key="net")
    assert target.head.weight.equal(other.head.weight)
    with pytest.raises(ValueError, match="key='ema' is of a checkpoint, but none is given"):
        create_model("vit_tiny_patch16_224", key="ema")
