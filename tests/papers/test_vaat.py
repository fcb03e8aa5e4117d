"""VAAT: equal to the public package's policy and encoders; spectrograms by a plain sum."""

from __future__ import annotations

from math import cos, pi, sin
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import l1_loss, pad

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, randomise
from vit_pytorch import load_pretrained
from vit_pytorch.pretrained import to_format
from vit_pytorch.vaat import AST, VAAT, Spectrogram, ViT

SEES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "num_classes": 7,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 32,
}
HEARS: dict[str, Any] = {
    "dim": 20,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "mlp_dim": 32,
    "patch_size": 4,
    "spec_n_fft": 32,
}
ACTS: dict[str, Any] = {
    "dim": 24,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "dim_action": 5,
    "mlp_dim": 32,
    "action_chunk_len": 6,
}


def build(*, ast: dict[str, Any] | None = None, **options: Any) -> VAAT:
    """A small policy with random weights."""
    policy = VAAT(ViT(**SEES), AST(**{**HEARS, **(ast or {})}), **{**ACTS, **options})
    randomise(policy)
    return policy


@pytest.mark.parametrize("name", ["public_vaat", "public_vaat_spectrograms"])
@torch.inference_mode()
def test_equals_the_public_package(name: str) -> None:
    config, state, golden = read_golden(name)
    policy = VAAT(**config).eval()
    load_pretrained(policy, state, strict=True, grid="model")
    seen, heard = golden["input"], golden["audio"]
    given = {name: golden[name] for name in ("tasks", "extra", "advantages")}
    actions, hiddens = policy(seen, heard, **given, return_hiddens=True)
    assert difference(actions, golden["output"]) < TOLERANCE
    assert difference(hiddens, golden["hiddens"]) < TOLERANCE
    assert difference(policy(seen, heard), golden["plain"]) < TOLERANCE
    loss = policy(seen, heard, **given, actions=golden["actions"])
    torch.testing.assert_close(loss, golden["loss"])
    written = to_format(policy, "vit-pytorch VAAT")
    assert written.keys() == {n for n, t in state.items() if t.numel()} - {"ast.spec.window"}
    # one is added to the gains of FiLM and taken off again
    for key, tensor in written.items():
        torch.testing.assert_close(tensor, state[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["public_vaat", "public_vaat_spectrograms"])
@torch.inference_mode()
def test_encoders_equal_the_public_packages(name: str) -> None:
    config, state, golden = read_golden(name)
    policy = VAAT(**config).eval()
    load_pretrained(policy, state, grid="model")
    assert difference(policy.vit(golden["single"]), golden["vit_logits"]) < TOLERANCE
    tokens, hiddens = policy.vit(golden["single"], return_hiddens=True)
    assert difference(tokens, golden["vit_tokens"]) < TOLERANCE
    assert difference(hiddens, golden["vit_hiddens"]) < TOLERANCE
    heard = golden["audio"]
    single = heard.flatten(0, 1) if heard.ndim == 3 + policy.ast.accept_spec else heard
    assert difference(policy.ast(single), golden["ast_logits"]) < TOLERANCE
    window = state.get("ast.spec.window")
    if window is not None and not policy.ast.accept_spec:
        torch.testing.assert_close(policy.ast.spectrogram.window, window)


@torch.inference_mode()
def test_calls_of_the_public_package() -> None:
    """Several views, times and microphones, any order of layers, which may repeat."""
    policy = VAAT(
        ViT(**SEES),
        AST(**HEARS),
        **{**ACTS, "depth": 3},
        time_seq_len=4,
        num_image_views=2,
        num_audio_views=2,
        num_tasks=4,
        num_advantage_bins=0,
        add_self_attn=True,
        dim_extra_token=33,
        vit_layer_indices=(0, 0, 2),
        ast_layer_indices=(1, 1, 2),
    ).eval()
    images, audio = torch.randn(2, 2, 3, 4, 16, 16), torch.randn(2, 2, 300)
    given = {"tasks": torch.tensor([3, 0]), "extra": torch.randn(2, 33)}
    actions, hiddens = policy(images, audio, **given, return_hiddens=True)
    assert actions.shape == (2, 6, 5)
    assert hiddens.shape == (4, 2, 4 + 6 + 1, 24)
    true = torch.randn(2, 6, 5)
    assert policy(images, audio, **given, actions=true).equal(l1_loss(actions, true))


def spectrogram_in_loops(sound: Tensor, n_fft: int, samples: int, hop: int) -> Tensor:
    """Return the squared magnitudes of one sound, frequency by frequency, window by window."""
    sound = pad(sound[None, None], (n_fft // 2, n_fft // 2), mode="reflect")[0, 0].double()
    first = (n_fft - samples) // 2
    columns = []
    for start in range(0, len(sound) - n_fft + 1, hop):
        column = []
        for frequency in range(n_fft // 2 + 1):
            real = imaginary = 0.0
            for i in range(samples):
                value = sound[start + first + i].item() * (0.5 - 0.5 * cos(2 * pi * i / samples))
                angle = -2 * pi * frequency * (first + i) / n_fft
                real, imaginary = real + value * cos(angle), imaginary + value * sin(angle)
            column.append(real**2 + imaginary**2)
        columns.append(column)
    return torch.tensor(columns).T


def test_spectrogram_is_a_sum() -> None:
    sounds = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"pad": 0, "center": True, "pad_mode": "reflect"}
    found = Spectrogram(16, window=12, hop=6, power=2.0, **options)(sounds)
    for sound, got in zip(sounds, found, strict=True):
        torch.testing.assert_close(got, spectrogram_in_loops(sound, 16, 12, 6), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_spectrograms_in_either_order() -> None:
    """A spectrogram by itself has the logits of its sound, whichever axis comes first."""
    ast = AST(**HEARS, num_classes=3).eval()
    sounds = torch.randn(2, 400)
    spectrum = ast.spectrogram(sounds)
    for time_first in (True, False):
        reads = AST(**HEARS, num_classes=3, accept_spec=True, accept_spec_time_first=time_first).eval()
        reads.load_state_dict(ast.state_dict())
        given = spectrum.mT if time_first else spectrum
        torch.testing.assert_close(reads(given), ast(sounds))


def test_learns_with_and_without_its_encoders() -> None:
    policy = build(num_tasks=3, num_image_views=2, num_audio_views=2, num_advantage_bins=2)
    images, sounds, actions = torch.randn(2, 2, 3, 16, 16), torch.randn(2, 2, 300), torch.randn(2, 6, 5)
    given: dict[str, Any] = {"tasks": torch.tensor([0, 2]), "advantages": -1, "actions": actions}
    policy(images, sounds, **given, freeze_vit=True, freeze_ast=True).backward()
    own = {n: p for n, p in policy.named_parameters() if not n.startswith(("vit.", "ast."))}
    frozen = [p for n, p in policy.named_parameters() if n not in own]
    assert all(p.grad is None for p in frozen)
    assert all(p.grad is not None and p.grad.any() for p in own.values())
    policy(images, sounds, **given, freeze_vit=True).backward()
    assert policy.ast.patch_embed.proj.weight.grad.any()
    assert policy.vit.patch_embed.proj.weight.grad is None
    policy(images, sounds, **given).backward()
    assert policy.vit.patch_embed.proj.weight.grad.any()


@torch.inference_mode()
def test_views_are_told_apart() -> None:
    """In the public package the embeddings of microphones are those of samples; its fixture's are equal."""
    policy = build(num_image_views=2, num_audio_views=3)
    images, sounds = torch.randn(2, 2, 3, 16, 16), torch.randn(2, 3, 300)
    actions = policy(images, sounds)
    assert (policy(images.flip(1), sounds) - actions).abs().max() > 1e-3
    assert (policy(images, sounds.flip(1)) - actions).abs().max() > 1e-3
    for scene in (policy.scene, policy.sounds):
        torch.nn.init.zeros_(scene.view_embed)
    torch.testing.assert_close(policy(images.flip(1), sounds.flip(1)), policy(images, sounds))


@torch.inference_mode()
def test_sounds_change_actions() -> None:
    policy = build()
    images, sounds = torch.randn(2, 3, 16, 16), torch.randn(2, 300)
    assert policy(images, sounds).shape == (2, 6, 5)
    assert policy(images[:, None], sounds[:, None]).equal(policy(images, sounds))
    assert (policy(images, sounds) - policy(images, sounds.flip(0))).abs().max() > 1e-3


def test_checkpoints_activations() -> None:
    policy = build()
    images, sounds, actions = torch.randn(2, 3, 16, 16), torch.randn(2, 300), torch.randn(2, 6, 5)
    policy(images, sounds, actions=actions).backward()
    want = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    policy.set_grad_checkpointing()
    policy(images, sounds, actions=actions).backward()
    torch.testing.assert_close({n: p.grad for n, p in policy.named_parameters() if n in want}, want)


@pytest.mark.parametrize(
    ("options", "images", "sounds", "message"),
    [
        ({"num_image_views": 2}, (2, 1, 3, 16, 16), (2, 300), "2 views and 1 times, got 1"),
        ({"num_audio_views": 2}, (2, 3, 16, 16), (2, 300), "2 views of sounds with 1 axes"),
        ({}, (2, 3, 16, 16), (2, 2, 300), r"1 views of sounds .* got shape \(2, 2, 300\)"),
        ({"ast": {"accept_spec": True}}, (2, 3, 16, 16), (2, 300), "1 views of sounds with 2 axes"),
        ({}, (2, 3, 16, 16), (2, 20), "at least"),
        ({"vit_layer_indices": (0,)}, (), (), r"vit_layer_indices must be 2 numbers in \[0, 2\]"),
        ({"ast_layer_indices": (0, 3)}, (), (), r"ast_layer_indices must be 2 numbers in \[0, 2\]"),
        ({"ast": {"spec_win_length": 40}}, (), (), "spec_win_length must be at most spec_n_fft=32"),
        ({"ast": {"spec_pad_mode": "zeros"}}, (), (), "spec_pad_mode must be one of reflect"),
    ],
)
def test_what_is_refused(
    options: dict[str, Any], images: tuple[int, ...], sounds: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)(torch.randn(images), torch.randn(sounds))


def test_ranks_of_sounds() -> None:
    with pytest.raises(ValueError, match=r"sounds of rank 2 \(batch, samples\), got shape \(2, 1, 300\)"):
        AST(**HEARS)(torch.randn(2, 1, 300))
