"""What the page Regions shows.

Imports shell, shared and components.
"""
