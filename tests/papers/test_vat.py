"""VAT: equal to the paper's formulas in plain loops; the ViT does not notice its actions."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export

from tests.papers.reference import TOLERANCE, difference, images, randomise
from tests.tolerances import BF16_MODEL, relative_error
from vit_pytorch import ViT
from vit_pytorch.isotropic import IsotropicModel
from vit_pytorch.layers.attention import FusedAttention
from vit_pytorch.recorder import Recorder
from vit_pytorch.registry import find_entry
from vit_pytorch.vat import VAT, FiLM

SIZES: dict[str, Any] = {
    "image_size": 40,
    "patch_size": 8,
    "num_classes": 7,
    "dim": 32,
    "depth": 3,
    "heads": 2,
    "dim_head": 16,
    "mlp_dim": 48,
}
POLICY: dict[str, Any] = {"action_dim": 3, "action_chunk": 4, "heads": 2, "dim_head": 8, "mlp_dim": 40}
OPTIONS: dict[str, dict[str, Any]] = {
    "one of each": {},
    "tasks": {"num_tasks": 5},
    "tasks, added": {"num_tasks": 5, "use_film": False},
    "views": {"num_views": 2, "num_tasks": 5, "dim": 24},
    "times": {"frames": 3, "self_attn": True},
    "views, times": {"num_views": 2, "frames": 3, "vit_layer_indices": (0, 0, 2, 1, 3)},
}


def see(**options: Any) -> ViT:
    vit = ViT(**{**SIZES, **options})
    randomise(vit)
    return vit


def build(vit: IsotropicModel | None = None, **options: Any) -> VAT:
    policy = VAT(see() if vit is None else vit, **{**POLICY, **options})
    randomise(policy, 3)
    return policy


def scene(options: dict[str, Any], batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    """Images as a policy of these options takes them, with all axes, and tasks where it knows several."""
    views, frames = options.get("num_views", 1), options.get("frames", 1)
    single = images(40, 40, batch=batch * views * frames, seed=seed)
    tasks = torch.tensor([1, 3, 0])[:batch] if "num_tasks" in options else None
    return single.unflatten(0, (batch, views, frames)).transpose(2, 3), tasks


class Written:
    """The formulas on one sample, head by head, in double precision."""

    def __init__(self, policy: VAT) -> None:
        self.policy = policy
        self.weights = {name: tensor.double() for name, tensor in policy.state_dict().items()}

    def linear(self, name: str, x: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return x @ weight.chunk(parts)[part].T + bias.chunk(parts)[part]

    def norm(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def gelu(self, x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = []
        for a, b, c in zip(*(x.chunk(POLICY["heads"], dim=-1) for x in (q, k, v)), strict=True):
            scores = (a @ b.T / math.sqrt(a.shape[1])).exp()
            heads.append(scores / scores.sum(dim=1, keepdim=True) @ c)
        return torch.cat(heads, dim=-1)

    def block(self, name: str, x: Tensor, vision: Tensor, task: Tensor | None) -> Tensor:
        told = x
        if f"{name}.film.to_out.weight" in self.weights and task is not None:
            hidden = self.gelu(self.linear(f"{name}.film.to_hidden", task))
            gain, shift = (self.linear(f"{name}.film.to_out", hidden, part, 2) for part in range(2))
            told = x * (1 + gain) + shift
        q = self.linear(f"{name}.attention.to_q", self.norm(f"{name}.norm1", told))
        vision = self.norm(f"{name}.context_norm", vision)
        k, v = (self.linear(f"{name}.attention.to_kv", vision, part, 2) for part in range(2))
        x = x + self.linear(f"{name}.attention.to_out", self.attend(q, k, v))
        if f"{name}.self_norm.weight" in self.weights:
            y = self.norm(f"{name}.self_norm", x)
            q, k, v = (self.linear(f"{name}.self_attention.to_qkv", y, part, 3) for part in range(3))
            x = x + self.linear(f"{name}.self_attention.to_out", self.attend(q, k, v))
        y = self.norm(f"{name}.norm2", x)
        y = self.gelu(self.linear(f"{name}.feedforward.to_hidden", y))
        return x + self.linear(f"{name}.feedforward.to_out", y)

    def head(self, x: Tensor) -> Tensor:
        x = self.norm("head.layers.0", x.reshape(POLICY["action_chunk"], -1), 1e-5)
        x = self.linear("head.layers.1", x).clamp(min=0)
        for layer in (3, 4):
            y = self.norm(f"head.layers.{layer}.norm", x, 1e-5)
            x = x + self.linear(f"head.layers.{layer}.linear", y).clamp(min=0)
        return self.linear("head.layers.6", self.norm("head.layers.5", x, 1e-5))

    def vision(self, sample: Tensor, layer: int) -> Tensor:
        """Run the ViT on one image at a time; after no block, tokens are what enters the first."""
        vit, seen = self.policy.vit, []
        for view in range(sample.shape[0]):
            for time in range(sample.shape[2]):
                image = sample[view, :, time][None]
                if layer == 0:
                    tokens = vit.embed(image)[0]
                else:
                    ((found, prefix),) = vit.forward_intermediates(
                        image,
                        [layer - 1],
                        return_prefix_tokens=True,
                        output_fmt="NLC",
                        intermediates_only=True,
                    )
                    tokens = torch.cat([prefix, found], dim=1)[0]
                tokens = tokens.double()
                if "view_embed" in self.weights:
                    tokens = tokens + self.weights["view_embed"][view, 0, 0]
                if "frame_embed" in self.weights:
                    tokens = tokens + self.weights["frame_embed"][time, 0]
                seen.append(tokens)
        return torch.cat(seen)

    def actions(self, sample: Tensor, task: int | None) -> Tensor:
        x = self.weights["action_tokens"][0]
        told = None if task is None else self.weights["task_embed.weight"][task]
        if told is not None and not self.policy.use_film:
            x = x + told
        for block, layer in enumerate(self.policy.reads):
            x = self.block(f"blocks.{block}", x, self.vision(sample, layer), told)
        return self.head(x)


@torch.inference_mode()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_the_formulas(options: dict[str, Any]) -> None:
    policy = build(**options)
    x, tasks = scene(options)
    written = Written(policy)
    told = [None, None] if tasks is None else tasks.tolist()
    want = torch.stack([written.actions(sample, task) for sample, task in zip(x, told, strict=True)]).float()
    assert want.shape == (2, 4, 3)
    assert difference(policy(x, tasks), want) < TOLERANCE


SEEING = (
    "vit_tiny_patch14_224",
    "vit_small_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
    "vit_base_patch32_clip_224",
    "simple_vit_tiny_patch14_224",
    "deit_tiny_distilled_patch16_224",
    "deepvit_S",
    "cait_xxs24_224",
    "t2t_vit_t_14",
    "sl_vit_patch4_32",
    "vit_small_patch16_18x2_224",
)


@torch.inference_mode()
@pytest.mark.parametrize("name", SEEING)
def test_vision_does_not_notice_the_actions(name: str) -> None:
    """What any plain model computes beside action tokens is to the bit what it computes alone."""
    vit: Any = find_entry(name).build(**find_entry(name).tiny)
    depth = len(vit.blocks)
    policy = build(vit, vit_layer_indices=(depth, *range(depth)))
    x = images(*vit.image_size)
    taken = vit.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
    alone = [vit.embed(x), *(torch.cat([prefix, patches], dim=1) for patches, prefix in taken)]
    beside: list[Tensor] = []
    for block in vit.blocks:
        block.register_forward_hook(lambda *call: beside.append(call[-1]))
    assert policy(x).shape == (2, 4, 3)
    assert all(found.equal(want) for found, want in zip(beside, alone[1:], strict=True))
    assert all(found.equal(alone[layer]) for layer, found in policy.see(x).items())


@torch.inference_mode()
def test_reads_what_enters_each_layer() -> None:
    """So the last block is not run, nor what stands behind it."""
    policy = build()
    assert policy.reads == (0, 1, 2)
    ran = []
    for name, part in policy.vit.named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    policy(images(40, 40))
    assert {name for name in ran if name.count(".") == 1} >= {"blocks.0", "blocks.1"}
    assert not any(name.startswith(("blocks.2", "norm", "head")) for name in ran)


def gradients(policy: VAT, x: Tensor, tasks: Tensor | None) -> dict[str, Tensor | None]:
    policy.zero_grad()
    actions = policy(x, tasks)
    (actions * torch.linspace(-1, 1, actions.numel()).view_as(actions)).sum().backward()
    return {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_everything_that_learns_has_a_gradient(options: dict[str, Any]) -> None:
    """All but what nothing reads, which is frozen."""
    policy = build(**options)
    x, tasks = scene(options, batch=3)
    found = gradients(policy, x, tasks)
    # Tasks of which there is no sample learn nothing, row by row.
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    frozen = {name.rpartition(".")[0] for name, p in policy.named_parameters() if not p.requires_grad}
    last = max(policy.reads)
    assert all(name.startswith(("vit.norm", "vit.head", f"vit.blocks.{last}.")) for name in frozen)
    assert {"vit.norm", "vit.head"} <= frozen


def test_a_frozen_model_stays() -> None:
    vit = see().requires_grad_(False)
    policy = build(vit)
    found = gradients(policy, images(40, 40), None)
    assert not any(name.startswith("vit.") for name in found)
    assert all(gradient is not None for gradient in found.values())


@torch.inference_mode()
def test_film_starts_as_the_identity() -> None:
    """gain + 1: tokens pass a new FiLM to the bit; the authors' start modulates, and never wipes them out."""
    tokens, task = torch.randn(2, 5, 32), torch.randn(2, 1, 32)
    assert FiLM(32)(tokens, task).equal(tokens)
    drawn = FiLM(32, std=0.02)
    assert drawn.to_hidden.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert drawn.to_out.weight.std().item() == pytest.approx(0.02, rel=0.1)
    ratio = (drawn(tokens, task) / tokens).median()
    assert 0.9 < ratio < 1.1


