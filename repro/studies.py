"""What notebook 8 varies, one point of a study at a time, each kept once it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from repro import tuning
from repro.evaluation import metrics
from repro.models import tagnet, vq, wmf
from repro.systems import SYSTEMS, Fitted, Split, Tagged, load_split, train_network

OURS = "CF + shallow", "CF + deep"


@dataclass(frozen=True, eq=False)
class Study:
    """The main run's data, and the judgement that is passed on every variation of it."""

    run: object
    split: Split
    den: SimpleNamespace
    tags: SimpleNamespace
    teach: SimpleNamespace
    taught: Tagged
    watched: Tagged
    judged: Tagged
    _searches: list = field(default_factory=list)  # of the point that is being computed
    _trials: list = field(default_factory=list)

    @classmethod
    def load(cls, run) -> Study:
        """Return the study of what notebooks 1 to 3 have saved in ``run``."""
        den, tags, shallow, words, teach = (
            run.load(name) for name in ("den", "tags", "shallow", "words", "teach")
        )
        songs = Tagged(shallow.tagged, words.tagged, tags.tags, run.profile, run.device)
        parts = (songs.rows(rows) for rows in (teach.rows, teach.watch, teach.judged))
        return cls(run, load_split(run), den, tags, teach, *parts)

    # --- judgement

    def _cold(self, system: str, split: Split) -> dict:
        """Choose settings on veiled songs, fit with all, and judge on the cold songs."""
        veiled, plays = split.veil(self.den.veiled)
        plays += self.den.validation[:, self.den.veiled]
        best, tried = tuning.search(system, veiled, plays, cold=True)
        self._searches.append(tried.assign(judged="veiled songs"))
        model = SYSTEMS[system].fit(split, **best)
        return metrics.validator(self.den.cold, None)(model.theta, model.cold)

    def _search(self, system: str, split: Split) -> dict:
        best, tried = tuning.search(system, split, self.den.validation, split.train)
        self._searches.append(tried.assign(judged="validation pairs"))
        return best

    def _pairs(self, model: Fitted) -> dict:
        exclude = self.split.train + self.den.validation
        return metrics.validator(self.den.test, exclude)(model.theta, model.beta)

    def _with(self, kind: str, items: np.ndarray, cold: np.ndarray) -> Split:
        content, of_cold = self.split.content | {kind: items}, self.split.cold | {kind: cold}
        return replace(self.split, content=content, cold=of_cold)

    def _kept(self, row: dict, compute: Callable[[], dict]) -> dict:
        """Return a point's row with what ``compute`` finds, and keep the trials of its searches."""

        def whole():
            self._searches.clear()
            found = compute()
            tried = pd.concat(self._searches) if self._searches else pd.DataFrame()
            return found | {"trials": tried.to_json(orient="records", double_precision=15)}

        point = ", ".join(f"{name} {value}" for name, value in row.items())
        kept = self.run.trial(f"{row}", whole)
        trials = pd.read_json(StringIO(kept.pop("trials")), orient="records")
        self._trials.append(trials.assign(point=point))
        return row | kept

    def trials(self) -> pd.DataFrame:
        """Return every trial of every search so far, and the point of a study that it was for."""
        found = pd.concat([t for t in self._trials if len(t)], ignore_index=True)
        return found.set_index("point").reset_index()

    # --- the tag network

    def network(self, rates, *, layer: int = -1, **settings) -> dict:
        """Train the network with other ``settings``, the best of ``rates`` by the watching tracks.

        Returns
        -------
        dict
            Its settings, AROC and MAP on the test tracks, and Recall@40 and NDCG of CF + deep on
            the cold songs.
        """

        def judge(net, songs):
            logits = tagnet.predict(net, songs.histograms)
            return tagnet.summary(tagnet.per_tag(logits, songs.tags, songs.profile.annotate))

        def compute():
            nets = [train_network(self.taught, learning_rate=rate, **settings)[0] for rate in rates]
            heard = [float(judge(net, self.watched)["AROC"]) for net in nets]
            tried = {"system": "NNet", "settings": [f"learning_rate={r:g}" for r in rates]}
            tried |= {"AROC": heard, "judged": "watching tracks"}
            self._searches.append(pd.DataFrame(tried))
            best = int(np.argmax(heard))
            scores = judge(nets[best], self.judged)
            h = [
                tagnet.hidden_layer(nets[best], x, layer)
                for x in (self.split.content["shallow"], self.split.cold["shallow"])
            ]
            found = {"learning rate": rates[best], "AROC": scores["AROC"], "MAP": scores["MAP"]}
            return found | self._cold("CF + deep", self._with("deep", *h))

        written = settings | ({} if layer == -1 else {"layer": layer + 1})
        if "hidden" in written:
            written["hidden"] = len(written["hidden"])
        return self._kept(written, compute)

    # --- features

    def codebook(self, read: Callable, codewords: int) -> dict:
        """Do everything from the codebook on with another number of codewords.

        A frame counts for the same share of them: of 16 all would be none.
        """
        tags, profile, den = self.tags, self.run.profile, self.den
        nearest = max(1, profile.nearest_codewords * codewords // profile.codewords)
        quantisation = profile.quantisation | {"nearest": nearest}

        def compute():
            book = vq.learn_codebook(
                np.concatenate([read(track) for track in self.run.load("codebook").sample]),
                codewords,
                profile.codebook_passes,
                profile.seed,
                profile.standardise_frames,
            )
            sets = den.item_tracks, den.cold_tracks, tags.tracks[self.teach.rows]
            # All tracks of notebook 2 in its order, where the frames kept of a track are drawn.
            every = np.concatenate([*sets[:2], self.run.load("spr").item_tracks, tags.tracks])
            ids = np.unique(every[every != ""])
            counts = vq.histograms(read, ids, book, **quantisation)
            items, cold, taught = (
                vq.l1_normalise(vq.rows_of(ids, wanted, counts)) for wanted in sets
            )
            songs = replace(self.taught, histograms=taught)
            net, _ = train_network(songs, learning_rate=self.teach.learning_rate)
            h = [tagnet.hidden_layer(net, x) for x in (items, cold)]
            return _beside(
                self._cold("CF + shallow", self._with("shallow", items, cold)),
                self._cold("CF + deep", self._with("deep", *h)),
            )

        return self._kept({"J": codewords}, compute)

    def scale(self, system: str, scale: str) -> dict:
        """Judge a system on the cold songs with its features on another scale."""
        kind = system.removeprefix("CF + ")

        def compute():
            scaled = vq.rescale(scale, self.split.content[kind], self.split.cold[kind])
            return self._cold(system, self._with(kind, *scaled))

        return self._kept({"system": system, "scale": scale}, compute)

    # --- the factorisation

    def factors(self, factors: int) -> dict:
        """Judge both content-aware models, and WMF in-matrix, with another number of factors."""
        split = replace(self.split, profile=replace(self.run.profile, factors=factors))

        def compute():
            plain = SYSTEMS["WMF"].fit(split, **self._search("WMF", split))
            found = {"WMF, in-matrix NDCG": self._pairs(plain)["NDCG"]}
            return found | _beside(*(self._cold(system, split) for system in OURS))

        return self._kept({"K": factors}, compute)

    def prior(self, system: str, lambda_beta) -> pd.DataFrame:
        """Fit with one ``lambda_beta`` after the other, everything else as chosen in-matrix.

        The ridge on W, lambda_beta lambda_w, is held, or content would go with the factors that it
        explains. Each fit sets out from the one before: alternating steps move the slower the
        stronger the prior is, and from W = 0 a very strong one would hold all songs where they are.
        """
        kind = system.removeprefix("CF + ") if system in OURS else None
        features = None if kind is None else self.split.content[kind]
        usual = self.run.profile.ridges("DEN")["lambda_beta"]

        def compute():
            best, model, found = self._search(system, self.split), None, {}
            for ridge in map(float, lambda_beta):
                settings = best | {"lambda_beta": ridge}
                if kind is not None:
                    settings["lambda_w"] *= usual / ridge
                before = None if model is None else _SetOut(model)
                model = self.split.fit_wmf(
                    self.split.surplus(), features, **settings, checkpoint=before
                )
                found[f"{ridge:g}, in-matrix"] = self._pairs(model)["NDCG"]
                if kind is not None:
                    cold = wmf.cold_factors(self.split.cold[kind], model.w)
                    judge = metrics.validator(self.den.cold, None)
                    found[f"{ridge:g}, out-of-matrix"] = judge(model.theta, cold)["NDCG"]
            return found

        found = self._kept({"system": system}, compute)
        where = ("in-matrix",) if kind is None else ("in-matrix", "out-of-matrix")
        return pd.DataFrame(
            {"system": system, "lambda_beta": ridge, **{w: found[f"{ridge:g}, {w}"] for w in where}}
            for ridge in lambda_beta
        )

    def thinned(self, systems, share: float, draws: int) -> pd.DataFrame:
        """Fit with a ``share`` of the training plays, settings searched on the first draw."""
        rows = []
        for system in systems:
            settings = None
            for draw in range(draws):

                def compute(draw=draw, system=system, settings=settings):
                    split = replace(self.split, train=_thin(self.split.train, share, draw))
                    best = settings or self._search(system, split)
                    model = SYSTEMS[system].fit(split, **best)
                    return best | self._pairs(model)

                row = {"system": system, "share": share, "draw": draw}
                rows.append(self._kept(row, compute))
                settings = {name: rows[-1][name] for name in SYSTEMS[system].space}
        return pd.DataFrame(rows)


class _SetOut:
    """A fitted model as the state that another fit goes on from."""

    def __init__(self, model: wmf.Factors):
        self._state = {"sweep": 0, "history": "[]", "theta": model.theta, "beta": model.beta}
        self._state |= {} if model.w is None else {"w": model.w}

    def load(self) -> dict:
        return self._state

    def save(self, state) -> None:
        pass


def _beside(shallow: dict, deep: dict) -> dict:
    return {
        f"{s}, {m}": x for s, f in zip(OURS, (shallow, deep), strict=True) for m, x in f.items()
    }


def _thin(plays: sp.csr_matrix, share: float, seed: int) -> sp.csr_matrix:
    """Keep a ``share`` of the pairs, drawn at random."""
    pairs = plays.tocoo()
    kept = np.random.default_rng(seed).permutation(pairs.nnz)[: round(share * pairs.nnz)]
    return sp.csr_matrix((pairs.data[kept], (pairs.row[kept], pairs.col[kept])), plays.shape)
