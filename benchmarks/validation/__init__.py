"""The rows of the validation table: what is published, and how it is measured here.

A row measures; it does not judge. Its cases hold one value per image, batch or network, so that
spread can be told. A published figure says where it stands; "from memory" marks one that could not
be looked up again and must not be leaned on.
"""
