"""The recorder sees every attention of every model, and leaves the model as it was."""

import copy
import gc
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.contracts.conftest import randomize_
from tests.contracts.test_gradients import backward
from tests.tolerances import BF16_MODEL, relative_error
from vit_pytorch import ViT
from vit_pytorch.base import VisionModel
from vit_pytorch.cait import CaiT
from vit_pytorch.deepvit import DeepViT
from vit_pytorch.efficient import ViT as EfficientViT
from vit_pytorch.layers.attention import (
    Attention,
    CrossAttention,
    ExplicitAttention,
    FusedAttention,
    TalkingHeads,
    mix_heads,
)
from vit_pytorch.learnable_memory_vit import Adapter
from vit_pytorch.na_vit import NaViT
from vit_pytorch.recorder import Recorder

SIZES = {
    "image_size": 20,
    "patch_size": 4,
    "num_classes": 5,
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 32,
}


class Softmaxes(TorchFunctionMode):
    """Counts softmaxes and fused attention by what the program calls."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.softmax, F.softmax, Tensor.softmax, F.scaled_dot_product_attention):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def same_parts(model: nn.Module) -> Iterator[None]:
    """Hold that a model has the same modules, flags, hooks and places of its state afterwards."""

    def look() -> list[object]:
        parts = [(name, id(part), part.training) for name, part in model.named_modules()]
        hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
        pausing = [getattr(part, "grad_checkpointing", None) for part in model.modules()]
        state = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        return [parts, hooks, pausing, state, list(state)]

    before = look()
    yield
    assert look() == before


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Hold that a model has the same parts and values afterwards."""
    values = copy.deepcopy(model.state_dict())
    with same_parts(model):
        yield
    assert all(tensor.equal(values[name]) for name, tensor in model.state_dict().items())


def attends(name: str) -> bool:
    return "kernel" in name.rpartition(".")[2]


def kernels_that_run(model: nn.Module, images: Tensor) -> list[str]:
    """Name what attends in a plain call, in order: the modules that are called so, innermost only."""
    ran: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, part in model.named_modules()
        if attends(name) and not any(attends(child) for child, _ in part.named_children())
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return ran


def test_recorder_keeps_the_output(model: VisionModel, images: Tensor):
    want = model(images)
    recorder = Recorder(model)
    with unchanged(model):
        got, _ = recorder(images)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(recorder.record(images, keep_graph=True).output, got)
    assert recorder.eject() is model
    assert model(images).equal(want)


def test_recorder_names_every_kernel(model: VisionModel, images: Tensor):
    names = Recorder(model).record(images).names
    assert [name for name in names if attends(name)] == kernels_that_run(model, images)


def test_recorder_misses_no_softmax(model: VisionModel, images: Tensor):
    with Softmaxes() as softmaxes:
        maps = Recorder(model).maps(images)
    assert softmaxes.seen == ["softmax"] * len(maps)


def test_recorder_maps(model: VisionModel, images: Tensor):
    recorder = Recorder(model)
    flat = recorder.maps(images)
    for found in flat:
        assert found.ndim >= 4
        assert found.shape[0] % len(images) == 0
        assert not found.requires_grad
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    _, maps = recorder(images)
    stages = [maps] if isinstance(maps, Tensor) else maps
    runs = [list(run) for _, run in groupby(flat, key=lambda found: found.shape)]
    assert isinstance(maps, Tensor) == (len(runs) == 1)
    for stage, run in zip(stages, runs, strict=True):
        assert stage.equal(torch.stack(run, dim=1))


def test_recorder_images_in_order(model: VisionModel, images: Tensor):
    """The maps of an image are those that it has alone, and lie together, also where it has many windows."""
    recorder = Recorder(model)
    every = recorder.maps(images)
    for index, image in enumerate(images):
        for found, alone in zip(every, recorder.maps(image[None]), strict=True):
            torch.testing.assert_close(found.unflatten(0, (3, -1))[index], alone, rtol=1e-4, atol=1e-5)


