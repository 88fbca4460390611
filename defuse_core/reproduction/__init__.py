"""The paper's experiments on its three data sets, measured again beside its figures.

Runs the steps as projects; imports everything but cli.
"""
