"""Hostile files, made from seeds, against every door of Defuse: `python -m tests.campaign`.

A door is a function that reads a file of a stranger: weights, a data set, labels, an archive, a manifest, a
suite. A kind makes one file from a `random.Random`, and names the door that it is for. Each trial runs in
a forked child with 2 GB and 10 seconds. It is good if the door takes the file and the result is usable, or
refuses it with an error of Defuse that says what to do.

No file harms: the code that a checkpoint tries to run only creates a file beside it.
"""
