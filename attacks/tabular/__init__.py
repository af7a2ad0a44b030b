"""Attacks on tables: from the gradient of a model back to the rows it was trained on.

Shapes in every docstring of this package: B rows of D coordinates, which encode F features.
"""
