"""The tag network and its scores against the paper's formulas."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

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


def test_loss_is_the_papers():
    rng = np.random.default_rng(1)
    logits, tags = rng.normal(0, 3, (7, 5)), rng.integers(0, 2, (7, 5))
    y = 2 * tags - 1
    expected = np.log(1 + np.exp(-y * logits)).sum() / 35
    found = tagnet.tag_loss(torch.from_numpy(logits), torch.from_numpy(tags.astype(float)))
    assert float(found) == pytest.approx(expected)


def test_loss_of_a_sure_mistake_is_finite():
    assert float(tagnet.tag_loss(torch.tensor([[1e4]]), torch.tensor([[0.0]]))) == 1e4


def test_network_learns_eight_examples_by_heart(songs):
    histograms, tags = songs[0][:8], songs[1][:8]
    settings = {"hidden": (60, 60), "batch_size": 8, "learning_rate": 0.05}
    net, curve = tagnet.train(
        histograms, tags, dropout=0.0, epochs=60, scale_input=True, **settings
    )
    assert curve["training"].iloc[-1] < 0.01 < curve["training"].iloc[0]
    assert np.array_equal(tagnet.predict(net, histograms) > 0, tags.toarray() > 0)


def test_training_is_deterministic_from_its_seed(songs):
    one, two, other = (tagnet.train(*songs, seed=seed, **SMALL) for seed in (1, 1, 2))
    assert one[1].equals(two[1])
    logits = [tagnet.predict(net, songs[0]) for net, _ in (one, two, other)]
    assert np.array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def test_learning_curve_is_the_loss_without_dropout_on_the_watched(songs):
    watch = songs[0][:20], songs[1][:20]
    net, curve = tagnet.train(*songs, watch=watch, dropout=0.5, **SMALL)
    assert list(curve["epoch"]) == [1, 2, 3]
    logits, y = tagnet.predict(net, watch[0]).astype(float), 2.0 * watch[1].toarray() - 1
    assert curve["held out"].iloc[-1] == pytest.approx(
        np.log1p(np.exp(-y * logits)).mean(), rel=1e-5
    )


def test_watching_does_not_change_training(songs):
    alone, _ = tagnet.train(*songs, **SMALL)
    watched, _ = tagnet.train(*songs, watch=songs, **SMALL)
    assert np.array_equal(tagnet.predict(alone, songs[0]), tagnet.predict(watched, songs[0]))


def test_hidden_layer_is_the_last_one_without_dropout(songs):
    net, _ = tagnet.train(*songs, dropout=0.5, **SMALL)
    net.train()  # as if somebody had left it training
    h = tagnet.hidden_layer(net, songs[0])
    assert h.shape == (80, 20)
    x = songs[0] * net.scale.item()
    for layer in net.layers:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        x = np.maximum(x @ weight.T + bias, 0)
    assert np.allclose(h, x, atol=1e-5)
    logits = x @ net.output.weight.detach().numpy().T + net.output.bias.detach().numpy()
    assert np.allclose(tagnet.predict(net, songs[0]), logits, atol=1e-5)
    assert np.array_equal(tagnet.hidden_layer(net, songs[0]), h)
    many = tagnet.hidden_layer(net, np.concatenate([songs[0]] * 60))  # more than a block
    assert np.allclose(many, np.tile(h, (60, 1)), atol=1e-6)


def test_dropout_acts_in_training_only(songs):
    net = tagnet.TagNetwork(12, (400,), 5, dropout=0.5)
    x = torch.from_numpy(songs[0][:1])
    whole = net.eval().hidden(x)
    thinned = net.train().hidden(x)
    active = whole > 0
    kept = thinned[active] > 0
    assert 0.3 < kept.float().mean() < 0.7
    assert torch.allclose(thinned[active][kept], 2 * whole[active][kept])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_units_are_dropped_at_the_rate_asked_one_by_one(rate):
    torch.manual_seed(0)
    kept = tagnet.dropout_mask(torch.empty(1001, 501), rate).double()
    sigma = np.sqrt(rate * (1 - rate))
    assert float(kept.mean()) == pytest.approx(1 - rate, abs=4 * sigma / np.sqrt(kept.numel()))
    assert np.allclose(kept.mean(0), 1 - rate, atol=6 * sigma / np.sqrt(1001))
    assert np.allclose(kept.mean(1), 1 - rate, atol=6 * sigma / np.sqrt(501))
    for other in (kept[:, 1:], kept[1:, :-1]):  # neighbours, in the example and across examples
        together = (kept[: len(other), : other.shape[1]] * other).mean()
        assert float(together) == pytest.approx((1 - rate) ** 2, abs=0.005)


def test_a_step_is_adagrads_on_the_gradient_of_the_loss(songs):
    histograms, tags = songs[0][:16], songs[1][:16]
    settings = {"hidden": (30, 20), "batch_size": 16, "dropout": 0.0}
    before, _ = tagnet.train(histograms, tags, epochs=0, **settings)
    after, _ = tagnet.train(histograms, tags, epochs=1, **settings)
    y = torch.from_numpy(tags.toarray()).double()
    x, weights = torch.from_numpy(histograms).double(), []
    for layer in [*before.layers, before.output]:
        weights.append((layer.weight.detach().double(), layer.bias.detach().double()))
        for w in weights[-1]:
            w.requires_grad_()
    for weight, bias in weights[:-1]:
        x = torch.relu(x @ weight.T + bias)
    logits = x @ weights[-1][0].T + weights[-1][1]
    (-(y * logits.sigmoid().log() + (1 - y) * (-logits).sigmoid().log())).mean().backward()
    for layer, pair in zip([*after.layers, after.output], weights, strict=True):
        for found, w in zip((layer.weight, layer.bias), pair, strict=True):
            big = w.grad.abs() > 1e-6  # AdaGrad's first step is the gradient's sign, nearly
            expected = w - 0.01 * w.grad / (w.grad.abs() + 1e-10)
            assert torch.allclose(found[big].double(), expected[big], rtol=1e-5, atol=1e-7)
            assert big.any()


@pytest.mark.parametrize("optimiser", ["adagrad", "adam", "sgd"])
def test_every_optimiser_takes_its_own_steps(songs, optimiser):
    rate = {"adagrad": 0.05, "adam": 0.01, "sgd": 2.0}[optimiser]
    settings = SMALL | {"epochs": 30, "dropout": 0.0, "learning_rate": rate}
    net, curve = tagnet.train(*songs, **settings, optimiser=optimiser)
    assert curve["training"].iloc[-1] < 0.8 * curve["training"].iloc[0]
    plain, _ = tagnet.train(*songs, **settings)
    same = np.array_equal(tagnet.predict(net, songs[0]), tagnet.predict(plain, songs[0]))
    assert same == (optimiser == "adagrad")


def test_the_authors_variant_draws_small_weights_and_one_mask_a_batch():
    torch.manual_seed(0)
    net = tagnet.TagNetwork(200, (300, 200), 50, 0.5, authors=True)
    for layer in [*net.layers, net.output]:
        assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
        assert float(layer.bias.detach().std()) == pytest.approx(0.01, rel=0.3)
    net.train()
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.abs_()  # every unit is on, but for the mask
            layer.bias.fill_(1.0)
        h = net.hidden(torch.rand(40, 200))
    off = h == 0
    assert (off == off[0]).all() and 60 < int(off[0].sum()) < 140


def test_the_authors_variant_takes_songs_in_the_order_given(songs, monkeypatch):
    seen = []
    forward = tagnet.TagNetwork.forward

    def listen(self, x):
        if self.training:
            seen.append(x.numpy().copy())
        return forward(self, x)

    monkeypatch.setattr(tagnet.TagNetwork, "forward", listen)
    tagnet.train(*songs, **SMALL | {"epochs": 2}, authors=True)
    assert np.array_equal(np.concatenate(seen), np.concatenate([songs[0]] * 2))


def test_without_hidden_layers_it_is_logistic_regression(songs):
    settings = {"hidden": (), "epochs": 400, "batch_size": 80, "learning_rate": 1.0}
    net, _ = tagnet.train(*songs, **settings)
    assert len(net.layers) == 0 and np.array_equal(tagnet.hidden_layer(net, songs[0]), songs[0])
    library = tagnet.logistic(*songs, penalty=0.05)(songs[0])
    ours = tagnet.predict(net, songs[0])
    assert np.corrcoef(ours.ravel(), library.ravel())[0, 1] > 0.98


def test_any_hidden_layer_can_be_had(songs):
    net, _ = tagnet.train(*songs, **SMALL)
    x = torch.from_numpy(songs[0])
    with torch.no_grad():
        first = torch.relu(net.layers[0](x))
        second = torch.relu(net.layers[1](first))
    for layer, h in ((0, first), (1, second), (-1, second), (-2, first)):
        assert np.allclose(tagnet.hidden_layer(net, songs[0], layer), h, atol=1e-6)
    with pytest.raises(IndexError):
        tagnet.hidden_layer(net, songs[0], 2)


def test_logistic_regression_is_the_librarys_minimum(songs):
    histograms, tags = songs
    logits = tagnet.logistic(histograms, tags, penalty=2.0)(histograms)
    length = np.linalg.norm(histograms, axis=1).mean()
    for tag in range(tags.shape[1]):
        y = tags[:, [tag]].toarray().ravel()
        miss = 1 / (1 + np.exp(-logits[:, tag])) - y
        assert abs(miss.sum()) < 0.02  # the intercept is free
        w, *_ = np.linalg.lstsq(histograms / length, logits[:, tag], rcond=None)
        assert roc_auc_score(y, logits[:, tag]) > 0.9 and np.isfinite(w).all()
    strong = tagnet.logistic(histograms, tags, penalty=1e6)(histograms)
    share = tags.toarray().mean(0)
    assert np.allclose(strong, np.log(share / (1 - share)), atol=0.01)


def test_logistic_regression_of_a_tag_of_all_songs_or_of_none(songs):
    histograms, tags = songs
    edge = sp.csr_matrix(np.column_stack([np.ones(80), np.zeros(80), tags[:, [0]].toarray()]))
    logits = tagnet.logistic(histograms, edge, penalty=1.0)(histograms)
    assert np.allclose(logits[:, 0], np.log(79.5 / 0.5)) and np.allclose(
        logits[:, 1], -logits[:, 0]
    )
    with pytest.raises(ValueError, match="79 histograms for 80 rows"):
        tagnet.logistic(histograms[1:], tags, 1.0)


def test_scaled_inputs_have_mean_length_one(songs):
    net, _ = tagnet.train(*songs, scale_input=True, **SMALL)
    assert np.linalg.norm(songs[0] * net.scale.item(), axis=1).mean() == pytest.approx(1, rel=1e-5)
    assert tagnet.train(*songs, **SMALL)[0].scale.item() == 1.0


@pytest.mark.parametrize("hidden", [(30, 20), ()])
def test_a_network_comes_back_from_its_artefact(songs, hidden, results_folder):
    run = Run("03_tag_pretraining", "smoke", "cpu")
    net, _ = tagnet.train(*songs, scale_input=True, **SMALL | {"hidden": hidden})
    run.save("network", **net.arrays())
    back = tagnet.restore(vars(run.load("network")))
    for layer in (tagnet.predict, tagnet.hidden_layer):
        assert np.array_equal(layer(back, songs[0]), layer(net, songs[0]))


def test_rows_must_match(songs):
    with pytest.raises(ValueError, match="80 histograms for 79 rows"):
        tagnet.train(songs[0], songs[1][:79])


def logit(probability):
    p = np.asarray(probability, float)
    return np.log(p / (1 - p))


def test_tag_scores_of_a_table_worked_by_hand():
    # Means of the columns are .5 .4 .2 .1; less 1.25 times them (.625 .5 .25 .125) leaves
    #   song 0:  .275  .1  -.15 -.075 -> its best two tags are 0 and 1
    #   song 1: -.325 -.1  -.05  .025 -> 3 and 2
    #   song 2: -.325 -.3   .05 -.025 -> 2 and 3, though 0 is as probable as 2
    #   song 3: -.125 -.1  -.05 -.025 -> 3 and 2
    probability = [
        [0.9, 0.6, 0.1, 0.05],
        [0.3, 0.4, 0.2, 0.15],
        [0.3, 0.2, 0.3, 0.1],
        [0.5, 0.4, 0.2, 0.1],
    ]
    tags = sp.csr_matrix([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    frame = tagnet.per_tag(logit(probability), tags, annotate=2)
    assert list(frame["songs"]) == [2, 0, 3, 0]
    # given: tag 0 to song 0, 1 to song 0, 2 to songs 1 2 3, 3 to songs 1 2 3
    assert list(frame["Prec"]) == [1, 0, 1, 0]  # over all tags
    assert np.array_equal(frame["Recall"], [0.5, np.nan, 1, np.nan], equal_nan=True)
    # tag 0: songs 0 and 1 have it; by score 0, 3, then 1 and 2 together
    assert frame.loc[0, "AROC"] == pytest.approx((2 + 0.5) / 4)
    assert np.isnan(frame.loc[[1, 3], ["AROC", "AP"]]).all(axis=None)
    summary = tagnet.summary(frame)
    assert summary["Prec"] == pytest.approx(2 / 4)
    assert summary["Recall"] == pytest.approx(1.5 / 2)
    assert summary["F"] == pytest.approx(2 * 0.5 * 0.75 / 1.25)


def test_retrieval_scores_are_sklearns():
    rng = np.random.default_rng(3)
    logits, tags = rng.normal(size=(60, 9)), rng.integers(0, 2, (60, 9))
    tags[:, 4], tags[:, 6] = 0, 1  # a tag on no song and one on all
    frame = tagnet.per_tag(logits, sp.csr_matrix(tags), annotate=3)
    for tag in {*range(9)} - {4, 6}:
        assert frame.loc[tag, "AROC"] == pytest.approx(roc_auc_score(tags[:, tag], logits[:, tag]))
        precision = average_precision_score(tags[:, tag], logits[:, tag])
        assert frame.loc[tag, "AP"] == pytest.approx(precision)
    assert frame.loc[4, ["Recall", "AROC", "AP"]].isna().all()
    assert np.isnan(frame.loc[6, "AROC"]) and frame.loc[6, "AP"] == 1


def test_every_song_gets_as_many_tags_as_asked():
    rng = np.random.default_rng(4)
    logits, everything = rng.normal(size=(50, 8)), sp.csr_matrix(np.ones((50, 8), np.int8))
    for annotate in (1, 8, 20):
        frame = tagnet.per_tag(logits, everything, annotate)
        assert (frame["Recall"] * 50).sum() == pytest.approx(50 * min(annotate, 8))


def test_summary_takes_means_over_tags_and_f_of_the_means():
    frame = pd.DataFrame(
        {"Prec": [0.2, 0.4], "Recall": [0.1, np.nan], "AROC": [0.5, 0.7], "AP": [0.3, np.nan]}
    )
    found = tagnet.summary(frame)
    assert list(found.index) == ["Prec", "Recall", "F", "AROC", "MAP"]
    assert list(found) == pytest.approx([0.3, 0.1, 2 * 0.3 * 0.1 / 0.4, 0.6, 0.3])
    assert tagnet.summary(frame * 0)["F"] == 0


@pytest.mark.parametrize("optimiser", ["adagrad", "adam", "sgd"])
@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.fault(
    "the tag network's training broken off", "goes on after the last epoch kept, to the same bits"
)
def test_training_goes_on_from_its_checkpoint_to_the_same_bits(songs, optimiser, authors, tmp_path):
    settings = SMALL | {"epochs": 6, "optimiser": optimiser, "authors": authors, "watch": songs}

    def train(checkpoint, end=99):
        def progress(epochs):
            for epoch in epochs:
                if epoch == end:
                    raise KeyboardInterrupt
                yield epoch

        return tagnet.train(*songs, progress=progress, checkpoint=checkpoint, **settings)

    whole, curve = train(None)
    with pytest.raises(KeyboardInterrupt):
        train(Checkpoint(tmp_path / "kept.npz", 0.0), 4)
    torch.manual_seed(99)  # another process would be elsewhere
    resumed, again = train(Checkpoint(tmp_path / "kept.npz", 0.0))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.equals(curve)