@torch.inference_mode()
def test_a_new_policy_knows_no_task() -> None:
    """Where FiLM is the identity, actions are those without; where tasks are added, they differ at once."""
    x, tasks = images(40, 40), torch.tensor([1, 3])
    vit = see()
    told = VAT(vit, **POLICY, num_tasks=5).eval()
    untold = VAT(vit, **POLICY).eval()
    untold.load_state_dict(told.state_dict(), strict=False)
    # FiLM copies the tokens, which are a view without it; kernels may tell these apart by their strides.
    assert difference(told(x, tasks), untold(x)) < TOLERANCE
    added = VAT(vit, **POLICY, num_tasks=5, use_film=False).eval()
    assert not added(x, tasks).equal(added(x, tasks.flip(0)))


@torch.inference_mode()
@pytest.mark.parametrize("self_attn", [False, True])
def test_action_tokens_see_each_other_if_wanted(self_attn: bool) -> None:
    policy, x = build(self_attn=self_attn), images(40, 40)
    actions = policy(x)
    policy.action_tokens[:, :3] += 1
    changed = (policy(x) != actions).flatten(2).any(dim=2)
    assert changed[:, 0].all()
    assert bool(changed[:, 1:].any()) == self_attn


@torch.inference_mode()
def test_axes_of_one_may_be_left_out() -> None:
    for options, squeezed in (({}, (1, 3)), ({"num_views": 2}, (3,)), ({"frames": 3}, (1,))):
        policy = build(**options)
        x, _ = scene(options)
        short = x
        for axis in reversed(squeezed):
            short = short.squeeze(axis)
        assert short.ndim == 6 - len(squeezed)
        assert policy(short).equal(policy(x))


