"""What the page Present shows.

Imports shell, shared and components.
"""
