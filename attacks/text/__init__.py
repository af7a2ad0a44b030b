"""Attacks on text: from the gradients of a language model back to the tokens it was trained on.

Shapes in every docstring of this package: B examples of at most T tokens, a vocabulary of V, and
embeddings of width D.
"""
