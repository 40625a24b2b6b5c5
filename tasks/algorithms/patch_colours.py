"""Patch features as colours: the picture that DINOv2 shows of what a model sees (its section 7.5)."""

import numpy as np

from lvd.tasks.algorithms.projection import principal

SCALED = (2.0, 98.0)  # percentiles of a component that become 0 and 255


def coloured(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((n, h, w, 3) uint8, (n, h, w) bool): the colour of every patch, and whether it belongs to an object.

    features: (n, h, w, c), any float. The first principal component of the patches of all images together tells object
    from background: what lies on the other side of its mean than most patches at the borders do. The first three
    components of the object's patches alone, all images together, are red, green and blue; background is black.
    """
    n, h, w, c = features.shape
    rows = features.reshape(-1, c).astype(np.float64)
    first = principal(rows, 1)[:, 0]
    border = np.ones((h, w), dtype=bool)
    border[1:-1, 1:-1] = False
    at_border = np.tile(border.ravel(), n)
    is_object = first > 0 if np.median(first[at_border]) <= 0 else first < 0
    colours = np.zeros((len(rows), 3), dtype=np.uint8)
    if is_object.any():
        three = principal(rows[is_object], 3)
        three = np.pad(three, ((0, 0), (0, 3 - three.shape[1])))
        low, high = np.percentile(three, SCALED, axis=0)
        scaled = (three - low) / np.maximum(high - low, 1e-12)
        colours[is_object] = np.round(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return colours.reshape(n, h, w, 3), is_object.reshape(n, h, w)
