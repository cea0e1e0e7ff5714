"""Rewrites for inference and for exports."""