def test_recorder_gradients(model: VisionModel, images: Tensor):
    """With a graph, the output is computed from the maps: each has a gradient, whatever is frozen."""
    model.requires_grad_(False)
    recording = Recorder(model).record(images, keep_graph=True)
    logits = recording.output
    loss = (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()
    gradients = torch.autograd.grad(loss, recording.maps)
    for found, gradient in zip(recording.maps, gradients, strict=True):
        assert gradient.shape == found.shape
        assert gradient.isfinite().all()
        # A map of a single key is 1 whatever happens, but still what the value is multiplied with.
        assert gradient.any()


def test_recorder_in_training(model: VisionModel, images: Tensor):
    # In single precision, some gradients in front of a batch norm are nothing but rounding.
    model, images = model.double().train(), images.double()
    want = backward(model, images)
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        recorder = Recorder(model)
        assert recorder.training
        with same_parts(model):
            got = backward(_Logits(recorder), images)
        for name, gradient in want.items():
            torch.testing.assert_close(got[f"recorder.model.{name}"], gradient)
        assert recorder.eject().training
    assert all(part.training for part in model.modules())


def test_recorder_autocast(model: VisionModel, images: Tensor):
    want = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits, maps = Recorder(model)(images)
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits, want) < BF16_MODEL
    for stage in [maps] if isinstance(maps, Tensor) else maps:
        sums = stage.float().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=0.02)


def test_recorder_survives_an_error(model: VisionModel, images: Tensor):
    want = model(images)
    recorder = Recorder(model)
    handle = model.get_classifier().register_forward_pre_hook(_fail)
    with unchanged(model), pytest.raises(ArithmeticError):
        recorder(images)
    handle.remove()
    assert model(images).equal(want)
    torch.testing.assert_close(recorder(images)[0], want, rtol=1e-5, atol=1e-5)


def test_recorder_state_while_recording(model: VisionModel, images: Tensor):
    want = model.state_dict()
    seen = []
    model.get_classifier().register_forward_pre_hook(lambda *_: seen.append(model.state_dict()))
    Recorder(model)(images)
    assert list(seen[0]) == list(want)
    assert all(seen[0][name].equal(tensor) for name, tensor in want.items())


def test_recorder_leaves_a_model_to_copy(model: VisionModel, images: Tensor):
    want = model(images)
    recorder = Recorder(model)
    recorder(images)
    for copied in (copy.deepcopy(recorder), pickle.loads(pickle.dumps(recorder))):
        assert copied(images)[0].equal(recorder(images)[0])
    recorder.eject()
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied(images).equal(want)


