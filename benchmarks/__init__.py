"""Benchmarks, each a command: ``python -m benchmarks.NAME --json FILE``. Nothing imports them."""

import warnings

import esrt  # noqa: F401 - first, because it quiets libraries that are imported next

# Libraries warn about their own calls of deprecated functions.
warnings.filterwarnings("ignore", category=FutureWarning)
