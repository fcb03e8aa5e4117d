"""The masked autoencoder computes what the authors' code and transformers compute."""

from __future__ import annotations

from argparse import Namespace

import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.papers.golden import read_golden
from tests.papers.reference import TOLERANCE, difference, images, randomise
from vit_pytorch import MAE, SimpleViT, ViT, create_model, load_pretrained
from vit_pytorch.mae import fix_positions
from vit_pytorch.pretrained import load_autoencoder

SMALL = {"image_size": 32, "patch_size": 8, "num_classes": 0, "heads": 4, "dim_head": 12, "mlp_dim": 192}
DECODER = {"decoder_dim": 32, "decoder_depth": 2, "decoder_heads": 4}

pytestmark = pytest.mark.filterwarnings("ignore:16 patches are few")


def make(*, dim: int = 48, depth: int = 2, **options) -> MAE:
    return MAE(encoder=ViT(**SMALL, dim=dim, depth=depth), **DECODER, **options)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_equals_the_authors_code(norm_pix_loss):
    _, weights, tensors = read_golden("mae")
    mae = make(norm_pix_loss=norm_pix_loss)
    report = load_autoencoder(mae, weights)
    assert (report.format, report.kept, report.dropped) == ("MAE", (), ())
    predicted, mask = mae.eval().predict(tensors["input"], tensors["noise"])
    assert difference(predicted, tensors["pred"]) < TOLERANCE
    assert mask.equal(tensors["mask"].bool())
    loss = mae(tensors["input"], tensors["noise"])
    assert (loss - tensors[f"loss.norm_pix_{norm_pix_loss}".lower()]).abs() < TOLERANCE


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_equals_transformers(tmp_path, norm_pix_loss):
    config = ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=32,
        patch_size=8,
        decoder_num_attention_heads=4,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_intermediate_size=128,
        layer_norm_eps=1e-6,
        norm_pix_loss=norm_pix_loss,
        attn_implementation="sdpa",
    )
    theirs = ViTMAEForPreTraining(config)
    ours = make(norm_pix_loss=norm_pix_loss).eval()
    randomise(theirs)
    # This release leaves the tables at zero; the authors' decoder table is compared in the test above.
    theirs.decoder.decoder_pos_embed.data = F.pad(ours.positions.table, (0, 0, 1, 0))
    state = theirs.state_dict()
    load_autoencoder(ours, state)
    # files have other names of layers than the model in memory
    theirs.save_pretrained(tmp_path)
    again = make(norm_pix_loss=norm_pix_loss)
    load_autoencoder(again, tmp_path)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in ours.state_dict().items())
    noise = torch.rand(2, 16)
    pixels = images(32, 32)
    want = theirs(pixels, noise=noise)
    predicted, mask = ours.predict(pixels, noise)
    assert difference(predicted, want.logits) < TOLERANCE
    assert mask.equal(want.mask.bool())
    loss = ours(pixels, noise)
    assert (loss - want.loss).abs() < TOLERANCE
    loss.backward()
    want.loss.backward()
    grad = ours.encoder.patch_embed.proj.weight.grad
    want_grad = theirs.vit.embeddings.patch_embeddings.projection.weight.grad
    torch.testing.assert_close(grad, want_grad, rtol=1e-4, atol=1e-6)


