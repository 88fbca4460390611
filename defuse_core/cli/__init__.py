"""The command `defuse`, one module a group of commands.

Nothing imports it but what starts it.
"""