@torch.inference_mode()
def test_views_and_times_are_told_apart() -> None:
    options = {"num_views": 2, "frames": 3}
    policy = build(**options)
    x, _ = scene(options)
    for axis in (1, 3):
        assert (policy(x.flip(axis)) - policy(x)).abs().max() > 1e-3
    nn.init.zeros_(policy.view_embed)
    nn.init.zeros_(policy.frame_embed)
    torch.testing.assert_close(policy(x.flip(1, 3)), policy(x), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_smaller_images() -> None:
    assert build()(images(24, 40)).shape == (2, 4, 3)


@torch.inference_mode()
def test_wide_models_serve_narrow_actions() -> None:
    """Actions may be narrower or wider than what is seen, and need not know its heads."""
    for dim in (16, 48):
        policy = build(dim=dim, num_tasks=2)
        assert policy.action_tokens.shape == (1, 12, dim)
        assert policy(images(40, 40), torch.tensor([0, 1])).shape == (2, 4, 3)


@torch.inference_mode()
def test_maps_are_recorded() -> None:
    options = {"num_views": 2, "frames": 3, "self_attn": True}
    policy = build(**options)
    x, _ = scene(options)
    recording = Recorder(policy).record(x)
    torch.testing.assert_close(recording.output, policy(x), rtol=1e-5, atol=1e-5)
    shapes = [tuple(found.shape) for found in recording.maps]
    assert shapes == [(12, 2, 26, 26)] * 2 + [(2, 2, 12, 2 * 3 * 26), (2, 2, 12, 12)] * 3
    assert sum(isinstance(part, FusedAttention) for part in policy.modules()) == 3 + 2 * 3


def test_grad_checkpointing() -> None:
    options = {"num_views": 2, "num_tasks": 5}
    policy = build(**options).train()
    x, tasks = scene(options)
    want = gradients(policy, x, tasks)
    policy.set_grad_checkpointing()
    torch.testing.assert_close(gradients(policy, x, tasks), want)


@pytest.fixture
def _forget_graphs() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_forget_graphs")
def test_compile() -> None:
    options = {"num_views": 2, "num_tasks": 5, "self_attn": True}
    policy = build(**options)
    x, tasks = scene(options)
    compiled = torch.compile(policy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, tasks), policy(x, tasks))


