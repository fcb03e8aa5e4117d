"""Arguments of models under the names that timm and transformers give them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from vit_pytorch.layers.arguments import UnknownArgumentError

# Names of one argument. A constructor has one of them and is understood by all, where it has no argument of
# that name itself.
SYNONYMS = (
    ("image_size", "img_size"),
    ("channels", "in_chans", "in_channels", "num_channels"),
    ("num_classes", "num_labels"),
    ("depth", "depths", "serial_depths", "num_layers", "num_hidden_layers"),
    ("mlp_dim", "intermediate_size"),
    ("act", "act_layer", "hidden_act"),
    ("pool", "global_pool"),
    ("num_registers", "reg_tokens", "num_register_tokens"),
    ("layer_scale", "init_values", "layer_scale_init_value"),
    ("norm_eps", "layer_norm_eps"),
    ("dropout", "proj_drop_rate"),
    ("emb_dropout", "pos_drop_rate"),
    ("patch_dropout", "patch_drop_rate"),
    ("attn_dropout", "attn_drop_rate", "attention_probs_dropout_prob"),
    ("drop_path", "drop_path_rate", "layer_dropout"),
    ("heads", "num_heads", "num_attention_heads"),
    ("mlp_ratio", "mlp_ratios"),
    ("window_size", "window_sizes"),
    ("distilled", "distillation"),
    ("expansion", "mbconv_expand_ratio"),
    ("attention_depth", "num_vit"),
    ("reduction", "sr_ratios"),
    ("cls_depth", "cls_attn_layers", "depth_token_only"),
    ("local_layers", "local_up_to_layer"),
    ("stem_dim", "stem_hidden_dim", "init_channels"),
)
# values of such an argument: what they are called here
VALUES = {
    "pool": {"token": "cls", "avg": "mean"},
    "act": {
        "quick_gelu": "quickgelu",
        **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
        "gelu_python": "gelu",
        "swish": "silu",
        "hard_swish": "hardswish",
    },
}
# words that mean something which is said otherwise here
ANSWERS = {
    "drop_rate": "timm's dropout before the classifier, which no model here has: `dropout` acts in the "
    "blocks, `emb_dropout` on the embedded tokens",
    "hidden_dropout_prob": "two arguments here: `dropout` in the blocks and `emb_dropout` on the embedded "
    "tokens",
    "dynamic_img_pad": "not known here: pad images to whole patches, and pass a mask of their pixels",
    "strict_img_size": "not known here: an image may be smaller than `image_size`",
    **dict.fromkeys(
        ("weight_init", "fix_init"), "not known here: models start from the initial values of their papers"
    ),
    **dict.fromkeys(
        ("block_fn", "mlp_layer", "attn_layer"), "not known here: a block's parts are chosen by arguments"
    ),
    "output_stride": "not known here: transformers keep their strides",
    "output_hidden_states": "a method here: `model.forward_intermediates(images)`",
    "scriptable": "not needed: `torch.jit.trace` and `vit export --format torchscript` take every model",
    "exportable": "not needed: `torch.export` takes every model",
    "no_jit": "not needed: models have no scripted parts",
    "cache_dir": "a variable of the environment here, HF_HUB_CACHE",
    "pretrained_strict": "an argument of `load_pretrained` here, `strict`",
    "pretrained_cfg_overlay": "not known here: change `model.default_cfg`",
    "checkpoint_path": "`pretrained=FILE` here",
    "pretrained_cfg": "`pretrained=FILE` here, for weights from elsewhere",
}

# answers of which only the first whose argument a constructor has is true of it; none is where it has none
ANSWERS_BY_ARGUMENT = {
    **dict.fromkeys(
        ("embed_dim", "embed_dims", "hidden_size"),
        (
            ("mlp_dim", "`dim` here, beside which `mlp_dim` and `dim_head` keep the named model's values"),
            ("dim", "`dim` here, which the heads follow where `heads` is not given"),
            ("sm_dim", "two arguments here, `sm_dim` and `lg_dim`"),
        ),
    ),
    **dict.fromkeys(
        ("num_heads", "num_attention_heads"),
        (
            ("heads", "`heads` here, beside which `dim_head` keeps the named model's value"),
            ("sm_enc_heads", "two arguments here, `sm_enc_heads` and `lg_enc_heads`"),
        ),
    ),
    "norm_layer": (
        ("norm", "`norm` here, by name or with settings of its own"),
        ("norm_eps", "not known here: norms are the paper's, and `norm_eps` is their epsilon"),
    ),
    "embed_norm_layer": (("stem", "an option of `stem` here: `LinearStem(patch_norm=True)`"),),
    "scale_attn_norm": (("norm", "an option of `norm` here: `Norm(sub='both')`"),),
    "scale_mlp_norm": (("norm", "an option of `norm` here: `Norm(sub='feedforward')`"),),
    "proj_bias": (("out_bias", "`out_bias` here, with 'none' for no biases in the feed-forwards either"),),
    "mlp_ratio": (("mlp_dim", "`mlp_dim` here, the hidden dimension itself"),),
    "pos_embed": (("positions", "`positions` here: 'learned', 'none', 'rope' and others"),),
    "dynamic_img_size": (
        ("positions", "an option of `positions` here: `Learned(dynamic_img_size=True)`"),
        ("image_size", "not known here: `image_size` is the largest input"),
    ),
}
# words for heads, which share the dimension where a constructor has no `dim_head`
HEADS = ("num_heads", "num_attention_heads")


def own_name(name: str, known: Collection[str]) -> str:
    """Return what a constructor calls an argument; the name itself where none of its arguments is the same.

    Args:
        known: names of the constructor's arguments.
    """
    if name in known or (name in HEADS and "dim_head" in known):
        return name
    group = next((names for names in SYNONYMS if name in names), ())
    return next((other for other in group if other in known), name)


def own_words(arguments: Mapping[str, Any], known: Collection[str], *, owner: str) -> dict[str, Any]:
    """Return arguments under the names, and some values, that a constructor has for them.

    Args:
        arguments: values by name; those of which the constructor has no argument stay as they are.
        known: names of the constructor's arguments.
        owner: name of the class, for errors.

    Raises:
        ValueError: where an argument is given under two names.
    """
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        own = own_name(name, known)
        if own in found:
            names = [other for other in arguments if own_name(other, known) == own]
            raise ValueError(f"{owner} takes {own} once, got it as {' and '.join(names)}")
        found[own] = (
            VALUES.get(own, {}).get(value, value) if isinstance(value, str) and own != name else value
        )
    return found


def check_known(names: Collection[str], known: Collection[str], *, owner: str) -> None:
    """Check that a constructor has arguments of some names.

    Raises:
        UnknownArgumentError: where it has not; says what the word is here, if anything.
    """
    for name in names:
        if name in known:
            continue
        close = get_close_matches(name, known, n=3, cutoff=0.7)
        answers = [answer for about, answer in ANSWERS_BY_ARGUMENT.get(name, ()) if about in known]
        if name in ANSWERS or answers:
            end = f": it is {ANSWERS.get(name) or answers[0]}"
        elif close:
            end = f"; close to it: {', '.join(close)}"
        else:
            end = f", only {', '.join(known)}"
        raise UnknownArgumentError(f"{owner} has no argument {name}{end}")
