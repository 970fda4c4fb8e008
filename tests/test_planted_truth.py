"""A world that knows its answer: the whole chain finds what was put into it, and nothing else."""

from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest

from repro import config
from repro.data import prepare, subsets, synthetic
from repro.evaluation import metrics
from repro.models import tagnet, vq, wmf

pytestmark = pytest.mark.usefixtures("one_thread")
PROFILE = replace(config.SMOKE, seed=1)
TOP = 10  # the length of the list: a few dozen songs are cold
LARGER = replace(
    PROFILE,
    **dict.fromkeys(("min_songs_per_user", "min_users_per_song"), 10),
    **{"cold_fraction": 0.25, "codewords": 128, "codebook_tracks": 400, "min_songs_per_tag": 20},
    **{"hidden": (300, 300, 300), "dropout": 0.0, "learning_rate": 0.03, "epochs": 70},
    **{"factors": 16, "sweeps": 10, "lambda_theta": 100.0},
)
LINEAR = config.World(2_000, 600, 200, 8, 44, 60, 30.0, keys=1, unplayed=0, language=0.0)
WORLDS = {
    "linear": LINEAR,
    "combined": replace(LINEAR, keys=4, unplayed=600),
    "language": replace(LINEAR, language=0.95),
}


def prepared(p, root):
    """Write a world and prepare it as the notebooks do, up to the content of every song."""
    synthetic.write_world(p.world, p.seed, root)
    data, read = prepare.load(p, root), cache(prepare.bags(p, root))
    users, items = subsets.dense_subset(data.plays, p.min_songs_per_user, p.min_users_per_song)
    items = np.random.default_rng(p.seed).permutation(items)
    plays = (data.plays[users][:, items] > 0).astype(np.int32).tocsr()
    cold = subsets.cold_items(len(items), p.cold_fraction, p.seed)
    warm = np.setdiff1d(np.arange(len(items)), cold)
    fractions = p.test_fraction, p.validation_fraction, p.seed
    train, _, _ = subsets.split_pairs(plays[:, warm].tocsr(), *fractions)
    tracks = data.item_tracks[items]
    teach = data.tag_train & ~np.isin(data.tag_items, data.item_ids[items[cold]])
    sample = data.tag_tracks[teach], data.hotness[teach]
    sample = vq.codebook_tracks(*sample, p.codebook_tracks, p.seed)
    frames = np.concatenate([read(track) for track in sample])
    book = vq.learn_codebook(frames, p.codewords, p.codebook_passes, p.seed)
    shallow = vq.l1_normalise(vq.histograms(read, tracks, book))
    tagged = vq.l1_normalise(vq.histograms(read, data.tag_tracks, book))

    def hidden(rows):
        net, _ = tagnet.train(tagged[rows], data.tags[rows], **p.network)
        return tagnet.hidden_layer(net, shallow)

    return SimpleNamespace(
        profile=p,
        surplus=wmf.log_surplus(train, p.alpha, p.eps),
        judge=partial(metrics.evaluate, heldout=plays[:, cold].tocsr(), recall_at=(TOP, 40)),
        warm=warm,
        cold=cold,
        bag_size=np.array([len(read(track)) for track in tracks]),
        shallow=shallow,
        deep=hidden(teach),
        exposed=lambda: hidden(data.tag_train),
    )


def scores(world, content, **settings):
    """Return the metrics of the model fitted with ``content`` on the cold songs."""
    settings = world.profile.ridges("DEN") | world.profile.factorisation | settings
    fitted = wmf.fit(world.surplus, content[world.warm], **settings)
    return world.judge(fitted.theta, wmf.cold_factors(content[world.cold], fitted.w))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return prepared(PROFILE, tmp_path_factory.mktemp("planted") / "world")


@pytest.fixture(scope="module")
def chance(world):
    """Return the metrics of random scores, each user's mean over many draws."""
    rng = np.random.default_rng(0)
    sizes = (world.surplus.shape[0], 16), (len(world.cold), 16)
    draws = [world.judge(*map(rng.standard_normal, sizes)) for _ in range(30)]
    return sum(draws) / len(draws)


@pytest.mark.parametrize("content", ["shallow", "deep"])
def test_content_beats_chance_and_that_of_other_songs_does_not(world, chance, content):
    content = getattr(world, content)
    found = metrics.bootstrap(scores(world, content) - chance, 500, 0)
    assert found.loc[f"R@{TOP}", "low"] > TOP / len(world.cold)  # twice chance at least
    assert found.loc["NDCG", "low"] > 0.05
    # Shuffled among songs, content keeps its values and loses its meaning.
    orders = (np.random.default_rng(seed).permutation(len(content)) for seed in range(8))
    recall = np.array([(scores(world, content[x]) - chance)[f"R@{TOP}"].mean() for x in orders])
    assert abs(recall.mean()) < 3 * recall.std(ddof=1) / np.sqrt(len(recall))
    assert abs(recall).max() < 0.5 * TOP / len(world.cold)


def test_chance_is_what_arithmetic_says_and_bag_size_is_at_chance(world, chance):
    """The length of a song betrays nothing, so content cannot live on it."""
    expected = TOP / len(world.cold)
    assert chance[f"R@{TOP}"].mean() == pytest.approx(expected, rel=0.05)
    assert world.bag_size.std() > 1
    size, rng = world.bag_size[world.cold], np.random.default_rng(0)

    def ndcg(size):
        return world.judge(*metrics.same_for_all(size, world.surplus.shape[0]))["NDCG"].mean()

    # one list for all users: as good as the lists of shuffled sizes, up to three deviations
    shuffled = np.array([ndcg(rng.permutation(size)) for _ in range(30)])
    assert abs(ndcg(size) - shuffled.mean()) < 3 * shuffled.std()


@pytest.fixture(scope="module", params=[1, 2, 3])
def found(request, tmp_path_factory):
    """Return the mean metrics on cold songs by world and content, for one seed."""
    means = {}
    for name, one in WORLDS.items():
        profile = replace(LARGER, world=one, seed=request.param)
        world = prepared(profile, tmp_path_factory.mktemp("planted") / "world")
        contents = {"shallow": (world.shallow, 0.1), "deep": (world.deep, 100.0)}
        if name != "combined":
            contents["exposed"] = world.exposed(), 100.0
        for kind, (content, lambda_w) in contents.items():
            means[name, kind] = scores(world, content, lambda_w=lambda_w).mean()
    return means


def test_each_world_gives_back_what_was_put_into_it(found):
    def more(name, kind, than, metric):
        return (found[name, kind] - found[name, than])[metric]

    assert more("linear", "deep", "shallow", "R@40") < 0.02
    assert more("combined", "deep", "shallow", "R@40") > 0.05
    assert more("linear", "exposed", "deep", "NDCG") < 0.02
    assert more("language", "exposed", "deep", "NDCG") > 0.03
