"""Experiments: one TOML file, checked before anything starts.

Each section is a frozen model; the sentence under a field is its help text and stands in the JSON
schema. Defaults live here only.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, model_validator

from attacks.threats import Capability
from fedsim.catalog import nearest
from fedsim.errors import ConfigError
from fedsim.protocols import SERVER
from fedsim.sections import Options, Section, checked, either, override, shipped_texts


class DataConfig(Section):
    """The data that clients hold."""

    name: str = "digits"
    """A name from `fedsim list tasks`, or `package.module:Name` of your own."""
    root: str = ""
    """Folder of data sets that are not embedded; empty means the user's cache folder."""
    options: Options = Field(default_factory=dict)
    """Settings of the data set, such as `limit`."""


class ModelConfig(Section):
    """The model that everybody trains."""

    name: str = "dlg-lenet"
    """A name from `fedsim list models`, `torchvision:NAME`, or `package.module:Name`."""
    options: Options = Field(default_factory=dict)
    """Settings of the model, such as `width`."""


class PartitionConfig(Section):
    """How the training data is divided among clients."""

    name: str = "iid"
    """A partitioner: iid, dirichlet, shard, pathological, linear, square, exponential."""
    clients: Annotated[int, Field(ge=1)] = 10
    """Number of clients."""
    options: Options = Field(default_factory=dict)
    """Settings of the partitioner, such as `alpha`."""


