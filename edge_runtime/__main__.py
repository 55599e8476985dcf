"""``python -m edge_runtime``."""

from esrt.scripts import edge

edge()
