"""What every page stands in: the workspace, session state, forms, uploads, runs.

Imports nothing else of the dashboard.
"""
