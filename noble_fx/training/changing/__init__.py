"""Changing a model while it trains: ranks, sites, and the optimizer with them."""
