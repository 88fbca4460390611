"""Beyond the paper: controls, the contract test, nearest codes, projections, edited regions, second rounds.

Imports method and what lies below it, and the records of workspace.
"""
