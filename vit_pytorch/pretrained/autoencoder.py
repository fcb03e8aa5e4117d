"""Loading whole masked autoencoders, the decoder included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from vit_pytorch.base import VisionModel
from vit_pytorch.mae import MAE
from vit_pytorch.pretrained.agreement import check_agreement
from vit_pytorch.pretrained.extents import build_saved
from vit_pytorch.pretrained.load import LoadReport, load_pretrained
from vit_pytorch.pretrained.rules import Format
from vit_pytorch.pretrained.source import Checkpoint, open_source
from vit_pytorch.pretrained.tables.mae import FORMATS, POSITIONS
from vit_pytorch.weights import IncompatibleKeys, check_values, state_dict_diff


def load_autoencoder(mae: MAE, checkpoint: Checkpoint) -> LoadReport:
    """Load a checkpoint of a whole masked autoencoder, all or nothing, so that its pretraining can go on.

    Known are the authors' names (`models_mae`) and those of transformers' `ViTMAEForPreTraining`.

    Args:
        mae: what takes the weights, around a model of this package.
        checkpoint: as `load_pretrained` takes it.

    Returns:
        What was done with the encoder; its positions are resized where the grid is another.

    Raises:
        ValueError: where there is no decoder in it, or anything does not fit; nothing is changed then.
        OSError: where the checkpoint cannot be read.
    """
    source = open_source(checkpoint)
    encoder = mae.encoder
    if not isinstance(encoder, VisionModel):
        raise ValueError(f"expected an autoencoder of a model of this package, got {type(encoder).__name__}")
    layout = find_format(source.state)
    if layout is None:
        raise ValueError(f"{source.name} holds no autoencoder: its encoder alone is for load_pretrained")
    bare = layout.strip_prefix(source.state)
    assert bare is not None, "the format was recognised by its marks"
    decoder, rest = _split(bare)
    found, _ = layout.read(decoder, mae)
    difference = _decoder_misfit(mae, found)
    if difference:
        raise ValueError(f"{source.name} (format {layout.name}) does not fit the decoder:\n{difference}")
    check_values(found, source.name)
    _check_positions(mae, decoder, source.name)
    check_agreement(encoder, source.config, build_saved(encoder, source.config), source=source.name)
    report = load_pretrained(encoder, rest)
    mae.load_state_dict(found, strict=False)
    report = replace(report, source=source.name, format=layout.name, license=source.license)
    encoder.load_report = report
    return report


def find_format(state: Mapping[str, Tensor]) -> Format | None:
    """Tell the format of a whole autoencoder; None where there is no decoder."""
    return next((layout for layout in FORMATS if layout.strip_prefix(state) is not None), None)


def _split(bare: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Part what stands beside the encoder from the encoder, whose names get back what stood before them."""
    beside = {name: t for name, t in bare.items() if name.startswith("decoder_") or name == "mask_token"}
    rest = {name.removeprefix("/"): t for name, t in bare.items() if name not in beside}
    return beside, rest


def _decoder_misfit(mae: MAE, found: Mapping[str, Tensor]) -> IncompatibleKeys:
    whole = state_dict_diff(mae, found)
    missing = tuple(name for name in whole.missing if not name.startswith("encoder."))
    return IncompatibleKeys(missing, whole.unexpected, whole.sizes)


def _check_positions(mae: MAE, decoder: Mapping[str, Tensor], source: str) -> None:
    """Hold the decoder's fixed positions against those computed here, where the grid is the same."""
    table = decoder.get(POSITIONS)
    own = mae.positions.table
    if table is None or table.shape[1] != own.shape[1] + 1 or table.device.type == "meta":
        return
    apart = float((table[:, 1:] - own.to(table)).abs().max())
    if table[:, :1].any() or apart > 1e-4:
        raise ValueError(
            f"{source}: the decoder's positions are sines and cosines, 0 for the class token; "
            f"these differ by up to {max(apart, float(table[:, :1].abs().max())):.3g}"
        )
