"""Defuse: find, group and repair the mistakes of an image classifier that its test set misses.

The method of Slack, Rauschmayr and Kenthapadi, *Defuse: Training More Robust Models through
Creation and Correction of Novel Model Errors* (XAI4Debugging workshop, NeurIPS 2021), one module a
step: `vae` → `identification` → `distillation` → `labeling` → `correction` → `evaluation`.
"""
