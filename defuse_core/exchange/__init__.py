"""What leaves a workspace and comes back: archives, replays of manifests, regression suites, checkpoints.

Imports jobs, steps and what lies below them.
"""
