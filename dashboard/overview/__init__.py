"""What the page Overview shows.

Imports shell, shared and components.
"""
