"""Exports figures: PNG and SVG, drawn by matplotlib with their caption, and CSV of every number shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import streamlit as st

from dashboard.shared.table_csv import table_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Export:
    """A figure to export.

    Attributes
    ----------
    name : str
        Of the files, without extension.
    caption : str
        n, seed and settings as text; written into every file.
    draw : callable
        Draws the figure; called only when a file is asked for, as is `table`.
    table : callable
        Returns every number that the figure shows.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    table: Callable[[], pd.DataFrame]

    def picture(self, kind: Literal["png", "svg"]) -> bytes:
        """Return the content of a file: the figure with its caption below."""
        from defuse_core.report.evidence_figures import add_caption
        from defuse_core.report.figures import figure_bytes

        return figure_bytes(add_caption(self.draw(), self.caption), kind)

    def csv(self) -> bytes:
        """Return the unrounded numbers as CSV, with the caption in the last column."""
        return table_csv(self.table().assign(settings=self.caption))


def show_export(export: Export) -> None:
    """Offer a figure in all formats; a file is made when its button is clicked."""
    with st.popover("Download", icon=":material/download:", help="As PNG, SVG or CSV"):
        files: dict[str, Callable[[], bytes]] = {
            "PNG": lambda: export.picture("png"),
            "SVG": lambda: export.picture("svg"),
            "CSV": export.csv,
        }
        for kind, make in files.items():
            st.download_button(
                kind, make, file_name=f"{export.name}.{kind.lower()}", mime=_MIME[kind], on_click="ignore",
                icon=":material/download:", key=f"take-{export.name}-{kind}", width="stretch",
            )  # fmt: skip


_MIME = {"PNG": "image/png", "SVG": "image/svg+xml", "CSV": "text/csv"}
