"""How a network is fed: as the user states, else as the file of its weights does; and for which classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from defuse_core.base.errors import CheckpointError
from defuse_core.data.splits import ImageDataset
from defuse_core.method.classifier import Preprocessing
from defuse_core.workspace.configs import NetworkConfig


def check_stated_channels(config: NetworkConfig, channels: int) -> None:
    """Check that mean and std, where they are stated, have a value for each channel of the network.

    Raises
    ------
    CheckpointError
        If not.
    """
    stated = config.mean or config.std
    if stated and len(stated) != channels:
        raise CheckpointError(
            f"mean and std have {len(stated)} values, the network takes {channels} channels; give {channels}"
        )


def stated_preprocessing(
    config: NetworkConfig, dataset: ImageDataset, *, channels: int | None = None,
    own: Preprocessing | None = None,
) -> Preprocessing:  # fmt: skip
    """Preprocessing as the config states it, else as the file does, else that of the training images.

    Parameters
    ----------
    config : NetworkConfig
    dataset : ImageDataset
    channels : {1, 3}, optional
        Channels that the network takes; by default those of the images.
    own : Preprocessing, optional
        What the file of the weights states.
    """
    usual = own or Preprocessing.of(dataset.train.images)
    stated = config.mean or config.std
    n_channels = channels or (len(stated) if stated else len(usual.mean))
    check_stated_channels(config, n_channels)

    def fit(values: tuple[float, ...]) -> tuple[float, ...]:
        return values if len(values) == n_channels else (sum(values) / len(values),) * n_channels

    of_file = usual.channel_order if n_channels == 3 else "rgb"
    order = "bgr" if config.channel_order == "bgr" else of_file
    return Preprocessing(
        config.mean or fit(usual.mean), config.std or fit(usual.std),
        config.image_size or usual.image_size, order,
    )  # fmt: skip


def check_class_names_of(
    metadata: Mapping[str, Any], class_names: Sequence[str], *, path: Path, owner: str
) -> None:
    """Refuse a checkpoint of ours that has other classes, or another order; other files do not name theirs.

    Parameters
    ----------
    metadata : mapping
        Of the file.
    class_names : sequence of str
        Those of `owner`.
    path : Path
        Of the file, for the error.
    owner : {"the data set", "the suite"}

    Raises
    ------
    CheckpointError
        If the file names other classes.
    """
    theirs, ours = metadata.get("class_names"), list(class_names)
    if isinstance(theirs, list) and [str(name) for name in theirs] != ours:
        whose = "this data" if owner == "the data set" else "the suite's data"
        raise CheckpointError(
            f"{path} tells {len(theirs)} classes apart ({_some(theirs)}), {owner} has {len(ours)} "
            f"({_some(ours)}); use the model that was made for {whose}"
        )


def _some(names: list[Any]) -> str:
    return ", ".join(str(name)[:40] for name in names[:4]) + (", …" if len(names) > 4 else "")


def preprocessing_of(metadata: Mapping[str, Any], path: Path) -> Preprocessing | None:
    """Return the preprocessing that a checkpoint of ours states; None for another file.

    Raises
    ------
    CheckpointError
        If what it states is no preprocessing.
    """
    if "preprocessing" not in metadata:
        return None
    try:
        own = Preprocessing.of_json(metadata["preprocessing"])
    except (TypeError, KeyError, ValueError, OverflowError):
        own = None
    if own is None or own.channel_order not in ("rgb", "bgr"):
        raise CheckpointError(
            f"{path} states a preprocessing that is none; save the weights alone, and state mean, std and "
            "image_size"
        )
    return own
