"""Where the linear maps of a model are, and which of them are chosen."""
