"""What the page Map shows.

Imports shell, shared and components.
"""
