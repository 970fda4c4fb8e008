"""Content regression in the manner of van den Oord, Dieleman and Schrauwen (NIPS 2013).

WMF is fitted first, without content; a regression then learns its song factors from content, by
squared error, and predicts factors for songs that nobody has played.
"""

from __future__ import annotations

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def linear(features: np.ndarray, beta: np.ndarray) -> Pipeline:
    """Fit ridge regression from features (items x F) to song factors (items x K).

    The ridge is chosen by leave-one-out error over the training songs.
    """
    ridge = RidgeCV(alphas=np.logspace(0, 6, 13), alpha_per_target=False)
    return make_pipeline(StandardScaler(), ridge).fit(features, beta)


def mlp(features: np.ndarray, beta: np.ndarray, seed: int, units: int = 1000):
    """Fit a network with one hidden layer of ``units`` (NIPS 2013 sec. 5.2: 1,000).

    Training stops when the error of a tenth of the training songs no longer falls.
    """
    net = MLPRegressor(
        hidden_layer_sizes=(units,),
        alpha=1e-3,
        batch_size=min(100, len(beta)),
        early_stopping=True,
        n_iter_no_change=5,
        max_iter=100,
        random_state=seed,
    )
    # Factors of unit scale, or the stopping tolerance would mean something else in each fit.
    model = make_pipeline(StandardScaler(), net)
    return TransformedTargetRegressor(model, transformer=StandardScaler()).fit(features, beta)
