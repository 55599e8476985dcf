"""The corpus, the training and the evaluation of esrt-nano."""

import esrt  # noqa: F401 - first, because it quiets libraries that are imported next
