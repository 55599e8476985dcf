"""A C++ program that runs a ``.pte`` as a phone would, and what builds it."""
