"""The tag network and its scores against the paper's formulas."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from oracles import Broken

from repro.models import tagnet
from repro.pipeline.run import Checkpoint, Run

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"hidden": (30, 20), "batch_size": 16, "epochs": 3}


@pytest.fixture(scope="module")
def songs():
    """Return histograms whose largest codewords give the tags."""
    rng = np.random.default_rng(0)
    histograms = rng.dirichlet(np.full(12, 0.3), 80).astype(np.float32)
    return histograms, sp.csr_matrix((histograms[:, :5] > 0.1).astype(np.int8))


@pytest.fixture(scope="module")
def watched(songs):
    """Return a network with dropout and its learning curve on the first songs."""
    return tagnet.train(*songs, watch=(songs[0][:20], songs[1][:20]), scale_input=True, **SMALL)


def papers_loss(logits, tags):
    return np.log1p(np.exp(-(2.0 * tags - 1) * logits.astype(float))).mean()


def test_loss_is_the_papers_and_finite_for_a_sure_mistake():
    rng = np.random.default_rng(1)
    logits, tags = rng.normal(0, 3, (7, 5)), rng.integers(0, 2, (7, 5)).astype(float)
    found = tagnet.tag_loss(torch.from_numpy(logits), torch.from_numpy(tags))
    assert float(found) == pytest.approx(papers_loss(logits, tags))
    assert float(tagnet.tag_loss(torch.tensor([[1e4]]), torch.tensor([[0.0]]))) == 1e4


def test_the_seed_decides_training_and_watching_does_not(songs, watched):
    net, curve = watched
    logits = tagnet.predict(net, songs[0])
    assert list(curve["epoch"]) == [1, 2, 3]
    loss = papers_loss(logits[:20], songs[1][:20].toarray())  # without dropout
    assert curve["held out"].iloc[-1] == pytest.approx(loss, rel=1e-5)
    for seed in (0, 1):
        other, alone = tagnet.train(*songs, scale_input=True, seed=seed, **SMALL)
        assert np.array_equal(tagnet.predict(other, songs[0]), logits) == (seed == 0)
        assert alone["training"].equals(curve["training"]) == (seed == 0)


def test_any_hidden_layer_can_be_had_without_dropout(songs, watched):
    net = deepcopy(watched[0]).train()  # as if somebody had left it training
    x, found = songs[0] / np.linalg.norm(songs[0], axis=1).mean(), []  # of mean length one
    for layer in [*net.layers, net.output]:
        found.append(x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
        x = np.maximum(found[-1], 0)
    first, second, logits = np.maximum(found[0], 0), np.maximum(found[1], 0), found[2]
    assert np.allclose(tagnet.predict(net, songs[0]), logits, atol=1e-5)
    for layer, h in ((0, first), (1, second), (-1, second), (-2, first)):
        assert np.allclose(tagnet.hidden_layer(net, songs[0], layer), h, atol=1e-5)
    many = tagnet.hidden_layer(net, np.concatenate([songs[0]] * 60))  # more than a block
    assert many.shape == (4800, 20) and np.allclose(many, np.tile(second, (60, 1)), atol=1e-5)
    with pytest.raises(IndexError):
        tagnet.hidden_layer(net, songs[0], 2)


@pytest.mark.parametrize("authors", [False, True])
def test_dropout_acts_in_training_only(authors):
    torch.manual_seed(0)
    net, x = tagnet.TagNetwork(200, (400,), 50, 0.5, authors=authors), torch.rand(40, 200)
    whole, thinned = net.eval().hidden(x), net.train().hidden(x)
    active, kept = whole > 0, thinned > 0
    assert 0.4 < kept[active].float().mean() < 0.6
    assert torch.allclose(thinned[kept], 2 * whole[kept])
    # In the authors' variant all songs of a batch lose the same units.
    assert ((active & ~kept).any(0) & kept.any(0)).any() == (not authors)
    for layer in [*net.layers, net.output] if authors else []:
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert float(layer.bias.detach().std()) == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_units_are_dropped_at_the_rate_asked_one_by_one(rate):
    torch.manual_seed(0)
    kept = tagnet.dropout_mask(torch.empty(1001, 501), rate).double()
    sigma = np.sqrt(rate * (1 - rate))
    assert float(kept.mean()) == pytest.approx(1 - rate, abs=4 * sigma / np.sqrt(kept.numel()))
    for axis, size in enumerate(kept.shape):
        assert np.allclose(kept.mean(axis), 1 - rate, atol=6 * sigma / np.sqrt(size))
    for other in (kept[:, 1:], kept[1:, :-1]):  # neighbours, in the example and across examples
        together = (kept[: len(other), : other.shape[1]] * other).mean()
        assert float(together) == pytest.approx((1 - rate) ** 2, abs=0.005)


def test_a_step_is_adagrads_on_the_gradient_of_the_loss(songs):
    histograms, tags = songs[0][:16], songs[1][:16]
    settings = SMALL | {"dropout": 0.0}
    before, after = (tagnet.train(histograms, tags, **settings | {"epochs": n})[0] for n in (0, 1))
    assert before.scale.item() == 1.0
    before.double()
    logits, y = before(torch.from_numpy(histograms).double()), torch.from_numpy(tags.toarray())
    (-(y * logits.sigmoid().log() + (1 - y) * (-logits).sigmoid().log())).mean().backward()
    for found, w in zip(after.parameters(), before.parameters(), strict=True):
        big = w.grad.abs() > 1e-6  # AdaGrad's first step is the gradient's sign, nearly
        expected = w - 0.01 * w.grad / (w.grad.abs() + 1e-10)
        assert torch.allclose(found[big].double(), expected[big], rtol=1e-5, atol=1e-7)
        assert big.any()


@pytest.mark.parametrize("authors", [False, True])
def test_the_authors_variant_takes_songs_in_the_order_given(songs, authors, monkeypatch):
    seen, forward = [], tagnet.TagNetwork.forward

    def listen(net, x):
        if net.training:
            seen.append(x.numpy().copy())
        return forward(net, x)

    monkeypatch.setattr(tagnet.TagNetwork, "forward", listen)
    tagnet.train(*songs, **SMALL | {"epochs": 2}, authors=authors)
    assert np.array_equal(np.concatenate(seen), np.concatenate([songs[0]] * 2)) == authors


def test_logistic_regression_is_at_its_minimum(songs):
    x, tags = songs
    # A tag of all songs and one of none count half a song of the other kind.
    edges = sp.csr_matrix(np.column_stack([tags.toarray(), np.ones(80), np.zeros(80)]))
    predict = tagnet.logistic(x, edges, penalty=2.0)
    logits, intercept = predict(x)[:, :5], predict(x[:1] * 0)[:, :5]
    length = np.linalg.norm(x, axis=1).mean()  # inputs are of mean length one
    w, miss = (predict(np.eye(12))[:, :5] - intercept) * length, 1 / (1 + np.exp(-logits)) - tags
    assert np.allclose(miss.sum(0), 0, atol=0.02)  # the intercept is free
    assert np.allclose(x.T @ miss / length + 2.0 * w, 0, atol=0.02) and np.abs(w).max() > 1
    assert np.allclose(predict(x)[:, 5:], np.log(79.5 / 0.5) * np.array([1, -1]))


@pytest.mark.parametrize("hidden", [(30, 20), ()])
def test_a_network_comes_back_from_its_artefact(songs, hidden, results_folder):
    run = Run("03_tag_pretraining", "smoke", "cpu")
    net, _ = tagnet.train(*songs, scale_input=True, **SMALL | {"hidden": hidden})
    run.save("network", **net.arrays())
    back = tagnet.restore(vars(run.load("network")))
    for layer in (tagnet.predict, tagnet.hidden_layer):
        assert np.array_equal(layer(back, songs[0]), layer(net, songs[0]))
    assert hidden or np.array_equal(tagnet.hidden_layer(net, songs[0]), songs[0])


def test_what_does_not_fit_is_refused(songs):
    histograms, tags = songs
    for message, call in {
        "80 histograms for 79 rows": lambda: tagnet.train(histograms, tags[:79]),
        "79 histograms for 80 rows": lambda: tagnet.logistic(histograms[1:], tags, 1.0),
        "no song to judge": lambda: tagnet.per_tag(np.zeros((0, 5)), tags[:0]),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_tag_scores_of_a_table_worked_by_hand():
    # Means of the columns are .5 .4 .2 .1; less 1.25 times them (.625 .5 .25 .125) leaves
    #   song 0:  .275  .1  -.15 -.075 -> its best two tags are 0 and 1
    #   song 1: -.325 -.1  -.05  .025 -> 3 and 2
    #   song 2: -.325 -.3   .05 -.025 -> 2 and 3, though 0 is as probable as 2
    #   song 3: -.125 -.1  -.05 -.025 -> 3 and 2
    probability = np.array([[9, 6, 1, 0.5], [3, 4, 2, 1.5], [3, 2, 3, 1], [5, 4, 2, 1]]) / 10
    tags = sp.csr_matrix([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    frame = tagnet.per_tag(np.log(probability / (1 - probability)), tags, annotate=2)
    assert list(frame["songs"]) == [2, 0, 3, 0]
    # given: tag 0 to song 0, 1 to song 0, 2 to songs 1 2 3, 3 to songs 1 2 3
    assert list(frame["Prec"]) == [1, 0, 1, 0]  # over all tags
    assert np.array_equal(frame["Recall"], [0.5, np.nan, 1, np.nan], equal_nan=True)
    # tag 0: songs 0 and 1 have it; by score 0, 3, then 1 and 2 together
    assert frame.loc[0, "AROC"] == pytest.approx((2 + 0.5) / 4)
    assert frame.loc[0, "AP"] == pytest.approx((1 + 2 / 4) / 2)
    assert np.isnan(frame.loc[[1, 3], ["AROC", "AP"]]).all(axis=None)
    summary = tagnet.summary(frame)
    assert list(summary.index) == ["Prec", "Recall", "F", "AROC", "MAP"]
    means = [2 / 4, 1.5 / 2, 2 * 0.5 * 0.75 / 1.25, frame["AROC"].mean(), frame["AP"].mean()]
    assert list(summary) == pytest.approx(means)
    assert tagnet.summary(frame * 0)["F"] == 0


def test_tag_scores_at_their_edges():
    logits = np.random.default_rng(3).normal(size=(60, 9))
    tags = (logits > 0).astype(np.int8)
    tags[:, 4], tags[:, 6] = 0, 1  # a tag on no song and one on all
    frame = tagnet.per_tag(logits, sp.csr_matrix(tags), annotate=3)
    assert frame.loc[4, ["Recall", "AROC", "AP"]].isna().all()
    assert np.isnan(frame.loc[6, "AROC"]) and frame.loc[6, "AP"] == 1
    assert np.allclose(frame.drop([4, 6])[["AROC", "AP"]], 1)
    everything = sp.csr_matrix(np.ones((60, 9), np.int8))
    for annotate in (1, 9, 20):  # every song gets as many tags as asked, at most all
        given = tagnet.per_tag(logits, everything, annotate)["Recall"].sum() * 60
        assert given == pytest.approx(60 * min(annotate, 9))


@pytest.mark.parametrize("optimiser", ["adagrad", "adam", "sgd"])
@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.fault(
    "the tag network's training broken off", "goes on after the last epoch kept, to the same bits"
)
def test_training_goes_on_from_its_checkpoint_to_the_same_bits(songs, optimiser, authors, tmp_path):
    settings = SMALL | {"epochs": 6, "optimiser": optimiser, "authors": authors, "watch": songs}

    train, kept = partial(tagnet.train, *songs, **settings), tmp_path / "kept.pt"
    whole, curve = train()
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=Broken(kept, after=3))
    torch.manual_seed(99)  # another process would be elsewhere
    epochs = []
    go_on = {"checkpoint": Checkpoint(kept, 0.0), "progress": lambda n: epochs.extend(n) or epochs}
    resumed, again = train(**go_on)
    assert epochs == [4, 5, 6] and again.equals(curve)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
