"""What an adversary computes: plain PyTorch, no Flower, no Ray.

Shapes in every docstring of this package:
    B examples, C channels, H x W pixels, K classes, R restarts, D unknowns (flattened).

Inputs are pixels in [0, 1]; a model that wants normalised inputs normalises them itself.
"""

ATTACKS = {
    "linear": "attacks.linear:LinearInversion",
    "closed-form": "attacks.closed_form:ClosedForm",
    "r-gap": "attacks.r_gap:RGap",
    "cascade": "attacks.cascade:Cascade",
    "spear": "attacks.spear:Spear",
    "cocktail-party": "attacks.cocktail_party:CocktailParty",
    "auto": "attacks.auto:Auto",
    "adaptive": "attacks.adaptive:Adaptive",
    "label": "attacks.labels:LabelRule",
    "dlg": "attacks.dlg:DLG",
    "dlg-published": "attacks.dlg_published:PublishedDLG",
    "idlg": "attacks.idlg:IDLG",
    "cpl": "attacks.cpl:CPL",
    "bayesian": "attacks.bayesian:Bayesian",
    "april": "attacks.april:April",
    "inverting-gradients": "attacks.inverting_gradients:InvertingGradients",
    "fedavg-epochs": "attacks.fedavg_epochs:FedAvgEpochs",
    "surrogate": "attacks.surrogate:Surrogate",
    "estimated-recipe": "attacks.recipe_estimate:EstimatedRecipe",
    "temporal": "attacks.temporal:Temporal",
    "gradinversion": "attacks.gradinversion:GradInversion",
    "fedleak": "attacks.fedleak:FedLeak",
    "robbing-the-fed": "attacks.robbing_the_fed:RobbingTheFed",
    "trap-weights": "attacks.trap_weights:TrapWeights",
    "soliton": "attacks.soliton:Soliton",
    "fishing": "attacks.fishing:Fishing",
    "eluding": "attacks.eluding:Eluding",
    "dlg-text": "attacks.text.dlg_text:DLGText",
    "tag": "attacks.text.tag:TAG",
    "lamp": "attacks.text.lamp:LAMP",
    "dager": "attacks.text.dager:DAGER",
    "tiger": "attacks.text.tiger:TIGER",
    "bag-of-words": "attacks.text.bag_of_words:BagOfWords",
    "tableak": "attacks.tabular.tableak:TabLeak",
    "span-rows": "attacks.tabular.span_rows:SpanRows",
}
"""Attacks an experiment may name, as text, so that looking one up loads only that one."""
