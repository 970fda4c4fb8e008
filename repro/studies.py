"""What notebook 8 varies, one point of a study at a time, each kept once it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from repro import metrics, tagging, tuning, vq, wmf
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
        best, _ = tuning.search(system, veiled, plays, cold=True)
        model = SYSTEMS[system].fit(split, **best)
        return metrics.validator(self.den.cold, None)(model.theta, model.cold)

    def _search(self, system: str, split: Split) -> dict:
        return tuning.search(system, split, self.den.validation, split.train)[0]

    def _pairs(self, model: Fitted) -> dict:
        exclude = self.split.train + self.den.validation
        return metrics.validator(self.den.test, exclude)(model.theta, model.beta)

    def _with(self, kind: str, items: np.ndarray, cold: np.ndarray) -> Split:
        content, of_cold = self.split.content | {kind: items}, self.split.cold | {kind: cold}
        return replace(self.split, content=content, cold=of_cold)

    def _kept(self, row: dict, compute: Callable[[], dict]) -> dict:
        return row | self.run.trial(f"{row}", compute)

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
            logits = tagging.predict(net, songs.histograms)
            return tagging.summary(tagging.per_tag(logits, songs.tags, songs.profile.annotate))

        def compute():
            nets = [train_network(self.taught, learning_rate=rate, **settings)[0] for rate in rates]
            best = int(np.argmax([judge(net, self.watched)["AROC"] for net in nets]))
            scores = judge(nets[best], self.judged)
            h = [
                tagging.hidden_layer(nets[best], x, layer)
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
            items, cold, taught = (
                vq.l1_normalise(vq.histograms(read, ids, book, **quantisation))
                for ids in (den.item_tracks, den.cold_tracks, tags.tracks[self.teach.rows])
            )
            songs = replace(self.taught, histograms=taught)
            net, _ = train_network(songs, learning_rate=self.teach.learning_rate)
            h = [tagging.hidden_layer(net, x) for x in (items, cold)]
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
            found = {"WMF, in-matrix ndcg": self._pairs(plain)["ndcg"]}
            return found | _beside(*(self._cold(system, split) for system in OURS))

        return self._kept({"K": factors}, compute)

    def prior(self, system: str, lambda_beta) -> pd.DataFrame:
        """Fit with one ``lambda_beta`` after the other, everything else as chosen in-matrix."""
        kind = system.removeprefix("CF + ") if system in OURS else None
        best = self.run.trial(f"chosen: {system}", lambda: self._search(system, self.split))
        rows = []
        for ridge in lambda_beta:

            def compute(ridge=ridge):
                features = None if kind is None else self.split.content[kind]
                model = self.split.fit_wmf(
                    self.split.surplus(), features, **best, lambda_beta=float(ridge)
                )
                found = {"in-matrix": self._pairs(model)["ndcg"]}
                if kind is not None:
                    cold = wmf.cold_factors(self.split.cold[kind], model.w)
                    found["out-of-matrix"] = metrics.validator(self.den.cold, None)(
                        model.theta, cold
                    )["ndcg"]
                return found

            rows.append(self._kept({"system": system, "lambda_beta": float(ridge)}, compute))
        return pd.DataFrame(rows)

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


def _beside(shallow: dict, deep: dict) -> dict:
    return {
        f"{s}, {m}": x for s, f in zip(OURS, (shallow, deep), strict=True) for m, x in f.items()
    }


def _thin(plays: sp.csr_matrix, share: float, seed: int) -> sp.csr_matrix:
    """Keep a ``share`` of the pairs, drawn at random."""
    pairs = plays.tocoo()
    kept = np.random.default_rng(seed).permutation(pairs.nnz)[: round(share * pairs.nnz)]
    return sp.csr_matrix((pairs.data[kept], (pairs.row[kept], pairs.col[kept])), plays.shape)
