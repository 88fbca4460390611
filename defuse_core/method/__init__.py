"""The paper's method: records in, records out, nothing stored.

Reads from top to bottom as the paper does: classifier, vae, identification, distillation, labeling, correction,
evaluation. The steps never import each other but for the two models; imports base, data and networks.
"""
