"""One rule for choosing the settings of every system: equally many trials, judged on validation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import qmc

from repro.evaluation import metrics
from repro.models import tagnet
from repro.systems import SYSTEMS, TAGGERS, Between, Split, Tagged


def at_once(name: str, compute: Callable[[], dict]) -> dict:
    """Run a trial and remember nothing; :meth:`repro.pipeline.run.Run.trial` can go on where it was."""
    return compute()


def draws(space: dict, trials: int, seed: int, start: dict | None = None) -> list[dict]:
    """Return the settings to try: those of the system's source, then an even spread (Halton).

    Parameters
    ----------
    space : dict
        Of :class:`repro.systems.System`.
    start : dict, optional
        The source's values of settings whose range names none.

    Returns
    -------
    list of dict
        No settings twice, so fewer than ``trials`` where there are not so many; one, without any,
        for a system that has nothing to choose.
    """
    found = [
        {
            name: r[0] if isinstance(r, tuple) else start[name] if r.start is None else r.start
            for name, r in space.items()
        }
    ]
    if space and trials > 1:
        for point in qmc.Halton(len(space), rng=seed).random(trials - 1):
            one = {name: _at(x, r) for x, (name, r) in zip(point, space.items(), strict=True)}
            found += [one] if one not in found else []
    return found


def _at(x: float, values: Between | tuple):
    if isinstance(values, tuple):
        return values[int(x * len(values))]
    return float(f"{values.low * (values.high / values.low) ** x:.3g}")


def search(
    name: str,
    split: Split,
    heldout: sp.csr_matrix,
    exclude: sp.csr_matrix | None = None,
    *,
    cold: bool = False,
    given: dict | None = None,
    remember: Callable[[str, Callable[[], dict]], dict] = at_once,
) -> tuple[dict, pd.DataFrame]:
    """Try settings of a system on ``split`` and return those of the highest NDCG on ``heldout``.

    Parameters
    ----------
    name : str
        Of the system, in :data:`repro.systems.SYSTEMS`.
    heldout, exclude : csr_matrix
        Validation pairs of the items, or, with ``cold``, of the split's cold items, and the pairs
        that are not ranked.
    given : dict, optional
        WMF's settings, for a system that takes some of them.
    remember : callable
        From a trial's name and the function that runs it to what it gives.

    Returns
    -------
    dict
        The best settings, with which ``SYSTEMS[name].fit`` is complete.
    DataFrame
        One row a trial: ``system``, ``settings`` in writing, ``NDCG``, ``R@40``, and which
        settings are ``on the edge`` of their range.
    """
    system = SYSTEMS[name]
    fixed = {key: given[key] for key in system.given}
    validate = metrics.validator(heldout, exclude)

    def run(settings):
        fitted = system.fit(split, **fixed, **settings)
        return validate(fitted.theta, fitted.cold if cold else fitted.beta)

    where = f"{split.subset}, {'cold' if cold else 'pairs'}"
    tried = draws(
        system.space, split.profile.trials, split.profile.seed, split.profile.ridges(split.subset)
    )
    best, trials = _best(
        f"{name}, {where}, {fixed}", name, system.space, tried, run, "NDCG", remember
    )
    return fixed | best, trials


def search_tags(
    name: str, taught: Tagged, watched: Tagged, remember: Callable = at_once
) -> tuple[dict, pd.DataFrame]:
    """Try settings of a tagger on ``taught`` and return those of the highest AROC on ``watched``.

    Returns
    -------
    dict
        The best settings for ``TAGGERS[name].fit``.
    DataFrame
        One row a trial: ``system``, ``settings``, ``AROC``, ``MAP``.
    """
    tagger, profile = TAGGERS[name], taught.profile

    def run(settings):
        logits = tagger.fit(taught, **settings)(watched)
        scores = tagnet.summary(tagnet.per_tag(logits, watched.tags, profile.annotate))
        return {"AROC": float(scores["AROC"]), "MAP": float(scores["MAP"])}

    tried = draws(tagger.space, profile.tag_trials, profile.seed)
    return _best(f"{name}, tags", name, tagger.space, tried, run, "AROC", remember)


def _on_the_edge(settings: dict, space: dict) -> str:
    """Name the settings in the outer tenths of their ranges, beyond which a better one may lie."""
    names = []
    for name, values in space.items():
        if not isinstance(values, tuple):
            place = np.log(settings[name] / values.low) / np.log(values.high / values.low)
            names += [name] if not 0.1 < place < 0.9 else []
    return ", ".join(names)


def _best(what, system, space, tried, run, metric, remember):
    rows = []
    for settings in tried:
        written = ", ".join(
            f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items()
        )
        result = remember(f"{what}: {settings}", partial(run, settings))
        row = {"system": system, "settings": written, **result}
        rows.append(row | {"on the edge": _on_the_edge(settings, space)})
    trials = pd.DataFrame(rows)
    return tried[int(trials[metric].argmax())], trials
