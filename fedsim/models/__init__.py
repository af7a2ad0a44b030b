"""Models an experiment may train.

Every factory is called as `factory(input_shape, num_classes, *, rng, **options)`, takes pixels in
[0, 1], returns logits, and draws all initial weights from `rng`. Those that read text have a
parameter `tokens`, are given the facts of the vocabulary by it, and take tokens or embeddings.

Shapes in every docstring of this package: B examples, C channels, H x W pixels, K classes.
"""

MODELS = {
    "dlg-lenet": "fedsim.models.lenet:dlg_lenet",
    "cnn6": "fedsim.models.cnn6:cnn6",
    "mlp": "fedsim.models.mlp:mlp",
    "convnet": "fedsim.models.convnet:convnet",
    "resnet20": "fedsim.models.resnet:resnet20",
    "resnet18": "fedsim.models.resnet:resnet18",
    "dlg-resnet20": "fedsim.models.resnet:dlg_resnet20",
    "dlg-resnet18": "fedsim.models.resnet:dlg_resnet18",
    "vit": "fedsim.models.vit:vit",
    "bert": "fedsim.models.language_models:bert",
    "gpt2": "fedsim.models.language_models:gpt2",
    "torchvision:NAME": "fedsim.models.torchvision_classifier:torchvision_classifier",
}
"""Models by name, as text; `torchvision:NAME` stands for every classifier of torchvision."""
