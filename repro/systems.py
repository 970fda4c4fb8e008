"""Every system of the comparison behind one interface: a split in, factors out.

A system sees the training plays, the content of the items, and the content of the items that
nobody has played; what it gives back scores a user and an item by the product of their factors, so
that one evaluation serves all. ``SYSTEMS`` lists them with their sources and with the settings to
search.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.preprocessing import normalize

from repro.config import Profile
from repro.evaluation import metrics
from repro.models import poisson, regression, tagnet, vq, wmf


@dataclass(frozen=True, eq=False)
class Split:
    """What a system may see.

    Parameters
    ----------
    train : csr_matrix, users x items
        Play counts of the training pairs.
    content, cold : dict
        Content of the items, and of those that nobody has played, by kind: ``"counts"`` of
        codewords (csr_matrix), ``"shallow"`` and ``"deep"`` (arrays), ``"size"`` (frames).
    profile : Profile
    subset : str
        ``"DEN"`` or ``"SPR"``: whose regularisation in the paper a search sets out from.
    device : str
    """

    train: sp.csr_matrix
    content: dict
    cold: dict
    profile: Profile
    subset: str = "DEN"
    device: str = "cpu"

    @property
    def n_cold(self) -> int:
        """Number of items that nobody has played."""
        return len(self.cold["size"])

    @cached_property
    def played(self) -> sp.csr_matrix:
        """The training pairs as ones, float32."""
        return (self.train > 0).astype(np.float32)

    def veil(self, items: np.ndarray) -> tuple[Split, sp.csr_matrix]:
        """Return the split in which nobody has played ``items``, and their plays."""
        rest = np.setdiff1d(np.arange(self.train.shape[1]), items)
        content, cold = (
            {kind: x[rows] for kind, x in self.content.items()} for rows in (rest, items)
        )
        split = Split(
            self.train[:, rest].tocsr(), content, cold, self.profile, self.subset, self.device
        )
        return split, self.train[:, items].tocsr()

    def surplus(self, alpha: float | None = None, counts: str = "binary") -> sp.csr_matrix:
        """Return the confidence above one: of plays as such, or logarithmic or linear in counts."""
        alpha = alpha or self.profile.alpha
        if counts == "linear":  # Hu et al. 2008, sec. 4
            data = (alpha * self.train.data).astype(np.float32)
            return sp.csr_matrix((data, self.train.indices, self.train.indptr), self.train.shape)
        return wmf.log_surplus(self.train, alpha, self.profile.eps, counts == "binary")

    def fit_wmf(self, surplus: sp.csr_matrix, features=None, **settings) -> wmf.Factors:
        """Fit WMF under the profile, with the paper's regularisation where none is given."""
        settings = self.profile.ridges(self.subset) | self.profile.factorisation | settings
        return wmf.fit(surplus, features, device=self.device, **settings)


def load_split(run, subset: str = "DEN") -> Split:
    """Return the split that notebooks 1 to 3 have saved in ``run``."""
    items = {"DEN": "item", "SPR": "sparse"}[subset]
    saved = {"counts": "words", "shallow": "shallow", "deep": "deep", "size": "bags"}
    parts = {kind: run.load(name) for kind, name in saved.items()}
    return Split(
        run.load(subset.lower()).train,
        {kind: getattr(part, items) for kind, part in parts.items()},
        {kind: part.cold[: None if subset == "DEN" else 0] for kind, part in parts.items()},
        run.profile,
        subset,
        run.device,
    )


def artifact(subset: str, system: str) -> str:
    """Return the name under which notebooks hand on a fitted system."""
    return re.sub(r"\W+", "_", f"{subset} {system}")


