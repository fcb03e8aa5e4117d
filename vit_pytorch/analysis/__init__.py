"""Seeing inside: what models attend to, what classes rest on, what layers and positions have in common.

Functions take a model and images, or the maps of a `Recorder`, and return tensors. For each that is to be
looked at there is a `plot_` twin, which takes what the function returns and gives a matplotlib figure.
"""

from vit_pytorch.analysis.attention import (
    attention_distance,
    class_attention,
    class_attention_of_map,
    distance_of_map,
    record_maps,
    rollout,
)
from vit_pytorch.analysis.components import (
    Components,
    TokenColours,
    colours_of_tokens,
    principal_components,
    token_colours,
)
from vit_pytorch.analysis.embeddings import embedding_filters, position_similarity, similarity_of_table
from vit_pytorch.analysis.flow import read_out, rollout_of_maps
from vit_pytorch.analysis.layout import TokenLayout, to_pictures, upsample
from vit_pytorch.analysis.plots import (
    plot_attention_distance,
    plot_class_attention,
    plot_class_relevance,
    plot_embedding_filters,
    plot_layer_similarity,
    plot_position_similarity,
    plot_reconstruction,
    plot_rollout,
    plot_token_colours,
)
from vit_pytorch.analysis.relevance import (
    class_relevance,
    maps_and_gradients,
    read_relevance,
    relevance_of_maps,
)
from vit_pytorch.analysis.similarity import layer_similarity, linear_cka

__all__ = [
    "Components",
    "TokenColours",
    "TokenLayout",
    "attention_distance",
    "class_attention",
    "class_attention_of_map",
    "class_relevance",
    "colours_of_tokens",
    "distance_of_map",
    "embedding_filters",
    "layer_similarity",
    "linear_cka",
    "maps_and_gradients",
    "plot_attention_distance",
    "plot_class_attention",
    "plot_class_relevance",
    "plot_embedding_filters",
    "plot_layer_similarity",
    "plot_position_similarity",
    "plot_reconstruction",
    "plot_rollout",
    "plot_token_colours",
    "position_similarity",
    "principal_components",
    "read_out",
    "read_relevance",
    "record_maps",
    "relevance_of_maps",
    "rollout",
    "rollout_of_maps",
    "similarity_of_table",
    "to_pictures",
    "token_colours",
    "upsample",
]
