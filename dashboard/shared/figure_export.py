"""Figures as files: PNG and SVG, drawn by matplotlib with their caption, and CSV of every number shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import pandas as pd
import streamlit as st

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Export:
    """What a figure is taken as.

    Attributes
    ----------
    name : str
        Of the files, without their ending.
    caption : str
        Its n, seed and settings, as text; stands in every file.
    draw : callable
        Draws it; called once it is asked for, as is `table`.
    table : callable
        Every number that the figure shows.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    table: Callable[[], pd.DataFrame]

    def picture(self, kind: Literal["png", "svg"]) -> bytes:
        """The figure as the content of a file, its caption below it."""
        from defuse_core.report.evidence_figures import add_caption
        from defuse_core.report.figures import figure_bytes

        return figure_bytes(add_caption(self.draw(), self.caption), kind)

    def csv(self) -> bytes:
        """Its numbers, unrounded, the caption in the last column."""
        return self.table().assign(settings=self.caption).to_csv(index=False).encode()


def show_export(export: Export) -> None:
    """Offer a figure in all forms; a form is made once its button is clicked."""
    with st.popover("Take it", icon=":material/download:", help="As PNG, SVG or CSV"):
        made: dict[str, Callable[[], bytes]] = {
            "PNG": lambda: export.picture("png"),
            "SVG": lambda: export.picture("svg"),
            "CSV": export.csv,
        }
        for kind, make in made.items():
            st.download_button(
                kind, make, file_name=f"{export.name}.{kind.lower()}", mime=_MIME[kind], on_click="ignore",
                icon=":material/download:", key=f"take-{export.name}-{kind}", width="stretch",
            )  # fmt: skip


_MIME = {"PNG": "image/png", "SVG": "image/svg+xml", "CSV": "text/csv"}
