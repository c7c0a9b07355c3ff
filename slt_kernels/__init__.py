"""Random networks with learned masks, at the cost of their information content.

A strong lottery ticket is an accurate subnetwork of a random network. Its weights come from a seed and are regenerated
inside each product. One bit per free weight is learned and stored.
"""

from . import backends, freezing, ops
from .bernoulli import BernoulliMasks
from .conv_geometry import Window
from .conversions import register_conversion
from .convert import convert, summary
from .dense import to_dense
from .edge_popup import EdgePopup
from .mask_import import import_mask
from .nn import (
    SupermaskBilinear,
    SupermaskConv1d,
    SupermaskConv2d,
    SupermaskConv3d,
    SupermaskConvTranspose1d,
    SupermaskConvTranspose2d,
    SupermaskConvTranspose3d,
    SupermaskEmbedding,
    SupermaskEmbeddingBag,
    SupermaskExperts,
    SupermaskGRU,
    SupermaskGRUCell,
    SupermaskLinear,
    SupermaskLSTM,
    SupermaskLSTMCell,
    SupermaskMultiheadAttention,
    SupermaskRNN,
    SupermaskRNNCell,
    drop_scores,
    prepare_inference,
)
from .numbering import number_layers
from .source import Freeze, Source
from .tickets import TicketError, load_ticket, save_ticket, ticket_info

__version__ = "0.1.0"

__all__ = [
    "BernoulliMasks",
    "EdgePopup",
    "Freeze",
    "Source",
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
    "SupermaskLinear",
    "SupermaskMultiheadAttention",
    "SupermaskRNN",
    "SupermaskRNNCell",
    "TicketError",
    "Window",
    "backends",
    "convert",
    "drop_scores",
    "freezing",
    "import_mask",
    "load_ticket",
    "number_layers",
    "ops",
    "prepare_inference",
    "register_conversion",
    "save_ticket",
    "summary",
    "ticket_info",
    "to_dense",
]
