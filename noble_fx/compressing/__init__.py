"""A trained weight as two thin ones: what its inputs say, what each rank loses, and how a budget is spread."""
