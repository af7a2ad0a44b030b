"""A run as its pages show it, read once; whatever is not there yet is empty."""

from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from fedsim.files import Record, read_json
from fedsim.proxy.traffic import LinkTraffic, by_link, read_traffic
from fedsim.quality import (
    SCALES,
    Scale,
    baseline,
    baseline_values,
    measured,
    modality_of,
    threshold,
    values,
)
from fedsim.records import RunDirectory
from fedsim.report.attack_kinds import AttackKind, attack_kinds
from fedsim.report.curves import At, Curve, Panel
from fedsim.report.gallery import Images, Pair, ranked, same_image, spread_of
from fedsim.report.peers_view import PeersView, peers_view
from fedsim.report.pictures import Row, Tile
from fedsim.report.reading import attack_labels, heard_anything, in_words, settings
from fedsim.report.specimens import Specimen, features, specimen
from fedsim.report.wording import (
    adversary,
    decibels,
    headline,
    nothing_attacked,
    number,
    strongest,
)
from fedsim.schemas.document import Modality
from fedsim.schemas.summary import Leakage, Utility
from fedsim.stages.summarize import leakage, privacy, utility


@dataclass(frozen=True)
class RunView:
    """What a report says of one run.

    Attributes:
        run: The run directory.
    """

    run: RunDirectory

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The experiment, by dotted key."""
        return settings(self.run)

    @cached_property
    def defenses(self) -> str:
        """The defenses in force with the settings that the experiment gives them, in words."""
        return ", then ".join(in_words(one) for one in self.settings.get("defenses", []))

    @cached_property
    def rounds(self) -> list[Record]:
        """Records of rounds."""
        return self.run.rounds()

    @cached_property
    def scores(self) -> list[Record]:
        """Scores of reconstructions."""
        return self.run.scores()

    @cached_property
    def events(self) -> list[Record]:
        """What happened besides."""
        return self.run.events()

    @cached_property
    def traffic(self) -> list[LinkTraffic]:
        """What a tap on real links counted, link by link; empty where nobody did."""
        return by_link(read_traffic(self.run.root))

    @cached_property
    def threat(self) -> Record | None:
        """Who the adversary was."""
        return self._document("threat.json")

    @cached_property
    def environment(self) -> Record | None:
        """Versions and hardware."""
        return self._document("environment.json")

    @cached_property
    def summary(self) -> Record | None:
        """What was written at the end, if an end was reached."""
        return self._document("summary.json")

    def _document(self, name: str) -> Record | None:
        path = self.run.root / name
        return read_json(path) if path.is_file() else None

    @property
    def status(self) -> str:
        """How the run ended; without a summary it is still going on, or was killed."""
        return str(self.summary["status"]) if self.summary else "unfinished"

    @cached_property
    def kinds(self) -> dict[str, AttackKind]:
        """What sets each attack of the experiment apart, by label."""
        return attack_kinds(self.run, self.threat)

    def marks(self, attack: str) -> str:
        """What sets an attack apart, in words for a table; empty for a plain attack."""
        return self.kinds.get(attack, AttackKind()).words

    def name_of(self, attack: str) -> str:
        """What charts call an attack: an oracle is always called one."""
        marks = self.marks(attack)
        return f"{attack} ({marks})" if marks else attack

    @property
    def oracles(self) -> list[str]:
        """Attacks that use what no real adversary would know, and have a score."""
        kinds = self.kinds
        return [row.attack for row in self.leakage if kinds.get(row.attack, AttackKind()).oracle]

    @property
    def told_labels(self) -> bool:
        """Whether the adversary is granted what no real one would know, used or not."""
        return bool(self.threat and self.threat["oracle"])

    @property
    def false_certificates(self) -> list[Leakage]:
        """Attacks that say they have proved a guess which is wrong."""
        return [row for row in self.leakage if row.certified_wrong]

    @property
    def tampered(self) -> list[Record]:
        """Rounds in which clients were sent other weights than those in force."""
        return [record for record in self.rounds if record.get("tampered")]

    @property
    def alarms(self) -> list[Record]:
        """What the checks of clients noticed, each with its round, in order."""
        return [
            {"round": record["round"], **alarm}
            for record in self.rounds
            for alarm in record.get("alarms") or []
        ]

    @property
    def adversary(self) -> str:
        """Who listens, as a noun."""
        name = self.threat["name"] if self.threat else str(self.settings["adversary.threat"])
        return adversary(self.threat, name)

    @cached_property
    def leakage(self) -> list[Leakage]:
        """A row per attack, in the order of the experiment."""
        order = {label: place for place, label in enumerate(attack_labels(self.run))}
        return sorted(leakage(self.scores), key=lambda row: order.get(row.attack, len(order)))

    @cached_property
    def utility(self) -> Utility:
        """Accuracy and loss at the last evaluation."""
        return utility(self.rounds)

    @cached_property
    def privacy(self) -> Record:
        """Epsilon, delta and unit after the last round; empty without an account of them."""
        return privacy(self.rounds)

    @cached_property
    def peers(self) -> PeersView | None:
        """What is said of a run without a server alone; None for any other."""
        return peers_view(self)

    @property
    def headline(self) -> str:
        """The finding in one sentence."""
        return headline(
            self.leakage,
            self.threat,
            honest=[name for name, kind in self.kinds.items() if not kind.oracle],
            why_nothing=self.why_nothing,
        )

    @property
    def why_nothing(self) -> str:
        """Why no attack has a score, for a run in which none has."""
        return nothing_attacked(
            self.rounds,
            ended=self.summary is not None,
            asked=bool(self.kinds),
            heard=heard_anything(self.run),
            encrypted=bool(self.traffic) and all(link.encrypted for link in self.traffic),
        )

    @property
    def strongest(self) -> Leakage | None:
        """The attack that recovered most."""
        return strongest(self.leakage)

    @cached_property
    def images(self) -> Images:
        """Originals and guesses: images, texts or rows."""
        return Images(self.run)

    @cached_property
    def modality(self) -> Modality:
        """What private examples are."""
        return modality_of(self.scores[0]) if self.scores else self.images.reader.modality

    @property
    def scale(self) -> Scale:
        """On which leakage is measured."""
        return SCALES[self.modality]

    def median_of(self, name: str) -> float | None:
        """Return how close a guess comes that needs no attack: random_guess, nearest_public, ..."""
        found = [value for score in self.scores for value in baseline_values(score, name)]
        return median(found) if found else None

    # curves

    def panels(self) -> list[Panel]:
        """Leakage above utility, over the same rounds; what has no points is left out."""
        curves = [
            self.curve(attack, index, self.name_of(attack)) for index, attack in self.curve_names
        ]
        scale, best = self.scale, self.strongest
        title = f"{scale.axis}{' (oracle: an upper bound)' if self.oracles else ''}"
        rules = {}
        if best is not None and (mean := baseline(best)) is not None:
            limit = threshold(best)
            rules = {
                f"data mean {scale.written(mean)}": scale.factor * mean,
                f"counts as recovered, {scale.limit(limit)}": scale.factor * limit,
            }
        panels = [
            Panel(title=title, curves=curves, rules=rules, height=210, most=scale.most),
            Panel(title="labels found, share", curves=self.label_curves(), height=150, most=1),
            Panel(title="accuracy", curves=[self.measured("accuracy")], height=92, most=1),
            Panel(title="loss", curves=[self.measured("loss")], height=70),
            Panel(title="consensus distance", curves=[self.consensus()], height=70),
            Panel(title="epsilon given away", curves=[self.spent()], height=70),
        ]
        return [panel for panel in panels if panel.points]

    @property
    def curve_names(self) -> list[tuple[int, str]]:
        """Number and name of each curve of leakage."""
        return [
            (index, row.attack)
            for index, row in enumerate(self.leakage)
            if row.success_rate is not None
        ]

    def curve(self, attack: str, series: int, label: str = "") -> Curve:
        """Median likeness of an attack's guesses over rounds, from worst to best, as shown."""
        by_round: dict[int, list[float]] = {}
        for score in self.scores:
            if score["attack"] == attack and score["status"] != "unscored":
                found = [self.scale.factor * value for value in values(score)]
                by_round.setdefault(score["round"], []).extend(found)
        points = [
            At(round=number, value=median(found), low=min(found), high=max(found))
            if found
            else At(round=number, value=None)
            for number, found in sorted(by_round.items())
        ]
        return Curve(label=label or attack, series=series, points=points)

    def label_curves(self) -> list[Curve]:
        """Share of the labels that attacks on labels alone found over rounds, worst to best."""
        shown = {name for _, name in self.curve_names}
        curves = []
        for series, row in enumerate(self.leakage):
            shares: dict[int, list[float]] = {}
            for score in self.scores:
                if score["attack"] == row.attack and score["label_accuracy"] is not None:
                    shares.setdefault(score["round"], []).append(score["label_accuracy"])
            if row.attack not in shown and shares:
                points = [
                    At(round=number, value=sum(found) / len(found), low=min(found), high=max(found))
                    for number, found in sorted(shares.items())
                ]
                curves.append(Curve(label=self.name_of(row.attack), series=series, points=points))
        return curves

    def measured(self, key: str, series: int | None = None, label: str = "") -> Curve:
        """Accuracy or loss over the rounds that were evaluated; a loss may be no number.

        Without a server they are those of the mean of all models, and the accuracy has a band from
        the worst to the best peer.
        """
        points = []
        for one in self._evaluated:
            told = one.get("peer_accuracy", []) if key == "accuracy" else []
            peers = [value for value in told if value is not None]
            low, high = (min(peers), max(peers)) if peers else (None, None)
            points.append(At(round=one["round"], value=one.get(key), low=low, high=high))
        return Curve(label=label or key, series=series, points=points)

    def consensus(self, series: int | None = None, label: str = "consensus distance") -> Curve:
        """How far peers are from the mean of all models; no points in runs with a server."""
        points = [
            At(round=one["round"], value=one["consensus_distance"])
            for one in self.rounds
            if one.get("consensus_distance") is not None
        ]
        return Curve(label=label, series=series, points=points)

    def spent(self) -> Curve:
        """Epsilon over rounds, where there is an account of it and it is finite."""
        points = [
            At(round=one["round"], value=one["epsilon"])
            for one in self.rounds
            if one.get("epsilon") is not None
        ]
        return Curve(label="epsilon", series=None, points=points)

    @property
    def _evaluated(self) -> list[Record]:
        return [record for record in self.rounds if record.get("accuracy") is not None]

    def round_by_round(self) -> list[Record]:
        """The curves in numbers: a line per round and attack on examples."""
        measured = {record["round"]: record for record in self._evaluated}
        attacks: dict[int, list[Record]] = {}
        for series, name in self.curve_names:
            for at in self.curve(name, series).points:
                attacks.setdefault(at.round, []).append({"attack": name, "at": at})
        nobody: list[Record] = [{"attack": None, "at": None}]
        return [
            {
                "round": number,
                "accuracy": measured.get(number, {}).get("accuracy"),
                "loss": measured.get(number, {}).get("loss"),
                "data_mean": self._data_mean(number),
                **one,
            }
            for number in sorted(measured.keys() | attacks.keys())
            for one in attacks.get(number, nobody)
        ]

    def _data_mean(self, number: int) -> float | None:
        found = [
            self.scale.factor * value
            for score in self.scores
            if score["round"] == number
            for value in baseline_values(score)
        ]
        return median(found) if found else None

    # examples

    def columns(self, most: int) -> list[Pair]:
        """Private examples from best to worst guessed by the strongest attack."""
        if self.strongest is None:
            return []
        pairs = ranked(self.scores, self.strongest.attack)
        return spread_of(pairs, most)

    def sheet(self, most: int) -> list[Row]:
        """Original images, and under each what every attack made of it; of nothing else."""
        columns = self.columns(most) if self.modality == "image" else []
        if not columns:
            return []
        rows = [Row(label="Original", tiles=[self.original(pair) for pair in columns])]
        for row in self.leakage:
            if row.success_rate is None:
                continue
            found = [same_image(self.scores, row.attack, pair) for pair in columns]
            got = measured(row)
            note = f"median {self.scale.written(got.median)}" if got else "no guess"
            label = self.name_of(row.attack)
            rows.append(Row(label=label, note=note, tiles=[self.guess(one) for one in found]))
        return rows

    def specimens(self, most: int) -> list[Specimen]:
        """Private texts or rows, each with what every attack made of it; empty for images."""
        if self.modality == "image":
            return []
        attacks = [name for _, name in self.curve_names]
        return [
            specimen(
                self.images,
                [(self.name_of(one), same_image(self.scores, one, pair)) for one in attacks],
            )
            for pair in self.columns(most)
        ]

    @property
    def features(self) -> list[str]:
        """Names of the features of a table; empty for anything else."""
        return features(self.images.reader) if self.modality == "table" else []

    def original(self, pair: Pair) -> Tile:
        """The private image of a pair."""
        score, truth = pair.score, pair.key[1]
        caption = f"label {pair.image['label']}" if pair.image else ""
        where = f"{score['victim']}, round {score['round']}, image {truth}"
        return Tile(image=self.images.original(score, truth), caption=caption, detail=where)

    def guess(self, pair: Pair | None) -> Tile:
        """An attack's guess at a private image, or an empty place."""
        if pair is None:
            return Tile(image=None, caption="not attacked")
        if pair.image is None or pair.value is None:
            return Tile(image=None, caption="failed" if pair.image is None else "no guess")
        image = pair.image
        guessed = image["guessed_label"]
        label = "no label guessed" if guessed is None else f"label {guessed}"
        return Tile(
            image=self.images.guess(pair),
            caption=decibels(pair.value),
            strong=image["recovered"],
            detail=f"SSIM {number(image['ssim'])}, {label}",
        )
