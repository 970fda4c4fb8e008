"""The models, each from arrays to arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Factors:
    """What every model gives: a user scores an item by the product of their factors.

    Attributes
    ----------
    theta : array of float32, users x K
    beta : array of float32, items x K
    cold : array of float32, cold items x K, optional
        Factors of the items that nobody has played; None where a model has none.
    w : array of float32, F x K or (F + 1) x K, optional
        The map from content to the prior mean of a song factor, eq. (3); with a bias as last row.
    history : list of dict
        One row per step of the fit, where it was asked for.
    """

    theta: np.ndarray
    beta: np.ndarray
    cold: np.ndarray | None = None
    w: np.ndarray | None = None
    history: list[dict] = field(default_factory=list)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are there by name; ``Factors(**arrays)`` brings them back."""
        names = "theta", "beta", "cold", "w"
        return {name: x for name in names if (x := getattr(self, name)) is not None}
