"""What the adversary was told, as a file of the run: granted item by granted item.

Attack workers read this file and the observations, and nothing else: they never load a data set.
"""

from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch.nn import functional

from attacks.observation import Kind, Knowledge, LocalRecipe, Observation
from attacks.tabular.columns import Column, Columns
from attacks.text.language import cross_entropy
from attacks.text.tokens import Tokens
from attacks.threats import Capability, ThreatModel
from fedsim.config import AttackConfig, DefenseConfig, Experiment
from fedsim.defenses import ModelDefense, altered, build_defense, known_defenses
from fedsim.files import Record, read_json, read_tensors, reading, replace_json, replace_tensors
from fedsim.models.build import build_model
from fedsim.named_attacks import active_attack, implanted
from fedsim.records import RunDirectory


def recipe_of(experiment: Experiment, most_steps: int, *, proximal_mu: float = 0.0) -> LocalRecipe:
    """Return how clients train.

    Args:
        experiment: Says how.
        most_steps: The largest number of steps that any of them takes in a round.
        proximal_mu: What the strategy tells clients to add; see `LocalRecipe`.
    """
    training = experiment.training
    if training.algorithm == "fedsgd":
        return LocalRecipe(batch_size=training.batch_size)
    return LocalRecipe(
        num_steps=most_steps,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        num_epochs=training.local_epochs,
        batch_size=training.batch_size,
        max_steps=training.max_local_steps,
        proximal_mu=proximal_mu,
    )


def knowledge_record(
    experiment: Experiment,
    threat: ThreatModel,
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    recipe: LocalRecipe,
    batch_size: int | None = None,
    tokens: Tokens | None = None,
    columns: Columns | None = None,
) -> Record:
    """Return what `threat` grants of an experiment, and nothing else, as JSON holds it.

    Args:
        experiment: Names the model.
        threat: What is granted.
        input_shape: Shape of one input.
        num_classes: Width of the model's output.
        recipe: How clients train.
        batch_size: Different examples behind an update, the most of any client; None for those of
            one batch.
        tokens: Of text, its vocabulary and what is predicted.
        columns: Of a table, its features.
    """
    grants = threat.grants
    record: Record = {}
    if Capability.ARCHITECTURE in grants:
        record["model"] = {"name": experiment.model.name, "options": experiment.model.options}
        changes = [
            one for one in experiment.defenses if isinstance(build_defense(one), ModelDefense)
        ]
        if changes:
            fields = {"name", "label", "options"}
            record["model"]["altered_by"] = [one.model_dump(include=fields) for one in changes]
        if (active := active_attack(experiment)) is not None:
            named = active[0].model_dump(include={"name", "label", "options"})
            record["model"]["implanted_by"] = named
        record |= {"loss": "cross-entropy", "num_classes": num_classes}
        record["input_shape"] = list(input_shape)  # an architecture gives it away
        if tokens is not None:  # so it does the vocabulary
            record["tokens"] = asdict(tokens)
    if Capability.INPUT_DOMAIN in grants:
        record["input_shape"] = list(input_shape)
        if tokens is not None:
            record["tokens"] = asdict(tokens)
        else:
            record["input_range"] = [0.0, 1.0]
        if columns is not None:
            record["columns"] = [asdict(one) for one in columns.columns]
    if Capability.BATCH_SIZE in grants:
        record["batch_size"] = batch_size or experiment.training.batch_size
    if Capability.LOCAL_RECIPE in grants:
        record["recipe"] = asdict(recipe)
    if Capability.DEFENSE in grants:
        told = experiment.adversary.told_defense == "settings"
        record["defenses"] = [
            {"name": one.name, "label": one.label, "options": one.options if told else None}
            for one in experiment.defenses
        ]
    if Capability.LABELS in grants:
        record["labels"] = "oracle"
    return record