class TrainingConfig(Section):
    """What a client does in a round."""

    algorithm: Literal["fedsgd", "fedavg"] = "fedsgd"
    """fedsgd: one batch, one gradient; fedavg: local epochs of SGD."""
    batch_size: Annotated[int, Field(ge=1)] = 1
    """Examples per batch."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Step size: of the server for fedsgd, of each client for fedavg."""
    local_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the client's data in a round (fedavg)."""
    max_local_steps: Annotated[int, Field(ge=1)] | None = None
    """At most so many optimizer steps in a round (fedavg); unset means no limit."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum of local SGD (fedavg)."""
    returns: Literal["gradient", "weights", "delta"] | None = None
    """What a client sends; unset means gradient for fedsgd and weights for fedavg."""

    @property
    def update_kind(self) -> Literal["gradient", "weights", "delta"]:
        """What a client sends."""
        return self.returns or ("gradient" if self.algorithm == "fedsgd" else "weights")

    def num_local_steps(self, num_examples: int) -> int:
        """Return the optimizer steps that a client with this many examples takes in a round."""
        if self.algorithm == "fedsgd":
            return 1
        steps = self.local_epochs * -(-num_examples // self.batch_size)
        return min(steps, self.max_local_steps or steps)

    def num_distinct(self, num_examples: int) -> int:
        """Return how many different examples of so many a client uses in a round."""
        return min(num_examples, self.num_local_steps(num_examples) * self.batch_size)

    @model_validator(mode="after")
    def _returns_what_the_algorithm_computes(self) -> Self:
        if (self.algorithm == "fedsgd") != (self.update_kind == "gradient"):
            fits = "'gradient'" if self.algorithm == "fedsgd" else "'weights' or 'delta'"
            raise ValueError(
                f"returns must be {fits} for algorithm '{self.algorithm}', got '{self.returns}'"
            )
        return self


class ClientsConfig(Section):
    """What clients check before they train on what they received."""

    checks: list[str] = Field(default_factory=list)
    """Names from `fedsim list checks`, or `package.module:Name` of your own."""
    options: dict[str, Options] = Field(default_factory=dict)
    """Settings of the checks, a table per check."""
    on_alarm: Literal["record", "refuse"] = "record"
    """record: train all the same; refuse: answer with an error in place of an update."""

    @model_validator(mode="after")
    def _options_of_named_checks(self) -> Self:
        for name in self.options:
            if name not in self.checks:
                raise ValueError(f"options.{name} is not among checks{nearest(name, self.checks)}")
        return self


class TopologyConfig(Section):
    """Who talks to whom."""

    name: str = SERVER
    """`server` for a parameter server in the middle; or a graph of peers without one, a name from
    `fedsim list topologies`, or `package.module:Name` of your own."""
    options: Options = Field(default_factory=dict)
    """Settings of the graph, such as `degree`."""
    mixing: str = "metropolis"
    """Weights with which peers average, a name from `fedsim list mixings`."""
    resample_every: Annotated[int, Field(ge=1)] | None = None
    """Draw the graph anew after so many rounds; unset means never."""


class ProtocolConfig(Section):
    """How participants train together."""

    name: str = SERVER
    """`server` for a parameter server, whose strategy is `server.strategy`; or a protocol between
    peers, a name from `fedsim list protocols`, or `package.module:Name` of your own."""
    options: Options = Field(default_factory=dict)
    """Settings of the protocol, such as `order`."""
    start: Literal["same", "own"] = "same"
    """Whether peers begin with the same weights, or each with its own."""
    encrypted: bool = False
    """Whether peers encrypt what they say for each receiver, so that the relay that carries it, and
    who taps a link, hear sizes alone."""


class ServerConfig(Section):
    """What the server does in a round."""

    strategy: str | None = None
    """A name from `fedsim list strategies`, or `package.module:Name` of your own; unset means
    fedsgd or fedavg, as training.algorithm says."""
    options: Options = Field(default_factory=dict)
    """Settings of the strategy, such as `server_momentum`."""
    clients_per_round: Annotated[int, Field(ge=1)] | None = None
    """Clients drawn in each round; unset means all."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Evaluate after every so many rounds, and after the last."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Training ends early after so many evaluations in a row that are no better, in accuracy, than
    the best before them, counted from the first whose loss is 5 % below that of guessing by how
    frequent classes are; unset means never."""
    evaluate_clients: bool = False
    """Whether clients evaluate the new model on their own data as well."""
    reply_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    """Seconds to wait for the replies of a round."""


class EngineConfig(Section):
    """What runs the apps."""

    name: str = "in-process"
    """A name from `fedsim list engines`."""
    workers: Annotated[int, Field(ge=1)] = 2
    """Worker processes that play clients (ray, flwr)."""
    address: str = "local"
    """Ray cluster: `local` starts one, `auto` or `HOST:PORT` joins one."""
    client_gpus: Annotated[float, Field(ge=0)] = 0.0
    """Share of a GPU that each client worker holds (ray, flwr)."""
    vectorise: Literal["never", "auto"] = "never"
    """auto: gradients of a round of FedSGD are computed for all clients in one pass where a probe
    finds that faster; they differ from those of other engines, and where the probe decides
    otherwise from those of another run, in the last bits (in-process)."""
    device: str = "cpu"
    """Where clients train: cpu, cuda, cuda:1, ..."""
    attack_workers: Annotated[int, Field(ge=1)] = 1
    """Processes that run attacks."""
    attack_device: str = "auto"
    """Where attacks run; auto takes the GPU where there is one."""
    attack_gpus: Annotated[float, Field(ge=0)] = 0.0
    """Share of a GPU that each attack worker holds (ray)."""
    tls: bool = True
    """Encrypt what nodes and server say, and let in registered keys alone (deployment)."""


class AdversaryConfig(Section):
    """Who listens, to what, and what it is granted."""

    threat: str = "curious-server"
    """A name from `fedsim list threats`."""
    rounds: Annotated[
        Literal["all"] | list[Annotated[int, Field(ge=1)]],
        either("'all' or a list of whole numbers from 1"),
    ] = "all"
    """Rounds in which it keeps what it hears."""
    victims: Annotated[
        Literal["all"] | list[Annotated[int, Field(ge=0)]],
        either("'all' or a list of whole numbers from 0"),
    ] = "all"
    """Clients whose messages it keeps; among peers, those whose updates it tries to isolate."""
    peers: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Peers at which it sits: one for a neighbour, several for a coalition; empty means peer 0, or
    peers 0 and 1."""
    links: Annotated[
        Literal["all"] | list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]],
        either("'all' or a list of pairs of peers"),
    ] = "all"
    """Links between peers that it taps, as pairs; each is heard in both directions."""
    meddling: Literal["state-override", "echo"] = "state-override"
    """What an active neighbour says to its victims in place of its own model: what makes their
    average come to weights of its choice, those of an active attack or its own; or what they say
    themselves."""
    grants: list[Capability] = Field(default_factory=list)
    """Capabilities beyond those of the threat model; `labels` is an oracle and shown as one."""
    told_defense: Literal["settings", "names"] = "settings"
    """What an adversary with `defense` is told of it: names and settings, or names alone; it then
    estimates the settings."""
    public_sample: Annotated[int, Field(ge=1)] | None = None
    """Examples of the test split that baselines, and an adversary with `public-sample`, have; 100
    unless set, or all where there are fewer."""

    def listens_in(self, server_round: int) -> bool:
        """Whether anything of this round is kept."""
        return self.rounds == "all" or server_round in self.rounds

    def hears(self, server_round: int, client: int) -> bool:
        """Whether a message of this client in this round is kept."""
        return self.listens_in(server_round) and (self.victims == "all" or client in self.victims)


class AttackConfig(Section):
    """One attack on every observation."""

    name: str
    """A name from `fedsim list attacks`, or `package.module:Name` of your own."""
    label: Annotated[str, Field(pattern=r"^[\w.+-]*$")] = ""
    """How records and reports call it: letters, digits and . _ + -; empty means its name."""
    options: Options = Field(default_factory=dict)
    """Settings of the attack, such as `steps`."""
    time_budget_s: Annotated[float, Field(gt=0)] = 60.0
    """Wall-clock seconds per victim; then the best guess so far counts, as unfinished."""

    join_rounds: Annotated[int, Field(ge=1)] = 1
    """Rounds of the same victim that the attack gets together, the last one and those before it;
    its guess is that of the last one's batch."""

    @property
    def title(self) -> str:
        """How records and reports call it."""
        return self.label or self.name.replace(":", ".")


class DefenseConfig(Section):
    """One link of the chain of defenses."""

    name: str
    """A name from `fedsim list defenses`, or `package.module:Name` of your own."""
    label: Annotated[str, Field(pattern=r"^[\w.+-]*$")] = ""
    """How records and reports call it: letters, digits and . _ + -; empty means its name."""
    options: Options = Field(default_factory=dict)
    """Settings of the defense, such as `scale`."""

    @property
    def title(self) -> str:
        """How records and reports call it."""
        return self.label or self.name.replace(":", ".")


class ScoreConfig(Section):
    """What counts as recovered."""

    success_threshold_db: float = 30.0
    """An image is recovered when its PSNR reaches this many dB."""
    success_accuracy: Annotated[float, Field(gt=0, le=1)] = 0.9
    """A text is recovered when this share of its tokens is right at its place, a row of a table
    when this share of its features is."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.05
    """A number of a table is right when it is off by no more than this share of its range."""


class OutputConfig(Section):
    """Where records go."""

    directory: str = "runs"
    """Run directories are made in here."""
    writers: list[Literal["tensorboard", "mlflow"]] = Field(default_factory=list)
    """Further records, each an extra of the package."""


class Experiment(Section):
    """A federated training, and who listens to it."""

    name: Annotated[str, Field(min_length=1)]
    """What run directories and reports call it."""
    description: str = ""
    """One line for people."""
    seed: int = 0
    """The one seed; every stream of random numbers derives from it by name."""
    rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds of training."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    partition: PartitionConfig = PartitionConfig()
    training: TrainingConfig = TrainingConfig()
    clients: ClientsConfig = ClientsConfig()
    topology: TopologyConfig = TopologyConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    attacks: list[AttackConfig] = Field(default_factory=list)
    """Attacks, each on every observation."""
    defenses: list[DefenseConfig] = Field(default_factory=list)
    """Defenses, in the order in which they act."""
    score: ScoreConfig = ScoreConfig()
    output: OutputConfig = OutputConfig()

    @property
    def decentralised(self) -> bool:
        """Whether peers train without a parameter server."""
        return self.protocol.name != SERVER

    @model_validator(mode="after")
    def _topology_and_protocol_agree(self) -> Self:
        if (self.topology.name == SERVER) == (self.protocol.name == SERVER):
            return self
        if self.protocol.name == SERVER:
            raise ValueError(
                f"protocol.name must be a protocol between peers on topology "
                f"'{self.topology.name}', got '{SERVER}'; set it to 'd-psgd', or another from "
                "`fedsim list protocols`"
            )
        raise ValueError(
            f"topology.name must be a graph of peers for protocol '{self.protocol.name}', got "
            f"'{SERVER}'; set it to 'ring', or another from `fedsim list topologies`"
        )

    @model_validator(mode="after")
    def _somebody_to_encrypt_for(self) -> Self:
        if self.protocol.encrypted and not self.decentralised:
            raise ValueError(
                "protocol.encrypted is for peers that train without a server; leave it out, or "
                "hide updates from the server by the defense 'secure-aggregation', from taps by "
                "'tls'"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        clients = self.partition.clients
        drawn = self.server.clients_per_round
        if drawn is not None and drawn > clients:
            raise ValueError(
                f"server.clients_per_round must be at most partition.clients ({clients}), "
                f"got {drawn}"
            )
        if self.adversary.victims != "all":
            for victim in self.adversary.victims:
                if victim >= clients:
                    raise ValueError(
                        f"adversary.victims must be client numbers from 0 to {clients - 1}, "
                        f"got {victim}"
                    )
        if self.adversary.rounds != "all":
            for heard in self.adversary.rounds:
                if heard > self.rounds:
                    raise ValueError(
                        f"adversary.rounds must be rounds from 1 to {self.rounds}, got {heard}"
                    )
        heard_in = self.adversary.rounds
        num_heard = self.rounds if heard_in == "all" else len(set(heard_in))
        for attack in self.attacks:
            if attack.join_rounds > 1 and attack.join_rounds > num_heard:
                raise ValueError(
                    f"attacks.{attack.title}.join_rounds must be at most {num_heard}, the "
                    f"rounds that the adversary listens to, got {attack.join_rounds}"
                )
        for family, named in (("attacks", self.attacks), ("defenses", self.defenses)):
            titles = [one.title for one in named]
            for title in titles:
                if titles.count(title) > 1:
                    raise ValueError(
                        f"{family}: two are called '{title}'; give each a label of its own"
                    )
        return self

    @property
    def defense_title(self) -> str:
        """How records and reports call the chain of defenses; "none" without one."""
        return " + ".join(defense.title for defense in self.defenses) or "none"

    def to_toml(self) -> str:
        """Return the whole experiment, defaults filled in, as TOML."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def shipped() -> dict[str, str]:
    """Return the shipped experiments: name -> TOML text."""
    return shipped_texts("experiments")


def read_experiment(source: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment.

    Args:
        source: A TOML file, or the name of a shipped experiment.
        overrides: `key=value` texts; keys are dotted, values are TOML (or plain text).

    Raises:
        ConfigError: Something is wrong with it; the message names the place.
    """
    path, name = Path(source), str(source)
    try:
        text = path.read_text() if path.is_file() else shipped().get(name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: cannot be read: {error}") from error
    if text is None and (path.suffix or len(path.parts) > 1):
        raise ConfigError(f"no experiment file '{source}'")
    if text is None and name in shipped_texts("sweeps"):
        raise ConfigError(f"'{source}' is a sweep of several experiments; fedsim sweep {source}")
    if text is None:
        raise ConfigError(f"no experiment called '{source}'{nearest(name, shipped())}")
    return parse_experiment(text, where=name, overrides=overrides)


def parse_experiment(
    text: str, *, where: str = "experiment", overrides: Sequence[str] = ()
) -> Experiment:
    """Check an experiment given as TOML text; `where` names it in messages.

    Raises:
        ConfigError: Something is wrong with it; the message names the place.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long, nesting too deep
        raise ConfigError(f"{where}: not valid TOML: {error}") from error
    for one in overrides:
        override(values, one)
    return checked(Experiment, values, where=where)


def schema() -> Mapping[str, Any]:
    """Return the JSON schema of an experiment file."""
    return Experiment.model_json_schema()
