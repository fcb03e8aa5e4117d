"""The extractor gives what any layer of any model computes, and leaves the model as it was."""

import copy
import pickle
from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.contracts.conftest import randomize_
from tests.contracts.test_recorder import unchanged
from vit_pytorch import ViT
from vit_pytorch.ats_vit import ATSViT
from vit_pytorch.base import VisionModel
from vit_pytorch.cross_vit import CrossViT
from vit_pytorch.extractor import Extractor
from vit_pytorch.layers.tokens import DistilledHead
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


def layers_of(model: VisionModel) -> list[str]:
    return list(dict.fromkeys(info["module"] for info in model.feature_info))


def same(one: object, other: object) -> bool:
    """Tell whether two values, of tensors in tuples, are the same."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.equal(other)
    if isinstance(one, tuple | list):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(same(*pair) for pair in pairs)
    return one == other


def hooked(model: nn.Module, names: list[str], images: Tensor) -> tuple[dict[str, object], Tensor]:
    """Give what layers compute, by hooks of the test's own, and the logits."""
    found: dict[str, object] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda *arguments, name=name: found.update({name: arguments[-1]})
        )
        for name in names
    ]
    logits = model(images)
    for handle in handles:
        handle.remove()
    return found, logits


def test_extractor_features(model: VisionModel, images: Tensor):
    extractor = Extractor(model)
    with unchanged(model):
        logits, embeddings = extractor(images)
    assert logits.equal(model(images))
    assert embeddings.equal(model.forward_features(images))
    assert not embeddings.requires_grad
    assert extractor(images, return_embeddings_only=True).equal(embeddings)
    assert extractor.eject() is model


def test_extractor_layers(model: VisionModel, images: Tensor):
    """Each intermediate layer, by name, by index from either end, as a module, and all at once."""
    names = layers_of(model)
    want, logits = hooked(model, names, images)
    for index, name in enumerate(names):
        for layer in (name, index, index - len(names), model.get_submodule(name)):
            extractor = Extractor(model, layer)
            with unchanged(model):
                got, embeddings = extractor(images)
            assert got.equal(logits)
            assert same(embeddings, want[name])
    every = Extractor(model, names, return_embeddings_only=True)(images)
    assert list(every) == names
    assert all(same(every[name], want[name]) for name in names)


def test_extractor_inputs(model: VisionModel, images: Tensor):
    """What enters the classifier is the pooled embedding; of DeiT's pair, the tokens whose mean it is."""
    extractor = Extractor(model, model.get_classifier(), layer_save_input=True)
    embedding = extractor(images, return_embeddings_only=True)
    if isinstance(model.get_classifier(), DistilledHead):
        embedding = embedding.unflatten(-1, (2, -1)).mean(dim=1)
    assert embedding.equal(model.forward_head(model.forward_features(images), pre_logits=True))


def test_extractor_graph(model: VisionModel, images: Tensor):
    """In the graph, embeddings carry gradients to the model; as the model's own tensors, they have some."""
    layer = layers_of(model)[0]
    embeddings = Extractor(model, layer, detach=False)(images)[1]
    sum(part.square().sum() for part in leaves(embeddings)).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    logits, own = Extractor(model, layer, detach=False, clone=False)(images)
    gradients = torch.autograd.grad(logits.square().sum(), leaves(own), allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    with torch.no_grad():
        assert same(Extractor(model, layer)(images)[1], Extractor(model, layer, clone=False)(images)[1])
        assert not any(
            part.requires_grad for part in leaves(Extractor(model, layer, detach=False)(images)[1])
        )


def test_extractor_in_training(model: VisionModel, images: Tensor):
    model.train()
    model.set_grad_checkpointing()
    extractor = Extractor(model, layers_of(model)[-1], detach=False)
    assert extractor.training
    logits, embeddings = extractor(images)
    (logits.square().sum() + sum(part.square().sum() for part in leaves(embeddings))).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)
    assert all(part.training for part in model.modules())


