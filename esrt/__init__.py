"""ESRT's shared core: what the phone, the cloud, export and training all agree on."""

import logging

# transformers imports torchao, which warns of GPU kernels that this torch cannot load and nothing
# here uses; torch warns of how torchao registers its classes.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
