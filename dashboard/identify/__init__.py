"""What the page Identify shows.

Imports shell, shared and components.
"""
