"""Memories: equal to the paper's formulas computed in full, and the base does not notice them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import Dim, export

from tests.papers.learning import accuracy_on_digits, digits
from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.tolerances import BF16_MODEL, relative_error
from vit_pytorch import SimpleViT
from vit_pytorch import ViT as PlainViT
from vit_pytorch.layers.attention import Attention, ExplicitAttention, FusedAttention
from vit_pytorch.layers.patches import LinearStem
from vit_pytorch.layers.positions import Learned
from vit_pytorch.layers.tokens import Head
from vit_pytorch.learnable_memory_vit import Adapter, Adapters, ViT, visibility

SIZES: dict[str, Any] = {
    "image_size": 48,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 48,
    "depth": 3,
    "heads": 3,
    "dim_head": 16,
    "mlp_dim": 96,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_scale, qk_norm": {"layer_scale": 1e-5, "qk_norm": True},
    "registers, pre_norm, fc_norm": {
        "num_registers": 2,
        "positions": Learned(class_token=False),
        "stem": LinearStem(pre_norm=True),
        "head": Head(norm=True),
    },
    "mean": {"pool": "mean"},
}
CLASSES = (4, 2, 5)
MEMORIES = (3, 1, 2)


def build(**options: Any) -> ViT:
    """A base in which nothing is trivially zero or one, and which drops in training."""
    vit = ViT(**{**SIZES, "dropout": 0.3, "emb_dropout": 0.3, "drop_path": 0.3, **options})
    randomise(vit)
    return vit


def attach(vit: ViT, seed: int = 0, **options: Any) -> Adapter:
    """An adapter whose class token, memories and head are random."""
    adapter = Adapter(
        vit=vit, num_classes=CLASSES[seed], num_memories_per_layer=MEMORIES[seed], **options
    ).eval()
    randomise(adapter.task, seed + 10)
    return adapter


@pytest.fixture(params=OPTIONS)
def base(request: pytest.FixtureRequest) -> ViT:
    return build(**OPTIONS[request.param])


def attend_in_full(attention: Attention, x: Tensor, sees: list[list[bool]]) -> Tensor:
    """One attention over all tokens, memories among them, with a softmax over what each may see."""
    q, k, v = attention.project(x)
    scores = q @ k.transpose(-2, -1) * attention.dim_head**-0.5
    for i, row in enumerate(sees):
        for j, allowed in enumerate(row):
            if not allowed:
                scores[:, :, i, j] = -torch.inf
    return attention.merge(scores.softmax(dim=-1) @ v)


def table_1(old: int, memories: Sequence[int], extension: bool) -> list[list[bool]]:
    """Who sees whom: old tokens, then the tasks' class tokens, then their memories."""
    kind = [("old", 0)] * old + [("class", i) for i in range(len(memories))]
    kind += [("memory", i) for i, count in enumerate(memories) for _ in range(count)]

    def sees(query: tuple[str, int], key: tuple[str, int]) -> bool:
        if query[0] == "memory":
            return True  # What memories would become is thrown away.
        if key[0] == "old":
            return True
        if query[0] == "old":
            return False
        return query[1] == key[1] or (extension and key[1] < query[1])

    return [[sees(query, key) for key in kind] for query in kind]


def in_full(vit: ViT, adapters: list[Adapter], x: Tensor, *, extension: bool = False) -> list[Tensor]:
    """The logits of the base and of every task from one sequence of all tokens, masked as table 1 says."""
    tokens = vit.embed(x)
    old = tokens.shape[1]
    tasks = [adapter.task for adapter in adapters]
    new = vit.pre_norm(torch.cat([task.class_token for task in tasks], dim=1)).expand(len(x), -1, -1)
    tokens = torch.cat([tokens, new], dim=1)
    sees = table_1(old, [task.memories.shape[1] for task in tasks], extension)
    for layer, block in enumerate(vit.blocks):
        memories = [task.memories[layer].expand(len(x), -1, -1) for task in tasks]
        z = torch.cat([tokens, *memories], dim=1)
        z = z + block.scale1(attend_in_full(block.attention, block.norm1(z), sees))
        tokens = z[:, : tokens.shape[1]]
        tokens = tokens + block.scale2(block.feedforward(block.norm2(tokens)))
    logits = [vit.forward_head(vit.norm(tokens[:, :old]))]
    for i, task in enumerate(tasks):
        logits.append(task.head(vit.fc_norm(vit.norm(tokens[:, old + i]))))
    return logits