@dataclass(frozen=True)
class Fitted:
    """Factors of users and items, and of the items that nobody has played (or None)."""

    theta: np.ndarray
    beta: np.ndarray
    cold: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what there is by name, to be saved; ``Fitted(**arrays)`` brings it back."""
        return {name: x for name, x in vars(self).items() if x is not None}


@dataclass(frozen=True)
class Between:
    """A positive setting to search on a logarithmic scale.

    ``start`` is its source's value, which is tried first and may lie outside the range: the sources
    had more listening, and the range is where smaller collections have their best.
    """

    low: float
    high: float
    start: float | None = None  # None: the paper's, for the subset


@dataclass(frozen=True)
class System:
    """One row of the tables.

    ``fit`` takes a :class:`Split` and the settings of ``space`` by name, and those in ``given``,
    which are WMF's: what stands on WMF's factors takes them as WMF was tuned.
    """

    source: str
    fit: Callable[..., Fitted]
    space: dict[str, Between | tuple] = field(default_factory=dict)
    cold: bool = False  # can it score an item that nobody has played?
    given: tuple[str, ...] = ()


# --- floors -------------------------------------------------------------------------------------


def _random(split: Split) -> Fitted:
    rng = np.random.default_rng(split.profile.seed)
    sizes = (*split.train.shape, split.n_cold)
    return Fitted(*(rng.standard_normal((n, 16), np.float32) for n in sizes))


def _popularity(split: Split) -> Fitted:
    listeners = np.bincount(split.train.indices, minlength=split.train.shape[1])
    return Fitted(*metrics.same_for_all(listeners, split.train.shape[0]))


def _bag_size(split: Split) -> Fitted:
    theta, beta = metrics.same_for_all(split.content["size"], split.train.shape[0])
    return Fitted(theta, beta, np.asarray(split.cold["size"], np.float32)[:, None])


@lru_cache(maxsize=4)  # of few splits: it keeps them alive
def _plain(split: Split, lambda_theta: float) -> wmf.Factors:
    return split.fit_wmf(split.surplus(), lambda_theta=lambda_theta)


def _mean_item(split: Split, lambda_theta: float) -> Fitted:
    plain = _plain(split, lambda_theta)
    mean = plain.beta.mean(0)
    return Fitted(plain.theta, plain.beta, np.tile(mean, (split.n_cold, 1)))


def _neighbours(split: Split, kind: str, scale: str) -> Fitted:
    """Score an item by its mean cosine similarity to the user's (van den Oord et al., sec. 5.2)."""
    beta, cold = (
        normalize(x) if len(x) else x
        for x in vq.rescale(scale, split.content[kind], split.cold[kind])
    )
    theta = split.played @ beta / np.maximum(split.played.sum(1).A1, 1)[:, None]
    return Fitted(theta, beta, cold)


# --- listening alone ----------------------------------------------------------------------------


def _wmf(split: Split, lambda_theta: float, counts: str = "binary", alpha=None) -> Fitted:
    model = split.fit_wmf(split.surplus(alpha, counts), lambda_theta=lambda_theta)
    return Fitted(model.theta, model.beta)


def _wmf_with_bias(split: Split, lambda_theta: float) -> Fitted:
    """What CF has beside content: the mean song, unpenalised, as every song's prior."""
    nothing = np.zeros((split.train.shape[1], 1), np.float32)
    model = split.fit_wmf(split.surplus(), nothing, lambda_theta=lambda_theta, bias=True)
    return Fitted(model.theta, model.beta)


def _pmf(split: Split, **settings) -> Fitted:
    model = poisson.pmf(
        split.played, factors=split.profile.factors, seed=split.profile.seed, **settings
    )
    return Fitted(model.theta, model.beta)


# --- listening and content ----------------------------------------------------------------------


def _content_prior(split: Split, kind: str, lambda_theta: float, lambda_w: float) -> Fitted:
    model = split.fit_wmf(
        split.surplus(), split.content[kind], lambda_theta=lambda_theta, lambda_w=lambda_w
    )
    return Fitted(model.theta, model.beta, wmf.cold_factors(split.cold[kind], model.w))


