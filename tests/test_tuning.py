"""Equal chances: as many trials for every system, the source's settings first, judged alike."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from repro import config, systems, tuning
from repro.systems import SYSTEMS, Between, Fitted, System

PROFILE = replace(config.SMOKE, trials=7)


@pytest.fixture
def split():
    rng = np.random.default_rng(3)
    plays = sp.csr_matrix(rng.random((30, 20)) < 0.3).astype(np.int32)
    size = {"size": np.ones(20)}
    return systems.Split(plays, size, {"size": np.ones(6)}, PROFILE)


def test_the_first_draw_is_the_sources_and_the_others_fill_the_range():
    space = {"a": Between(0.01, 100.0, 1.0), "b": ("x", "y"), "c": Between(1.0, 10.0)}
    found = tuning.draws(space, 33, 5, {"c": 2.0})
    assert found[0] == {"a": 1.0, "b": "x", "c": 2.0}
    assert len(found) == 33
    logs = np.sort(np.log10([one["a"] for one in found[1:]]))
    assert logs[0] > -2 and logs[-1] < 2
    assert np.diff(logs, prepend=-2, append=2).max() < 0.5  # 32 of them leave no wide gap in 4
    assert {one["b"] for one in found} == {"x", "y"}
    assert found == tuning.draws(space, 33, 5, {"c": 2.0})
    assert found != tuning.draws(space, 33, 6, {"c": 2.0})


def test_one_trial_is_the_sources():
    assert tuning.draws({"a": Between(1.0, 9.0, 3.0)}, 1, 0) == [{"a": 3.0}]


def test_nothing_is_tried_twice_and_nothing_to_choose_is_one_trial():
    assert len(tuning.draws({"a": ("x", "y", "z")}, 20, 0)) == 3
    assert tuning.draws({}, 20, 0) == [{}]


class Toy:
    """A system whose list puts the item of index ``round(10 a)`` first, for all users."""

    def __init__(self):
        self.seen = []

    def __call__(self, split, a, **given):
        self.seen.append((split, a, given))
        n = split.train.shape[1]

        def toward(size):
            return -abs(np.arange(size, dtype=np.float32) - 10 * a)[:, None]

        return Fitted(np.ones((30, 1), np.float32), toward(n), toward(split.n_cold))


@pytest.fixture
def toy(monkeypatch):
    made = Toy()
    space = {"a": Between(0.05, 0.5, 0.05)}
    monkeypatch.setitem(SYSTEMS, "toy", System("test", made, space, True, ("lambda_theta",)))
    return made


@pytest.mark.parametrize("cold", [False, True])
def test_search_returns_the_best_on_the_held_out_pairs(toy, split, cold):
    heldout = sp.lil_matrix((30, 6 if cold else 20))
    heldout[:, 4] = 1
    best, trials = tuning.search(
        "toy", split, heldout.tocsr(), cold=cold, given={"lambda_theta": 3.0, "alpha": 1}
    )
    assert round(10 * best["a"]) == 4 and best["lambda_theta"] == 3.0
    assert len(trials) == 7 and trials["NDCG"].max() == 1.0
    assert list(trials) == ["system", "settings", "NDCG", "R@40", "on the edge"]
    values = trials["settings"].str.removeprefix("a=").astype(float)
    place = np.log10(values / 0.05)
    assert ((trials["on the edge"] == "a") == ((place < 0.1) | (place > 0.9))).all()
    assert all(given == {"lambda_theta": 3.0} and s is split for s, _, given in toy.seen)


def test_a_remembered_trial_is_not_run_again(toy, split):
    heldout = sp.csr_matrix(np.eye(30, 20))
    stored = {}

    def remember(name, compute):
        if name not in stored:
            stored[name] = compute()
        return stored[name]

    given = {"lambda_theta": 3.0}
    first = tuning.search("toy", split, heldout, given=given, remember=remember)
    ran = len(toy.seen)
    again = tuning.search("toy", split, heldout, given=given, remember=remember)
    assert len(toy.seen) == ran == len(stored) == 7
    assert first[0] == again[0] and first[1].equals(again[1])
    tuning.search("toy", split, heldout, given={"lambda_theta": 4.0}, remember=remember)
    assert len(stored) == 14  # other settings underneath: other trials
