"""The order of the tutorials; sphinx-gallery needs an importable function."""

from pathlib import Path

STORY = (
    "kl_divergence",
    "which_divergence",
    "knowledge_distillation",
    "padded_sequences",
    "variational_autoencoder",
    "sparse_autoencoder",
    "trust_region_policy",
    "distributed_training",
    "large_vocabulary",
)


def position(path):
    """The sort key of a tutorial; one that STORY does not name comes last."""
    name = Path(path).stem
    return (STORY.index(name) if name in STORY else len(STORY), name)
