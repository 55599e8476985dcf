"""Measurements, each a command: ``python -m benchmarks.NAME --json FILE``. Nothing imports them."""

import esrt  # noqa: F401 - first, because it quiets libraries that are imported next
