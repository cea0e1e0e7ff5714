"""Real architectures from tiny random configurations, and what is expected of each: `expected.py`.

python -m tests.zoo                 writes docs/zoo.md from the table
python -m tests.zoo --found NAME…   prints what is found now, as lines for the table; all without a name
python -m tests.zoo --times         seconds of CPU that every check of each takes
"""

from tests.zoo.decoders import DECODERS
from tests.zoo.encoders import ENCODERS
from tests.zoo.entry import Entry, features, ids, transform_entry
from tests.zoo.plain import PLAIN, Branching, Functional
from tests.zoo.recipes import RECIPES
from tests.zoo.vision import VISION

ZOO = [*DECODERS, *ENCODERS, *VISION, *RECIPES, *PLAIN]
BY_NAME = {entry.name: entry for entry in ZOO}

__all__ = ["BY_NAME", "ZOO", "Branching", "Entry", "Functional", "features", "ids", "transform_entry"]