def without_defenses(record: Record) -> Record:
    """Return a record of what would be known of the same experiment without any defense."""
    record = {key: value for key, value in record.items() if key != "defenses"}
    if "model" in record:
        model = record["model"]
        record["model"] = {key: value for key, value in model.items() if key != "altered_by"}
    return record


def knowledge_from(record: Record, public_sample: Tensor | None = None) -> Knowledge:
    """Return the knowledge behind a record; the inverse of `knowledge_record`."""
    model = None
    shape = tuple(record["input_shape"]) if "input_shape" in record else None
    tokens = Tokens(**record["tokens"]) if record.get("tokens") else None
    columns = [
        Column(**{**one, "categories": tuple(one["categories"])})
        for one in record.get("columns") or ()
    ]
    if "model" in record and shape is not None:
        # its weights mean nothing: those in force are in the observation
        model = build_model(
            record["model"]["name"],
            shape,
            record["num_classes"],
            rng=torch.Generator().manual_seed(0),
            options=record["model"]["options"],
            tokens=tokens,
        )
        changes = [DefenseConfig(**one) for one in record["model"].get("altered_by", ())]
        rng = torch.Generator().manual_seed(0)
        model = altered(model, changes, shape, record["num_classes"], rng=rng)
        if (named := record["model"].get("implanted_by")) is not None:
            config, rng = AttackConfig(**named), torch.Generator().manual_seed(0)
            model = implanted(model, config, shape, record["num_classes"], rng=rng)
    low, high = record.get("input_range", (0.0, 1.0))
    return Knowledge(
        model=model,
        loss=cross_entropy
        if tokens is not None and tokens.head != "classes"
        else functional.cross_entropy,
        input_shape=shape,
        input_range=(low, high),
        num_classes=record.get("num_classes"),
        batch_size=record.get("batch_size"),
        recipe=LocalRecipe(**record["recipe"]) if "recipe" in record else None,
        public_sample=public_sample,
        tokens=tokens,
        columns=Columns(columns=columns) if columns else None,
        defenses=known_defenses(record.get("defenses", ())),
    )


def write_knowledge(run: RunDirectory, record: Record, public_sample: Tensor | None) -> None:
    """Write what the adversary of this run is told; the sample only where it is granted."""
    if public_sample is not None:
        replace_tensors(run.root / "public_sample.safetensors", {"inputs": public_sample})
    replace_json(run.root / "knowledge.json", record)


def read_knowledge(run: RunDirectory) -> Knowledge:
    """Return what the adversary of this run was told.

    Raises:
        Damaged: A file is not as `write_knowledge` wrote it.
        ConfigError: It names a model or a defense that there is not.
    """
    sample, record = run.root / "public_sample.safetensors", run.root / "knowledge.json"
    with reading(sample):
        inputs = read_tensors(sample)[0]["inputs"] if sample.is_file() else None
    told = read_json(record)
    with reading(record):
        return knowledge_from(told, inputs)


def knowledge_about(known: Knowledge, run: RunDirectory, seen: Observation) -> Knowledge:
    """Return `known` with what is known of one message: its size, its steps, an oracle's labels."""
    if known.batch_size is not None and seen.num_examples is not None:
        known = replace(known, batch_size=seen.num_examples)
    # behind a mean are the steps of each client on its own examples, not on all of them
    one = seen.num_examples if seen.kind is not Kind.AGGREGATE else None
    if known.recipe is not None and one is not None:
        known = replace(known, recipe=known.recipe.for_examples(one))
    labels = run.read_oracle_labels(seen.round, seen.sender)
    if labels is not None and len(labels):  # a batch that is drawn may be empty
        known = replace(known, labels=labels)
        if known.batch_size is not None and known.batch_size != len(labels):
            # or of another size than announced, which an oracle tells as well
            recipe = known.recipe and known.recipe.for_examples(len(labels))
            known = replace(known, batch_size=len(labels), recipe=recipe)
    return known