def test_export() -> None:
    """Strictly, with a dynamic batch, and on to ONNX."""
    options = {"num_views": 2, "frames": 3, "num_tasks": 5}
    policy = build(**options)
    x, tasks = scene(options, batch=3)
    assert tasks is not None
    batch = Dim("batch", max=4096)
    program = export(policy, (x[:2], tasks[:2]), dynamic_shapes=({0: batch}, {0: batch}), strict=True)
    onnx = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(onnx.SerializeToString())
    names = [put.name for put in session.get_inputs()]
    for few in (1, 3):
        want = policy(x[:few], tasks[:few])
        torch.testing.assert_close(program.module()(x[:few], tasks[:few]), want)
        given = dict(zip(names, (x[:few].numpy(), tasks[:few].numpy()), strict=True))
        (actions,) = session.run(None, given)
        torch.testing.assert_close(torch.from_numpy(actions), want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_saved_and_copied(tmp_path: Path) -> None:
    options = {"num_views": 2, "num_tasks": 5, "dim": 24, "vit_layer_indices": (3, 0)}
    policy = build(**options)
    x, tasks = scene(options)
    want = policy(x, tasks)
    for same in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert same(x, tasks).equal(want)
    policy.save_pretrained(tmp_path)
    loaded = VAT.from_pretrained(tmp_path, vit=ViT(**SIZES))
    assert not loaded.training
    assert loaded.config == policy.config
    assert loaded(x, tasks).equal(want)
    with pytest.raises(ValueError, match=r"vit\.blocks\.3"):
        VAT.from_pretrained(tmp_path, vit=ViT(**{**SIZES, "depth": 4}))


@torch.inference_mode()
def test_bf16_and_autocast() -> None:
    policy, x = build(), images(40, 40)
    want = policy(x)
    with torch.autocast("cpu", torch.bfloat16):
        actions = policy(x)
    half = policy.bfloat16()(x.bfloat16())
    for found in (actions, half):
        assert found.dtype == torch.bfloat16
        assert relative_error(found, want) < BF16_MODEL


def test_no_weight_decay() -> None:
    policy = build(num_views=2, frames=2, num_tasks=5)
    own = {"action_tokens", "view_embed", "frame_embed", "task_embed.weight"}
    assert policy.no_weight_decay() == own | {"vit.prefix.class_token", "vit.positions.table"}
    assert policy.no_weight_decay() <= dict(policy.named_parameters()).keys()


@pytest.mark.parametrize(
    ("options", "shape", "tasks", "words"),
    [
        ({}, (2, 2, 3, 40, 40), None, r"rank 4 or 6 .* got shape \(2, 2, 3, 40, 40\)"),
        ({"num_views": 2}, (2, 3, 40, 40), None, r"rank 5 or 6 .* 2 views"),
        ({"num_views": 2}, (2, 3, 3, 40, 40), None, "2 views and 1 times, got 3 and 1"),
        ({"frames": 3}, (2, 3, 2, 40, 40), None, "1 views and 3 times, got 1 and 2"),
        ({}, (2, 1, 40, 40), None, "3 channels, got 1"),
        ({}, (2, 3, 44, 40), None, "40"),
        ({}, (2, 3, 40, 40), torch.tensor([0, 1]), r"one task .* got tasks \(2,\)"),
        ({"num_tasks": 5}, (2, 3, 40, 40), None, "0 to 4, of each of 2 samples, got None"),
        ({"num_tasks": 5}, (2, 3, 40, 40), torch.tensor([0]), r"got torch.int64 of shape \(1,\)"),
        ({"num_tasks": 5}, (2, 3, 40, 40), torch.rand(2), r"got torch.float32 of shape \(2,\)"),
    ],
)
def test_wrong_input_is_refused(
    options: dict[str, Any], shape: tuple[int, ...], tasks: Tensor | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build(**options)(torch.randn(shape), tasks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vit_layer_indices": (0, 4)}, r"vit_layer_indices must be .*, got \(0, 4\)"),
        ({"vit_layer_indices": (-1,)}, r"vit_layer_indices must be .*, got \(-1,\)"),
        ({"vit_layer_indices": ()}, r"vit_layer_indices must be .*, got \(\)"),
        ({"num_views": 0}, r"num_views must be .*, got 0"),
        ({"action_chunk": 0}, r"action_chunk must be .*, got 0"),
        ({"num_tasks": 0}, r"num_tasks must be .*, got 0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VAT(see(), **{**POLICY, **options})


@pytest.mark.parametrize(
    "name", ["levit_128s", "vit_small_patch16_224_patch_merger", "lookupvit_base_patch16_224_3x3"]
)
def test_other_models_are_refused(name: str) -> None:
    vit: Any = find_entry(name).build(**find_entry(name).tiny)
    with pytest.raises(ValueError, match=f"whose blocks keep every token, got {type(vit).__name__}"):
        VAT(vit, **POLICY)


def test_learns_to_act() -> None:
    """Task 0 goes to a spot in two steps, task 1 flees it; not knowing either costs a loss of about 0.5."""
    torch.manual_seed(0)
    sizes = {
        "image_size": 20,
        "patch_size": 4,
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "dim_head": 16,
        "mlp_dim": 64,
    }
    policy = VAT(
        ViT(**sizes, channels=1, num_classes=0),
        action_dim=2,
        action_chunk=2,
        heads=2,
        dim_head=16,
        num_tasks=2,
    )
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=2e-3, fused=True)
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
        places = torch.rand(count, 2, generator=generator) * 2 - 1
        axis = torch.linspace(-1, 1, 20)
        y, x = (axis - places[:, i : i + 1] for i in range(2))
        spots = torch.exp(-8 * (y[:, :, None].square() + x[:, None].square()))[:, None]
        tasks = torch.randint(0, 2, (count,), generator=generator)
        way = places * (1 - 2 * tasks)[:, None]
        return spots, tasks, torch.stack([way / 2, way], dim=1)

    for _ in range(150):
        spots, tasks, want = draw(32)
        optimizer.zero_grad()
        F.l1_loss(policy(spots, tasks), want).backward()
        optimizer.step()
    spots, tasks, want = draw(200)
    with torch.inference_mode():
        loss, flipped = (F.l1_loss(policy.eval()(spots, told), want) for told in (tasks, 1 - tasks))
    assert want.abs().mean() > 0.35
    assert loss < 0.1
    assert flipped > 0.5
