"""Write the report as one HTML file that loads nothing, runs no script, can be printed and is under 10 MB.

Everything that people or files provide is text: jinja2 escapes it, and the page's own policy forbids
scripts and requests. Pictures are PNG in data URLs; they are scaled down if the page would exceed the
limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from defuse_core.base.intervals import Interval
from defuse_core.data.naming import source_kind
from defuse_core.report.content import ReportContent, Tile
from defuse_core.report.generator import tell_unusable
from defuse_core.report.limits import limits
from defuse_core.report.numbers import count, interval, listed, p_value, percent
from defuse_core.report.sprites import data_url, make_plot, make_sprite
from defuse_core.report.tables import class_table, control_table, novelty_told, settings_rows, sweep_table
from defuse_core.report.words import change_of_test, label_fit, mostly, readings, rule, summary

MAX_BYTES = 10_000_000
_SIDES = (64, 48, 32, 20)  # pixels of a picture: the size shown, then those to scale down to
_COLUMNS = 10
_MAX_MANIFEST = 1_500_000  # bytes; a larger manifest cannot be saved from the page
_MAX_ELEMENTS = 12  # shown of a list in the manifest
_MODELS = {
    "before": "before the repair",
    "identified mistakes": "tuned on single mistakes (the baseline)",
    "Defuse": "after the repair (Defuse)",
}
_CONTENTS = {
    "accuracy": "Before and after",
    "regions": "Failures",
    "trade-off": "Trade-off",
    "cost": "Cost elsewhere",
    "controls": "Controls",
    "novelty": "Novelty",
    "agreement": "Agreement",
    "limits": "Limits",
    "settings": "Settings",
    "manifest": "Make it again",
}


def render_report(content: ReportContent, *, max_bytes: int = MAX_BYTES) -> str:
    """Write the report.

    Parameters
    ----------
    content : ReportContent
    max_bytes : int
        The page stays under this, UTF-8 encoded.

    Returns
    -------
    str
        A whole HTML document.

    Raises
    ------
    ValueError
        If the page is too large even with the smallest pictures.
    """
    for side in _SIDES:
        page = _render(content, side)
        size = len(page.encode())
        if size < max_bytes:
            return page
    raise ValueError(
        f"report.html must be under {max_bytes / 1e6:g} MB, got {size / 1e6:.1f} MB with the smallest "
        f"pictures; show fewer than {len(content.regions)} regions (n_worst)"
    )


def _render(content: ReportContent, side: int) -> str:
    def sprite(tiles: Sequence[Tile]) -> Any:
        return make_sprite([tile.image for tile in tiles], side=side)

    results = content.results
    manifest = None if content.manifest is None else _manifest(content.manifest)
    template = _environment(sprite).get_template("report.html.j2")
    return template.render(
        content=content,
        data_told=_data(content.dataset),
        summary=summary(content),
        test_told=change_of_test(content),
        contents=[(id, title) for id, title in _CONTENTS.items() if id != "manifest" or manifest],
        n_failures=content.n_tuned + content.n_held_out,
        rule_told=rule(content),
        fit_told=label_fit(content),
        mark=tell_unusable(results["still_correct_after_reconstruction"]),
        rho=results["settings"].get("correct", {}).get("disagreement_threshold", 0.5),
        model_names=_MODELS,
        sweep=sweep_table(content),
        classes=class_table(results.get("by_class") or []),
        controls=control_table(content),
        novelty=novelty_told(results.get("novelty")),
        limits=limits(content),
        settings=settings_rows(results["settings"], results.get("seeds", {})),
        manifest=manifest,
        figure=lambda name: make_plot(content.figures[name]),
    )


def _environment(sprite: Callable[[Sequence[Tile]], Any]) -> Environment:
    environment = Environment(
        loader=PackageLoader("defuse_core.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": percent, "interval": interval, "p_value": p_value, "count": count, "listed": listed,
        "readings": readings, "mostly": mostly, "thousands": lambda n: f"{n:,}", "duration": _duration,
        "error_ends": lambda accuracy: interval([0, 1 - accuracy.high, 1 - accuracy.low, accuracy.n]),
    }  # fmt: skip
    environment.globals |= {"sprite": sprite, "four": _four, "columns": _COLUMNS}
    return environment


def _four(share: Interval | None) -> list[float | None]:
    """Write an interval as results.json has it."""
    return [None, None, None, 0] if share is None else [share.estimate, share.low, share.high, share.n]


def _data(dataset: Mapping[str, Any]) -> str:
    """Say which data set it is; of a path only the file name."""
    source = str(dataset["source"])
    name = source_kind(source).title(source).removeprefix("torchvision:")
    name = "uploaded data" if source.startswith("blob:") else name
    channels, height, width = dataset["image_shape"]
    sizes = listed([f"{n:,} {split}" for split, n in dataset["sizes"].items()])
    colour = "grey" if channels == 1 else "colour"
    classes = count(len(dataset["class_names"]), "class", "classes")
    return f"{name}: {sizes} pictures of {classes}, {width}×{height}, {colour}"


def _duration(seconds: float) -> str:
    """Say how long something took.

    Examples
    --------
    >>> _duration(41.3), _duration(139.7), _duration(9000.0)
    ('41 seconds', '2.3 minutes', '2.5 hours')
    """
    if seconds < 90:
        return count(round(seconds), "second")
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _manifest(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the manifest as a file to save, unless it is too large, and as text to read."""
    whole = json.dumps(manifest, separators=(",", ":")).encode()
    return {
        "url": data_url(whole, "application/json") if len(whole) <= _MAX_MANIFEST else "",
        "size": f"{len(whole) / 1e3:,.0f} kB",
        "text": json.dumps(_shorten(manifest), indent=2, ensure_ascii=False),
    }


def _shorten(value: Any) -> Any:
    """Cut long lists.

    Examples
    --------
    >>> _shorten({"labels": list(range(100))})["labels"][-2:]
    [11, '… 88 more']
    """
    if isinstance(value, Mapping):
        return {str(name): _shorten(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        rest = [f"… {len(value) - _MAX_ELEMENTS} more"] if len(value) > _MAX_ELEMENTS else []
        return [_shorten(of) for of in value[:_MAX_ELEMENTS]] + rest
    return value
