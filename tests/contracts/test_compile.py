from collections.abc import Iterator

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram, export

from tests.contracts.conftest import randomize_
from tests.contracts.operators import converted, operators
from tests.contracts.test_gradients import backward
from tests.slow import REPRESENTATIVE
from vit_pytorch.base import VisionModel
from vit_pytorch.extractor import Extractor
from vit_pytorch.recorder import Recorder
from vit_pytorch.registry import ModelEntry, find_entry


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


# PyTorch 2.6 refuses to slice tensors whose dynamic axis has no upper bound.
BATCH = Dim("batch", max=4096)


@pytest.fixture(scope="module")
def exported(entry: ModelEntry) -> tuple[VisionModel, Tensor, ExportedProgram]:
    """Export the tiny model once for the tests below."""
    return export_tiny(entry)


def export_tiny(entry: ModelEntry) -> tuple[VisionModel, Tensor, ExportedProgram]:
    """Return the tiny model, five images, and the model exported with a dynamic batch."""
    torch.manual_seed(0)
    model = randomize_(entry.build(**entry.tiny)).eval()
    images = torch.randn(5, model.channels, *model.image_size)
    return model, images, export(model, (images[:2],), dynamic_shapes=({0: BATCH},), strict=False)


def test_compile(entry: ModelEntry, model: VisionModel, images: Tensor):
    """In one graph; of representative models backward is traced, too, which takes as long again."""
    check_compiled(model, images, "aot_eager" if entry.name in REPRESENTATIVE else "eager")


def check_compiled(model: VisionModel, images: Tensor, backend: str) -> None:
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(images), model(images))
    want = backward(model, images)
    torch.testing.assert_close(list(backward(compiled, images).values()), list(want.values()))


def test_export(exported):
    model, images, program = exported
    module = program.module()
    for batch in (images, images[:1]):
        torch.testing.assert_close(module(batch), model(batch))


def test_onnx(entry: ModelEntry, exported):
    """Models are converted that together have all operators and pairs of neighbours; see `operators`."""
    model, images, program = exported
    found, models = operators(program), converted()
    if entry.name in models:
        assert models[entry.name] <= found, "record them again: python -m tests.contracts.operators"
    elif found <= set().union(*models.values()):
        return
    onnx = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(onnx.SerializeToString())
    for batch in (images, images[:1]):
        (logits,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(batch), rtol=1e-4, atol=1e-5)


def test_inductor():
    entry = find_entry("vit_tiny_patch16_224")
    model = randomize_(entry.build(**{**entry.tiny, "depth": 1})).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(images), model(images))


def test_compiled_models_are_looked_into():
    """Recorder and extractor run them as they are written; they stay compiled."""
    entry = find_entry("vit_tiny_patch16_224")
    model = randomize_(entry.build(**entry.tiny)).eval()
    images = torch.randn(2, 3, 32, 32)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    logits = compiled(images)
    recording = Recorder(compiled).record(images, keep_graph=True)
    gradients = torch.autograd.grad(recording.output.sum(), recording.maps)
    assert len(gradients) == 2
    assert all(gradient.any() for gradient in gradients)
    torch.testing.assert_close(recording.output, logits, rtol=1e-5, atol=1e-5)
    same_logits, tokens = Extractor(compiled, model.norm)(images)
    assert same_logits.equal(logits)
    assert tokens.equal(model.forward_features(images))
    assert compiled(images).equal(logits)
    assert len(graphs) == 1
