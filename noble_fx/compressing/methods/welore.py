"""`method="welore"`: the matrix alone, and a threshold for all matrices that says how much of each (2407.11239).

It is the singular value decomposition; what makes it another method is which rank each matrix gets:
`allocation/threshold.py`.
"""

from __future__ import annotations

from noble_fx.compressing.methods.svd import Svd


class Welore(Svd):
    """`Svd` with ranks by the normalised threshold."""

    allocation = "welore"
