"""The row of federated averaging: several local steps behind one update."""

from dataclasses import replace

from attacks.observation import Kind, LocalRecipe
from benchmarks.validation.bench import Bench, Case, psnr_case
from benchmarks.victims import Victim, attack_named, fresh_model, overhear_training


def local_steps(bench: Bench) -> list[Case]:
    """Row 19: several local steps, replayed and taken for one gradient, on the same updates."""
    cases = []
    angles, arranging = attack_named("inverting-gradients"), attack_named("fedavg-epochs")
    for name, epochs in (("digits", 1), ("digits", 2), ("cifar10", 1)):
        victims = [
            overhear_training(
                fresh_model("dlg-lenet", seed, shape=bench.data(name).input_shape),
                inputs,
                labels,
                seed,
                batch_size=2,
                epochs=epochs,
                learning_rate=0.05,
            )
            for seed, (inputs, labels) in enumerate(bench.batches(name, 4, 4))
        ]
        mean = bench.mean_db(name, victims)
        setting = f"{name}, {2 * epochs} steps of 2"
        for way, attack, attacked, public in (
            ("taken for one gradient", angles, list(map(as_one_gradient, victims)), "11.5 dB"),
            ("replayed, dealt order", angles, victims, "14.1 dB"),
            ("replayed, orders tried", arranging, victims, "14.1 dB"),
        ):
            title = f"{setting}: {way}"
            cases.append(psnr_case(title, attack, attacked, mean, published=public))
        gain = [one - other for one, other in zip(cases[-1].values, cases[-3].values, strict=True)]
        cases.append(Case(name=f"{setting}: gain", values=gain, published="2.6 dB", low=2.0))
    return cases


def as_one_gradient(victim: Victim) -> Victim:
    """Return the victim as it looks to an attacker who ignores that there were several steps."""
    recipe = victim.known.recipe
    assert recipe is not None
    assert recipe.learning_rate is not None
    scale = recipe.learning_rate * recipe.num_steps
    seen = replace(
        victim.seen,
        kind=Kind.GRADIENT,
        update={name: delta / -scale for name, delta in victim.seen.update.items()},
    )
    known = replace(victim.known, recipe=LocalRecipe(train_mode=recipe.train_mode))
    return replace(victim, seen=seen, known=known)
