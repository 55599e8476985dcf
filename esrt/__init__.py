"""Shared core of the phone side, the cloud side, export and training."""

import logging

__version__ = "0.1.0"

# transformers imports torchao. torchao warns about GPU kernels that are not used here, and torch
# warns about the way in which torchao registers its classes, and that torchvision is missing.
for _name in ("torchao", "torch.utils._pytree", "torch.onnx._internal.exporter._registration"):
    logging.getLogger(_name).setLevel(logging.ERROR)
