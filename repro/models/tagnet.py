"""The tag network: VQ histogram in, last.fm tags out; its last hidden layer describes a song."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

from repro import kernels

_OPTIMISERS = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class TagNetwork(nn.Module):
    """Fully connected ReLU layers with dropout, and one logistic output per tag (ISMIR sec. 3.1).

    Parameters
    ----------
    inputs, tags : int
        J codewords and the size of the vocabulary.
    hidden : sequence of int
        Widths of the hidden layers; without any it is logistic regression.
    dropout : float
        Share of hidden units dropped.
    scale : float
        What inputs are multiplied by.
    authors : bool
        Weights and biases from N(0, 0.01^2), and one dropout mask per mini-batch (authors' code:
        deep_tagging).
    """

    def __init__(
        self, inputs: int, hidden, tags: int, dropout: float, scale: float = 1.0, authors=False
    ):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.output = nn.Linear(widths[-1], tags)
        self.dropout, self.authors = dropout, authors
        for layer in [*self.layers, self.output]:
            if authors:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.normal_(layer.bias, std=0.01)
            else:
                # With N(0, 0.01^2) the signal of an l1-normalised histogram fades by a factor of
                # some four per layer, and training starts from a plateau.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def hidden(self, x: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Return the last hidden layer h, n x 1200, or that at a ``depth`` from one up."""
        x = x * self.scale
        for layer in islice(self.layers, depth):
            x = F.relu(layer(x))
            if self.training and self.dropout:
                # The authors mask before the ReLU, which is the same: relu(m a) = m relu(a).
                mask = dropout_mask(x[:1] if self.authors else x, self.dropout)
                x = x * (mask / (1 - self.dropout))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits f, n x tags."""
        return self.output(self.hidden(x))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all weights by name, to be saved; :func:`restore` brings the network back."""
        state = self.state_dict()
        return {name.replace(".", "_"): x.cpu().numpy() for name, x in state.items()}


