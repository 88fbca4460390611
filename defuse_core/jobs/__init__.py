"""Runs as processes: `launcher` starts and stops them, `runner` is what they run, on an `engine`."""
