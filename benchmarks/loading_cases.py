"""All that loading is measured with."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import loading_nd as nd
import loading_plain as plain
import loading_positions as positions
import loading_staged as staged
import loading_tokens as tokens
import loading_variants as variants
from loading_case import Case, beside

from vit_pytorch.pretrained.tables import references_of
from vit_pytorch.pretrained.tables import tables as all_tables

# What is measured with more than the models beside a table (`Reference`).
FAMILIES: dict[str, tuple[Callable[[], Iterator[Case]], ...]] = {
    "ViT": (plain.vit, plain.language_towers, positions.rotary, positions.beit, positions.hybrid),
    "ViTamin": (positions.vitamin,),
    "Gemma4ViT": (plain.gemma4,),
    "DistillableViT": (plain.distilled,),
    "ViT3D": (nd.videos,),
    "ViT1D": (nd.signals,),
    "DeepViT": (variants.deepvit,),
    "CaiT": (variants.cait,),
    "T2TViT": (variants.t2t,),
    "CCT": (variants.cct, nd.cct),
    "SLViT": (variants.small_datasets,),
    "ATSViT": (variants.ats,),
    "PatchMergerViT": (variants.merger,),
    "ParallelViT": (variants.parallel,),
    "NaViT": (variants.na_vit,),
    "XCiT": (variants.xcit,),
    "SAMViT": (variants.sam_vit,),
    "LocalViT": (tokens.local_vit,),
    "UViT": (tokens.uvit,),
    "NoisePredictor": (tokens.noise_predictor,),
    "SigLIPVAT": (tokens.policy,),
    "VAAT": (tokens.policy_with_sounds,),
    "JumboViT": (tokens.jumbo,),
    "CrossViT": (staged.cross_vit,),
    "TNT": (staged.tnt,),
    "PiT": (staged.pit,),
    "LeViT": (staged.levit,),
    "EfficientFormer": (staged.efficientformer,),
    "EfficientFormerV2": (staged.efficientformer_v2,),
    "EfficientViT": (staged.efficientvit,),
    "MetaFormer": (staged.metaformer,),
    "CvT": (staged.cvt,),
    "Visformer": (staged.visformer,),
    "SwinTransformer": (staged.swin,),
    "SwinTransformerV2": (staged.swin_v2,),
    "CoAtNet": (staged.coatnet,),
    "DaViT": (staged.davit,),
    "Hiera": (staged.hiera,),
    "SAM2Hiera": (staged.sam2_hiera,),
    "MViTv2": (staged.mvit_v2,),
    "PVTv2": (staged.pvt_v2,),
    "TwinsSVT": (staged.twins,),
    "RegionViT": (staged.region_vit,),
    "CrossFormer": (staged.crossformer,),
    "SepViT": (staged.sep_vit,),
    "ScalableViT": (staged.scalable,),
    "MaxViT": (staged.max_vit,),
    "NesT": (staged.nest,),
    "MobileViT": (staged.mobile_vit,),
    "MobileViTV2": (staged.mobile_vit_v2,),
    "TinyViT": (staged.tiny_vit,),
    "EdgeNeXt": (staged.edgenext,),
    "SwiftFormer": (staged.swiftformer,),
    "SHViT": (staged.shvit,),
}


def cases(tables: Iterable[str]) -> Iterator[Case]:
    """Build one case of these tables after the other."""
    chosen = list(tables)
    for table, families in FAMILIES.items():
        for family in families if table in chosen else ():
            yield from family()
    for table in chosen:
        for reference in references_of(table):
            yield beside(table, reference)


def read_arguments(description: str | None) -> argparse.Namespace:
    """Read a command line that names the file of the rows, `output`, and some `tables`; None for all."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    parser.add_argument(
        "--tables", nargs="+", choices=all_tables(), help="measure these alone, keep the others' rows"
    )
    return parser.parse_args()
