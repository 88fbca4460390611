"""Store projects, uploads, runs and labels in one folder: SQLite and files.

Computes nothing. Imports base and data; only `projects`, which reads data sets, imports torch.
"""
