"""The paper's figures and the HTML report: records in; figures, tables and words out.

Computes no model; imports extensions and what lies below it.
"""
