"""What holds for each tutorial that trains and draws, run as its reader would."""

import gallery
import pytest

PAGES = {  # its figures, and what its help names
    "knowledge_distillation": (["distillation_distance.png", "distillation_teacher.png", "knowledge_distillation.png"],
                               ["--images", "--seeds", "--steps", "--hidden", "--temperature", "--figures"]),
    "padded_sequences": (["sequences_phrases.png", "sequences_students.png"],
                         ["--seeds", "--steps", "--hidden", "--figures"]),
    "sparse_autoencoder": (["sparse_activity.png", "sparse_units.png"],
                           ["--epochs", "--hidden", "--activity", "--weight", "--figures"]),
    "variational_autoencoder": ([f"autoencoder_{name}.png" for name in ("dimensions", "drawings", "plane", "samples")],
                                ["--epochs", "--latent", "--hidden", "--free-nats", "--seed", "--figures"]),
}
pytestmark = pytest.mark.parametrize("name", PAGES)


def test_output_fits_a_phone(page_of, name):
    lines, _ = page_of(name)
    assert max(map(len, lines)) <= gallery.PHONE
    assert "nan" not in "\n".join(lines).replace("NaN in the padding", "").lower()


def test_figures_are_the_committed_ones(page_of, name):
    _, folder = page_of(name)
    assert sorted(figure.name for figure in folder.iterdir()) == PAGES[name][0]
    assert not gallery.stale(folder)


def test_help_names_every_size(tmp_path, name):
    printed, _ = gallery.run(name, tmp_path, "--help")
    assert not [option for option in PAGES[name][1] if option not in printed]
    assert not list(tmp_path.iterdir())
