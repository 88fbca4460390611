"""What every page needs: the workspace, session state, forms, uploads, runs.

Imports nothing else of the dashboard.
"""
