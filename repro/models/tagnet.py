"""The tag network: VQ histogram in, last.fm tags out; its last hidden layer describes a song."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, starmap

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn
from torch.nn import functional as F

from repro import kernels

_OPTIMISERS = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


class TagNetwork(nn.Module):
    """Fully connected ReLU layers with dropout, and one logistic output per tag (ISMIR sec. 3.1).

    From J ``inputs``, multiplied by ``scale``, to logits of the ``tags`` by way of layers of the
    widths ``hidden``; without any it is logistic regression. A share ``dropout`` of the hidden
    units is dropped. With ``authors`` a mini-batch has one dropout mask, and weights and biases are
    from N(0, 0.01^2), as in their code (deep_tagging); the signal of an l1-normalised histogram
    then fades by a factor of some four per layer, and training starts from a plateau.
    """

    def __init__(self, inputs: int, hidden, tags: int, dropout: float, scale=1.0, authors=False):
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.dropout, self.authors = dropout, authors
        *layers, self.output = starmap(nn.Linear, pairwise([inputs, *hidden, tags]))
        self.layers = nn.ModuleList(layers)
        for layer in [*layers, self.output]:
            if authors:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.normal_(layer.bias, std=0.01)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def hidden(self, x: torch.Tensor, depth: int | None = None) -> torch.Tensor:
        """Return the last hidden layer h, n x F, or that at a ``depth`` from one up."""
        x = x * self.scale
        for layer in list(self.layers)[:depth]:
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
        return {name.replace(".", "_"): x.cpu().numpy() for name, x in self.state_dict().items()}


def dropout_mask(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return True with probability 1 - ``dropout`` for every element of ``x``."""
    # Sixteen random bits each: PyTorch's own takes ten times as long on a CPU, which a batch feels.
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    bits = words.random_(-(2**63), None).view(torch.int16)[: x.numel()].view_as(x)
    return bits >= round(dropout * 2**16) - 2**15


