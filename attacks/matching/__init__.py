"""Parts of attacks that look for a batch whose gradient matches the one heard."""
