"""The dashboard as a web application: `streamlit run` finds `app` here, and serves it behind the guard."""

from __future__ import annotations

import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Thread
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from streamlit import App

from dashboard.shell.guard import Guard
from dashboard.shell.server import PAGE, page_url


@asynccontextmanager
async def open_browser(_: Any) -> AsyncIterator[None]:
    """Open the page once the server listens; `streamlit run` leaves that to the application."""
    if not st.get_option("server.headless"):
        url = page_url(st.get_option("server.address"), st.get_option("server.port"))
        Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    yield


app = App(
    PAGE,
    middleware=[Middleware(Guard, others=st.get_option("server.corsAllowedOrigins"))],
    lifespan=open_browser,
)
