"""What a run came to, for people: one page, and pictures beside it."""
