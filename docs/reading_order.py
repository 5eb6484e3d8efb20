"""The order in which the tutorials are told; sphinx-gallery wants an importable function."""

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
    """Sort key of a tutorial; one that the story does not name yet comes last."""
    name = Path(path).stem
    return (STORY.index(name) if name in STORY else len(STORY), name)
