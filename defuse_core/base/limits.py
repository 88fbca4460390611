"""Limits on what comes from outside, and on what is kept back; one block a subject. Imports nothing.

One home for each limit: the core checks it, and pages and commands offer no more.
"""

from __future__ import annotations

# Disk space that is kept back (workspace.reserve)

RESERVE_BYTES = 2**20
"""Set aside in the workspace, so that runs can be listed, ended and deleted on a full disk."""

RESERVE_PIECE_BYTES = 2**18
"""Given up at once; half of it must be free for a change that ends a run or frees space."""

RESERVE_LEAST_FREE_BYTES = 64 * 2**20
"""Nothing is set aside on a disk with less free than this."""

# Garbage (workspace.garbage)

GARBAGE_BATCH = 500
"""Files that are set aside while the database is locked; they are deleted once it is free again."""

# Archives and manifests, which strangers may have made (exchange.archive, workspace.manifest)

MAX_ROW_BYTES = 8 * 2**20
"""One row of an archive as JSON; in memory it takes up to 37 times as much, 300 MB."""

MAX_MANIFEST_BYTES = 16 * 2**20
"""The manifest of an archive or of a run; that of the demo has less than 1 MB."""

MAX_DIRECTORY_BYTES = 8 * 2**20
"""The directory of an archive, some 75,000 files."""

MAX_RUNS = 10_000
"""Runs of an archive: each becomes a folder."""

MAX_ROWS = 250_000
"""Rows of each table of an archive; the largest projects have some 60,000 events."""

MAX_NAME = 1_000
"""Characters of a name in an archive: of a class, a task, a point, an annotator, a region."""

MAX_SOURCE = 4_096
"""Characters of a text in a config, and of the source of a data set, such as a path."""

MAX_ERROR = 100_000
"""Characters of an error in an archive; a longer one is cut where it is exported."""

MAX_SIDE = 2**20
"""Pixels of a side of the images of an archive's project, and its channels."""

MAX_THREADS = 4_096
"""Threads that a run may compute with, whether a command, a manifest or an archive asks for them."""

MAX_SECONDS = 10 * 366 * 24 * 3600
"""Seconds that a run of an archive or a manifest took: ten years."""

MAX_TIME = 32_503_680_000
"""The latest time in an archive or a manifest, seconds since 1970: the year 3000."""

UNPACK_FREE_BYTES = 64 * 2**20
UNPACK_RATIO = 100
"""An archive may unpack to `UNPACK_FREE_BYTES` plus this many times its own size; exports keep to that."""

IMPORT_SPARE_BYTES = 64 * 2**20
"""Disk space that an import leaves free."""

# Zip archives of weights and of arrays (base.zips)

MAX_ZIP_DIRECTORY = 4 * 2**20
"""Bytes of a zip archive's directory: some 50,000 storages as torch.save names them."""

# Weights: files of networks, read by defuse_core.networks

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

# Images and data sets

MAX_DATASET_BYTES = 4 * 2**30
"""Bytes of all images of a data set in memory. SVHN with its extra split has 1.7 GB."""

MAX_IMAGES = 5_000_000
"""Images of a data set. ImageNet has 1.3 million."""

MAX_CLASSES = 100_000
"""Classes of a data set. ImageNet has 1,000."""

MAX_IMAGE_PIXELS = 2**26
"""Pixels of one image, height × width: 8,192 × 8,192. A photograph of 60 megapixels fits."""

MAX_SCANS = 100
"""Scans of a progressive JPEG, each of which takes the time of the whole image; encoders write ten."""

MAX_IMAGE_SIZE = 4096
"""Side to which images are resized, pixels."""

MAX_TABLE_BYTES = 512 * 2**20
"""Bytes of a CSV or Parquet file that lists the images of a folder; five million rows fit."""

MAX_EXPANSION = 500
"""Most bytes that a compressed byte may become. dSprites, one of the sparsest data sets, has 116; deflated
zeros have 1,030."""

SMALL_BYTES = 64 * 2**20
"""What unpacks to less may expand as it likes."""

# Labels (workspace.labels, workspace.label_files, data.class_names)

MAX_SAMPLES = 10_000
"""Draws of a region that one answer may be about: every verdict on it draws them again, in memory."""

MAX_COMPARED_DRAWS = 1_000_000
"""Draws on which annotators are compared with each other; 300 regions of ten draws have 3,000."""

MAX_ROUND = 1_000
"""The highest pass over the same draws; people take two."""

MAX_ANSWER_SECONDS = 10_000_000.0
"""Time spent on an answer, some 115 days: a page that was left open."""

MAX_TAU = 100.0
"""The largest τ; above it, a region's draws have nothing to do with the region."""

MAX_LABELS = 200_000
"""Label events of a project, undone ones and undos included."""

MAX_LABEL_FILE = 64 * 2**20
"""Bytes of a file of labels."""

MAX_ANSWERS = MAX_LABELS
"""Answers of a file of labels: as many as a project holds."""

MAX_CLASS_NAME = 200
"""Characters of the name of a class or of an annotator."""

MAX_REGION_NAME = 200
"""Characters of the name that a person gives a region."""

# Suites (exchange.suite)

MAX_SUITE_MANIFEST = 16 * 2**20
"""Bytes of the manifest of a suite."""

MAX_SUITE_HEADER = 2**20
"""Bytes of the safetensors file of a suite besides its images."""
