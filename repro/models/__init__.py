"""The models, each from arrays to arrays."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Factors:
    """What every model gives in float32: a user scores an item by the product of their factors."""

    theta: np.ndarray  # users x K
    beta: np.ndarray  # items x K
    cold: np.ndarray | None = None  # cold items x K, of those that nobody has played
    w: np.ndarray | None = None  # F x K or, with a bias as last row, (F + 1) x K: eq. (3)
    history: list[dict] = field(default_factory=list)  # sweep, step and what was asked for

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that are there by name; ``Factors(**arrays)`` brings them back."""
        names = "theta", "beta", "cold", "w"
        return {name: x for name in names if (x := getattr(self, name)) is not None}
