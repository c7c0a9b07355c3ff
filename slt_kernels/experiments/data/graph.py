"""Graphs whose nodes are classified: the karate club, the digits, and OGBN-Arxiv."""

from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor

from .dataset import UNANSWERED, Dataset, Part
from .digits import read_digits
from .rng import order

_SUBJECTS = 40  # classes of OGBN-Arxiv


class Nodes(Part):
    """A whole graph as the only example; the targets of some nodes are ignored.

    Args:
        features: float32 ``[N, features]``.
        neighbours_mean: sparse float32 ``[N, N]``, of the function `neighbours_mean`.
        targets: int64 ``[N]``, `UNANSWERED` outside this part.
    """

    def __init__(self, features: Tensor, neighbours_mean: Tensor, targets: Tensor) -> None:
        self.features = features
        self.neighbours_mean = neighbours_mean
        self.targets = targets

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor, epoch: int | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
        return (self.features, self.neighbours_mean), self.targets

    def to(self, device: torch.device | str) -> "Nodes":
        return Nodes(*(t.to(device) for t in (self.features, self.neighbours_mean, self.targets)))


def neighbours_mean(edges: Tensor, nodes: int) -> Tensor:
    """The mean over neighbours as a sparse (COO) matrix; row ``i`` holds ``1/degree(i)`` at the neighbours of ``i``.

    Args:
        edges: int64 ``[2, E]``. Each counts in both directions; repeated edges count once. A node without neighbours
            has an empty row, so its mean is 0.
        nodes: number of nodes.
    """
    both = torch.cat((edges, edges.flip(0)), 1)
    places = torch.unique(both[0] * nodes + both[1])  # sorted, so the matrix is coalesced
    both = torch.stack((places // nodes, places % nodes))
    shares = 1 / both[0].bincount(minlength=nodes)[both[0]].float()
    return torch.sparse_coo_tensor(both, shares, (nodes, nodes), is_coalesced=True, check_invariants=False)


def karate(seed: int = 0) -> Dataset:
    """Zachary's karate club (1977), which ships with networkx: 34 members, 78 ties, two classes.

    Features are one-hot: the identity ``[34, 34]``. Each class has 9 training, 3 validation and 5 test nodes.

    Args:
        seed: for the split. Default 0.

    Raises:
        ModuleNotFoundError: networkx is not installed (it comes with the ``graphs`` extra).
    """
    try:
        import networkx
    except ModuleNotFoundError:
        raise ModuleNotFoundError('the karate club ships with networkx: pip install "slt_kernels[graphs]"') from None
    graph = networkx.karate_club_graph()
    labels = torch.tensor([graph.nodes[n]["club"] != "Mr. Hi" for n in graph]).long()
    shuffled = order(len(labels), seed)
    parts: list[list[Tensor]] = [[], [], []]
    for label in (0, 1):
        members = shuffled[labels[shuffled] == label]
        for part, nodes in zip(parts, members.split([9, 3, 5]), strict=True):
            part.append(nodes)
    edges = torch.tensor(list(graph.edges)).T
    return _dataset(torch.eye(len(labels)), edges, labels, [torch.cat(p) for p in parts], classes=2)


def digits_graph(seed: int = 0, neighbours: int = 5) -> Dataset:
    """The handwritten digits as a graph: 1,797 nodes, each tied to the digits whose pixels are nearest to its own.

    Features are the 64 pixels, standardized; nodes are split as in `digits`.

    Args:
        seed: for the split. Default 0.
        neighbours: ties that a node starts, to the nearest others. Default 5.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed (it comes with the ``demo`` extra).
        ValueError: no neighbour, or as many as there are nodes.
    """
    pixels, labels, parts = read_digits(seed)
    if not 0 < neighbours < len(labels):
        raise ValueError(f"neighbours={neighbours}: expected 1 to {len(labels) - 1}")
    x = pixels.double()  # of small integers, so that distances are exact
    squares = x.square().sum(1)
    distances = (squares.unsqueeze(1) + squares - 2 * x @ x.T).fill_diagonal_(torch.inf)
    nearest = distances.argsort(dim=1, stable=True)[:, :neighbours]
    edges = torch.stack((torch.arange(len(labels)).repeat_interleave(neighbours), nearest.flatten()))
    train = pixels[parts[0]]
    return _dataset((pixels - train.mean()) / train.std(), edges, labels, parts, classes=10)


def ogbn_arxiv(path: str | Path) -> Dataset:
    """OGBN-Arxiv (Hu et al., 2020): 169,343 papers, their citations, and 40 classes of subject; OGB's own split.

    Citations count in both directions.

    Args:
        path: the folder of ``ogb``'s data sets; a missing data set is downloaded to it.

    Raises:
        ModuleNotFoundError: ogb is not installed (it comes with the ``ogb`` extra).
        RuntimeError: the download failed; the message names the address.
        ValueError: files that cannot be read, or numbers out of range (a damaged or different data set).
    """
    try:
        import pandas
        from ogb.io.read_graph_raw import read_csv_graph_raw
        from ogb.nodeproppred import NodePropPredDataset
    except ModuleNotFoundError:
        raise ModuleNotFoundError('OGBN-Arxiv is read with ogb: pip install "slt_kernels[ogb]"') from None
    folder = Path(path) / "ogbn_arxiv"
    files = (folder / "raw/node-label", *(folder / "split/time" / name for name in ("train", "valid", "test")))
    unpack = "unpack http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip and give its folder that name"
    if not (folder / "raw/edge.csv.gz").exists():
        try:
            NodePropPredDataset("ogbn-arxiv", root=str(path))
        except Exception as error:
            raise RuntimeError(f"{folder}: ogb could not download OGBN-Arxiv ({_summary(error)}); {unpack}") from error
    try:
        # NodePropPredDataset writes a pickle that torch.load refuses to read since PyTorch 2.6.
        graph = read_csv_graph_raw(str(folder / "raw"))[0]
        features, edges = (torch.tensor(graph[name]) for name in ("node_feat", "edge_index"))
        labels, *parts = (torch.tensor(pandas.read_csv(f"{f}.csv.gz", header=None)[0].to_numpy()) for f in files)
        _check(features, edges, labels, parts, _SUBJECTS)
    except Exception as error:
        raise ValueError(f"{folder}: ogb could not load OGBN-Arxiv ({_summary(error)}); {unpack}") from error
    return _dataset(features, edges, labels, parts, _SUBJECTS)


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error), 200)}"


