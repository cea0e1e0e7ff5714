"""Whole training scripts, to start from."""
