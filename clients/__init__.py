"""What a participant does."""
