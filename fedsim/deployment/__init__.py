"""A real federation on this machine: Flower's SuperLink, a SuperNode per client, and their apps.

Every part is a process of its own, and they speak to each other as they would over a network.
"""

DEPLOYED_CLIENT_APP = "fedsim.deployment.apps:client_app"
DEPLOYED_SERVER_APP = "fedsim.deployment.apps:server_app"
"""The two apps as a deployment runs them, by reference."""
