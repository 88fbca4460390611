"""Runs as processes: `launcher` starts and stops them, `runner` is what they run, on an `engine`.

May import workspace and steps (the runner alone), and what lies below them.
"""
