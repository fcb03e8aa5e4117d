"""Vision Transformers for PyTorch that people can trust.

Build a model by its class, `ViT(image_size=224, patch_size=16, …)`, or by its name,
`create_model("vit_small_patch16_224")`; `list_models("*patch16*")` lists the names.

The catalogue, each with its paper, its module and its classes:

- An Image is Worth 16x16 Words (arXiv:2010.11929): `vit_pytorch.vit`, `ViT`
- An Image is Worth 16x16 Words, hybrid (arXiv:2010.11929): `vit_pytorch.hybrid`, `HybridViT`
- ViTamin: Designing Scalable Vision Models in the Vision-Language Era (arXiv:2404.02132):
  `vit_pytorch.vitamin`, `ViTamin`
- Gemma 4 Technical Report, the vision tower (arXiv:2607.02770): `vit_pytorch.gemma4_vit`, `Gemma4ViT`
- Better plain ViT baselines for ImageNet-1k (arXiv:2205.01580): `vit_pytorch.simple_vit`, `SimpleViT`
- NaViT: any Aspect Ratio and Resolution (arXiv:2307.06304): `vit_pytorch.na_vit`, `NaViT`
- NaViT in nested tensors (arXiv:2307.06304): `vit_pytorch.na_vit_nested_tensor`, `NaViT`
- Training data-efficient image transformers & distillation (arXiv:2012.12877):
  `vit_pytorch.distill`, `DistillableViT`, `DistillWrapper`
- DeepViT: Towards Deeper Vision Transformer (arXiv:2103.11886): `vit_pytorch.deepvit`, `DeepViT`
- Going deeper with Image Transformers (arXiv:2103.17239): `vit_pytorch.cait`, `CaiT`
- ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases (arXiv:2103.10697):
  `vit_pytorch.convit`, `ConViT`
- Tokens-to-Token ViT (arXiv:2101.11986): `vit_pytorch.t2t`, `T2TViT`
- Escaping the Big Data Paradigm with Compact Transformers (arXiv:2104.05704): `vit_pytorch.cct`, `CCT`
- CrossViT: Cross-Attention Multi-Scale ViT (arXiv:2103.14899): `vit_pytorch.cross_vit`, `CrossViT`
- Transformer in Transformer (arXiv:2103.00112): `vit_pytorch.tnt`, `TNT`
- Rethinking Spatial Dimensions of Vision Transformers (arXiv:2103.16302): `vit_pytorch.pit`, `PiT`
- LeViT: a Vision Transformer in ConvNet's Clothing (arXiv:2104.01136): `vit_pytorch.levit`, `LeViT`
- CvT: Introducing Convolutions to Vision Transformers (arXiv:2103.15808): `vit_pytorch.cvt`, `CvT`
- Visformer: The Vision-friendly Transformer (arXiv:2104.12533): `vit_pytorch.visformer`, `Visformer`
- Swin Transformer: Hierarchical ViT using Shifted Windows (arXiv:2103.14030):
  `vit_pytorch.swin`, `SwinTransformer`
- Swin Transformer V2: Scaling Up Capacity and Resolution (arXiv:2111.09883):
  `vit_pytorch.swin_v2`, `SwinTransformerV2`
- Swin Transformer V2 as C. Reich and timm built it (arXiv:2111.09883):
  `vit_pytorch.swin_v2_cr`, `SwinTransformerV2CR`
- Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles (arXiv:2306.00989):
  `vit_pytorch.hiera`, `Hiera`
- SAM 2: Segment Anything in Images and Videos (arXiv:2408.00714): `vit_pytorch.sam2_hiera`, `SAM2Hiera`
- MViTv2: Improved Multiscale Vision Transformers for Classification and Detection (arXiv:2112.01526):
  `vit_pytorch.mvit_v2`, `MViTv2`
- PVT v2: Improved Baselines with Pyramid Vision Transformer (arXiv:2106.13797): `vit_pytorch.pvt_v2`, `PVTv2`
- Twins: Revisiting the Design of Spatial Attention (arXiv:2104.13840): `vit_pytorch.twins_svt`, `TwinsSVT`
- RegionViT: Regional-to-Local Attention (arXiv:2106.02689): `vit_pytorch.regionvit`, `RegionViT`
- CrossFormer: Hinging on Cross-scale Attention (arXiv:2108.00154): `vit_pytorch.crossformer`, `CrossFormer`
- ScalableViT: Rethinking the Context-oriented Generalization (arXiv:2203.10790):
  `vit_pytorch.scalable_vit`, `ScalableViT`
- SepViT: Separable Vision Transformer (arXiv:2203.15380): `vit_pytorch.sep_vit`, `SepViT`
- MaxViT: Multi-Axis Vision Transformer (arXiv:2204.01697): `vit_pytorch.max_vit`, `MaxViT`
- CoAtNet: Marrying Convolution and Attention for All Data Sizes (arXiv:2106.04803):
  `vit_pytorch.coatnet`, `CoAtNet`
- DaViT: Dual Attention Vision Transformers (arXiv:2204.03645): `vit_pytorch.davit`, `DaViT`
- Global Context Vision Transformers (arXiv:2206.09959): `vit_pytorch.gc_vit`, `GCViT`
- VOLO: Vision Outlooker for Visual Recognition (arXiv:2106.13112): `vit_pytorch.volo`, `VOLO`
- Co-Scale Conv-Attentional Image Transformers (arXiv:2104.06399): `vit_pytorch.coat`, `CoaT`
- Nested Hierarchical Transformer (arXiv:2105.12723): `vit_pytorch.nest`, `NesT`
- MobileViT: Light-weight Vision Transformer (arXiv:2110.02178): `vit_pytorch.mobile_vit`, `MobileViT`
- TinyViT: Fast Pretraining Distillation for Small Vision Transformers (arXiv:2207.10666):
  `vit_pytorch.tiny_vit`, `TinyViT`
- Separable Self-attention for Mobile Vision Transformers (arXiv:2206.02680):
  `vit_pytorch.mobile_vit_v2`, `MobileViTV2`
- EdgeNeXt: Amalgamated CNN-Transformer Architecture for Mobile Vision (arXiv:2206.10589):
  `vit_pytorch.edgenext`, `EdgeNeXt`
- SwiftFormer: Efficient Additive Attention for Mobile Vision (arXiv:2303.15446):
  `vit_pytorch.swiftformer`, `SwiftFormer`
- EfficientFormer: Vision Transformers at MobileNet Speed (arXiv:2206.01191):
  `vit_pytorch.efficientformer`, `EfficientFormer`
- MetaFormer Baselines for Vision (arXiv:2210.13452): `vit_pytorch.metaformer`, `MetaFormer`
- Rethinking Vision Transformers for MobileNet Size and Speed (arXiv:2212.08059):
  `vit_pytorch.efficientformer_v2`, `EfficientFormerV2`
- EfficientViT: Memory Efficient ViT with Cascaded Group Attention (arXiv:2305.07027):
  `vit_pytorch.efficientvit_msra`, `EfficientViT`
- SHViT: Single-Head ViT with Memory Efficient Macro Design (arXiv:2401.16456): `vit_pytorch.shvit`, `SHViT`
- XCiT: Cross-Covariance Image Transformers (arXiv:2106.09681): `vit_pytorch.xcit`, `XCiT`
- Segment Anything (arXiv:2304.02643): `vit_pytorch.sam_vit`, `SAMViT`
- MLP-Mixer: An all-MLP Architecture for Vision (arXiv:2105.01601): `vit_pytorch.mlp_mixer`, `MLPMixer`
- Patches Are All You Need? (arXiv:2201.09792): `vit_pytorch.conv_mixer`, `ConvMixer`
- Adaptive Token Sampling for Efficient Vision Transformers (arXiv:2111.15667): `vit_pytorch.ats_vit`, `ViT`
- Token Merging: Your ViT But Faster (arXiv:2210.09461): `vit_pytorch.tome`, `ToMeViT`
- Learning to Merge Tokens (arXiv:2202.12015): `vit_pytorch.vit_with_patch_merger`, `ViT`, `PatchMerger`
- Vision Transformer for Small-Size Datasets (arXiv:2112.13492):
  `vit_pytorch.vit_for_small_dataset`, `ViT`, `SPT`
- Three things everyone should know about Vision Transformers (arXiv:2203.09795):
  `vit_pytorch.parallel_vit`, `ViT`
- An Image is Worth 16x16 Words, for videos and volumes (arXiv:2010.11929): `vit_pytorch.vit_3d`, `ViT`
- Better plain ViT baselines, for videos and volumes (arXiv:2205.01580):
  `vit_pytorch.simple_vit_3d`, `SimpleViT`
- ViViT: A Video Vision Transformer (arXiv:2103.15691): `vit_pytorch.vivit`, `ViT`
- Compact Transformers, for videos and volumes (arXiv:2104.05704): `vit_pytorch.cct_3d`, `CCT`
- An Image is Worth 16x16 Words, for signals (arXiv:2010.11929): `vit_pytorch.vit_1d`, `ViT`
- nGPT: Normalized Transformer on the Hypersphere (arXiv:2410.01131):
  `vit_pytorch.normalized_vit`, `NormalizedViT`
- Fine-tuning Image Transformers using Learnable Memory (arXiv:2203.15243):
  `vit_pytorch.learnable_memory_vit`, `Adapter`, `Adapters`
- Learnable Memory, base and adapter as one model (arXiv:2203.15243): `vit_pytorch.memory_vit`, `MemoryViT`
- LocalViT: Bringing Locality to Vision Transformers (arXiv:2104.05707): `vit_pytorch.local_vit`, `LocalViT`
- All are Worth Words: A ViT Backbone for Diffusion Models (arXiv:2209.12152):
  `vit_pytorch.uvit`, `UViT`, `NoisePredictor`
- A Jumbo Token for Fast Plain Vision Transformers (arXiv:2502.15021): `vit_pytorch.jumbo_vit`, `JumboViT`
- LookupViT: Compressing visual information (arXiv:2407.12753): `vit_pytorch.look_vit`, `LookupViT`
- VAT: Vision Action Transformer (arXiv:2512.06013): `vit_pytorch.vat`, `VAT`
- Masked Autoencoders Are Scalable Vision Learners (arXiv:2111.06377): `vit_pytorch.mae`, `MAE`
- SimMIM: A Simple Framework for Masked Image Modeling (arXiv:2111.09886): `vit_pytorch.simmim`, `SimMIM`
- An Image is Worth 16x16 Words, masked patch prediction (arXiv:2010.11929): `vit_pytorch.mpp`, `MPP`
- Position Prediction as an Effective Pretraining Strategy (arXiv:2207.07611): `vit_pytorch.mp3`, `MP3`
- Emerging Properties in Self-Supervised Vision Transformers (arXiv:2104.14294): `vit_pytorch.dino`, `Dino`
- Efficient Self-supervised Vision Transformers (arXiv:2106.09785): `vit_pytorch.es_vit`, `EsViTTrainer`
- LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics (arXiv:2511.08544):
  `vit_pytorch.lejepa`, `LeJEPA`
- Decorrelation Speeds Up Vision Transformers (arXiv:2510.14657):
  `vit_pytorch.decorrelation`, `decorrelate`, `DecorLinear`
- LeVJEPA (arXiv:2608.27395): `vit_pytorch.levjepa`, `LeVJEPA`, `VideoTransformer`
- LeVJEPA, for arrays of one to seven axes (arXiv:2608.27395):
  `vit_pytorch.levjepa_nd`, `LeVJEPAND`, `NDTransformer`

Options of these under signatures of their own, as in the public vit-pytorch package:

- PatchDropout (arXiv:2208.07220): `vit_pytorch.vit_with_patch_dropout`, `ViT`
- PatchDropout, simplified (arXiv:2208.07220): `vit_pytorch.simple_vit_with_patch_dropout`, `SimpleViT`
- Vision Transformers Need Registers (arXiv:2309.16588):
  `vit_pytorch.simple_vit_with_register_tokens`, `SimpleViT`
- Scaling Vision Transformers to 22 Billion Parameters, normed queries and keys (arXiv:2302.05442):
  `vit_pytorch.simple_vit_with_qk_norm`, `SimpleViT`
- Value Residual Learning (arXiv:2410.17897): `vit_pytorch.simple_vit_with_value_residual`, `SimpleViT`
- Better plain ViT baselines, for signals (arXiv:2205.01580): `vit_pytorch.simple_vit_1d`, `SimpleViT`
- Hyper-Connections (arXiv:2409.19606): `vit_pytorch.simple_vit_with_hyper_connections`, `SimpleViT`
- Post-LayerNorm Is Back: Stable, ExpressivE, and Deep (arXiv:2601.19895):
  `vit_pytorch.vit_with_keel_post_ln`, `ViT`
- ViT-5: Vision Transformers for The Mid-2020s (arXiv:2602.08071): `vit_pytorch.vit_5`, `ViT`
- Revisiting Residual Connections: Orthogonal Updates (arXiv:2505.11881):
  `vit_pytorch.simple_vit_orthog_residual_update`, `SimpleViT`
- All are Worth Words, simplified (arXiv:2209.12152): `vit_pytorch.simple_uvit`, `SimpleUViT`
- Better plain ViT baselines, with tokens of the spectrum (arXiv:2205.01580):
  `vit_pytorch.simple_vit_with_fft`, `SimpleViT`
- Revisiting [CLS] and Patch Token Interaction in Vision Transformers (arXiv:2602.08626):
  `vit_pytorch.simple_vit_with_specialized_cls`, `SimpleViT`
- An Image is Worth 16x16 Words, for arrays of one to seven axes (arXiv:2010.11929):
  `vit_pytorch.vit_nd`, `ViTND`
- RoFormer, for arrays of one to seven axes (arXiv:2104.09864): `vit_pytorch.vit_nd_rotary`, `ViTND`
- Polar Coordinate Positional Embeddings (arXiv:2509.10534): `vit_pytorch.vit_nd_pope`, `ViTND`
- An Image is Worth 16x16 Words, pooling objects (arXiv:2010.11929): `vit_pytorch.vit_detpool`, `ViTDetPool`
- Attention Residuals (arXiv:2603.15031): `vit_pytorch.simple_vit_attn_residual`, `SimpleViTAttnResidual`
- MaxViT, with registers (arXiv:2204.01697): `vit_pytorch.max_vit_with_registers`, `MaxViT`
- RoFormer, in a ViT with convolved queries (arXiv:2104.09864): `vit_pytorch.rvt`, `RvT`
- Better plain ViT baselines, with gated attention (arXiv:2205.01580):
  `vit_pytorch.simple_vit_with_sparse_gating`, `SimpleViTWithSparseGating`
- Universal Transformers, as a looped ViT (arXiv:1807.03819): `vit_pytorch.looped_vit`, `LoopedViT`
- FlashAttention (arXiv:2205.14135): `vit_pytorch.simple_flash_attn_vit`, `SimpleViT`
- FlashAttention, for videos (arXiv:2205.14135): `vit_pytorch.simple_flash_attn_vit_3d`, `SimpleViT`
- Patch n' Pack: NaViT, for videos and volumes (arXiv:2307.06304):
  `vit_pytorch.na_vit_nested_tensor_3d`, `NaViT`
- An Image is Worth 16x16 Words, masks of causal axes (arXiv:2010.11929):
  `vit_pytorch.vit_nd_masking`, `get_nd_causal_mask_fn`
- Better plain ViT baselines, with projected relative positions (arXiv:2205.01580):
  `vit_pytorch.simple_vit_with_relative_proj_pos_bias`, `SimpleViT`
- Decorrelation Speeds Up Vision Transformers, as a loss (arXiv:2510.14657):
  `vit_pytorch.vit_with_decorr`, `ViT`
- An Image is Worth 16x16 Words, with full, linear and window attention (arXiv:2010.11929):
  `vit_pytorch.jet_vit`, `JetViT`
- Vision Action Transformer, around SigLIP (arXiv:2512.06013): `vit_pytorch.vat_siglip`, `SigLIPVAT`
- Vision-Audio Action Transformer, around an AST (arXiv:2104.01778): `vit_pytorch.vaat`, `VAAT`, `ViT`, `AST`
- WWT, tokens and slots of several levels (arXiv:2605.12021): `vit_pytorch.wwt`, `WWT`
- ViViT, with multi-order self-similarity (arXiv:2103.15691): `vit_pytorch.vivit_with_moss`, `ViViT`
- Attention Residuals with DeepCrossAttention (arXiv:2502.06785):
  `vit_pytorch.attn_residual_with_dca_simple_vit`, `SimpleViT`

Options of the plain ViT are papers, too: rotary positions (arXiv:2104.09864, arXiv:2403.13298), registers
(arXiv:2309.16588), PatchDropout (arXiv:2208.07220), Dual PatchNorm (arXiv:2302.01327),
value residuals (arXiv:2410.17897), hyper-connections (arXiv:2409.19606).

Around any encoder of tokens: `vit_pytorch.efficient`, `ViT`. Around any model, for videos:
`vit_pytorch.accept_video_wrapper`, `AcceptVideoWrapper`. Around any model, to look inside:
`vit_pytorch.recorder`, `Recorder`; `vit_pytorch.extractor`, `Extractor`. A model as the body of a detector:
`vit_pytorch.backbone`, `Backbone`.
"""

from importlib import import_module
from typing import Any

from vit_pytorch.create import create_model
from vit_pytorch.dino import Dino
from vit_pytorch.mae import MAE
from vit_pytorch.preprocessing import create_transform
from vit_pytorch.pretrained import load_pretrained
from vit_pytorch.registry import list_models
from vit_pytorch.simple_vit import SimpleViT
from vit_pytorch.vit import ViT

__all__ = [
    "MAE",
    "Dino",
    "Predictor",
    "SimpleViT",
    "ViT",
    "create_model",
    "create_transform",
    "fit",
    "list_models",
    "load_pretrained",
]
__version__ = "0.2.0"
# what needs Lightning and torchvision, by the module in which it is; imported when it is asked for
_LAZY = {"Predictor": "vit_pytorch.training.predictor", "fit": "vit_pytorch.cli.api"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
