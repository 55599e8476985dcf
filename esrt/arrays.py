"""Array types that several packages share."""

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
