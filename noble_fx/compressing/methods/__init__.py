"""How a matrix is factorised: one method a file, by name in `table.py`."""