def leaves(value: object) -> list[Tensor]:
    """Give the tensors of numbers in a value."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [part for item in value for part in leaves(item)] if isinstance(value, tuple | list) else []


def test_shapes_of_the_description():
    vit = ViT(**SIZES)
    assert Extractor(vit)(torch.randn(2, 3, 20, 20))[1].shape == (2, 26, 24)
    sizes = {"enc_depth": 1, "enc_heads": 2, "enc_mlp_dim": 32}
    branches = {f"{branch}_{name}": value for branch in ("sm", "lg") for name, value in sizes.items()}
    branches |= {"sm_dim": 24, "sm_patch_size": 4, "lg_dim": 32, "lg_patch_size": 16}
    model = CrossViT(image_size=32, num_classes=5, depth=2, cross_attn_heads=2, **branches)
    small, large = Extractor(model, layer_name="multi_scale_encoder")(torch.randn(2, 3, 32, 32))[1]
    assert small.shape == (2, 65, 24)
    assert large.shape == (2, 5, 32)


def test_train_a_head_on_top():
    """A frozen, random ViT and a head on its class token learn two kinds of images apart."""
    vit = ViT(**SIZES)
    before = copy.deepcopy(vit.state_dict())
    extractor = Extractor(vit, "norm", return_embeddings_only=True)
    head = nn.Linear(24, 2)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    images = torch.randn(32, 3, 20, 20)
    labels = torch.arange(32) % 2
    images[labels == 1] += 1
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(head(extractor(images)[:, 0]), labels).backward()
        optimizer.step()
    assert (head(extractor(images)[:, 0]).argmax(1) == labels).all()
    assert all(tensor.equal(before[name]) for name, tensor in vit.state_dict().items())
    assert all(parameter.grad is None for parameter in vit.parameters())


def test_train_through_the_embeddings():
    vit = ViT(**SIZES)
    embeddings = Extractor(vit, 0, detach=False, return_embeddings_only=True)(torch.randn(2, 3, 20, 20))
    embeddings.square().sum().backward()
    blocks = [any(p.grad is not None for p in block.parameters()) for block in vit.blocks]
    assert blocks == [True, False]


def test_in_place_layers():
    """A copy is what the layer gave; without, a later layer may have changed it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(8, 4)
    want = model[0](x)
    assert (want < 0).any()
    assert Extractor(model, "0")(x)[1].equal(want)
    assert Extractor(model, "0", clone=False)(x)[1].equal(want.relu())


Pair = namedtuple("Pair", ["tokens", "size"])


def test_structures_pass_through():
    class Gives(nn.Module):
        def forward(self, x: Tensor) -> dict[str, object]:
            return {"pair": Pair(x, (2, 3)), "list": [x, None, "name"], "map": x.unflatten(1, (2, 2))}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Gives()
            self.other = nn.Identity()

        def forward(self, x: Tensor, *, scale: float = 1) -> Tensor:
            return self.other(self.layer(x)["list"][0] * scale)

    x = torch.randn(3, 4, requires_grad=True)
    output, found = Extractor(Model(), "layer")(x, scale=3)
    assert output.equal(3 * x)
    assert isinstance(found["pair"], Pair)
    assert found["pair"].tokens.equal(x)
    assert found["pair"].size == (2, 3)
    assert found["list"][1:] == [None, "name"]
    assert found["map"].shape == (3, 2, 2)
    assert not found["map"].requires_grad
    both = Extractor(Model(), ("other", "layer"), detach=False)(x)[1]
    assert list(both) == ["other", "layer"]
    assert both["layer"]["map"].requires_grad


def test_keys_of_several_layers():
    vit = randomize_(ViT(**SIZES)).eval()
    images = torch.randn(2, 3, 20, 20)
    found = Extractor(vit, [vit.norm, -1, "patch_embed"])(images)[1]
    assert list(found) == ["norm", -1, "patch_embed"]
    assert vit.norm(found[-1]).equal(found["norm"])
    assert list(Extractor(vit, ["norm"])(images)[1]) == ["norm"]


def test_layers_that_run_twice():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.GELU(), layer)
    x = torch.randn(3, 4)
    first, second = Extractor(model, layer)(x)[1]
    assert first.equal(layer(x))
    assert second.equal(model(x))


