"""Starts Streamlit, from any folder, with the settings that keep the dashboard safe.

It listens only on this machine, answers only to this machine's names, and sends no statistics.
Another address is accepted only if Streamlit's OIDC login is configured; users must then log in.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import tomllib
from pathlib import Path

from defuse_core.base.machine import ALLOW_LOCAL_CODE

_HERE = Path(__file__).resolve().parents[1]
APP, PAGE = _HERE / "asgi.py", _HERE / "app.py"
"""What is served, and the script that Streamlit runs for every session of it."""

LOGIN = "DEFUSE_LOGIN"
"""Environment variable of the server; set if users must log in."""

MAX_UPLOAD_MB = 500
_EVERYWHERE = {"0.0.0.0", "::"}


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach an address.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_shared() -> bool:
    """Tell whether others reach this server: they log in, and may not name files of this machine."""
    return LOGIN in os.environ


def has_login(folders: tuple[Path, ...] = (Path(".streamlit"), Path.home() / ".streamlit")) -> bool:
    """Tell whether a secrets.toml that Streamlit reads configures a login."""
    for path in (folder / "secrets.toml" for folder in folders):
        if path.is_file() and "auth" in tomllib.loads(path.read_text(encoding="utf-8")):
            return True
    return False


def page_url(address: str, port: int) -> str:
    """Return where a browser on this machine finds the dashboard.

    Examples
    --------
    >>> page_url("127.0.0.1", 8501), page_url("::1", 8501), page_url("0.0.0.0", 80)
    ('http://127.0.0.1:8501', 'http://[::1]:8501', 'http://localhost:80')
    """
    host = "localhost" if address in _EVERYWHERE else address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_command(address: str, port: int, *, browser: bool) -> list[str]:
    """Return the command that serves the dashboard.

    Raises
    ------
    ValueError
        If others could reach it and no login is configured.
    """
    if not is_loopback(address) and not has_login():
        raise ValueError(
            f"--address {address} would open the dashboard to others without a login; configure one in "
            ".streamlit/secrets.toml under [auth] (see Streamlit's authentication), or use 127.0.0.1"
        )
    options = {
        "server.address": address,
        "server.port": str(port),
        "server.headless": str(not browser).lower(),
        "server.showEmailPrompt": "false",
        "server.enableXsrfProtection": "true",
        "server.enableCORS": "true",
        "server.maxUploadSize": str(MAX_UPLOAD_MB),
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "theme.light.primaryColor": "#0072B2",
        "theme.dark.primaryColor": "#56B4E9",
    }
    hosts = sorted({"127.0.0.1", "localhost", address} - _EVERYWHERE)
    flags = [f"--{name}={value}" for name, value in options.items()]
    flags += [f"--server.allowedHosts={host}" for host in hosts]
    return [sys.executable, "-P", "-m", "streamlit", "run", str(APP), *flags]


def serve(address: str, port: int, *, browser: bool, allow_local_code: bool = False) -> None:
    """Replace this process by the server, so that signals reach it."""
    command = server_command(address, port, browser=browser)
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # leaves the cores to the runs
    environment = {**os.environ, **one_thread, **({} if is_loopback(address) else {LOGIN: "1"})}
    if allow_local_code:
        environment[ALLOW_LOCAL_CODE] = "1"
    os.execve(command[0], command, environment)
