"""A trained weight as two thin ones: what its inputs say, which ranks it takes, and how they are spread over a model."""
