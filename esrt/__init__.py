"""Shared core of the phone side, the cloud side, export and training."""

import logging

# transformers imports torchao. torchao warns about GPU kernels that are not used here, and torch
# warns about the way in which torchao registers its classes.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
