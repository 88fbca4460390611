"""What the page Correct shows.

Imports shell, shared and components.
"""
