"""Tools that people bring to a PyTorch model find in every model here what they look for.

Quantisation, adapters, pruning, tracing, ensembles, per-sample gradients, deferred initialisation and class
activation maps. Each test also checks that the tool acted: one that finds nothing to change raises nothing.
"""

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, prune

from tests.contracts.test_gradients import backward
from vit_pytorch.base import VisionModel
from vit_pytorch.registry import ModelEntry

# Outputs that are equal but for the order of sums.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Return every linear layer by its name; a shared one has several."""
    named = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in named if isinstance(module, nn.Linear)}


def adaptable(model: VisionModel) -> list[str]:
    """Return the names of the linear layers that adapters go to: all but the classifiers."""
    classifier = set(model.get_classifier().modules())
    return [name for name, module in linears(model).items() if module not in classifier]


def without_effect(model: VisionModel, images: Tensor) -> set[str]:
    """Return the linear layers that no logit depends on; see `every_parameter_has_a_gradient`."""
    gradients = backward(copy.deepcopy(model).train(), images)
    weights = {name: gradients.get(f"{name}.weight") for name in linears(model)}
    return {name for name, gradient in weights.items() if gradient is not None and not gradient.any()}


def relative_error(output: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to that of the expected output."""
    return ((output - expected).norm() / expected.norm()).item()


@contextmanager
def deprecations_of(*messages: str) -> Iterator[None]:
    """Context manager: ignore the deprecation warnings of a tool about itself; the messages are patterns."""
    with warnings.catch_warnings():
        for message in messages:
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", message, category)
        yield


@contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    """Context manager: memory that nobody writes to is NaN, so reading it is seen, and seen every time."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# Linear layers and the calls of modules


def test_linear_layers_are_plain(model: VisionModel):
    kinds = {type(module) for module in linears(model).values()}
    assert kinds == {nn.Linear}


def test_weights_act_through_calls(model: VisionModel, images: Tensor):
    """Hooks, adapters and quantised layers act when a module is called, not when its weight is read."""
    kinds = (nn.Linear, _ConvNd, nn.Embedding, nn.LayerNorm, _BatchNorm)
    silent = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    assert silent
    for name in silent:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: silent.discard(name))
    model.train()(images)
    assert silent == set()


# Quantisation


def test_dynamic_quantization(model: VisionModel, images: Tensor):
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import quantize_dynamic

    want = model(images)
    with deprecations_of("torch.ao.quantization is deprecated", "torch.quantize_per_tensor.* are deprecated"):
        quantized = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert linears(quantized) == {}
    assert all(type(quantized.get_submodule(name)) is Linear for name in linears(model))
    got = quantized(images)
    # One scale for a whole weight; outputs of a layer that acts wrongly are off by 1.
    assert 0 < relative_error(got, want) < 0.4


@pytest.mark.parametrize("activations", ["float", "int8"])
def test_torchao(model: VisionModel, images: Tensor, activations: str):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    from torchao.utils import TorchAOBaseTensor

    with torch.no_grad():
        want = model(images)
        kind = Int8WeightOnlyConfig if activations == "float" else Int8DynamicActivationInt8WeightConfig
        quantize_(model, kind())
        assert all(isinstance(module.weight, TorchAOBaseTensor) for module in linears(model).values())
        got = model(images)
    assert 0 < relative_error(got, want) < (0.1 if activations == "float" else 0.2)


# Adapters


def test_lora(model: VisionModel, images: Tensor):
    import peft

    names, silent = adaptable(model), without_effect(model, images)
    want = model(images)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules="|".join(map(re.escape, names)))
    adapted = peft.get_peft_model(model, config)
    _check_adapted(adapted, names, silent, images, want)


def test_ia3(model: VisionModel, images: Tensor):
    import peft

    names, silent = adaptable(model), without_effect(model, images)
    want = model(images)
    config = peft.IA3Config(target_modules="|".join(map(re.escape, names)), feedforward_modules=[])
    adapted = peft.get_peft_model(model, config)
    _check_adapted(adapted, names, silent, images, want)