@torch.inference_mode()
def test_adapter_equals_the_formulas(base: ViT) -> None:
    adapter = attach(base)
    x = images(48, 48)
    assert difference(adapter(x), in_full(base, [adapter], x)[1]) < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("extension", [False, True])
def test_several_adapters_equal_the_formulas(base: ViT, extension: bool) -> None:
    adapters = [attach(base, seed) for seed in range(3)]
    x = images(48, 48)
    logits, others = Adapters(adapters, extension=extension)(x)
    expected = in_full(base, adapters, x, extension=extension)
    for ours, theirs in zip([logits, *others], expected, strict=True):
        assert difference(ours, theirs) < TOLERANCE


@torch.inference_mode()
def test_finetuning_equals_the_formulas() -> None:
    """Memories enter a layer as tokens, in front of its norm, and leave behind it (equation 3)."""
    for options in ({}, OPTIONS["layer_scale, qk_norm"], OPTIONS["registers, pre_norm, fc_norm"]):
        vit = build(**options)
        adapter = attach(vit, mode="finetune")
        x = images(48, 48)
        tokens = vit.embed(x)
        tokens[:, :1] = vit.pre_norm(adapter.task.class_token)
        for block, memory in zip(vit.blocks, adapter.task.memories, strict=True):
            tokens = block(torch.cat([tokens, memory.expand(2, -1, -1)], dim=1))[:, : tokens.shape[1]]
        expected = adapter.task.head(vit.fc_norm(vit.norm(tokens[:, 0])))
        assert difference(adapter(x), expected) < TOLERANCE


@torch.inference_mode()
def test_base_does_not_notice(base: ViT) -> None:
    x = images(48, 48)
    before = base(x)
    adapters = [attach(base, seed) for seed in range(3)]
    logits, _ = Adapters(adapters)(x)
    assert logits.equal(before)
    assert base(x).equal(before)


@torch.inference_mode()
def test_alone_equals_together(base: ViT) -> None:
    adapters = [attach(base, seed) for seed in range(3)]
    x = images(48, 48)
    _, together = Adapters(adapters)(x)
    for adapter, logits in zip(adapters, together, strict=True):
        assert difference(adapter(x), logits) < TOLERANCE
    _, extended = Adapters(adapters, extension=True)(x)
    assert difference(adapters[0](x), extended[0]) < TOLERANCE
    assert (adapters[1](x) - extended[1]).abs().max() > 1e-3


@torch.inference_mode()
def test_adapter_starts_as_the_base() -> None:
    """Without memories and before training, the task's class token computes what the base's does."""
    vit = build()
    for mode in ("extend", "finetune"):
        adapter = Adapter(vit=vit, num_classes=7, num_memories_per_layer=0, mode=mode).eval()
        adapter.task.head.load_state_dict(vit.head.state_dict())
        x = images(48, 48)
        if mode == "finetune":
            assert difference(adapter(x), vit(x)) < TOLERANCE
        else:
            # The copy sees the original beside itself, so it is close, not equal.
            assert (adapter(x) - vit(x)).abs().max() < 0.5


def test_start_of_memories() -> None:
    vit = build()
    memories = Adapter(vit=vit, num_classes=2, num_memories_per_layer=500).task.memories
    assert memories.shape == (3, 500, 48)
    assert memories.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(memories.mean().item()) < 1e-3
    wide = Adapter(vit=vit, num_classes=2, num_memories_per_layer=500, memory_std=0.5).task.memories
    assert wide.std().item() == pytest.approx(0.5, rel=0.02)


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["extend", "finetune"])
def test_memories_go_through_the_norm(mode: Any) -> None:
    """A LayerNorm takes their length away; memories that came behind it would be ten times as strong."""
    adapter = attach(build(norm_eps=1e-12), mode=mode)
    x = images(48, 48)
    expected = adapter(x)
    adapter.task.memories.mul_(10)
    assert difference(adapter(x), expected) < TOLERANCE
    adapter.task.memories.neg_()
    assert (adapter(x) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["extend", "finetune"])
