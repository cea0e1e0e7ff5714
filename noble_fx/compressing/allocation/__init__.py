"""Which rank each layer gets of a budget that all share: one way a file, by name in `table.py`."""