class _Logits(nn.Module):
    """A recorder that gives its first output alone."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def forward(self, images: Tensor) -> Tensor:
        return self.recorder(images)[0]


def _fail(*_: object) -> None:
    raise ArithmeticError


def test_one_tensor_of_all_layers():
    vit = ViT(**SIZES, channels=1).eval()
    logits, maps = Recorder(vit)(torch.randn(3, 1, 20, 8))
    assert logits.shape == (3, 5)
    assert maps.shape == (3, 2, 2, 11, 11)
    mean = Recorder(ViT(**SIZES, pool="mean"))
    assert mean(torch.randn(1, 3, 20, 20))[1].shape == (1, 2, 2, 25, 25)


def test_maps_are_the_softmax_of_the_scores():
    vit = randomize_(ViT(**SIZES)).eval()
    images = torch.randn(3, 3, 20, 20)
    first, second = Recorder(vit).maps(images)
    tokens = vit.embed(images)
    for block, found in zip(vit.blocks, (first, second), strict=True):
        q, k, _ = block.attention.project(block.norm1(tokens))
        scores = torch.einsum("bhne,bhme->bhnm", q, k) / q.shape[-1] ** 0.5
        torch.testing.assert_close(found, scores.exp() / scores.exp().sum(-1, keepdim=True))
        tokens = block(tokens)


def test_heads_of_class_attention():
    """Its map is the class token's row of full attention's, whichever kernel it has."""
    ours, full = CrossAttention(24, heads=3, dim_head=8), Attention(24, heads=3, dim_head=8)
    full.load_state_dict(
        {
            "to_qkv.weight": torch.cat([ours.to_q.weight, ours.to_kv.weight]),
            "to_qkv.bias": torch.cat([ours.to_q.bias, ours.to_kv.bias]),
            "to_out.weight": ours.to_out.weight,
            "to_out.bias": ours.to_out.bias,
        }
    )
    tokens = torch.randn(2, 7, 24)
    (want,) = Recorder(full).maps(tokens)
    for kernel in (FusedAttention, ExplicitAttention):
        ours.kernel = kernel()
        recorder = Recorder(ours)
        found = recorder.record(tokens[:, :1], tokens).maps[0]
        assert found.shape == (2, 3, 1, 7)
        torch.testing.assert_close(found, want[:, :, :1])
        recording = recorder.record(tokens[:, :1], tokens, keep_graph=True)
        (gradient,) = torch.autograd.grad(recording.output.sum(), recording.maps)
        assert gradient.shape == found.shape
        recorder.eject()


def test_mixed_maps():
    """Behind the mix, the maps are what the values are multiplied with."""
    deep = randomize_(DeepViT(**SIZES)).eval()
    talking = randomize_(CaiT(**SIZES, cls_depth=1)).eval()
    images = torch.randn(3, 3, 20, 20)
    for model, heads in ((deep, 2), (talking, 2)):
        block = model.blocks[0]
        q, k, v = block.attention.project(block.norm1(model.embed(images)))
        kernel = block.attention.kernel
        recorder = Recorder(model, mixed=True)
        found = recorder.maps(images)[0]
        assert found.shape[1] == heads
        gain = getattr(kernel, "gain", 1)
        torch.testing.assert_close(found @ v * gain, kernel(q, k, v))
        recorder.eject()
        (softmax, *_) = Recorder(model).maps(images)
        mix = kernel.mix if model is deep else kernel.mix_weights
        behind = mix_heads(mix, softmax)
        torch.testing.assert_close(found, kernel.norm(behind) if model is deep else behind)


def test_images_of_several_sizes():
    """A list gives one stack a shape; the maps of an image are those it has by itself."""
    model = randomize_(NaViT(**SIZES)).eval()
    sizes = [(16, 16), (8, 4), (16, 16), (4, 8)]
    images = [torch.randn(3, *size) for size in sizes]
    recorder = Recorder(model)
    logits, maps = recorder(images)
    torch.testing.assert_close(logits, model(images), rtol=1e-5, atol=1e-5)
    short, long, pool_short, pool_long = maps
    assert short.shape == (2, 2, 2, 2, 2)
    assert long.shape == (2, 2, 2, 16, 16)
    assert pool_short.shape == (2, 1, 2, 1, 2)
    assert pool_long.shape == (2, 1, 2, 1, 16)
    for index, (stack, place) in enumerate([(long, 0), (short, 0), (long, 1), (short, 1)]):
        alone = torch.stack(recorder.maps(images[index][None])[:2], dim=1)[0]
        torch.testing.assert_close(stack[place], alone)


def test_arguments_are_passed_on():
    recorder = Recorder(NaViT(**SIZES))
    with pytest.raises(ValueError, match="a row takes at most 3"):
        recorder([torch.randn(3, 16, 16)], group_images=True, group_max_seq_len=3)


def test_adapters_are_recorded():
    base = randomize_(ViT(**SIZES)).eval()
    adapter = randomize_(Adapter(vit=base, num_classes=3, num_memories_per_layer=2))
    images = torch.randn(3, 3, 20, 20)
    logits, maps = Recorder(adapter)(images)
    torch.testing.assert_close(logits, adapter(images), rtol=1e-5, atol=1e-5)
    # The task's token sees itself, its memories and the base's tokens.
    assert [stage.shape[3:] for stage in maps] == [(1, 29), (26, 26)] * 2


def test_dropout_comes_behind_the_maps():
    vit = ViT(**SIZES, attn_dropout=0.5).train()
    maps = Recorder(vit)(torch.randn(3, 3, 20, 20))[1]
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 2, 2, 26))


def test_flags_may_differ_within_a_model():
    vit = ViT(**SIZES).train()
    vit.blocks[0].eval()
    recorder = Recorder(vit)
    with unchanged(vit):
        recorder(torch.randn(2, 3, 20, 20))


def test_device_of_the_maps():
    maps = Recorder(ViT(**SIZES), device="meta")(torch.randn(2, 3, 20, 20))[1]
    assert maps.device.type == "meta"


def test_hooks_of_others_stay():
    vit = ViT(**SIZES).eval()
    ran = []
    vit.blocks[0].attention.kernel.register_forward_hook(lambda *_: ran.append("kernel"))
    vit.register_forward_hook(lambda *_: ran.append("vit"))
    images = torch.randn(2, 3, 20, 20)
    Recorder(vit).eject()(images)
    assert ran == ["kernel", "vit"]


def test_nothing_to_record():
    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(dim=1, keepdim=True)

    sizes = {name: SIZES[name] for name in ("image_size", "patch_size", "num_classes", "dim")}
    with pytest.raises(ValueError, match=r"FusedAttention.*`weights`; ViT has none"):
        Recorder(EfficientViT(**sizes, transformer=Mixer()))
    blocks = nn.TransformerEncoderLayer(24, 2, 32, batch_first=True)
    with pytest.raises(ValueError, match="ViT has none"):
        Recorder(EfficientViT(**sizes, transformer=blocks))


def test_attention_that_does_not_run():
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(8)

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match="Skips ran none"):
        Recorder(Skips())(torch.randn(1, 2, 8))


def test_one_recorder_a_model():
    vit = ViT(**SIZES)
    recorder = Recorder(vit)
    for again in (vit, recorder, nn.Sequential(recorder)):
        with pytest.raises(ValueError, match="the ViT has one already; eject that first"):
            Recorder(again)
    recorder.eject()
    assert recorder.eject() is vit
    with pytest.raises(RuntimeError, match="this Recorder was ejected"):
        recorder(torch.randn(1, 3, 20, 20))
    kept = Recorder(vit)
    with pytest.raises(ValueError, match="one already"):
        Recorder(vit)
    copied = copy.deepcopy(kept)
    with pytest.raises(ValueError, match="one already"):
        Recorder(copied.model)
    del kept
    gc.collect()
    Recorder(vit)


def test_graph_needs_gradients():
    recorder = Recorder(ViT(**SIZES))
    with torch.no_grad(), pytest.raises(ValueError, match="keep_graph=True needs gradients"):
        recorder.maps(torch.randn(1, 3, 20, 20), keep_graph=True)


def test_modes_of_gradients():
    recorder = Recorder(randomize_(ViT(**SIZES)).eval())
    images = torch.randn(1, 3, 20, 20)
    want = recorder(images)[1]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert recorder(images)[1].equal(want)
    assert all(found.requires_grad for found in recorder.maps(images, keep_graph=True))


def test_kernels_in_one_place_and_shared():
    """A kernel that two layers share, and one without a layer around it."""
    kernel = FusedAttention()
    layers = nn.Sequential(*(Attention(24, heads=2, kernel=lambda: kernel) for _ in range(2))).eval()
    tokens = torch.randn(2, 7, 24)
    recorder = Recorder(layers)
    with unchanged(layers):
        output, maps = recorder(tokens)
    torch.testing.assert_close(output, layers(tokens))
    assert maps.shape == (2, 2, 2, 7, 7)
    assert layers[0].kernel is layers[1].kernel is kernel


def test_masks_and_biases():
    kernel = FusedAttention(scale=0.3)
    q, k, v = torch.randn(3, 2, 2, 5, 4)
    for mask in (torch.rand(5, 5) > 0.5, torch.randn(2, 2, 5, 5)):
        if mask.dtype == torch.bool:
            mask.fill_diagonal_(True)
        explicit = kernel.explicit()
        seen = []
        explicit.weights.register_forward_hook(lambda *arguments, seen=seen: seen.append(arguments[-1]))
        torch.testing.assert_close(explicit(q, k, v, mask), kernel(q, k, v, mask))
        if mask.dtype == torch.bool:
            assert (seen[0][..., ~mask] == 0).all()


def test_talking_heads_inside_class_attention():
    layer = CrossAttention(24, heads=3, dim_head=8, kernel=partial(TalkingHeads, 3))
    tokens = torch.randn(2, 5, 24)
    assert Recorder(layer).record(tokens[:, :1], tokens).maps[0].shape == (2, 3, 1, 5)