def test_training_leaves_the_base_alone(mode: Any) -> None:
    vit = build().train()
    adapter = attach(vit, mode=mode)
    other = attach(vit, seed=1)
    before = copy.deepcopy(vit.state_dict())
    x = images(48, 48)
    unchanged = other(x)
    adapter.train()
    nn.Sequential(adapter, nn.Identity()).train()
    assert adapter.task.training
    assert not any(module.training for module in vit.modules())
    assert adapter(x).equal(adapter(x))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, weight_decay=0.5)
    start = adapter(x)
    start.square().mean().backward()
    learned = {name for name, p in adapter.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"task.class_token", "task.memories", "task.head.weight", "task.head.bias"}
    optimizer.step()
    assert not adapter(x).equal(start)
    assert other(x).equal(unchanged)
    assert all(tensor.equal(before[name]) for name, tensor in vit.state_dict().items())


def test_backward_keeps_nothing_of_the_base() -> None:
    """In mode extend, what the backward pass needs does not grow with the feed-forwards of the old tokens."""

    def kept(mode: Any) -> int:
        adapter, sizes = attach(build(), mode=mode).train(), []
        own = {p.data_ptr() for p in adapter.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(0 if tensor.data_ptr() in own else tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            adapter(images(48, 48))
        return sum(sizes)

    assert kept("extend") < 0.5 * kept("finetune")


def test_grad_checkpointing() -> None:
    adapter = attach(build(), mode="finetune").train()
    x = images(48, 48)
    gradients = []
    for enable in (False, True):
        adapter.set_grad_checkpointing(enable)
        adapter.zero_grad()
        adapter(x).square().sum().backward()
        gradients.append([p.grad for p in adapter.task.parameters()])
    torch.testing.assert_close(*gradients)


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["extend", "finetune"])
def test_saves_what_it_learned(mode: Any, tmp_path: Any) -> None:
    vit = build()
    adapter = attach(vit, mode=mode)
    adapter.save_pretrained(tmp_path / "task")
    saved = load_file(tmp_path / "task" / "adapter.safetensors")
    assert saved.keys() == {"class_token", "memories", "head.weight", "head.bias"}
    loaded = Adapter.from_pretrained(tmp_path / "task", vit=vit)
    x = images(48, 48)
    assert not loaded.training
    assert loaded.config == adapter.config
    assert loaded(x).equal(adapter(x))
    with pytest.raises(ValueError, match=r"does not fit Task:\nsizes differ .*memories expects"):
        Adapter.from_pretrained(tmp_path / "task", vit=build(depth=2))
    with pytest.raises(FileNotFoundError):
        Adapter.from_pretrained(tmp_path, vit=vit)


@torch.inference_mode()
@pytest.mark.parametrize("mode", ["extend", "finetune"])
def test_interface(mode: Any) -> None:
    adapter = attach(build(), mode=mode)
    x = images(48, 48, batch=3)
    expected = adapter(x)
    assert copy.deepcopy(adapter)(x).equal(expected)
    assert pickle.loads(pickle.dumps(adapter))(x).equal(expected)
    torch.testing.assert_close(adapter(x[:1]), expected[:1])
    assert adapter(x[..., :24, :40]).shape == (3, 4)
    program = export(adapter, (x[:2],), dynamic_shapes=({0: Dim("batch", max=4096)},), strict=True)
    torch.testing.assert_close(program.module()(x), expected)
    with pytest.raises(ValueError, match="expected 3 channels, got 1"):
        adapter(x[:, :1])
    for module in adapter.modules():
        if isinstance(module, Attention):
            assert isinstance(module.kernel, FusedAttention)
            module.kernel = ExplicitAttention()
    assert difference(adapter(x), expected) < TOLERANCE
    low = adapter.bfloat16()(x.bfloat16())
    assert relative_error(low, expected) < BF16_MODEL


def test_compiles_whole() -> None:
    vit = build()
    adapters = Adapters([attach(vit, 0), attach(vit, 1)], extension=True)
    x = images(48, 48)
    compiled = torch.compile(adapters, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), adapters(x))
    torch.compiler.reset()


