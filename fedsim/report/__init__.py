"""What runs came to, for people: one page for one run, with pictures beside it, or for several."""