def tag_loss(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Return log(1 + exp(-y f)), y in {-1, 1}, averaged over songs and tags."""
    # The paper writes the sum; the authors' code takes this mean, to which AdaGrad is blind.
    return F.binary_cross_entropy_with_logits(logits, tags)


def _mean_length(histograms: np.ndarray, tags: sp.csr_matrix) -> float:
    """Return the mean l2 norm of the histograms, of which every row of tags must have one."""
    if len(histograms) != tags.shape[0]:
        raise ValueError(f"{len(histograms)} histograms for {tags.shape[0]} rows of tags")
    return float(np.linalg.norm(histograms, axis=1).mean()) or 1.0


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
    look: Callable | None = None,
    checkpoint=None,
) -> tuple[TagNetwork, pd.DataFrame]:
    """Train the tag network on l1-normalised histograms (n x J) and binary tags (n x tags).

    Return it in evaluation mode, and a DataFrame with a row per epoch: ``epoch``, ``training``
    (mean loss of its batches, with dropout) and ``held out`` (loss of ``watch``, without).

    Parameters
    ----------
    hidden, dropout, authors
        See :class:`TagNetwork`; the authors' variant also takes the songs in the order given.
    optimiser : "adagrad", "adam" or "sgd" (without momentum)
    scale_input : bool
        Multiply all histograms by one number that makes their mean l2 norm one. From the 0.2 of
        some hundred frames AdaGrad takes tens of thousands of batches: the authors had 186,000.
    watch : (histograms, tags), optional
        Songs whose loss is recorded after every epoch; the training takes no notice of it.
    look : optional
        Called after every epoch with the curve so far and the network, both still changing.
    checkpoint : optional
        As of :func:`repro.models.wmf.fit`, called after every epoch.
    """
    length = _mean_length(histograms, tags)
    torch.manual_seed(seed)
    scale = 1.0 / length if scale_input else 1.0
    net = TagNetwork(histograms.shape[1], hidden, tags.shape[1], dropout, scale, authors).to(device)
    eps = {"eps": 1e-8} if authors and optimiser == "adagrad" else {}  # next to the root, as theirs
    settings = {"lr": learning_rate, "fused": device == "cpu"} | eps
    optimiser = _OPTIMISERS[optimiser](net.parameters(), **settings)
    x = torch.from_numpy(np.ascontiguousarray(histograms, dtype=np.float32))
    y = torch.from_numpy(tags.astype(bool).toarray())
    rng, curve = np.random.default_rng(seed), []
    of_dropout = torch if device == "cpu" else torch.cuda
    parts = {"network": net, "optimiser": optimiser}
    if checkpoint is not None and (kept := checkpoint.load()) is not None:
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        of_dropout.set_rng_state(kept["dropout"])
        curve = kept["curve"]

    def state():
        kept = {name: part.state_dict() for name, part in parts.items()}
        return kept | {"dropout": of_dropout.get_rng_state(), "curve": curve}

    for _ in curve:  # what was drawn before
        rng.permutation(len(x))
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
            truth = torch.from_numpy(watch[1].toarray()).float()
            row["held out"] = float(tag_loss(torch.from_numpy(predict(net, watch[0])), truth))
        curve.append(row)
        if look is not None:
            look(curve, net)
        if checkpoint is not None:
            checkpoint.save(state)
    return net.eval(), pd.DataFrame(curve)


def restore(arrays: dict) -> TagNetwork:
    """Return the network whose :meth:`TagNetwork.arrays` these are, in evaluation mode."""
    state = {name.replace("_", "."): torch.as_tensor(x) for name, x in arrays.items()}
    weights = [x for _, x in sorted(state.items()) if x.ndim == 2]  # the output's last
    *hidden, tags = map(len, weights)
    net = TagNetwork(weights[0].shape[1], hidden, tags, dropout=0.0)
    net.load_state_dict(state)
    return net.eval()


@torch.no_grad()
def _in_blocks(net: TagNetwork, histograms: np.ndarray, layer: Callable) -> np.ndarray:
    device = net.eval().output.weight.device
    x = torch.from_numpy(np.ascontiguousarray(histograms, dtype=np.float32))
    return np.concatenate([layer(block.to(device)).cpu().numpy() for block in x.split(4096)])


def predict(net: TagNetwork, histograms: np.ndarray) -> np.ndarray:
    """Return the logits, n x tags, without dropout."""
    return _in_blocks(net, histograms, net)


def hidden_layer(net: TagNetwork, histograms: np.ndarray, layer: int = -1) -> np.ndarray:
    """Return h, n x F, a hidden layer without dropout; the last one is the content of eq. (2)."""
    if not net.layers:  # the histogram itself
        return np.asarray(histograms, dtype=np.float32)
    depth = range(1, len(net.layers) + 1)[layer]
    return _in_blocks(net, histograms, lambda x: net.hidden(x, depth))


def logistic(histograms: np.ndarray, tags: sp.csr_matrix, penalty: float) -> Callable:
    """Fit an l2-penalised logistic regression to each tag: the cheap rival of the network.

    The result is a function from histograms (m x J) to logits (m x tags) in float32. Histograms
    (n x J) are divided by their mean l2 norm. ``penalty / 2 ||w||^2`` is added to the loss summed
    over songs; the intercept is free. A tag of all songs or of none has constant log-odds.
    """
    length = _mean_length(histograms, tags)
    x, y = sp.csr_matrix(histograms, dtype=np.float64) / length, tags.toarray() > 0
    weight = np.zeros((y.shape[1], histograms.shape[1]), np.float32)
    intercept = logit(np.clip(y.mean(0), 0.5 / len(y), 1 - 0.5 / len(y))).astype(np.float32)

    def fit(tag):
        model = LogisticRegression(C=1.0 / penalty, max_iter=500).fit(x, y[:, tag])
        weight[tag], intercept[tag] = model.coef_[0] / length, model.intercept_[0]

    kernels.parallel_map(fit, np.flatnonzero(y.any(0) & ~y.all(0)))
    return lambda histograms: np.asarray(histograms, np.float32) @ weight.T + intercept


def per_tag(logits: np.ndarray, tags: sp.csr_matrix, annotate: int = 20, correction=1.25):
    """Return annotation and retrieval scores of every tag, by the authors' protocol.

    Each song is given its ``annotate`` best tags by probability minus ``correction`` times the
    tag's mean probability over the songs. AROC and average precision rank songs within a tag.
    The DataFrame has one row per tag: ``songs`` (that have it), ``Prec``, ``Recall``, ``AROC`` and
    ``AP``, of which the last three are NaN for a tag on no song or, for ``AROC``, on all.
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
    tags = list(zip(truth.T, score.T, strict=True))
    frame["AROC"] = [roc_auc_score(y, s) if 0 < y.sum() < len(y) else np.nan for y, s in tags]
    frame["AP"] = [average_precision_score(y, s) if y.any() else np.nan for y, s in tags]
    return frame.rename_axis("tag")


def summary(per_tag: pd.DataFrame) -> pd.Series:
    """Return the paper's Table 1 row: means over tags; F is that of the two means."""
    precision, recall, aroc, ap = per_tag[["Prec", "Recall", "AROC", "AP"]].mean()
    f = 2 * precision * recall / max(precision + recall, 1e-12)
    return pd.Series({"Prec": precision, "Recall": recall, "F": f, "AROC": aroc, "MAP": ap})
