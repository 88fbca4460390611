"""What the page Classifier shows.

Imports shell, shared and components.
"""
