"""How close a guess is to the private batch: the only code here that is shown the truth.

Shapes as in `attacks`: B examples, C channels, H x W pixels. No attack imports this package.
"""