@lru_cache(maxsize=4)
def _topics(split: Split) -> tuple[np.ndarray, np.ndarray]:
    lda = LatentDirichletAllocation(
        split.profile.factors,
        learning_method="online",
        batch_size=512,
        max_iter=5,
        random_state=split.profile.seed,
    )
    topics = lda.fit_transform(split.content["counts"])
    return topics, lda.transform(split.cold["counts"]) if split.n_cold else topics[:0]


def _ctr(split: Split, lambda_theta: float, lambda_beta: float) -> Fitted:
    """Collaborative topic regression, its topics found first and then kept (as its authors do)."""
    topics, cold = _topics(split)
    model = split.fit_wmf(
        split.surplus(), means=topics, lambda_theta=lambda_theta, lambda_beta=lambda_beta
    )
    return Fitted(model.theta, model.beta, cold.astype(np.float32))


def _ctpf(split: Split, **settings) -> Fitted:
    words = split.content["counts"], split.cold["counts"]
    model = poisson.ctpf(
        split.played, *words, factors=split.profile.factors, seed=split.profile.seed, **settings
    )
    return Fitted(model.theta, model.beta, model.cold)


# --- content alone ------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _weighted_error(split: Split, lambda_theta: float) -> tuple[np.ndarray, np.ndarray]:
    return regression.quadratic(_plain(split, lambda_theta).theta, split.surplus())


def _regression(
    split: Split, kind: str, units: int, weighted: bool, penalty: float, lambda_theta: float
) -> Fitted:
    plain = _plain(split, lambda_theta)
    predict = regression.fit(
        split.content[kind],
        plain.beta,
        _weighted_error(split, lambda_theta) if weighted else None,
        units=units,
        penalty=penalty,
        seed=split.profile.seed,
        device=split.device,
    )
    return Fitted(plain.theta, predict(split.content[kind]), predict(split.cold[kind]))


_RIDGE = Between(10.0, 1e4)
_KINDS = {"VQ": "shallow", "h": "deep"}
_ONE = ("lambda_theta",)


def _regressions() -> dict[str, System]:
    found = {}
    for name, kind in _KINDS.items():
        for shape, units, penalty in (
            ("linear", 0, Between(10.0, 1e7, 1e3)),
            ("MLP", 1000, Between(1e-6, 1.0, 1e-4)),
        ):
            for loss, weighted in (("", False), (", WPE", True)):
                fit = partial(_regression, kind=kind, units=units, weighted=weighted)
                found[f"regression, {name}, {shape}{loss}"] = System(
                    "van den Oord et al. 2013", fit, {"penalty": penalty}, True, _ONE
                )
    return found


SYSTEMS: dict[str, System] = {
    "random": System("floor", _random, cold=True),
    "mean item": System("floor", _mean_item, cold=True, given=_ONE),
    "bag size": System("floor: does content betray popularity?", _bag_size, cold=True),
    "popularity": System("floor", _popularity),
    **{
        f"neighbours, {name}": System(
            "floor; MLR's ranking in van den Oord et al. 2013",
            partial(_neighbours, kind=kind),
            {"scale": vq.SCALES},
            cold=True,
        )
        for name, kind in _KINDS.items()
    },
    "WMF": System("Hu, Koren, Volinsky 2008", _wmf, {"lambda_theta": _RIDGE}),
    "WMF + bias": System("ours: CF without content", _wmf_with_bias, {"lambda_theta": _RIDGE}),
    "WMF, log of counts": System(
        "Hu, Koren, Volinsky 2008, eq. (6)",
        partial(_wmf, counts="log"),
        {"lambda_theta": _RIDGE, "alpha": Between(0.05, 5.0, 2.0)},
    ),
    "WMF, linear in counts": System(
        "Hu, Koren, Volinsky 2008, eq. (4)",
        partial(_wmf, counts="linear"),
        {"lambda_theta": _RIDGE, "alpha": Between(1e-3, 1.0, 40.0)},
    ),
    "PMF": System("Gopalan, Hofman, Blei 2015", _pmf, {"shape": Between(0.03, 3.0, 0.3)}),
    "CTPF": System(
        "Gopalan, Charlin, Blei 2014", _ctpf, {"shape": Between(0.03, 3.0, 0.3)}, cold=True
    ),
    "CTR": System(
        "Wang, Blei 2011",
        _ctr,
        {"lambda_theta": Between(10.0, 1e6, 0.01), "lambda_beta": Between(0.01, 1e4, 100.0)},
        cold=True,
    ),
    **_regressions(),
    **{
        f"CF + {kind}": System(
            "Liang, Zhan, Ellis 2015",
            partial(_content_prior, kind=kind),
            {"lambda_theta": _RIDGE, "lambda_w": lambda_w},
            cold=True,
        )
        # Wide enough for entries of a thousandth and of one.
        for kind, lambda_w in (("shallow", Between(1e-3, 1e3)), ("deep", Between(1.0, 1e7)))
    },
}


