"""Isolation: from what was heard between peers to the update of one peer.

Shapes, throughout the package: N peers, T rounds, U unknown vectors, M heard vectors, D
coordinates. A row is the coefficients (U,) of one vector in terms of the unknowns.
"""
