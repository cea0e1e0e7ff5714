"""Training a model with branches: optimizer groups, their rates, what learns."""