@torch.inference_mode()
def test_smaller_images_together() -> None:
    vit = build()
    adapters = [attach(vit, 0), attach(vit, 1)]
    x = images(24, 40)
    logits, together = Adapters(adapters)(x)
    assert logits.equal(vit(x))
    for ours, theirs in zip(together, in_full(vit, adapters, x)[1:], strict=True):
        assert difference(ours, theirs) < TOLERANCE


def test_mask_is_table_1() -> None:
    """Rows of the tasks alone; the base's tokens come last, for smaller images to cut off."""
    for extension in (False, True):
        full = table_1(5, MEMORIES, extension)[5:8]
        expected = torch.tensor([row[5:] + row[:5] for row in full])
        assert visibility(MEMORIES, 5, extension=extension).equal(expected)
    adapters = Adapters([attach(build())])
    assert "mask" in dict(adapters.named_buffers())
    assert not any("mask" in name for name in adapters.state_dict())


def test_wrong_arguments() -> None:
    vit = build()
    with pytest.raises(ValueError, match="the base of an adapter must be a ViT or a SimpleViT, got Linear"):
        Adapter(vit=nn.Linear(3, 3), num_classes=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 0 and 5"):
        Adapter(vit=vit, num_classes=0, num_memories_per_layer=5)
    with pytest.raises(ValueError, match="mode must be one of extend, finetune; got 'both'"):
        Adapter(vit=vit, num_classes=2, mode="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the base has none"):
        Adapter(vit=build(pool="mean"), num_classes=2, mode="finetune")
    broken = build()
    broken.blocks[1].attention = nn.Identity()
    with pytest.raises(ValueError, match="blocks of plain attention and feed-forward"):
        Adapter(vit=broken, num_classes=2)
    with pytest.raises(ValueError, match="got 2 adapters of 2 bases"):
        Adapters([attach(vit), attach(build())])
    with pytest.raises(ValueError, match="got 0 adapters of 0 bases"):
        Adapters([])
    with pytest.raises(ValueError, match="adapters must have mode='extend'"):
        Adapters([attach(vit), attach(vit, mode="finetune")])


def test_any_plain_vit_is_a_base() -> None:
    assert ViT is PlainViT
    vit = SimpleViT(**SIZES)
    before = vit.eval()(images(48, 48))
    logits, _ = Adapters([Adapter(vit=vit, num_classes=2)])(images(48, 48))
    assert logits.equal(before)


class OddOrEven(nn.Module):
    """Asks a model of two classes for the digits that it cannot tell apart."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x).repeat(1, 5)


def test_learns_a_new_task() -> None:
    """A base that has learned to tell odd from even learns the digits, and still tells odd from even."""
    torch.manual_seed(0)
    sizes = {"image_size": 20, "patch_size": 4, "channels": 1, "num_classes": 2, "depth": 2}
    vit = ViT(**{**SIZES, **sizes})
    accuracy_on_digits(OddOrEven(vit), size=20, epochs=8)
    *_, x, labels = digits(20)
    before = vit(x)
    assert (before.argmax(dim=1) == labels % 2).float().mean() > 0.85
    adapter = Adapter(vit=vit, num_classes=10)
    untrained = (adapter.eval()(x).argmax(dim=1) == labels).float().mean()
    assert accuracy_on_digits(adapter, size=20, epochs=8, goal=0.5, lr=3e-2) > 0.5 > untrained
    assert Adapters([adapter])(x)[0].equal(before)
