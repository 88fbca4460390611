"""Projects, uploads, runs and labels: one folder, SQLite and files.

Computes nothing and imports no torch, but for projects that are made from data; imports base and data.
"""
