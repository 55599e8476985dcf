"""Corpus, training and evaluation of esrt-nano."""

import esrt  # noqa: F401 - first: silences the warnings of libraries imported later
