"""What several pages show: charts, galleries, regions, and the models that they compute with.

Imports shell and components.
"""
