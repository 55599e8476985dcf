"""Encoding time of each backend, and loss by int8."""
