"""Every system of the comparison behind one interface: a split in, factors out.

``SYSTEMS`` and ``TAG_MODELS`` list the rows of the tables with their sources and with the settings
to search; :func:`search` and :func:`search_tags` give each of them equally many trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import qmc
from sklearn.decomposition import LatentDirichletAllocation
from sklearn.preprocessing import normalize

from repro.config import Profile
from repro.evaluation import metrics
from repro.models import Factors, poisson, regression, tagnet, vq, wmf


@dataclass(frozen=True, eq=False)
class Split:
    """What a system may see: ``train``, the play counts of the training pairs (users x items), and
    content, of the items and of the ``cold`` ones that nobody has played.

    Content is by kind: ``"counts"`` of codewords (csr_matrix), arrays ``"shallow"``, ``"deep"``,
    ``"exposed"`` (deep too, of a network that has been taught the cold items' tags) and ``"tags"``
    themselves, and ``"size"`` (frames). A search starts from the paper's regularisation for the
    ``subset``, ``"DEN"`` or ``"SPR"``.
    """

    train: sp.csr_matrix
    content: dict
    cold: dict
    profile: Profile
    subset: str = "DEN"
    device: str = "cpu"
    _last: dict = field(default_factory=dict, init=False, repr=False)

    n_cold = property(lambda self: len(self.cold["size"]))
    played = property(lambda self: (self.train > 0).astype(np.float32))  # pairs, as ones

    def hide(self, items: np.ndarray) -> tuple[Split, sp.csr_matrix]:
        """Return the split in which nobody has played ``items``, and their plays."""
        rest = np.setdiff1d(np.arange(self.train.shape[1]), items)
        content, cold = ({kind: x[i] for kind, x in self.content.items()} for i in (rest, items))
        split = replace(self, train=self.train[:, rest].tocsr(), content=content, cold=cold)
        return split, self.train[:, items].tocsr()

    def with_plays(self, train: sp.csr_matrix) -> Split:
        """Return the split with other plays; its topics, which are of content alone, are kept."""
        split = replace(self, train=train)
        split._last[_topics] = (), self.once(_topics)
        return split

    def surplus(self, alpha: float | None = None, counts: str = "binary") -> sp.csr_matrix:
        """Return the confidence above one: of plays as such, or logarithmic or linear in counts."""
        alpha = alpha or self.profile.alpha
        if counts == "linear":  # Hu et al. 2008, sec. 4
            return (alpha * self.train).astype(np.float32)
        return wmf.log_surplus(self.train, alpha, self.profile.eps, counts == "binary")

    def fit_wmf(self, surplus: sp.csr_matrix, features=None, **settings) -> Factors:
        """Fit WMF under the profile, with the paper's regularisation where none is given."""
        settings = self.profile.ridges(self.subset) | self.profile.factorisation | settings
        return wmf.fit(surplus, features, device=self.device, **settings)

    def once(self, compute: Callable, *settings):
        """Return ``compute(self, *settings)``, kept until it is asked for with other settings."""
        if self._last.get(compute, (None,))[0] != settings:
            self._last[compute] = settings, compute(self, *settings)
        return self._last[compute][1]


@dataclass(frozen=True)
class Between:
    """A positive setting to search on a logarithmic scale.

    ``start`` is its source's value, which is tried first and may lie outside the range: the sources
    had more listening, and the range is where smaller collections have their best.
    """

    low: float
    high: float
    start: float | None = None  # None: the paper's, for the subset

    def at(self, x: float) -> float:
        """Return the value at a place between 0 and 1, to three digits."""
        return float(f"{self.low * (self.high / self.low) ** x:.3g}")

    def on_edge(self, value: float) -> bool:
        """Return whether a value is in an outer tenth, beyond which a better one may lie."""
        return not 0.1 < np.log(value / self.low) / np.log(self.high / self.low) < 0.9

    def beyond(self, value: float) -> float:
        """Return the value five times as far out on the side of the nearer edge."""
        return float(f"{value * (5.0 if value**2 > self.low * self.high else 0.2):.3g}")


class Choice(tuple):
    """A setting of a few values without an order, so without an edge; the first is tried first."""

    start = property(lambda self: self[0])
    on_edge = staticmethod(lambda value: False)

    def at(self, x: float):
        """Return the value at a place between 0 and 1."""
        return self[int(x * len(self))]


@dataclass(frozen=True)
class System:
    """One row of the tables.

    ``fit`` takes a :class:`Split` and the settings of ``space`` by name, and those in ``given``,
    which are WMF's: what stands on WMF's factors takes them as WMF was tuned.
    """

    group: str  # "floor", "listening", "listening and content" or "regression"
    source: str
    fit: Callable[..., Factors]
    space: dict[str, Between | Choice] = field(default_factory=dict)
    cold: bool = True  # can it score an item that nobody has played?
    content: str | None = None  # the kind of content that it uses
    given: tuple[str, ...] = ()


# --- from a split to factors --------------------------------------------------------------------


def _random(split: Split) -> Factors:
    rng = np.random.default_rng(split.profile.seed)
    sizes = (*split.train.shape, split.n_cold)
    return Factors(*(rng.standard_normal((n, 16), np.float32) for n in sizes))


def _popularity(split: Split) -> Factors:
    return Factors(*metrics.same_for_all(split.train.getnnz(axis=0), split.train.shape[0]))


def _bag_size(split: Split) -> Factors:
    theta, beta = metrics.same_for_all(split.content["size"], split.train.shape[0])
    return Factors(theta, beta, np.asarray(split.cold["size"], np.float32)[:, None])


def _mean_item(split: Split, lambda_theta: float) -> Factors:
    plain = split.once(_wmf, lambda_theta)
    return replace(plain, cold=np.tile(plain.beta.mean(0), (split.n_cold, 1)))


def _neighbours(split: Split, kind: str, scale: str) -> Factors:
    """Score an item by its mean cosine similarity to the user's (van den Oord et al., sec. 5.2)."""
    both = vq.rescale(scale, split.content[kind], split.cold[kind])
    beta, cold = (normalize(x) if len(x) else x for x in both)
    theta = split.played @ beta / np.maximum(split.played.sum(1).A1, 1)[:, None]
    return Factors(theta, beta, cold)


def _wmf(split: Split, lambda_theta: float, counts: str = "binary", alpha=None) -> Factors:
    return split.fit_wmf(split.surplus(alpha, counts), lambda_theta=lambda_theta)


def _wmf_with_bias(split: Split, lambda_theta: float) -> Factors:
    """The content-aware model without content: an unpenalised mean song as every song's prior."""
    nothing = np.zeros((split.train.shape[1], 1), np.float32)
    return split.fit_wmf(split.surplus(), nothing, lambda_theta=lambda_theta, bias=True)


def _pmf(split: Split, shape: float) -> Factors:
    factors, seed = split.profile.factors, split.profile.seed
    return poisson.pmf(split.played, factors=factors, seed=seed, shape=shape)


def _content_prior(split: Split, kind: str, **settings) -> Factors:
    model = split.fit_wmf(split.surplus(), split.content[kind], **settings)
    return replace(model, cold=wmf.cold_factors(split.cold[kind], model.w))


def _topics(split: Split) -> tuple[np.ndarray, np.ndarray]:
    online = {"learning_method": "online", "batch_size": 512, "max_iter": 5}
    seed = split.profile.seed
    lda = LatentDirichletAllocation(split.profile.factors, random_state=seed, **online)
    topics = lda.fit_transform(split.content["counts"])
    return topics, lda.transform(split.cold["counts"]) if split.n_cold else topics[:0]


def _ctr(split: Split, **settings) -> Factors:
    """Collaborative topic regression, its topics found first and then kept (as its authors do)."""
    topics, cold = split.once(_topics)
    model = split.fit_wmf(split.surplus(), means=topics, **settings)
    return replace(model, cold=cold.astype(np.float32))


def _ctpf(split: Split, shape: float, word_weight: float) -> Factors:
    words = (word_weight * x["counts"] for x in (split.content, split.cold))
    start = {"lda": split.once(_topics)[0], "seed": split.profile.seed}
    return poisson.ctpf(split.played, *words, factors=split.profile.factors, shape=shape, **start)


def _weighted_error(split: Split, lambda_theta: float) -> tuple[np.ndarray, np.ndarray]:
    return regression.quadratic(split.once(_wmf, lambda_theta).theta, split.surplus())


def _regression(
    split: Split, kind: str, units: int, weighted: bool, penalty: float, lambda_theta: float
) -> Factors:
    plain, content = split.once(_wmf, lambda_theta), split.content[kind]
    error = split.once(_weighted_error, lambda_theta) if weighted else None
    how = {"seed": split.profile.seed, "device": split.device}
    predict = regression.fit(content, plain.beta, error, units=units, penalty=penalty, **how)
    return Factors(plain.theta, predict(content), predict(split.cold[kind]))


def _system(group: str, source: str, fit: Callable, space=None, *, cold=True, given=(), **fixed):
    """Return a row whose ``fit`` has some settings ``fixed``, the kind of content among them."""
    return System(group, source, partial(fit, **fixed), space or {}, cold, fixed.get("kind"), given)


def _content_aware(kind: str, low: float, high: float, source="Liang, Zhan, Ellis 2015") -> System:
    space = _RIDGE | {"lambda_w": Between(low, high)}
    return _system(_BOTH, source, _content_prior, space, kind=kind)


_RIDGE, _SHAPE = {"lambda_theta": Between(10.0, 1e4)}, {"shape": Between(0.03, 3.0, 0.3)}
_WORDS = _SHAPE | {"word_weight": Between(0.1, 10.0, 1.0)}
_TOPICS = {"lambda_theta": Between(10.0, 1e6, 0.01), "lambda_beta": Between(0.01, 1e4, 100.0)}
_LOG, _LINEAR = (_RIDGE | {"alpha": x} for x in (Between(0.05, 5.0, 2.0), Between(1e-3, 1.0, 40.0)))
_SCALE = {"scale": Choice(vq.SCALES)}
_PENALTY = {0: Between(10.0, 1e7, 1e3), 1000: Between(1e-6, 1.0, 1e-4)}  # by hidden units
_KINDS = {"VQ": "shallow", "h": "deep", "h exposed": "exposed"}
_HU, _OORD = "Hu, Koren, Volinsky 2008", "van den Oord et al. 2013"
_PLAYS, _BOTH, _GIVEN = "listening", "listening and content", ("lambda_theta",)

SYSTEMS: dict[str, System] = {
    "random": System("floor", "chance", _random),
    "mean item": System("floor", "ours", _mean_item, given=_GIVEN),
    "bag size": System("floor", "does content betray popularity?", _bag_size, content="size"),
    "popularity": System("floor", "listeners in training", _popularity, cold=False),
    **{
        f"neighbours, {x}": _system(
            "floor", f"MLR's ranking in {_OORD}", _neighbours, _SCALE, kind=kind
        )
        for x, kind in _KINDS.items()
    },
    "WMF": System(_PLAYS, _HU, _wmf, _RIDGE, cold=False),
    "WMF + bias": System(_PLAYS, "ours", _wmf_with_bias, _RIDGE, cold=False),
    "WMF, log of counts": _system(_PLAYS, f"{_HU}, eq. (6)", _wmf, _LOG, cold=False, counts="log"),
    "WMF, linear in counts": _system(
        _PLAYS, f"{_HU}, eq. (4)", _wmf, _LINEAR, cold=False, counts="linear"
    ),
    "PMF": System(_PLAYS, "Gopalan, Hofman, Blei 2015", _pmf, _SHAPE, cold=False),
    "CTPF": System(_BOTH, "Gopalan, Charlin, Blei 2014", _ctpf, _WORDS, content="counts"),
    "CTR": System(_BOTH, "Wang, Blei 2011", _ctr, _TOPICS, content="counts"),
}
for _name, _units, _weighted in [*product(("VQ", "h"), (0, 1000), (0, 1)), ("h exposed", 0, 0)]:
    _fixed = {"kind": _KINDS[_name], "units": _units, "weighted": bool(_weighted)}
    SYSTEMS[f"regression, {_name}, {'MLP' if _units else 'linear'}{', WPE' * _weighted}"] = _system(
        "regression", _OORD, _regression, {"penalty": _PENALTY[_units]}, given=_GIVEN, **_fixed
    )
SYSTEMS |= {  # the more content there is in an entry, the more its weight has to be held back
    "CF + shallow": _content_aware("shallow", 1e-3, 1e3),
    "CF + deep": _content_aware("deep", 1.0, 1e7),
    "CF + deep, exposed": _content_aware("exposed", 1.0, 1e7),
    "CF + tags": _content_aware("tags", 0.1, 1e6, "ours"),
}


# --- tags ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TaggedSongs:
    """Songs with tags: ``histograms`` (n x J), ``counts`` and ``tags`` (csr_matrix)."""

    histograms: np.ndarray
    counts: sp.csr_matrix
    tags: sp.csr_matrix
    profile: Profile
    device: str = "cpu"

    def rows(self, chosen: np.ndarray) -> TaggedSongs:
        """Return some of the songs."""
        parts = (x[chosen] for x in (self.histograms, self.counts, self.tags))
        return TaggedSongs(*parts, self.profile, self.device)


def train_network(songs: TaggedSongs, **settings):
    """Train the profile's network, but for ``settings``: see :func:`repro.models.tagnet.train`."""
    settings = songs.profile.network | {"device": songs.device} | settings
    return tagnet.train(songs.histograms, songs.tags, **settings)


def tag_scores(logits: np.ndarray, songs: TaggedSongs) -> pd.Series:
    """Return the row of Table 1 that logits (n x tags) have on ``songs``."""
    return tagnet.summary(tagnet.per_tag(logits, songs.tags, songs.profile.annotate))


Logits = Callable[[TaggedSongs], np.ndarray]


def _network(songs: TaggedSongs, **settings) -> Logits:
    net, _ = train_network(songs, **settings)
    return lambda others: tagnet.predict(net, others.histograms)


def _logistic(songs: TaggedSongs, penalty: float) -> Logits:
    model = tagnet.logistic(songs.histograms, songs.tags, penalty)
    return lambda others: model(others.histograms)


def _spmf(songs: TaggedSongs, tag_weight: float) -> Logits:
    rates = poisson.spmf(songs.counts, songs.tags, seed=songs.profile.seed, tag_weight=tag_weight)
    # A tag that arrives at a rate is there with probability 1 - exp(-rate).
    return lambda others: np.log(np.expm1(np.clip(rates(others.counts), 1e-9, 30)))


@dataclass(frozen=True)
class TagModel:
    """One row of Table 1; ``fit`` gives the function from songs to logits, n x tags."""

    source: str
    fit: Callable[..., Logits]
    space: dict[str, Between]
    correction: float = 1.25  # authors' code: times a tag's mean, taken off before annotation
    resumes: bool = False  # does ``fit`` take a checkpoint?


_RATE, _AUTHORS = {"learning_rate": Between(0.003, 0.1, 0.01)}, partial(_network, authors=True)
_WEIGHT = {"tag_weight": Between(1.0, 100.0, 1.0)}
TAG_MODELS: dict[str, TagModel] = {
    "NNet": TagModel("Liang, Zhan, Ellis 2015", _network, _RATE, resumes=True),
    "NNet, authors' variant": TagModel("their code", _AUTHORS, _RATE, resumes=True),
    "logistic regression": TagModel("their code", _logistic, {"penalty": Between(1e-3, 1e3, 1.0)}),
    "SPMF": TagModel("Liang, Paisley, Ellis 2014", _spmf, _WEIGHT, correction=3.0),
}


# --- the search ---------------------------------------------------------------------------------


WIDER = 4  # trials more, where the best of a search is on an edge


def candidates(space: dict, trials: int, seed: int, start: dict | None = None) -> list[dict]:
    """Return the settings to try: those of the system's source, then an even spread (Halton).

    ``start`` has the source's values of settings whose range names none. No settings come twice,
    so there are fewer than ``trials`` where there are not so many: one for an empty ``space``.
    """
    found = [{n: start[n] if r.start is None else r.start for n, r in space.items()}]
    if space and trials > 1:
        for point in qmc.Halton(len(space), rng=seed).random(trials - 1):
            one = {name: r.at(x) for x, (name, r) in zip(point, space.items(), strict=True)}
            found += [one] if one not in found else []
    return found


def search(
    name, split, heldout, exclude=None, *, points, cold=False, given=None, label=None
) -> tuple[dict, pd.DataFrame]:
    """Try settings of a system on ``split`` and return those of the highest NDCG on ``heldout``.

    ``heldout`` and ``exclude`` (csr_matrix) are validation pairs of the items or, with ``cold``, of
    the split's cold ones, and pairs that are not ranked. :class:`repro.pipeline.run.Points` keep
    finished trials, which are not run again. ``given`` has WMF's settings, of which some systems
    take some; ``label`` is what tells this search from others in the same ``points``.

    The table has a row per trial: the label, ``system``, each setting, ``settings`` in writing,
    ``NDCG``, ``R@40``, and which settings are ``on the edge`` of their range.
    """
    system, profile = SYSTEMS[name], split.profile
    validate = metrics.validator(heldout, exclude)

    def score(settings):
        model = system.fit(split, **settings)
        return validate(model.theta, model.cold if cold else model.beta)

    fixed = {key: given[key] for key in system.given}
    start, label = profile.ridges(split.subset), (label or {}) | {"system": name}
    tried = candidates(system.space, profile.trials, profile.seed, start)
    tried = [fixed | one for one in tried]
    return _best(tried, score, ["NDCG", "R@40"], system.space, label, points)


def search_tags(name, train, watch, points, checkpoint=None) -> tuple[dict, pd.DataFrame]:
    """Try settings of a tag model on ``train`` and return those of the highest AROC on ``watch``.

    Both are :class:`TaggedSongs`; ``points`` as in :func:`search`, ``checkpoint`` makes one of a
    name, for trials of hours. The table has ``AROC`` and ``MAP``.
    """
    model, profile = TAG_MODELS[name], train.profile
    resumes = model.resumes and checkpoint is not None

    def score(settings):
        kept = {"checkpoint": checkpoint(f"{name}, {settings}")} if resumes else {}
        scores = tag_scores(model.fit(train, **settings, **kept)(watch), watch)
        return scores[["AROC", "MAP"]].to_dict()

    tried = candidates(model.space, profile.tag_trials, profile.seed)
    return _best(tried, score, ["AROC", "MAP"], model.space, {"system": name}, points)


def _best(tried: list[dict], score: Callable, by: list, space: dict, label: dict, points):
    """Score the settings that ``points`` lacks; return the best of all, and a row of each.

    While the best is on an edge, up to WIDER more are tried beyond it. Of settings whose first
    metric is the same to three digits the second decides, lest a degenerate model win a tie.
    """
    tried, first = list(tried), len(tried)
    while True:
        for row in list(points.todo(label | settings for settings in tried)):
            settings = {name: row[name] for name in tried[0]}
            said = {n: f"{x:g}" if isinstance(x, float) else x for n, x in settings.items()}
            edges = (name for name, r in space.items() if r.on_edge(settings[name]))
            about = {"settings": ", ".join(f"{name}={said[name]}" for name in space)}
            points.add(row, about | score(settings) | {"on the edge": ", ".join(edges)})
        frame = points.frame(label | settings for settings in tried)
        best = tried[max(range(len(tried)), key=lambda i: tuple(frame[by].iloc[i].round(3)))]
        outer = {n: r.beyond(best[n]) for n, r in space.items() if r.on_edge(best[n])}
        if not outer or best | outer in tried or first + WIDER <= len(tried) or first == 1:
            return best, frame
        tried.append(best | outer)
