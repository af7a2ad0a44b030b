"""Data sets clients may hold, and ways to divide them.

Shapes in every docstring of this package: N examples, C channels, H x W pixels, K classes.
"""

DATASETS = {
    "digits": "fedsim.data.digits:digits",
    "photos": "fedsim.data.photos:photos",
    "mnist": "fedsim.data.mnist:mnist",
    "fashion-mnist": "fedsim.data.mnist:fashion_mnist",
    "cifar10": "fedsim.data.cifar:cifar10",
    "cifar100": "fedsim.data.cifar:cifar100",
    "svhn": "fedsim.data.svhn:svhn",
    "lfw": "fedsim.data.lfw:lfw",
    "hf:NAME": "fedsim.data.hugging_face:hugging_face",
    "python-docs": "fedsim.data.corpora:python_docs",
    "sentences": "fedsim.data.corpora:own_sentences",
    "text-folder": "fedsim.data.corpora:text_folder",
    "tsv": "fedsim.data.corpora:tsv",
    "hf-text:NAME": "fedsim.data.corpora:hugging_face_text",
    "breast-cancer": "fedsim.data.tables:breast_cancer",
    "wine": "fedsim.data.tables:wine",
    "adult": "fedsim.data.tables:adult",
    "csv": "fedsim.data.tables:csv_table",
}
"""Data sets by name, as text; `hf:NAME` stands for every image data set of the Hugging Face hub,
`hf-text:NAME` for every one of text."""

PARTITIONERS = {
    "iid": "fedsim.data.partition:iid",
    "dirichlet": "fedsim.data.partition:dirichlet",
    "shard": "fedsim.data.partition:shard",
    "pathological": "fedsim.data.partition:pathological",
    "linear": "fedsim.data.partition:linear",
    "square": "fedsim.data.partition:square",
    "exponential": "fedsim.data.partition:exponential",
}
"""Ways to divide the training examples among clients, by name, as text."""
