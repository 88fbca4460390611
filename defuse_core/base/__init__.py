"""What every room builds on: configs, records, weights on disk, devices, files, errors.

Imports no other room.
"""
