"""What every system promises, whatever it is made of, and the search that treats all alike."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from repro import config, systems
from repro.evaluation import metrics
from repro.models import Factors, tagnet
from repro.pipeline.run import Points
from repro.systems import SYSTEMS, TAG_MODELS, Between, Choice, System

pytestmark = pytest.mark.usefixtures("one_thread")
PROFILE = replace(config.SMOKE, factors=6, sweeps=4, trials=7)
GIVEN = {"lambda_theta": 5.0}
USERS, ITEMS, COLD, WORDS = 120, 90, 30, 24
SILENT, UNHEARD, MUTE = 7, 5, 3  # a user and an item without plays, an item without content


@pytest.fixture(scope="module")
def world():
    """Return a split of two tastes that content tells apart, and the plays of the cold items."""
    rng = np.random.default_rng(0)
    taste, style = rng.integers(2, size=USERS), rng.integers(2, size=ITEMS + COLD)
    likes = rng.random((USERS, ITEMS + COLD)) < np.where(taste[:, None] == style, 0.3, 0.02)
    likes[SILENT] = False
    likes[:, UNHEARD] = False
    plays = sp.csr_matrix(likes * rng.integers(1, 9, likes.shape))
    counts = rng.poisson(np.where(np.arange(WORDS) % 2 == style[:, None], 3.0, 0.3))
    counts[MUTE] = 0
    shallow = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)
    deep = np.maximum(shallow @ rng.standard_normal((WORDS, 20)), 0).astype(np.float32)
    kinds = {"counts": sp.csr_matrix(counts), "shallow": shallow, "deep": deep, "exposed": deep}
    kinds["tags"] = (counts[:, :8] > 0).astype(np.float32)
    kinds["size"] = counts.sum(1)
    content = {kind: x[:ITEMS] for kind, x in kinds.items()}
    cold = {kind: x[ITEMS:] for kind, x in kinds.items()}
    return systems.Split(plays[:, :ITEMS].tocsr(), content, cold, PROFILE), plays[:, ITEMS:].tocsr()


def fit(name, split):
    system = SYSTEMS[name]
    start = systems.candidates(system.space, 1, 0, split.profile.ridges(split.subset))[0]
    return system.fit(split, **{key: GIVEN[key] for key in system.given}, **start)


@pytest.fixture(scope="module")
def fitted(world):
    return {name: fit(name, world[0]) for name in SYSTEMS}


@pytest.fixture(scope="module")
def fitted_with_fewer(world):
    """Return all systems fitted once more, the cold items but one in the reverse order."""
    split, _ = world
    fewer = replace(split, cold={kind: x[:-1][::-1] for kind, x in split.cold.items()})
    return {name: fit(name, fewer) for name in SYSTEMS}


@pytest.mark.parametrize("name", SYSTEMS)
def test_shapes_and_finite_values(name, fitted):
    model, k = fitted[name], fitted[name].theta.shape[1]
    assert model.theta.shape == (USERS, k) and model.beta.shape == (ITEMS, k)
    assert (model.cold is not None) == SYSTEMS[name].cold
    assert model.cold is None or model.cold.shape == (COLD, k)
    assert all(np.isfinite(x).all() for x in model.arrays().values())
    assert name not in ("CF + shallow", "CF + deep") or model.w is not None


@pytest.mark.parametrize("name", SYSTEMS)
def test_same_seed_same_factors_and_cold_content_reaches_only_cold_factors(
    name, fitted, fitted_with_fewer
):
    """Another split, so nothing is taken from a cache; without cold items see the next test."""
    model, again = fitted[name], fitted_with_fewer[name]
    assert np.array_equal(model.theta, again.theta) and np.array_equal(model.beta, again.beta)
    if SYSTEMS[name].cold and name != "random":  # its draw follows the place in the list
        assert np.allclose(again.cold, model.cold[:-1][::-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["random", "neighbours, VQ", "CTR", "CTPF", "CF + deep"])
def test_a_split_without_cold_items(name, fitted, world):
    split, _ = world
    model = fit(name, replace(split, cold={kind: x[:0] for kind, x in split.cold.items()}))
    assert np.array_equal(model.beta, fitted[name].beta)
    assert model.cold.shape == (0, model.theta.shape[1])


# What has nothing of the planted tastes to go by, or nothing of the items to rank.
BLIND = {"random", "mean item", "bag size", "popularity"}


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in BLIND])
def test_planted_tastes_are_found(name, fitted, world):
    (split, cold), model = world, fitted[name]
    if SYSTEMS[name].cold:
        frame = metrics.evaluate(model.theta, model.cold, cold, recall_at=(10,))
        assert SILENT not in frame.index
        assert frame["R@10"].mean() > 0.4  # 10 of 30 by chance
    else:
        scores, played = model.theta @ model.beta.T, split.train.toarray() > 0
        assert scores[played].mean() > scores[~played].mean() + scores.std() / 2


def test_hidden_items_lose_their_plays_and_keep_their_content(world):
    split, _ = world
    hidden, plays = split.hide(items := np.array([2, 11, 40]))
    assert hidden.train.shape == (USERS, ITEMS - 3) and hidden.n_cold == 3
    assert np.array_equal(plays.toarray(), split.train[:, items].toarray())
    assert np.array_equal(hidden.train.toarray(), np.delete(split.train.toarray(), items, 1))
    for kind in ("shallow", "deep", "size"):
        assert np.array_equal(hidden.cold[kind], split.content[kind][items])
        assert np.array_equal(hidden.content[kind], np.delete(split.content[kind], items, 0))


def test_ctr_keeps_to_its_topics_when_the_prior_is_strong(world):
    split, _ = world
    model = SYSTEMS["CTR"].fit(split, lambda_theta=1.0, lambda_beta=1e7)
    assert np.allclose(model.beta.sum(1), 1, atol=1e-2)  # topic proportions
    loose = SYSTEMS["CTR"].fit(split, lambda_theta=1.0, lambda_beta=1e-3)
    assert np.allclose(loose.cold, model.cold) and not np.allclose(loose.beta.sum(1), 1, atol=0.1)
    plays = split.train.multiply(split.train > 1).tocsr()
    splits = split.with_plays(plays), replace(split, train=plays)  # topics are of content alone
    same = [SYSTEMS["CTR"].fit(one).beta for one in splits]
    assert np.array_equal(*same) and not np.array_equal(same[0], model.beta)


# --- the search


def test_the_first_candidate_is_the_sources_and_the_others_fill_the_range():
    space = {"a": Between(0.01, 100.0, 1.0), "b": Choice(("y", "x")), "c": Between(1.0, 10.0)}
    found = systems.candidates(space, 33, 5, {"c": 2.0})
    assert found[0] == {"a": 1.0, "b": "y", "c": 2.0} and len(found) == 33
    logs = np.sort(np.log10([one["a"] for one in found[1:]]))
    assert logs[0] > -2 and logs[-1] < 2
    assert np.diff(logs, prepend=-2, append=2).max() < 0.5  # 32 of them leave no wide gap in 4
    assert {one["b"] for one in found} == {"x", "y"}
    assert found == systems.candidates(space, 33, 5, {"c": 2.0})
    assert found != systems.candidates(space, 33, 6, {"c": 2.0})


def test_nothing_is_tried_twice_and_nothing_to_choose_is_one_trial():
    assert systems.candidates({"a": Between(1.0, 9.0, 3.0)}, 1, 0) == [{"a": 3.0}]
    assert len(systems.candidates({"a": Choice(("x", "y", "z"))}, 20, 0)) == 3
    assert systems.candidates({}, 20, 0) == [{}]


@pytest.fixture
def seen(monkeypatch):
    """Add a system that ranks the item of index ``round(10 a)`` first; return its calls."""
    calls = []

    def toy(split, a, lambda_theta):
        calls.append((a, lambda_theta))
        beta, cold = (-abs(np.arange(n, dtype=np.float32) - 10 * a)[:, None] for n in (ITEMS, COLD))
        return Factors(np.ones((USERS, 1), np.float32), beta, cold)

    space = {"a": Between(0.1, 1.0, 0.1)}
    row = System("floor", "test", toy, space, given=("lambda_theta",))
    monkeypatch.setitem(SYSTEMS, "toy", row)
    return calls


@pytest.mark.parametrize("cold", [False, True])
def test_search_returns_the_best_on_the_held_out_pairs(seen, world, cold):
    heldout = sp.lil_matrix((USERS, COLD if cold else ITEMS))
    heldout[:, 4] = 1
    given = {"lambda_theta": 3.0, "alpha": 1}
    how = {"cold": cold, "given": given, "label": {"where": "here"}, "points": Points()}
    best, trials = systems.search("toy", world[0], heldout.tocsr(), **how)
    assert round(10 * best["a"]) == 4 and best["lambda_theta"] == 3.0
    assert len(trials) == 7 and trials["NDCG"].max() == 1.0
    columns = ["where", "system", "lambda_theta", "a", "settings", "NDCG", "R@40", "on the edge"]
    assert list(trials) == columns
    place = np.log10(trials["a"] / 0.1)
    assert ((trials["on the edge"] == "a") == ((place < 0.1) | (place > 0.9))).all()
    assert list(trials["settings"]) == [f"a={a:g}" for a in trials["a"]]
    assert [a for a, _ in seen] == list(trials["a"]) and {x for _, x in seen} == {3.0}


def test_a_search_goes_on_beyond_an_edge_and_prefers_nothing_degenerate(seen, world, monkeypatch):
    row = replace(SYSTEMS["toy"], space={"a": Between(0.1, 1.0, 1.0)})
    monkeypatch.setitem(SYSTEMS, "toy", row)
    heldout = sp.csr_matrix(np.eye(1, ITEMS, 45).repeat(USERS, 0))
    how = {"given": {"lambda_theta": 3.0}, "points": Points()}
    best, trials = systems.search("toy", world[0], heldout, **how)
    assert best["a"] == 5.0 and list(trials["a"][7:]) == [5.0, 25.0]  # until it is no better
    made = pd.DataFrame({"AROC": [0.9004, 0.9001, 0.5], "MAP": [0.1, 0.3, 0.9]})
    tried, scores = [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}], made.to_dict("records")
    take = lambda one: scores[int(one["a"]) - 1]  # noqa: E731
    best, _ = systems._best(tried, take, [*made], {}, {}, Points())
    assert best == {"a": 2.0}


def test_a_kept_trial_is_not_run_again(seen, world, tmp_path):
    heldout = sp.csr_matrix(np.eye(1, ITEMS, 4).repeat(USERS, 0))

    def search(points, lambda_theta):
        given = {"lambda_theta": lambda_theta}
        return systems.search("toy", world[0], heldout, given=given, points=points)

    points = Points(tmp_path / "points.jsonl")
    first = search(points, 3.0)
    again = search(Points(tmp_path / "points.jsonl"), 3.0)
    assert len(seen) == 7
    assert first[0] == again[0] and first[1].equals(again[1]) and first[1].equals(points.frame())
    search(points, 4.0)
    assert len(seen) == 14  # other settings underneath: other trials


# --- tag models


@pytest.fixture(scope="module")
def songs():
    rng = np.random.default_rng(1)
    style = rng.integers(3, size=300)
    counts = rng.poisson(np.where(np.arange(30) % 3 == style[:, None], 2.0, 0.3))
    tags = rng.random((300, 9)) < np.where(np.arange(9) % 3 == style[:, None], 0.5, 0.03)
    shallow = (counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.float32)
    profile = replace(config.SMOKE, hidden=(32, 32), epochs=80)
    tags = sp.csr_matrix(tags, dtype=np.int8)
    return systems.TaggedSongs(shallow, sp.csr_matrix(counts), tags, profile)


@pytest.mark.parametrize("name", TAG_MODELS)
def test_every_tag_model_hears_the_styles(name, songs):
    train, test = songs.rows(np.arange(200)), songs.rows(np.arange(200, 300))
    made = []
    best, trials = systems.search_tags(name, train, test, Points(), made.append)
    more = len(trials) - songs.profile.tag_trials
    assert 0 <= more <= systems.WIDER
    assert len(made) == (len(trials) if TAG_MODELS[name].resumes else 0)
    logits = TAG_MODELS[name].fit(train, **best)(test)
    assert logits.shape == (100, 9) and np.isfinite(logits).all()
    assert systems.tag_scores(logits, test)["AROC"] == trials["AROC"].max()
    if name != "NNet, authors' variant":  # its small weights need far more epochs
        assert tagnet.per_tag(logits, test.tags, 3)["AROC"].mean() > 0.8