def test_inputs_of_a_block():
    """They are tokens; what else blocks use, such as rotations, is no embedding."""
    vit = randomize_(ViT(**SIZES, positions="rope")).eval()
    images = torch.randn(2, 3, 20, 20)
    tokens = Extractor(vit, 1, layer_save_input=True)(images)[1]
    assert tokens.equal(Extractor(vit, 0)(images)[1])


def test_layers_with_several_inputs():
    model = randomize_(ATSViT(**SIZES, max_tokens_per_depth=(9, 4))).eval()
    images = torch.randn(2, 3, 20, 20)
    tokens, ids, points = Extractor(model, "blocks.1", layer_save_input=True)(images)[1]
    given, given_ids = Extractor(model, "blocks.0")(images)[1]
    assert tokens.equal(given)
    assert ids.equal(given_ids)
    assert points == 4


def test_images_of_several_sizes():
    model = randomize_(NaViT(**SIZES)).eval()
    images = [torch.randn(3, 20, 8), torch.randn(3, 4, 12)]
    logits, embeddings = Extractor(model)(images)
    assert logits.equal(model(images))
    assert [tokens.shape for tokens in embeddings] == [(10, 24), (3, 24)]
    with pytest.raises(ValueError, match="a row takes at most 5"):
        Extractor(model, 0)(images, group_images=True, group_max_seq_len=5)
    with pytest.raises(ValueError, match="where a layer is named"):
        Extractor(model)(images, group_images=True)


def test_device_of_the_embeddings():
    vit = ViT(**SIZES)
    for layer in (None, "norm"):
        assert Extractor(vit, layer, device="meta")(torch.randn(1, 3, 20, 20))[1].device.type == "meta"


def test_extractor_survives_an_error():
    vit = ViT(**SIZES)
    extractor = Extractor(vit, 0)
    with unchanged(vit), pytest.raises(ValueError, match="channels"):
        extractor(torch.randn(1, 2, 20, 20))


def test_around_a_recorder():
    vit = randomize_(ViT(**SIZES)).eval()
    images = torch.randn(2, 3, 20, 20)
    (logits, maps), tokens = Extractor(Recorder(vit), "model.norm")(images)
    torch.testing.assert_close(logits, vit(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens, vit.forward_features(images), rtol=1e-5, atol=1e-5)
    assert maps.shape == (2, 2, 2, 26, 26)


def test_copies():
    vit = randomize_(ViT(**SIZES)).eval()
    images = torch.randn(2, 3, 20, 20)
    extractor = Extractor(vit, vit.blocks[1])
    want = extractor(images)[1]
    for copied in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        assert copied(images)[1].equal(want)


def test_unknown_layers():
    vit = ViT(**SIZES)
    with pytest.raises(ValueError, match=r"ViT has no layer 'block.1'; close to it: .*blocks.1"):
        Extractor(vit, "block.1")
    with pytest.raises(ValueError, match=r"ViT has no layer '§'; it has to_latent, patch_embed, .* …"):
        Extractor(vit, "§")
    with pytest.raises(ValueError, match="ViT has layers -2 to 1, got 2"):
        Extractor(vit, 2)
    with pytest.raises(ValueError, match="Linear has no layers with an index, got 0"):
        Extractor(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match="the layer, a Linear, is no part of the ViT"):
        Extractor(vit, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="at least one layer, got none"):
        Extractor(vit, [])
    with pytest.raises(ValueError, match="Linear has no forward_features; name a layer"):
        Extractor(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer_save_input=True needs a layer"):
        Extractor(vit, layer_save_input=True)


def test_layers_that_do_not_run():
    """A block of ATS calls the steps of its attention, never the attention."""
    model = ATSViT(**SIZES, max_tokens_per_depth=(9, 4))
    with pytest.raises(ValueError, match=r"ATSViT did not call blocks.0.attention as a module"):
        Extractor(model, ["blocks.0", "blocks.0.attention"])(torch.randn(1, 3, 20, 20))


def test_ejected():
    extractor = Extractor(ViT(**SIZES))
    extractor.eject()
    with pytest.raises(RuntimeError, match="this Extractor was ejected"):
        extractor(torch.randn(1, 3, 20, 20))
