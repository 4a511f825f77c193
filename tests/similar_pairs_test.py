"""Pairs and triplets of similar photos in place of labels, and the groups that stand for them."""

import itertools
from typing import Any

import numpy as np
import pytest
from labelled_folder import NAMES, make, write_photos
from tiny_run import changed, of_folder

from mch_jax import cliques, pairs, pipeline
from mch_jax.data import similar_pairs
from mch_jax.evaluation import results
from mch_jax.training import run, validation

IDS = ["a.jpg", "b.jpg", "c.jpg", "d/e.jpg"]


@pytest.mark.parametrize(("count", "density"), [(1, 0), (25, 0.05), (25, 0.4), (40, 0.9)])
def test_items_share_a_group_exactly_if_they_are_a_pair(count, density):
    rng = np.random.default_rng(count)
    similar = np.triu(rng.random((count, count)) < density, 1)
    found = cliques.cover(rng.permutation(np.argwhere(similar)), count)
    shared = pairs.pack_labels(found) if found.shape[1] else np.zeros((count, 1), np.uint32)
    of_pairs = np.array(pairs.similarity(shared, shared))
    np.fill_diagonal(of_pairs, False)
    np.testing.assert_array_equal(of_pairs, similar | similar.T)
    assert found.any(1).tolist() == (similar | similar.T).any(1).tolist()


def test_groups_of_a_transitive_relation_are_its_classes():
    classes = np.random.default_rng(0).integers(0, 4, 30)
    found = cliques.cover(np.argwhere(np.triu(classes[:, None] == classes, 1)), 30)
    assert found.shape == (30, 4)
    for a, b in itertools.combinations(range(30), 2):
        assert (found[a] == found[b]).all() == (classes[a] == classes[b])


def read(tmp_path, text: str, name: str = "pairs.csv", threshold: float = 0.5) -> list[list[int]]:
    path = tmp_path / name
    path.write_text(text)
    return similar_pairs.read(path, IDS, threshold).tolist()


def test_pairs_of_a_table(tmp_path):
    assert read(tmp_path, "file,other\nc.jpg,a.jpg\na.jpg,c.jpg\nb.jpg,d/e.jpg\n") == [
        [0, 2],
        [1, 3],
    ]
    graded = "file,other,similarity\na.jpg,b.jpg,0.5\nb.jpg,c.jpg,.4\nz.jpg,a.jpg,1\n"
    assert read(tmp_path, graded) == [[0, 1]]
    assert read(tmp_path, graded, threshold=0.4) == [[0, 1], [1, 2]]


def test_triplets_vote_for_a_pair(tmp_path):
    rows = ["a.jpg,b.jpg,c.jpg", "b.jpg,a.jpg,c.jpg", "a.jpg,c.jpg,b.jpg", "c.jpg,d/e.jpg,a.jpg"]
    text = "\n".join(["anchor,positive,negative", *rows]) + "\n"
    assert read(tmp_path, text, "triplets.csv") == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with ''; expected the header file,other or file,other,similarity"),
        ("a.jpg,b.jpg\n", "starts with 'a.jpg,b.jpg'"),
        ("file,other\n", "no line below the header"),
        ("file,other\na.jpg\n", "line 2 has 1 columns, expected 2"),
        ("file,other\na.jpg,a.jpg\n", "line 2 names a photo twice"),
        ("file,other\n../a.jpg,a.jpg\n", "leads outside the data folder"),
        (
            "file,other\nx.jpg,a.jpg\n",
            "no line has only photos of the data set, such as 'a.jpg'",
        ),
        (
            "file,other,similarity\na.jpg,b.jpg,high\n",
            "line 2: similarity 'high', expected a number",
        ),
        ("file,other,similarity\na.jpg,b.jpg,nan\n", "similarity 'nan', expected a number"),
        (
            "file,other,similarity\na.jpg,b.jpg,1\nb.jpg,a.jpg,0\n",
            "line 3: b.jpg and a.jpg have the scores 1 and 0; expected one score",
        ),
    ],
)
def test_wrong_tables_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def config_of(root, source="pairs"):
    return of_folder(root, similarity__source=source)


def write_pairs(root, labels: np.ndarray, ids: list[str]) -> None:
    similar = np.argwhere(np.triu(labels.astype(int) @ labels.T > 0, 1))
    lines = ["file,other", *(f"{ids[i]},{ids[j]}" for i, j in similar)]
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")


def test_pairs_of_labels_give_the_similarity_of_the_labels(tmp_path):
    root = make(tmp_path / "photos")
    dataset = run.read_dataset(config_of(root))
    write_pairs(root, dataset.labels, dataset.ids.tolist())
    this: Any = run.open_run(config_of(root), tmp_path / "run")
    assert this.dataset.classes == ("cat", "dog")  # these measure
    by_labels = pairs.pack_labels(dataset.labels)[dataset.train]
    expected = np.array(pairs.similarity(by_labels, by_labels))
    found = np.array(pairs.similarity(this.train_labels, this.train_labels))
    for matrix in (expected, found):
        np.fill_diagonal(matrix, False)  # an image without a pair has no group
    np.testing.assert_array_equal(found, expected)
    assert not this.target_labels[dataset.query].any()


def test_a_folder_with_pairs_alone_end_to_end(tmp_path):
    root = tmp_path / "photos"
    write_photos(root)
    with pytest.raises(ValueError, match=r"pairs.csv' does not exist; config.similarity.source"):
        pipeline.run_stages(config_of(root), tmp_path / "run")
    write_pairs(root, np.eye(2, dtype=np.uint8)[np.arange(10) % 2], NAMES)
    found: Any = pipeline.run_stages(config_of(root), tmp_path / "run")
    assert found["similarity"] == {"training": "pairs", "measures": "pairs"}
    assert found["dataset"]["classes"] == 2
    assert "pairs.csv says so" in results.text_table(found)
    assert pipeline.verify(tmp_path / "run") == 0


def test_training_photos_without_a_pair_are_refused(tmp_path):
    root = make(tmp_path / "photos")
    (root / "triplets.csv").write_text("anchor,positive,negative\n0.jpg,1.jpg,2.jpg\n")
    with pytest.raises(ValueError, match=r"triplets.csv': no two training photos are similar"):
        run.open_run(config_of(root, "triplets"), tmp_path / "run")


@pytest.mark.parametrize("source", ["pairs", "triplets"])
def test_a_trained_backbone_needs_no_features_for_pairs(source):
    validation.check(
        changed(
            similarity__source=source,
            model__backbone="vit_s16",
            model__weights="w.npz",
            base__train_conv=True,
        )  # fmt: skip
    )
