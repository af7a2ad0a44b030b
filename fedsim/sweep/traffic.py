"""What an update weighs, so that cells of a sweep compare."""

from statistics import fmean

from attacks.observation import Kind
from fedsim.config import parse_experiment
from fedsim.defenses import UpdateDefense, build_chain
from fedsim.records import RunDirectory
from fedsim.wire import to_packed_record

_WHOLE = (Kind.GRADIENT, Kind.DELTA, Kind.WEIGHTS)


def packed_bytes(run: RunDirectory) -> float | None:
    """Return the mean array bytes that the updates of a run would have if they had been packed.

    Clients pack, without loss, what a defense changed, and send everything else at four bytes a
    value; packing alone makes an update smaller that has zeros, and no defense should be praised
    for that.

    Returns:
        The mean over the updates that the adversary heard; None where clients packed them, or it
        heard none of them whole.
    """
    experiment = parse_experiment(run.config_text(), where=str(run.config))
    if any(isinstance(one, UpdateDefense) for one in build_chain(experiment).values()):
        return None
    heard = [
        run.read_observation(record["id"]).update
        for record in run.observation_records()
        if record["receiver"] == "server" and record["kind"] in _WHOLE
    ]
    sizes = [
        sum(len(array.data) for array in to_packed_record(update).values()) for update in heard
    ]
    return fmean(sizes) if sizes else None
