"""AST: Audio Spectrogram Transformer, read by actions beside a model of images.

Y. Gong, Y.-A. Chung, J. Glass 2021, arXiv:2104.01778.

`VAAT` is the policy of `vat_siglip` (W. Li, C. Ma, H. Chen, W. Mao 2025, arXiv:2512.06013), in the form that
the public package gives it, with a second encoder beside that of images: in each layer, tokens attend to a
layer of the one, then to a layer of the audio spectrogram transformer. All attention has gates of the heads
(Z. Qiu et al. 2025, arXiv:2505.06708).

Family: policy
Differs from the paper: the AST is the public package's: registers instead of class tokens, fixed positions,
patches that do not overlap, and two norms at the end.
Differs from the public package: FiLM starts as the identity, where there it starts by multiplying every token
by zero; embeddings of microphones tell these apart, where there they are added by sample;
`accept_spec_time_first=False` takes spectrograms whose frequencies come first, where there it is without
effect; dropout does not act on the weights of attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vit_pytorch.layers.arguments import checks_arguments
from vit_pytorch.layers.blocks import fx_leaf, set_grad_checkpointing
from vit_pytorch.layers.init import init_xavier
from vit_pytorch.layers.options import check_choice
from vit_pytorch.layers.patches import PatchEmbed, PatchGrid, pair
from vit_pytorch.layers.positions import ComputedBuffers, LearnedPositions, sincos_table
from vit_pytorch.vat import learned_table, single_images
from vit_pytorch.vat_siglip import ActionDecoder, ReadingLayer, Scene, answer, check_reads, read_layers

# of all norms, PyTorch's default
NORM_EPS = 1e-5


class GatedEncoder(nn.Module):
    """Layers of gated attention among all tokens and feed-forwards, then norms.

    Args:
        norms: number of norms at the end.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        heads: int,
        dim_head: int,
        mlp_dim: int,
        dropout: float,
        norms: int = 1,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ReadingLayer(
                dim,
                (),
                film=False,
                heads=heads,
                dim_head=dim_head,
                mlp_dim=mlp_dim,
                self_heads=heads,
                self_dim_head=dim_head,
                **of_layers(dropout),
            )
            for _ in range(depth)
        )
        self.norm = nn.Sequential(*(nn.LayerNorm(dim, eps=NORM_EPS) for _ in range(norms)))

    def read(self, tokens: Float[Tensor, "b n d"], reads: Sequence[int]) -> dict[int, Float[Tensor, "b n d"]]:
        """Return tokens after those numbers of layers that are read; those after all of them are normed."""
        return read_layers(self.blocks, self.norm, tokens, reads, ())

    def forward(self, tokens: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n d"], list[Tensor]]:
        """Return the tokens after the norms, and those before each layer."""
        *before, last = self.read(tokens, range(len(self.blocks) + 1)).values()
        return last, before


def of_layers(dropout: float) -> dict[str, Any]:
    """Return what all layers of the policy and of its encoders have in common."""
    return {
        "gated_self_attn": True,
        "qkv_bias": False,
        "dropout": dropout,
        "ff_dropout": dropout,
        "norm_eps": NORM_EPS,
        "act": "gelu",
    }


class ViT(nn.Module):
    """A plain model of images, with norms around its patch embedding and gates in its attention.

    Args:
        num_register_tokens: number of register tokens, which come before the class token.
    """

    @checks_arguments
    def __init__(
        self,
        *,
        image_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        pool: Literal["cls", "mean"] = "cls",
        channels: int = 3,
        dim_head: int = 64,
        dropout: float = 0.0,
        emb_dropout: float = 0.0,
        num_register_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.depth = depth
        self.pool = pool
        self.grid = PatchGrid(pair(image_size), pair(patch_size))
        self.patch_embed = PatchEmbed(self.grid, channels, dim, norm_eps=NORM_EPS)
        self.positions = LearnedPositions(self.grid.shape, dim)
        self.class_token = learned_table(dim)
        self.num_registers = num_register_tokens
        self.registers = learned_table(num_register_tokens, dim) if num_register_tokens else None
        self.dropout = nn.Dropout(emb_dropout)
        self.encoder = GatedEncoder(
            dim, depth=depth, heads=heads, dim_head=dim_head, mlp_dim=mlp_dim, dropout=dropout
        )
        self.head = make_head(dim, num_classes)

    def embed(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the layers: registers, the class token, patches."""
        patches = self.positions(self.patch_embed(images), prefix=0, grid=self.grid.fit(images.shape[2:]))
        first = (
            [self.class_token[None]] if self.registers is None else [self.registers, self.class_token[None]]
        )
        return self.dropout(put_before(patches, *first))

    def forward(self, images: Float[Tensor, "b c h w"], return_hiddens: bool = False) -> Any:
        """Compute logits, or, if asked for, the tokens after the norm and those before each layer."""
        tokens, hiddens = self.encoder(self.embed(images))
        if return_hiddens:
            return tokens, torch.stack(hiddens)
        first = self.num_registers
        return self.head(tokens[:, first] if self.pool == "cls" else tokens[:, first + 1 :].mean(dim=1))


class AST(nn.Module):
    """Audio spectrogram transformer (arXiv:2104.01778): patches of a spectrogram of any length.

    What whole patches leave over at the end of an axis is not seen.

    Args:
        num_classes: number of logits; None or 0 for the mean of the patches.
        patch_size: size of a patch, one number or (frequencies, times).
        accept_spec: take spectrograms instead of sounds.
        accept_spec_time_first: their times come before their frequencies.
        spec_n_fft: samples of a Fourier transform; likewise the other settings of `Spectrogram`.
        num_register_tokens: number of register tokens, which come first.
    """

    @checks_arguments
    def __init__(
        self,
        dim: int,
        depth: int,
        mlp_dim: int,
        num_classes: int | None = None,
        patch_size: int | Sequence[int] = 16,
        dim_head: int = 64,
        heads: int = 8,
        dropout: float = 0.0,
        accept_spec: bool = False,
        accept_spec_time_first: bool = True,
        spec_n_fft: int = 128,
        spec_power: float = 2.0,
        spec_win_length: int = 24,
        spec_hop_length: int | None = None,
        spec_pad: int = 0,
        spec_center: bool = True,
        spec_pad_mode: str = "reflect",
        num_register_tokens: int = 4,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.depth = depth
        self.accept_spec = accept_spec
        self.time_first = accept_spec_time_first
        self.spectrogram = Spectrogram(
            spec_n_fft,
            window=spec_win_length,
            hop=spec_win_length // 2 if spec_hop_length is None else spec_hop_length,
            power=spec_power,
            pad=spec_pad,
            center=spec_center,
            pad_mode=spec_pad_mode,
        )
        patch = pair(patch_size)
        self.grid = PatchGrid(patch, patch, dynamic=True, crop=True)
        self.patch_embed = PatchEmbed(self.grid, 1, dim, norm_eps=NORM_EPS)
        self.num_registers = num_register_tokens
        self.registers = learned_table(num_register_tokens, dim) if num_register_tokens else None
        self.encoder = GatedEncoder(
            dim, depth=depth, heads=heads, dim_head=dim_head, mlp_dim=mlp_dim, dropout=dropout, norms=2
        )
        self.head = make_head(dim, num_classes)

    def embed(self, sounds: Float[Tensor, "b ..."]) -> Float[Tensor, "b n d"]:
        """Return the tokens that enter the layers: registers, then patches with fixed positions.

        Raises:
            ValueError: if the rank is not that of sounds or spectrograms, or there is no whole patch.
        """
        check_rank(sounds, 2 + self.accept_spec)
        if self.accept_spec:
            spectrum = sounds.mT if self.time_first else sounds
        else:
            spectrum = self.spectrogram(sounds)
        patches = self.patch_embed(spectrum[:, None])
        table = sincos_table(self.grid.fit(spectrum.shape[1:]), self.dim).to(patches)
        return put_before(patches + table, *(() if self.registers is None else (self.registers,)))

    def forward(self, raw_audio_or_spec: Float[Tensor, "b ..."], return_hiddens: bool = False) -> Any:
        """Compute logits, or, if asked for, the tokens after the norms and those before each layer.

        Args:
            raw_audio_or_spec: sounds (b, samples), or spectrograms (b, times, frequencies).
            return_hiddens: return tokens instead.
        """
        tokens, hiddens = self.encoder(self.embed(raw_audio_or_spec))
        if return_hiddens:
            return tokens, torch.stack(hiddens)
        return self.head(tokens[:, self.num_registers :].mean(dim=1))


class Spectrogram(ComputedBuffers):
    """Powers of the frequencies of a sound over time, by a Fourier transform of windows (Hann's).

    Args:
        n_fft: samples of a transform, half as many frequencies and one.
        window: samples of a window, at most `n_fft`.
        hop: samples from one window to the next.
        power: exponent of the magnitudes.
        pad: samples of silence before and after a sound.
        center: windows are centred at multiples of the hop, for which the sound is continued at both ends.
        pad_mode: how it is: "reflect", "constant", "replicate" or "circular".

    Raises:
        ValueError: if the window is longer than the transform, or the mode is unknown.
    """

    window: Tensor

    def __init__(
        self, n_fft: int, *, window: int, hop: int, power: float, pad: int, center: bool, pad_mode: str
    ) -> None:
        super().__init__()
        check_choice("spec_pad_mode", pad_mode, ("reflect", "constant", "replicate", "circular"))
        if window > n_fft or hop < 1:
            raise ValueError(
                f"spec_win_length must be at most spec_n_fft={n_fft}, with a hop of 1 or more, "
                f"got {window} and {hop}"
            )
        self.n_fft = n_fft
        self.samples = window
        self.hop = hop
        self.power = power
        self.pad = pad
        self.center = center
        self.pad_mode = pad_mode
        self.register_computed()

    def compute_buffers(self) -> dict[str, Tensor]:
        """Return the window."""
        return {"window": torch.hann_window(self.samples)}

    def forward(self, sounds: Float[Tensor, "b t"]) -> Float[Tensor, "b f n"]:
        """Return the spectrogram of each sound, frequencies first."""
        spectrum = torch.stft(
            F.pad(sounds, (self.pad, self.pad)),
            self.n_fft,
            self.hop,
            self.samples,
            self.window,
            self.center,
            self.pad_mode,
            return_complex=True,
        )
        return spectrum.abs().pow(self.power)


class VAAT(nn.Module):
    """A policy that reads the layers of two encoders: from what a robot sees and hears to its next actions.

    Args:
        vit: the model of images, or its arguments.
        ast: the model of sounds, or its arguments.
        dim: dimension of the policy's tokens.
        depth: number of its layers.
        heads: number of heads that read; each has `dim_head` channels.
        dim_action: numbers of an action.
        num_image_views: views of the scene, each seen on its own; None for one.
        num_audio_views: microphones, each heard on its own; None for one.
        num_tasks: number of tasks, which are passed by number; None for a policy of one task.
        dim_extra_token: numbers of a further input, such as the robot's state; None for none.
        num_register_tokens: number of register tokens.
        action_chunk_len: actions that are predicted at once.
        time_seq_len: times, from the first to the present one, each seen on its own.
        add_self_attn: tokens attend to each other in each layer, with `self_attn_heads` of
            `self_attn_dim_head` channels.
        ast_layer_indices: for each layer, after how many of the layers of `ast` it reads: 0 what enters the
            first, its depth the output of the norms; default what enters the layer beside it.
        vit_layer_indices: likewise of `vit`.
        num_advantage_bins: number of degrees of advantage on which actions can be conditioned; 0 for none.

    Raises:
        ValueError: if there is not one index for each layer, or one is outside the encoder.
    """

    @checks_arguments
    def __init__(
        self,
        vit: ViT | Mapping[str, Any],
        ast: AST | Mapping[str, Any],
        *,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        dim_action: int,
        mlp_dim: int,
        num_image_views: int | None = None,
        num_audio_views: int | None = None,
        num_tasks: int | None = None,
        dim_extra_token: int | None = None,
        num_register_tokens: int = 4,
        action_chunk_len: int = 7,
        time_seq_len: int = 1,
        dropout: float = 0.0,
        add_self_attn: bool = True,
        self_attn_heads: int = 4,
        self_attn_dim_head: int = 32,
        ast_layer_indices: Sequence[int] | None = None,
        vit_layer_indices: Sequence[int] | None = None,
        num_advantage_bins: int = 0,
    ) -> None:
        super().__init__()
        self.vit = ViT(**vit) if isinstance(vit, Mapping) else vit
        self.ast = AST(**ast) if isinstance(ast, Mapping) else ast
        for name, part, kind in (("vit", self.vit, ViT), ("ast", self.ast, AST)):
            if not isinstance(part, kind):
                found = f"{type(part).__module__}.{type(part).__name__}"
                raise ValueError(f"{name} must be a `vaat.{kind.__name__}` or its arguments, got {found}")
        self.reads = check_reads("vit_layer_indices", vit_layer_indices, depth, self.vit.depth)
        self.hears = check_reads("ast_layer_indices", ast_layer_indices, depth, self.ast.depth)
        self.scene = Scene(self.vit.dim, views=num_image_views or 1, frames=time_seq_len)
        self.sounds = Scene(self.ast.dim, views=num_audio_views or 1)
        self.decoder = ActionDecoder(
            dim,
            (self.vit.dim, self.ast.dim),
            depth=depth,
            heads=heads,
            dim_head=dim_head,
            mlp_dim=mlp_dim,
            dim_action=dim_action,
            chunk=action_chunk_len,
            num_registers=num_register_tokens,
            num_tasks=num_tasks,
            dim_extra=dim_extra_token,
            advantages=num_advantage_bins,
            self_heads=self_attn_heads if add_self_attn else 0,
            self_dim_head=self_attn_dim_head,
            **of_layers(dropout),
        )

    def forward(
        self,
        video_or_image: Float[Tensor, "b ..."],
        audio_or_spec: Float[Tensor, "b ..."],
        *,
        extra: Float[Tensor, "b s"] | None = None,
        tasks: Int[Tensor, " b"] | None = None,
        advantages: Int[Tensor, " b"] | int | None = None,
        actions: Float[Tensor, "b chunk a"] | None = None,
        return_hiddens: bool = False,
        freeze_vit: bool = False,
        freeze_ast: bool = False,
    ) -> Any:
        """Predict the next actions.

        Args:
            video_or_image: (b, views, c, times, height, width); the axes of views and of times may be left
                out if there is one of them.
            audio_or_spec: sounds (b, views, samples), or spectrograms (b, views, times, frequencies); the
                axis of views may be left out if there is one.
            extra: a further input, such as the robot's state.
            tasks: the number of each sample's task.
            advantages: the degree of advantage on which actions are conditioned, from 0; -1 for none.
            actions: the true actions.
            return_hiddens: return the tokens before the first and after each layer, too.
            freeze_vit: compute no gradients of the model of images.
            freeze_ast: compute no gradients of the model of sounds.

        Returns:
            The actions (b, chunk, a); in a tuple with the tokens (depth + 1, b, n, dim), if asked for; or the
            L1 loss, if true actions are given.

        Raises:
            ValueError: if an input is not what the policy takes.
        """
        views, frames = self.scene.views, self.scene.frames
        if video_or_image.ndim == 5 and frames == 1:
            video_or_image = video_or_image.unsqueeze(3)
        images = single_images(video_or_image, views=views, frames=frames)
        sounds = single_sounds(audio_or_spec, views=self.sounds.views, rank=1 + self.ast.accept_spec)
        with torch.no_grad() if freeze_vit else nullcontext():
            seen = self.vit.encoder.read(self.vit.embed(images), self.reads)
        with torch.no_grad() if freeze_ast else nullcontext():
            heard = self.ast.encoder.read(self.ast.embed(sounds), self.hears)
        pairs = zip(self.reads, self.hears, strict=True)
        contexts = [(self.scene(seen[one]), self.sounds(heard[other])) for one, other in pairs]
        predicted, hiddens = self.decoder(contexts, tasks=tasks, extra=extra, advantages=advantages)
        return answer(predicted, hiddens, actions, return_hiddens)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        set_grad_checkpointing(self, enable)


def put_before(tokens: Float[Tensor, "b n d"], *tables: Float[Tensor, "_ d"]) -> Float[Tensor, "b m d"]:
    """Put learned tokens before those of each sample."""
    return torch.cat([*(table.expand(tokens.shape[0], -1, -1) for table in tables), tokens], dim=1)


def make_head(dim: int, num_classes: int | None) -> nn.Module:
    """Build a classifier; the identity for no classes."""
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    init_xavier(head)
    return head


@fx_leaf
def check_rank(sounds: Tensor, rank: int) -> None:
    """Check the number of axes of sounds or spectrograms.

    Raises:
        ValueError: if it is another.
    """
    if sounds.ndim != rank:
        what = "sounds of rank 2 (batch, samples)" if rank == 2 else "spectrograms of rank 3"
        raise ValueError(f"expected {what}, got shape {tuple(sounds.shape)}")


@fx_leaf
def single_sounds(sounds: Float[Tensor, "b ..."], *, views: int, rank: int) -> Float[Tensor, "s ..."]:
    """Put the sounds or spectrograms of all views in the batch, one after the other.

    Args:
        views: number of views.
        rank: axes of one sound or spectrogram.

    Raises:
        ValueError: if the rank, or the number of views, is another.
    """
    if views == 1 and sounds.ndim == 1 + rank:
        return sounds
    if sounds.ndim != 2 + rank or sounds.shape[1] != views:
        raise ValueError(
            f"expected {views} views of sounds with {rank} axes each, got shape {tuple(sounds.shape)}"
        )
    return sounds.flatten(0, 1)
