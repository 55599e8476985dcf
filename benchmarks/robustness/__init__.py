"""Robustness of whole translations against the conditions of a recording."""