def dropout_mask(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return True with probability 1 - ``dropout`` for every element of ``x``.

    Sixteen random bits per element; PyTorch's own dropout draws ten times as long on a CPU, which
    a batch of 100 feels.
    """
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view_as(x)
    return bits >= round(dropout * 2**16) - 2**15


def tag_loss(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Return log(1 + exp(-y f)), y in {-1, 1}, averaged over songs and tags.

    The paper writes the sum; the authors' code takes this mean, to which AdaGrad's step is blind.
    """
    return F.binary_cross_entropy_with_logits(logits, tags)


def train(
    histograms: np.ndarray,
    tags: sp.csr_matrix,
    *,
    hidden=(1200, 1200, 1200),
    dropout: float = 0.5,
    optimiser: str = "adagrad",
    authors: bool = False,
    learning_rate: float = 0.01,
    batch_size: int = 100,
    epochs: int = 50,
    scale_input: bool = False,
    seed: int = 0,
    device: str = "cpu",
    watch: tuple[np.ndarray, sp.csr_matrix] | None = None,
    progress: Callable = iter,
    checkpoint=None,
) -> tuple[TagNetwork, pd.DataFrame]:
    """Train the tag network on l1-normalised histograms (n x J) and binary tags (n x tags).

    Parameters
    ----------
    hidden, dropout
        See :class:`TagNetwork`.
    optimiser : str
        ``"adagrad"``, ``"adam"`` or ``"sgd"`` (without momentum).
    authors : bool
        The authors' variant: see :class:`TagNetwork`, and the songs in the order given.
    scale_input : bool
        Multiply all histograms by one number that makes their mean l2 norm one. Those of some
        hundred frames over 1,024 codewords have one near 0.2, from which AdaGrad's steps of
        fixed size take tens of thousands of batches to reach a useful first layer: the authors
        had 186,000, a small collection has few.
    watch : (histograms, tags), optional
        Songs whose loss is recorded after every epoch; the training takes no notice of it.
    checkpoint : optional
        As of :func:`repro.models.wmf.fit`, called after every epoch.

    Returns
    -------
    TagNetwork, in evaluation mode
    DataFrame
        One row per epoch: ``epoch``, ``training`` (mean loss of its batches, with dropout) and
        ``held out`` (loss of ``watch``, without).
    """
    if len(histograms) != tags.shape[0]:
        raise ValueError(f"{len(histograms)} histograms for {tags.shape[0]} rows of tags")
    torch.manual_seed(seed)
    length = float(np.linalg.norm(histograms, axis=1).mean())
    scale = 1.0 / length if scale_input and length else 1.0
    net = TagNetwork(histograms.shape[1], hidden, tags.shape[1], dropout, scale, authors).to(device)
    settings = {"lr": learning_rate, "fused": device == "cpu"}
    if authors and optimiser == "adagrad":
        settings["eps"] = 1e-8  # next to the root, as theirs
    optimiser = _OPTIMISERS[optimiser](net.parameters(), **settings)
    x = torch.from_numpy(np.ascontiguousarray(histograms, dtype=np.float32))
    y = torch.from_numpy(tags.astype(bool).toarray())
    rng = np.random.default_rng(seed)
    generator = torch.default_generator  # of the dropout
    if device != "cpu":
        generator = torch.cuda.default_generators[torch.device(device).index or 0]
    curve = []

    def state():
        return {
            "network": net.state_dict(),
            "optimiser": optimiser.state_dict(),
            "dropout": generator.get_state(),
            "order": json.dumps(rng.bit_generator.state),
            "curve": curve,
        }

    if checkpoint is not None and (kept := checkpoint.load()) is not None:
        net.load_state_dict(kept["network"])
        optimiser.load_state_dict(kept["optimiser"])
        generator.set_state(kept["dropout"])
        rng.bit_generator.state = json.loads(kept["order"])
        curve = kept["curve"]
    for epoch in progress(range(len(curve) + 1, epochs + 1)):
        net.train()
        losses = []
        order = np.arange(len(x)) if authors else rng.permutation(len(x))
        for batch in np.split(order, np.arange(batch_size, len(order), batch_size)):
            loss = tag_loss(net(x[batch].to(device)), y[batch].to(device, torch.float32))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        row = {"epoch": epoch, "training": float(torch.stack(losses).mean(dtype=torch.float64))}
        if watch is not None:
            logits = predict(net, watch[0])
            truth = torch.from_numpy(watch[1].toarray()).float()
            row["held out"] = float(tag_loss(torch.from_numpy(logits), truth))
        curve.append(row)
        if checkpoint is not None:
            checkpoint.save(state)
    return net.eval(), pd.DataFrame(curve)


def restore(arrays: dict) -> TagNetwork:
    """Return the network whose :meth:`TagNetwork.arrays` these are, in evaluation mode."""
    state = {name.replace("_", "."): torch.as_tensor(x) for name, x in arrays.items()}
    depth = sum(name.startswith("layers") for name in state) // 2
    shapes = [state[f"layers.{n}.weight"].shape for n in range(depth)]
    shapes.append(state["output.weight"].shape)
    net = TagNetwork(shapes[0][1], [units for units, _ in shapes[:-1]], shapes[-1][0], dropout=0.0)
    net.load_state_dict(state)
    return net.eval()


@torch.no_grad()
def _in_blocks(net: TagNetwork, histograms: np.ndarray, layer: Callable) -> np.ndarray:
    net.eval()
    device = net.output.weight.device
    x = torch.from_numpy(np.ascontiguousarray(histograms, dtype=np.float32))
    return np.concatenate([layer(block.to(device)).cpu().numpy() for block in x.split(4096)])


def predict(net: TagNetwork, histograms: np.ndarray) -> np.ndarray:
    """Return the logits, n x tags, without dropout."""
    return _in_blocks(net, histograms, net)


def hidden_layer(net: TagNetwork, histograms: np.ndarray, layer: int = -1) -> np.ndarray:
    """Return h, n x F, a hidden layer without dropout; the last one is the content of eq. (2).

    That of a network without any is the histogram itself.
    """
    if not net.layers:
        return np.asarray(histograms, dtype=np.float32)
    depth = range(1, len(net.layers) + 1)[layer]
    return _in_blocks(net, histograms, partial(net.hidden, depth=depth))


def logistic(
    histograms: np.ndarray, tags: sp.csr_matrix, penalty: float
) -> Callable[[np.ndarray], np.ndarray]:
    """Fit an l2-penalised logistic regression to each tag: the cheap rival of the network.

    Histograms (n x J) are multiplied by one number that makes their mean l2 norm one, lest
    ``penalty`` mean something else for every J: it is that of ``penalty / 2 ||w||^2``, added to
    the loss summed over songs; the intercept is free. A tag (of n x tags) of all songs or of none
    has constant log-odds, counting half a song of the other kind.

    Returns
    -------
    callable
        From histograms, m x J, to logits, m x tags, float32.
    """
    if len(histograms) != tags.shape[0]:
        raise ValueError(f"{len(histograms)} histograms for {tags.shape[0]} rows of tags")
    length = float(np.linalg.norm(histograms, axis=1).mean()) or 1.0
    x, y = sp.csr_matrix(histograms, dtype=np.float64) / length, tags.toarray() > 0
    weight = np.zeros((y.shape[1], histograms.shape[1]), np.float32)
    share = np.clip(y.mean(0), 0.5 / len(y), 1 - 0.5 / len(y))
    intercept = np.log(share / (1 - share)).astype(np.float32)

    def fit(tag):
        model = LogisticRegression(C=1.0 / penalty, max_iter=500).fit(x, y[:, tag])
        weight[tag], intercept[tag] = model.coef_[0] / length, model.intercept_[0]

    kernels.parallel_map(fit, np.flatnonzero(y.any(0) & ~y.all(0)))
    return lambda histograms: np.asarray(histograms, np.float32) @ weight.T + intercept


def per_tag(logits: np.ndarray, tags: sp.csr_matrix, annotate: int = 20, correction=1.25):
    """Return annotation and retrieval scores of every tag, by the authors' protocol.

    Each song is given its ``annotate`` best tags by probability minus ``correction`` times the
    tag's mean probability over the songs. AROC and average precision rank songs within a tag.

    Returns
    -------
    DataFrame, indexed by tag: ``songs`` (that have the tag), ``Prec``, ``Recall``, ``AROC``,
    ``AP``; the last three are NaN for a tag on no song or, for ``AROC``, on all.
    """
    if not len(logits):
        raise ValueError("no song to judge: test_min_tags is too high, or no tagged test track")
    probability = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    score = probability - correction * probability.mean(0)
    truth = tags.toarray().astype(bool)
    annotate = min(annotate, truth.shape[1])
    given = np.zeros_like(truth)
    np.put_along_axis(given, np.argpartition(-score, annotate - 1, axis=1)[:, :annotate], True, 1)
    hits, songs = (given & truth).sum(0), truth.sum(0)
    frame = pd.DataFrame({"songs": songs, "Prec": hits / np.maximum(given.sum(0), 1)})
    frame["Recall"] = hits / np.where(songs > 0, songs, np.nan)
    frame[["AROC", "AP"]] = np.nan
    for tag in np.flatnonzero(songs):
        if songs[tag] < len(truth):
            frame.loc[tag, "AROC"] = roc_auc_score(truth[:, tag], score[:, tag])
        frame.loc[tag, "AP"] = average_precision_score(truth[:, tag], score[:, tag])
    return frame.rename_axis("tag")


def summary(per_tag: pd.DataFrame) -> pd.Series:
    """Return the paper's Table 1 row: means over tags; F is that of the two means."""
    precision, recall = per_tag["Prec"].mean(), per_tag["Recall"].mean()
    f = 2 * precision * recall / max(precision + recall, 1e-12)
    areas = {"AROC": per_tag["AROC"].mean(), "MAP": per_tag["AP"].mean()}
    return pd.Series({"Prec": precision, "Recall": recall, "F": f} | areas)