def _check(features: Tensor, edges: Tensor, labels: Tensor, parts: list[Tensor], classes: int) -> None:
    """Raises ValueError for features that are not finite and for indices or classes out of range."""
    nodes = len(labels)
    if features.dim() != 2 or len(features) != nodes or not features.isfinite().all():
        raise ValueError(f"node-feat {list(features.shape)}: expected finite features of {nodes} nodes")
    if features.dtype != torch.float32:
        raise ValueError(f"node-feat: {features.dtype}, expected numbers")
    numbers = {"edge": (edges, nodes), "node-label": (labels, classes)}
    numbers |= {name: (part, nodes) for name, part in zip(("train", "valid", "test"), parts, strict=True)}
    for name, (values, end) in numbers.items():
        if values.dtype != torch.int64 or not values.numel() or values.min() < 0 or values.max() >= end:
            raise ValueError(f"{name}: expected integers from 0 to {end - 1}")
    if len(torch.cat(parts).unique()) < sum(map(len, parts)):
        raise ValueError("split: expected each node at most once")


def _dataset(features: Tensor, edges: Tensor, labels: Tensor, parts: list[Tensor], classes: int) -> Dataset:
    mean = neighbours_mean(edges, len(labels))

    def part(nodes: Tensor) -> Nodes:
        targets = torch.full_like(labels, UNANSWERED)
        targets[nodes] = labels[nodes]
        return Nodes(features, mean, targets)

    return Dataset(*map(part, parts), "nodes", {"features": features.shape[1], "classes": classes})
