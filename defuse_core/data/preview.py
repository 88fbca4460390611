"""What a data set looks like before a project is made of it: a few images, counts, and what was converted."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from defuse_core.base.runtime import numpy_rng
from defuse_core.data.notes import dataset_notes
from defuse_core.data.splits import ImageDataset

N_SHOWN = 12
_COLUMNS = 6  # images in a row of the sheet


@dataclass(frozen=True)
class Preview:
    """A look at a data set.

    Attributes
    ----------
    dataset : ImageDataset
    shown : tuple of int
        Which training images are shown, of as many classes as there are places.
    notes : tuple of str
        What was converted or left out, and what is odd.
    """

    dataset: ImageDataset
    shown: tuple[int, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, dataset: ImageDataset, n: int = N_SHOWN) -> Preview:
        """Choose training images, class by class in turn; the same ones every time."""
        labels = dataset.train.labels
        order = torch.from_numpy(numpy_rng(0, "preview").permutation(len(labels)))
        turn = torch.zeros(len(labels), dtype=torch.int64)
        for label in labels.unique():
            members = order[labels[order] == label]
            turn[members] = torch.arange(len(members))
        first = order[turn[order].argsort(stable=True)][:n]
        return cls(
            dataset, tuple(first[labels[first].argsort(stable=True)].tolist()), tuple(dataset_notes(dataset))
        )

    def images(self) -> list[tuple[NDArray[np.uint8], str]]:
        """Return the images that are shown, (height, width) or (height, width, 3), with their labels."""
        train, names = self.dataset.train, self.dataset.class_names
        made = []
        for index in self.shown:
            image = train.images[index].permute(1, 2, 0).numpy()
            pixels = np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image)
            made.append((pixels, names[int(train.labels[index])]))
        return made

    def counts(self) -> dict[str, list[int]]:
        """Return how many images of each class a split has, by the split."""
        return {name: counts.tolist() for name, counts in self.dataset.class_counts().items()}

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON, the images as PNG in base64."""
        images = [
            {"label": label, "png": base64.b64encode(_png(Image.fromarray(image))).decode()}
            for image, label in self.images()
        ]
        return {
            "name": self.dataset.name, "image_shape": list(self.dataset.image_shape),
            "class_names": list(self.dataset.class_names), "counts": self.counts(),
            "images": images, "notes": list(self.notes),
        }  # fmt: skip

    def sheet(self) -> bytes:
        """Return the images with their labels below them as one PNG."""
        from matplotlib.figure import Figure  # slow to import

        images = self.images()
        rows = -(-len(images) // _COLUMNS)
        figure = Figure((_COLUMNS * 1.6, rows * 1.9))
        for place, (image, label) in enumerate(images):
            axes = figure.add_subplot(rows, _COLUMNS, place + 1)
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
            axes.set_title(label if len(label) < 20 else label[:19] + "…", fontsize=8, parse_math=False)
        figure.tight_layout()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
