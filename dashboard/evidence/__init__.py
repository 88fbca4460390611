"""What the page Evidence shows.

Imports shell, shared and components.
"""
