"""Branches are drawn, put into the module tree, and taken out again."""
