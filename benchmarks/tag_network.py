"""Training of the tag network, 1024-1200-1200-1200-561 with AdaGrad and dropout, batch 100.

The ceiling is the rate of large float32 matrix products on the same machine, over the operations
of an example's three passes.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from .harness import Options, Report, interleave, spread, times

WIDTHS = (1024, 1200, 1200, 1200, 561)


def data(n: int):
    """Return l1-normalised histograms and random tags, some eight a song."""
    rng = np.random.default_rng(0)
    x = rng.gamma(0.15, size=(n, WIDTHS[0])).astype(np.float32)
    tags = sp.random(n, WIDTHS[-1], 8 / WIDTHS[-1], "csr", np.float32, rng)
    tags.data[:] = 1
    return x / x.sum(1, keepdims=True), tags


def operations() -> float:
    """Return the operations an example: forward and two products backward, but the input's."""
    products = [a * b for a, b in pairwise(WIDTHS)]
    return 6.0 * sum(products) - 2.0 * products[0]


def ours(n, batch=100, device="cpu"):
    """``repro.models.tagnet.train``, an epoch a turn after the first, which is not counted."""
    from repro.models import tagnet

    x, tags = data(n)
    while True:
        stamps = []

        def epochs(numbers, stamps=stamps):
            for number in numbers:
                stamps.append(time.perf_counter())
                yield number
            stamps.append(time.perf_counter())

        _, curve = tagnet.train(
            x, tags, hidden=WIDTHS[1:-1], batch_size=batch, epochs=2, device=device, progress=epochs
        )
        losses = curve["training"].tolist()
        yield {"seconds": [stamps[2] - stamps[1]], "losses": losses}


def plain(n, batch=100, device="cpu"):
    """Train by a plain torch loop with the fused AdaGrad."""
    import torch
    from torch import nn

    x, tags = data(n)
    x, y = torch.from_numpy(x).to(device), torch.from_numpy(tags.toarray()).to(device)
    layers = []
    for a, b in pairwise(WIDTHS):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.5)]
    net = nn.Sequential(*layers[:-2]).to(device)
    optimiser = torch.optim.Adagrad(net.parameters(), lr=0.01, fused=device == "cpu")
    while True:
        began = time.perf_counter()
        total = torch.zeros((), device=device)
        for pick in torch.randperm(n).split(batch):
            pick = pick.to(device)
            loss = nn.functional.binary_cross_entropy_with_logits(net(x[pick]), y[pick])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
        mean = float(total) * batch / n
        yield {"seconds": [time.perf_counter() - began], "losses": [mean]}


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    import torch

    n = 600 if options.small else 8000
    systems = {"ours": (ours, {"n": n}), "plain torch loop, fused AdaGrad": (plain, {"n": n})}
    if not options.small:
        systems["ours, batch 1000: another method"] = (ours, {"n": n, "batch": 1000})
    if torch.cuda.is_available():
        for name, (system, arguments) in list(systems.items()):
            systems[f"{name}, GPU"] = (system, arguments | {"device": "cuda"})
    turns = interleave(systems, options.rounds)
    losses = turns["ours"][0]["losses"]
    if not (np.isfinite(losses).all() and losses[-1] < losses[0]):
        raise AssertionError(f"the loss does not fall: {losses}")
    if options.small:
        return
    rate = report.sgemm() * 1e9
    rows = report.tables["tag_network"] = []
    for name, turn in turns.items():
        speed = spread([n / seconds for seconds in times(turn)])
        row = {"system": name} | {f"examples/s, {k}": v for k, v in speed.items()}
        on_gpu = name.endswith("GPU")
        share = speed["median"] * operations() / rate * 100
        row["% of the processor's sgemm"] = None if on_gpu else share
        epochs = 50 * 371_209 / speed["median"] / 3600
        row["hours for 50 epochs of 371,209 tracks (extrapolated)"] = epochs
        row |= {"target": "", "reached": ""}
        if name == "ours":
            row |= report.goal("tag network, batch 100, share of sgemm", share, 50, 75, unit="%")
        rows.append(row)
    report.notes.append(
        f"{n:,} examples of {operations() / 1e6:.1f} MFLOP; sgemm's rate is the best measured "
        f"before and after, {rate / 1e9:.0f} GFLOP/s or "
        f"{rate / operations():,.0f} examples/s."
        + ("" if torch.cuda.is_available() else " No GPU was at hand: not measured there.")
    )
