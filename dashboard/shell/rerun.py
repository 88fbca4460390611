"""Reruns that a page asks for by itself, told from those that a person's step brings about."""

from __future__ import annotations

from typing import NoReturn

import streamlit as st

_OWN = "_own-rerun"


def rerun() -> NoReturn:
    """Run the page again: something has loaded, or changed elsewhere."""
    st.session_state[_OWN] = True
    st.rerun()


def was_own() -> bool:
    """Whether this run was asked for by the page itself; ask once a run."""
    return bool(st.session_state.pop(_OWN, False))
