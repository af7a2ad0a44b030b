"""Secure aggregation (Bonawitz et al., CCS 2017, https://eprint.iacr.org/2017/281).

A server learns the sum of its clients' vectors and nothing else. Each client adds to its vector a
mask that it shares with each other client, one adding what the other takes away, and a mask of its
own. What it takes to remove the masks of a client that drops out is dealt out among all clients
beforehand, by Shamir's scheme, so that a threshold of them can end what was begun. This is the
version against servers and clients that follow the protocol (honest but curious).

The two ends are here, without messages or models: `member` is a client, `coordinator` the server,
`field` the arithmetic, `keys` what the cryptographic libraries do for us.
"""
