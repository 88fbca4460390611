"""Tells reruns that a page asks for itself from those that an action of the user causes."""

from __future__ import annotations

from typing import NoReturn

import streamlit as st

_OWN = "_own-rerun"


def rerun() -> NoReturn:
    """Run the page again: something has loaded, or changed elsewhere."""
    st.session_state[_OWN] = True
    st.rerun()


def was_own() -> bool:
    """Tell whether the page itself asked for this rerun; call it once per run."""
    return bool(st.session_state.pop(_OWN, False))
