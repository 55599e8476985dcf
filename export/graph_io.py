"""Interface of every exported graph: the names of its ends, and the function that runs it."""

from collections.abc import Callable

from esrt.arrays import Float32Array

INPUT, OUTPUT = "mel", "features"
# Log-mel (1, mel bins, frames) to features (1, tokens, width).
Runner = Callable[[Float32Array], Float32Array]
