"""Escapes users' text, so that nothing in it acts as markup."""

from __future__ import annotations


def plain(text: str) -> str:
    r"""Escape text so that Markdown shows it as it is.

    Examples
    --------
    >>> print(plain("*a* <b>"))
    \*a\* \<b\>
    """
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-.!|<>~$:&" else c for c in text)
