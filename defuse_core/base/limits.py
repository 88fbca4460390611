"""The largest of everything that comes from outside, each with its reason. Imports nothing.

One home for each limit: the core checks it, and pages and commands offer no more.
"""

from __future__ import annotations

# Images and data sets

MAX_DATASET_BYTES = 4 * 2**30
"""Bytes of all images of a data set in memory. SVHN with its extra split has 1.7 GB."""

MAX_IMAGES = 5_000_000
"""Images of a data set. ImageNet has 1.3 million."""

MAX_CLASSES = 10_000
"""Classes of a data set. ImageNet has 1,000."""

MAX_IMAGE_PIXELS = 2**26
"""Pixels of one image, height × width: 8,192 × 8,192. A photograph of 60 megapixels fits."""

MAX_IMAGE_SIZE = 4096
"""Side to which images are resized, pixels."""

MAX_EXPANSION = 500
"""Most bytes that a compressed byte may become. dSprites, one of the sparsest data sets, has 116; deflated
zeros have 1,030."""

SMALL_BYTES = 64 * 2**20
"""What unpacks to less may expand as it likes."""
