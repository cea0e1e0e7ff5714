"""Rewrites of a captured graph; `pipeline.py` lists them by purpose."""
