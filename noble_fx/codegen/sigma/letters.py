"""σ's tensors as the paper writes them: "first.frequency" is ω₁, "mixer.weight" M.

A letter is taken only where it is clear: a name that has none, or shares it with another, stands for itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_LETTERS = {
    "frequency": "ω",
    "phase": "φ",
    "mixer.weight": "M",
    "mixer.bias": "m",
    "scale": "s",
    "shift": "c",
}
_ORDINALS = {"first": "₁", "second": "₂", "third": "₃"}
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def letters(names: Sequence[str]) -> dict[str, str]:
    """The letter of each tensor, or its own name as a kernel spells it; no two have one letter."""
    wanted = {name: _letter(name) for name in names}
    taken = Counter(wanted.values())
    return {
        name: letter if letter and taken[letter] == 1 else f"act_{name.replace('.', '_')}"
        for name, letter in wanted.items()
    }


def _letter(name: str) -> str:
    """ "mixer1.weight" → M₁, "first.mixer.weight" → M₁; "" for a name with a part that is no word of these."""
    *path, leaf = name.split(".")
    index = ""
    words = []
    for part in path:
        word, number = re.fullmatch(r"(.*?)(\d*)", part).groups()  # type: ignore[union-attr]
        index += _ORDINALS.get(part, number.translate(SUBSCRIPTS))
        if part not in _ORDINALS:
            words.append(word)
    words.append(leaf)
    if words[0] in ("act", "affine") and len(words) > 1:  # what the zoo calls the parts of a scaled σ
        words = words[1:]
    base = _LETTERS.get(".".join(words))
    return f"{base}{index}" if base else ""
