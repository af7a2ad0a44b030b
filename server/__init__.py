"""What the coordinator does, and who listens there."""

STRATEGIES = {
    "fedsgd": "server.strategies:FedSGD",
    "fedavg": "server.strategies:FedAvg",
    "fedavgm": "flwr.serverapp.strategy:FedAvgM",
    "fedadam": "flwr.serverapp.strategy:FedAdam",
    "fedadagrad": "flwr.serverapp.strategy:FedAdagrad",
    "fedyogi": "flwr.serverapp.strategy:FedYogi",
    "fedprox": "flwr.serverapp.strategy:FedProx",
    "fedmedian": "flwr.serverapp.strategy:FedMedian",
    "fedtrimmedavg": "flwr.serverapp.strategy:FedTrimmedAvg",
    "krum": "flwr.serverapp.strategy:Krum",
    "multikrum": "flwr.serverapp.strategy:MultiKrum",
    "bulyan": "flwr.serverapp.strategy:Bulyan",
    "qfedavg": "flwr.serverapp.strategy:QFedAvg",
}
"""Strategies an experiment may name; all but the first two are Flower's own."""
