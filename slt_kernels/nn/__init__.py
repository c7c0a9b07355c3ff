"""Layers: drop-in replacements of PyTorch's layers with weights."""

from .attention import SupermaskMultiheadAttention
from .bilinear import SupermaskBilinear
from .composite import CompositeLayer
from .conv1d import SupermaskConv1d
from .conv2d import SupermaskConv2d
from .conv3d import SupermaskConv3d
from .conv_transpose import SupermaskConvTranspose1d, SupermaskConvTranspose2d, SupermaskConvTranspose3d
from .embedding import SupermaskEmbedding
from .embedding_bag import SupermaskEmbeddingBag
from .experts import SupermaskExperts
from .inference import prepare_inference
from .linear import SupermaskLinear
from .network import drop_scores
from .recurrent import (
    SupermaskGRU,
    SupermaskGRUCell,
    SupermaskLSTM,
    SupermaskLSTMCell,
    SupermaskRNN,
    SupermaskRNNCell,
)
from .supermask import SupermaskLayer
from .tied import TiedEmbedding, TiedLinear

__all__ = [
    "CompositeLayer",
    "SupermaskBilinear",
    "SupermaskConv1d",
    "SupermaskConv2d",
    "SupermaskConv3d",
    "SupermaskConvTranspose1d",
    "SupermaskConvTranspose2d",
    "SupermaskConvTranspose3d",
    "SupermaskEmbedding",
    "SupermaskEmbeddingBag",
    "SupermaskExperts",
    "SupermaskGRU",
    "SupermaskGRUCell",
    "SupermaskLSTM",
    "SupermaskLSTMCell",
    "SupermaskLayer",
    "SupermaskLinear",
    "SupermaskMultiheadAttention",
    "SupermaskRNN",
    "SupermaskRNNCell",
    "TiedEmbedding",
    "TiedLinear",
    "drop_scores",
    "prepare_inference",
]
