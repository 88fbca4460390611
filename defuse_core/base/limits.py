"""Limits on what strangers bring. Constants only: page, command, archive and library share them."""

from __future__ import annotations

# Weights: files of networks, read by defuse_core.networks

MAX_ZIP_DIRECTORY = 4 * 2**20
"""Bytes of a zip archive's directory: some 50,000 storages as torch.save names them."""

MAX_PICKLE_BYTES = 64 * 2**20
"""Bytes of the pickle that lists the tensors of a file of torch.save; their content is not in it."""

MAX_PICKLE_OPCODES = 500_000
"""Instructions of that pickle: some 14,000 tensors, those of an optimiser included."""

MAX_HEADER_BYTES = 16 * 2**20
"""Bytes of the header of a safetensors file."""

MAX_TENSORS = 10_000
"""Tensors of one network; of torchvision's, efficientnet_v2_l has most, 1,548."""

MAX_TENSOR_NAME = 500
"""Characters of a tensor's name."""

MAX_DIMENSIONS = 16
"""Dimensions of a tensor; a convolution over volumes has five."""

MAX_SHARING = 4
"""Tied weights share memory; a file that claims more than so many times its size is refused."""

CONVERSION_MEMORY = 2**30
"""Bytes of address space that the process which reads a pickle may take, besides twice the file's size.

Linux holds it. macOS does not; there the limits above, all checked before memory is taken, bound it alone.
"""

CONVERSION_SECONDS = 30
"""Seconds that this process may take, besides those for the file's bytes at `CONVERSION_SPEED`."""

CONVERSION_SPEED = 20 * 2**20
"""Bytes a second that a slow disk gives."""
