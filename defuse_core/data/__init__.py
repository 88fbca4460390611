"""Data sets: images with labels, in splits, and where they come from.

Imports only `base`.
"""
