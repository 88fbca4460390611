"""The corrected classifier as a checkpoint: weights, the code that loads them, a model card."""
