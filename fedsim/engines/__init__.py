"""What runs the two apps. Every engine runs the same ServerApp and ClientApp."""

ENGINES = {
    "in-process": "fedsim.engines.in_process:InProcess",
    "ray": "fedsim.engines.ray:Ray",
    "flwr": "fedsim.engines.flwr:FlowerSimulation",
    "deployment": "fedsim.deployment.engine:Deployment",
}
"""Engines an experiment may name."""