def _check_adapted(
    adapted: nn.Module, names: list[str], silent: set[str], images: Tensor, want: Tensor
) -> None:
    """Check that every adapter learns and acts, and that merging leaves the outputs as they are."""
    trainable = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    layer_of = {
        name: name.removeprefix("base_model.model.").partition(".lora_")[0].partition(".ia3_")[0]
        for name in trainable
    }
    assert set(layer_of.values()) == set(names)
    with torch.no_grad():
        for parameter in trainable.values():
            # LoRA starts at B = 0 and IA3 at a factor of 1, at which they change nothing.
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    # In a copy: running statistics of batch norm move in training.
    gradients = backward(copy.deepcopy(adapted).train(), images)
    idle = [name for name in trainable if gradients[name] is None or not gradients[name].any()]
    assert [name for name in idle if layer_of[name] not in silent] == []
    outputs = adapted(images)
    assert relative_error(outputs, want) > 1e-2
    with adapted.disable_adapter():
        assert relative_error(adapted(images), want) < 1e-5
    # In double precision: random adapters may amplify what rounding makes of merging.
    adapted, images = adapted.double(), images.double()
    outputs = adapted(images)
    assert relative_error(adapted.merge_and_unload()(images), outputs) < 1e-5


# Pruning and reparametrisation


def test_pruning(model: VisionModel, images: Tensor):
    silent = without_effect(model, images)
    acting = {name: module for name, module in linears(model).items() if name not in silent}
    with torch.no_grad():
        want = model(images)
        for name, module in acting.items():
            weight = module.weight.clone()
            prune.random_unstructured(module, "weight", amount=1.0)
            assert not model(images).equal(want), f"{name} acts without its weight"
            prune.remove(module, "weight")
            module.weight.copy_(weight)
        assert model(images).equal(want)
    for module in linears(model).values():
        prune.random_unstructured(module, "weight", amount=0.5)
    model.train()
    # A mask acts in every forward pass anew, hence twice.
    for _ in range(2):
        backward(model, images)
    for name, module in acting.items():
        gradient = module.weight_orig.grad
        assert gradient is not None, name
        assert gradient.any(), name
        assert not gradient[module.weight_mask == 0].any(), name


def test_weight_norm(model: VisionModel, images: Tensor):
    silent = without_effect(model, images)
    want = model(images)
    names = [name for name in linears(model) if name not in silent]
    for module in linears(model).values():
        parametrizations.weight_norm(module)
    torch.testing.assert_close(model(images), want, **CLOSE)
    with torch.no_grad():
        for name in names:
            model.get_submodule(name).parametrizations.weight.original0.mul_(2)
    assert relative_error(model(images), want) > 1e-2
    gradients = backward(model.train(), images)
    for name in names:
        for part in ("original0", "original1"):
            gradient = gradients[f"{name}.parametrizations.weight.{part}"]
            assert gradient is not None, name
            assert gradient.any(), name


# Tracing


def test_fx(model: VisionModel, images: Tensor):
    traced = torch.fx.symbolic_trace(model.eval())
    batches = [images, images[:1]]
    # A graph has the rotations of one grid.
    if getattr(model, "any_size", False) and getattr(model, "rotary", None) is None:
        batches.append(torch.cat([images, images], dim=2))
    for batch in batches:
        torch.testing.assert_close(traced(batch), model(batch), **CLOSE)


def test_feature_extractor_of_torchvision(model: VisionModel, images: Tensor):
    from torchvision.models.feature_extraction import create_feature_extractor

    names = hook_points(model)
    want = outputs_of(model, names, images)
    extractor = create_feature_extractor(model, {name: str(i) for i, name in enumerate(names)})
    for size in (3, 1):
        features = extractor(images[:size])
        for i, name in enumerate(names):
            torch.testing.assert_close(features[str(i)], outputs_of(model, names, images[:size])[name])
    assert len(want) == len(names)


