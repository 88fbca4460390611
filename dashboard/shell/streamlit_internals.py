"""All that the dashboard uses of Streamlit beyond its public interface; `tests/test_uploads.py` tries it.

A version of Streamlit that lacks a part serves every page all the same. An upload then stays in memory until
its tab is closed, and the server's log names the part.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import streamlit as st
from streamlit.typing import UploadedFile

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator as Container
else:
    Container = Any  # what st.container() returns has no public name
__all__ = ["Container", "free_upload"]

_log = logging.getLogger(__name__)


def free_upload(file: UploadedFile) -> bool:
    """Let go of the memory of an upload of this session; return whether this version of Streamlit did."""
    try:
        from streamlit.runtime.scriptrunner import get_script_run_ctx

        context: Any = get_script_run_ctx()
        context.uploaded_file_mgr.remove_file(context.session_id, file.file_id)
    except (ImportError, AttributeError, TypeError) as error:
        _log.warning(
            "Streamlit %s keeps an upload in memory until its tab is closed (%s); 1.67 does not",
            st.__version__, error,
        )  # fmt: skip
        return False
    return True
