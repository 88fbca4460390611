"""Classifier networks: those that ship, those that users bring, and the files that weights come in.

Imports base and data.
"""
