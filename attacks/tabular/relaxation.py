"""Points without bounds that stand for rows of a table: softmax and sigmoid. No paper of its own.

A category is the softmax of as many coordinates as it has values, a number the sigmoid of one; so
whatever a search does to a point, what it stands for is a row.
"""

import torch
from torch import Tensor

from attacks.tabular.columns import Columns


def relaxed(points: Tensor, columns: Columns) -> Tensor:
    """Return the rows at points (..., D): chances of categories, numbers in [0, 1]."""
    parts = []
    for column, place in columns.places():
        part = points[..., place]
        parts.append(part.softmax(dim=-1) if column.categories else part.sigmoid())
    return torch.cat(parts, dim=-1)


def decided(rows: Tensor, columns: Columns) -> Tensor:
    """Return rows (..., D) whose categories are certain: one-hot, the likeliest of each."""
    parts = []
    for column, place in columns.places():
        part = rows[..., place]
        if column.categories:
            likeliest = part.argmax(dim=-1, keepdim=True)
            part = torch.zeros_like(part).scatter_(-1, likeliest, 1)
        parts.append(part.clamp(0, 1))
    return torch.cat(parts, dim=-1)
