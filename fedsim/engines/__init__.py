"""What runs the two apps. Every engine runs the same ServerApp and ClientApp."""

ENGINES = {
    "in-process": "fedsim.engines.in_process:InProcess",
    "ray": "fedsim.engines.ray:Ray",
    "flwr": "fedsim.engines.flwr:FlowerSimulation",
}
"""Engines an experiment may name."""
