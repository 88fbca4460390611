"""Writes a table as CSV that a spreadsheet can open: a name is never run as a formula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defuse_core.base.spreadsheet import escape_formula

if TYPE_CHECKING:
    import pandas as pd


def table_csv(table: pd.DataFrame) -> bytes:
    """Return a table without its index as CSV; texts that would be formulas get an apostrophe.

    Examples
    --------
    >>> import pandas as pd
    >>> table_csv(pd.DataFrame({"class": ["=1+1", "cat"], "error": [-0.5, 1.0]}))
    b"class,error\\n'=1+1,-0.5\\ncat,1.0\\n"
    """
    texts = table.map(lambda cell: escape_formula(cell) if isinstance(cell, str) else cell)
    texts.columns = [escape_formula(str(name)) for name in table.columns]
    return texts.to_csv(index=False).encode()
