"""The paper's method: records in, records out, nothing stored.

In the order of the steps: classifier, vae (and its training), identification, distillation,
labeling, correction, evaluation, novelty.
Of its own modules, each imports the two models at most; of other rooms, base, data and networks.
"""