def test_jit_trace(model: VisionModel, images: Tensor):
    """No number of the example is frozen into the graph: it serves other batches, and no warning says so."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", FutureWarning)
        try:
            traced = torch.jit.trace(model, images[:2], check_trace=True, check_tolerance=1e-5)
        except torch.jit.TracingCheckError as error:
            # It quotes both graphs whole.
            pytest.fail(str(error)[:1000])
        outputs = traced(images)
    assert {f"{w.filename}:{w.lineno}: {w.message}".partition("\n")[0] for w in caught} == set()
    torch.testing.assert_close(outputs, model(images), **CLOSE)


# Functions of parameters


def test_ensemble(build, images: Tensor):
    models = [build(), build()]
    # The tutorial's form: a model without values says how to compute, and never which numbers.
    skeleton = copy.deepcopy(models[0]).to("meta")
    parameters, buffers = stack_module_state(models)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(skeleton, (parameters, buffers), (images,))

    with torch.no_grad(), deprecations_of("There is a performance drop because"):
        outputs = torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, images)
    want = torch.stack([model(images) for model in models])
    torch.testing.assert_close(outputs, want, **CLOSE)
    assert not outputs[0].allclose(outputs[1], atol=1e-3)


def test_gradients_per_sample(model: VisionModel, images: Tensor):
    from opacus import GradSampleModule

    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        pytest.skip("batch norm has no gradients per sample")
    model.train()
    for module in model.modules():
        # Opacus records in training mode only; dropout, which has no parameters, stays out of it.
        if not any(True for _ in module.parameters()):
            module.eval()
    singles = []
    for image in images:
        model.zero_grad()
        model(image[None]).square().sum().backward()
        singles.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    with deprecations_of("Full backward hook is firing", "There is a performance drop because"):
        samples = GradSampleModule(model, loss_reduction="sum")
        samples(images).square().sum().backward()
    for index, single in enumerate(singles):
        parameters = {name: p for name, p in model.named_parameters() if name in single}
        assert [name for name, p in parameters.items() if getattr(p, "grad_sample", None) is None] == []
        gradients = {name: p.grad_sample[index] for name, p in parameters.items()}
        torch.testing.assert_close(gradients, single, rtol=1e-4, atol=1e-4)


# Deferred initialisation


def test_meta(entry: ModelEntry, model: VisionModel, images: Tensor):
    """What is computed when a model is built is computed again, or loaded."""
    with torch.device("meta"):
        other = entry.build(**entry.tiny).eval()
    assert {tensor.device.type for tensor in (*other.parameters(), *other.buffers())} == {"meta"}
    with uninitialized_memory_is_nan():
        other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    assert other(images).equal(model(images))


# Places to look at


def hook_points(model: VisionModel) -> list[str]:
    """Return the module of every intermediate feature, by name."""
    return list(dict.fromkeys(info["module"] for info in model.feature_info))


def outputs_of(model: VisionModel, names: list[str], images: Tensor) -> dict[str, object]:
    """Return what modules compute in a forward pass."""
    outputs: dict[str, object] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda *arguments, name=name: outputs.update({name: arguments[-1]})
        )
        for name in names
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return outputs


def test_hook_points_give_one_tensor(model: VisionModel, images: Tensor):
    names = [info["module"] for info in model.feature_info]
    assert len(set(names)) == len(names)
    outputs = outputs_of(model, names, images)
    assert {name: type(output) for name, output in outputs.items()} == dict.fromkeys(names, Tensor)
    # The frames of a video may be folded into the batch.
    assert all(output.shape[0] % 3 == 0 for output in outputs.values())


def test_grad_cam(model: VisionModel, images: Tensor):
    """At the first point: after the last block, patches do not count where a class token is classified."""
    from pytorch_grad_cam import GradCAM

    if len(model.image_size) != 2:
        pytest.skip("grad-cam draws maps of images")
    info = model.feature_info[0]
    steps = info.get("reductions", (info["reduction"], info["reduction"]))
    grid = [extent // step for extent, step in zip(model.image_size, steps, strict=True)]

    def as_map(features: Tensor) -> Tensor:
        """Bring tokens, without prefix tokens, and maps of either layout into the form (b c h w)."""
        if features.ndim == 4:
            last = features.shape[1:] == (*grid, info["num_chs"])
            return features.permute(0, 3, 1, 2) if last else features
        return features[:, -prod(grid) :].transpose(1, 2).unflatten(2, grid)

    with GradCAM(model, [model.get_submodule(info["module"])], reshape_transform=as_map) as cam:
        pictures = torch.from_numpy(cam(images, targets=None))
        (gradients,) = cam.activations_and_grads.gradients
    assert pictures.shape == (3, *model.image_size)
    assert pictures.isfinite().all()
    assert gradients.shape[1:] == (info["num_chs"], *grid)
    assert gradients.any()


# Widths


def test_widths(build, model: VisionModel, images: Tensor):
    """What a downstream head is built on: the numbers that a model says are those that it gives."""
    embedding = build(num_classes=0)(images)
    features = model.forward_features(images)
    assert features.shape[2 if features.ndim == 3 else 1] == model.num_features
    assert embedding.shape == (3, model.head_hidden_size)
    assert embedding.shape == model.forward_head(features, pre_logits=True).shape
    # One vector of the features' width, unless the caller asks for another by an argument.
    head = model.config.get("head")
    hidden = head.get("hidden_dim") if isinstance(head, dict) else model.config.get("representation_size")
    width = hidden or model.num_features
    width *= 2 if model.config.get("pool") == "cls+mean" else 1
    assert model.head_hidden_size == width