def test_an_autoencoder_is_loaded_whole_or_not_at_all(tmp_path):
    """From the authors' files, too; the encoder alone, another width and other positions are refused."""
    _, weights, tensors = read_golden("mae")
    torch.save({"model": weights, "args": Namespace(epochs=800)}, tmp_path / "mae.pth")
    mae = make().eval()
    load_autoencoder(mae, tmp_path / "mae.pth")
    assert difference(mae.predict(tensors["input"], tensors["noise"])[0], tensors["pred"]) < TOLERANCE
    alone = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder_")}
    moved = {**weights, "decoder_pos_embed": weights["decoder_pos_embed"] + 0.1}
    for state, size, message in (
        (alone, {}, "holds no autoencoder"),
        (moved, {}, "differ by up to 0.1"),
        (weights, {"decoder_depth": 1}, r"left over \(12\): decoder.1"),
        (weights, {"dim": 36, "depth": 2}, "does not fit"),
    ):
        other = (
            make(**size)
            if "dim" in size
            else MAE(encoder=ViT(**SMALL, dim=48, depth=2), **{**DECODER, **size})
        )
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_autoencoder(other, state)
        assert all(tensor.equal(before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(ValueError, match="got TimmBackbone"):
        load_autoencoder(MAE(encoder=timm.create_model("vit_tiny_patch16_224", depth=1)), weights)


@pytest.mark.filterwarnings("ignore:.*have their initial values:UserWarning")
@pytest.mark.parametrize("num_classes", [0, 7])
def test_whole_checkpoints_are_read_by_the_encoder(num_classes):
    """The decoder is left out, and a classifier, which pretraining has none of, stays as it is."""
    _, weights, _ = read_golden("mae")
    vit = ViT(**{**SMALL, "num_classes": num_classes}, dim=48, depth=2)
    head = [parameter.clone() for parameter in vit.head.parameters()]
    report = load_pretrained(vit, weights)
    assert {name.split(".")[0] for name in report.dropped} == {
        "mask_token",
        *("decoder_embed", "decoder_pos_embed", "decoder_blocks", "decoder_norm", "decoder_pred"),
    }
    assert vit.patch_embed.proj.weight.equal(weights["patch_embed.proj.weight"])
    assert all(new.equal(old) for new, old in zip(vit.head.parameters(), head, strict=True))


def test_base_has_the_papers_size():
    """With the paper's decoder: 111,655,680 weights that learn, and the encoder's fixed table."""
    with torch.device("meta"):
        vit = create_model("vit_base_patch16_224", num_classes=0)
    vit = vit.to_empty(device="cpu")
    mae = MAE(encoder=vit, fixed_positions=True)
    assert sum(p.numel() for p in mae.parameters() if p.requires_grad) == 111_655_680
    assert (len(mae.decoder), mae.decoder[0].attention.dim_head) == (8, 32)


def test_fixed_positions_are_the_authors():
    _, weights, _ = read_golden("mae")
    mae = make(fixed_positions=True)
    table = mae.encoder.positions.table
    torch.testing.assert_close(table.data, weights["pos_embed"])
    assert not table.requires_grad
    with pytest.raises(ValueError, match="SimpleViT has none"):
        fix_positions(
            SimpleViT(image_size=40, patch_size=8, num_classes=0, dim=48, depth=1, heads=4, mlp_dim=9)
        )


def test_the_encoder_sees_the_visible_patches_alone():
    mae = make().eval()
    pixels, noise = images(32, 32), torch.rand(2, 16)
    seen = []
    mae.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    predicted, mask = mae.predict(pixels, noise)
    assert seen[0].shape == (2, 1 + 4, 48)
    assert mask.sum(dim=1).tolist() == [12, 12]
    patches = mae.encoder.patchify(pixels)
    other = mae.encoder.grid.unpatchify(torch.where(mask[..., None], torch.randn_like(patches), patches))
    assert mae.predict(other, noise)[0].equal(predicted)


def test_the_loss_is_that_of_hidden_pixels():
    mae = make().eval()
    pixels, noise = images(32, 32), torch.rand(2, 16)
    predicted, mask = mae.predict(pixels, noise)
    squares = (predicted - mae.encoder.patchify(pixels)).square()
    torch.testing.assert_close(mae(pixels, noise), squares[mask].mean())


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_tokens_pass_through_both(pool):
    """The class token and registers reach the decoder, and all weights learn."""
    vit = ViT(**SMALL, dim=48, depth=2, pool=pool, num_registers=2)
    mae = MAE(encoder=vit, **DECODER)
    lengths = []
    mae.decoder[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    mae(images(32, 32)).backward()
    assert lengths == [16 + vit.num_prefix_tokens]
    assert vit.num_prefix_tokens == (3 if pool == "cls" else 2)
    assert [name for name, p in mae.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_reconstruct():
    pixels, noise = images(32, 32), torch.rand(2, 16)
    for norm_pix_loss in (False, True):
        mae = randomise(make(norm_pix_loss=norm_pix_loss))
        predicted, mask = mae.predict(pixels, noise)
        shown = mae.reconstruct(pixels, noise)
        assert all(picture.shape == pixels.shape and not picture.requires_grad for picture in shown)
        patchify = mae.encoder.grid.patchify
        patches, hidden = patchify(pixels), mask[..., None].expand(-1, -1, 192)
        assert patchify(shown.masked).equal(patches.masked_fill(hidden, 0.0))
        assert patchify(shown.pasted)[~hidden].equal(patches[~hidden])
        assert patchify(shown.pasted)[hidden].equal(patchify(shown.predicted)[hidden])
        if norm_pix_loss:
            mean, std = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True).add(1e-6).sqrt()
            predicted = predicted * std + mean
        torch.testing.assert_close(patchify(shown.predicted), predicted)


def test_smaller_images_and_any_shape():
    vit = ViT(**{**SMALL, "image_size": (32, 48)}, dim=48, depth=1)
    mae = MAE(encoder=vit, **DECODER).eval()
    predicted, mask = mae.predict(images(16, 48), torch.rand(2, 12))
    assert predicted.shape == (2, 12, 192)
    assert mask.sum(dim=1).tolist() == [9, 9]


def test_around_timm():
    """A ViT of timm gives the loss of ours with its weights."""
    theirs = randomise(
        timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            patch_size=8,
            embed_dim=48,
            depth=2,
            num_heads=4,
            num_classes=0,
        )
    )
    wrapped = MAE(encoder=theirs, **DECODER)
    ours = make()
    load_pretrained(ours.encoder, theirs.state_dict())
    heads = {k: v for k, v in wrapped.state_dict().items() if not k.startswith("encoder.")}
    ours.load_state_dict(heads, strict=False)
    noise = torch.rand(2, 16)
    assert (wrapped(images(32, 32), noise) - ours(images(32, 32), noise)).abs() < TOLERANCE
    wrapped(images(32, 32)).backward()
    assert theirs.patch_embed.proj.weight.grad.any()


def test_wrong_input():
    mae = make()
    with pytest.raises(ValueError, match=r"shape \(2, 16\); got \(2, 15\)"):
        mae(images(32, 32), torch.rand(2, 15))
    with pytest.raises(ValueError, match="expected 3 channels, got 1"):
        mae(torch.randn(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"masking_ratio must be .*, got 1\.0"):
        make(masking_ratio=1.0)
    with pytest.raises(ValueError, match=r"masking 0\.95 of 16 patches leaves 0 visible"):
        make(masking_ratio=0.95)
    with pytest.raises(ValueError, match="dim must be a multiple of heads, got dim=32 and heads=5"):
        MAE(encoder=ViT(**SMALL, dim=48, depth=1), decoder_dim=32, decoder_heads=5)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("xcit_nano_12_p16_224", "1 prefix tokens?, of which 0 are there|has 1, of which 0 are there"),
        ("pit_ti_224", "expected a model of one sequence"),
    ],
)
def test_other_models_are_refused(name, error):
    with pytest.raises(ValueError, match=error):
        MAE(encoder=create_model(name))


def test_a_model_that_drops_tokens_is_refused():
    vit = create_model("vit_small_patch16_224_patch_merger", dim=48, depth=2, heads=3, mlp_dim=48)
    with pytest.raises(ValueError, match="needs a token for each patch"):
        MAE(encoder=vit, **DECODER)(F.pad(images(16, 16), (0, 208, 0, 208)))
