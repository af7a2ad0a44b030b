"""The ears at the server and on the links."""
