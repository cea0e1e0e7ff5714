"""Training on many processes: plans that lay branches out over ranks."""
