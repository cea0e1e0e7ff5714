"""Optimizers of other libraries on models with branches; `docs/neighbours.md` says what each is."""