# --- tags ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Tagged:
    """Songs with tags: ``histograms`` (n x J), ``counts`` and ``tags`` (csr_matrix)."""

    histograms: np.ndarray
    counts: sp.csr_matrix
    tags: sp.csr_matrix
    profile: Profile
    device: str = "cpu"
    checkpoint: Callable | None = None  # Run.checkpoint, for trials that take hours

    def rows(self, chosen: np.ndarray) -> Tagged:
        """Return some of the songs."""
        parts = {name: getattr(self, name)[chosen] for name in ("histograms", "counts", "tags")}
        return replace(self, **parts)


def train_network(taught: Tagged, **settings):
    """Train the profile's tag network, but for ``settings``; see :func:`repro.models.tagnet.train`."""
    settings = taught.profile.network | {"device": taught.device} | settings
    return tagnet.train(taught.histograms, taught.tags, **settings)


def _network(taught: Tagged, **settings) -> Callable[[Tagged], np.ndarray]:
    if taught.checkpoint is not None:
        settings = settings | {"checkpoint": taught.checkpoint(f"trial {settings}")}
    net, _ = train_network(taught, **settings)
    return lambda songs: tagnet.predict(net, songs.histograms)


def _logistic(taught: Tagged, penalty: float) -> Callable[[Tagged], np.ndarray]:
    model = tagnet.logistic(taught.histograms, taught.tags, penalty)
    return lambda songs: model(songs.histograms)


def _spmf(taught: Tagged, **settings) -> Callable[[Tagged], np.ndarray]:
    model = poisson.spmf(taught.counts, taught.tags, seed=taught.profile.seed, **settings)
    # A tag that arrives at a rate is there with probability 1 - exp(-rate).
    return lambda songs: np.log(np.expm1(np.clip(model.tags_of(songs.counts), 1e-9, 30)))


@dataclass(frozen=True)
class Tagger:
    """One row of Table 1; ``fit`` gives the function from songs to logits, n x tags."""

    source: str
    fit: Callable[..., Callable[[Tagged], np.ndarray]]
    space: dict[str, Between | tuple]
    correction: float = 1.25  # authors' code: times a tag's mean, taken off before annotation


_RATE = {"learning_rate": Between(0.003, 0.1, 0.01)}
TAGGERS: dict[str, Tagger] = {
    "NNet": Tagger("Liang, Zhan, Ellis 2015", _network, _RATE),
    "NNet, authors' variant": Tagger(
        "their code: deep_tagging", partial(_network, authors=True), _RATE
    ),
    "logistic regression": Tagger("their code", _logistic, {"penalty": Between(1e-3, 1e3, 1.0)}),
    "SPMF": Tagger(
        "Liang, Paisley, Ellis 2014", _spmf, {"tag_weight": Between(1.0, 100.0, 1.0)}, 3.0
    ),
}
