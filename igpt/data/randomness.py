"""Random numbers that are a pure function of what they are for.

No generator is shared and no worker has a stream of its own: each draw is keyed by the sha256 of
its purpose, so it is the same on any machine, in any order and for any number of workers. Only
`Philox.random_raw` is used, whose stream numpy guarantees across versions.
"""

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def permutation(n: int, *purpose: str | int) -> NDArray[np.int64]:
    """A permutation of 0..n-1, int64 [n], drawn for `purpose`."""
    return np.argsort(_raw(n, purpose), kind="stable").astype(np.int64, copy=False)


def uniforms(n: int, *purpose: str | int) -> NDArray[np.float64]:
    """Numbers in [0, 1), float64 [n], drawn for `purpose`."""
    # The upper 53 bits, which a float64 holds exactly.
    return (_raw(n, purpose) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _raw(n: int, purpose: tuple[str | int, ...]) -> NDArray[np.uint64]:
    key = hashlib.sha256(json.dumps(purpose).encode()).digest()[:16]  # Philox takes 128 bits
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(n)
