"""What the page Label shows.

Imports shell, shared and components.
"""
