"""The rivals of the agent, and the table of a finished run, against plain loops."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import codes, metrics, rivals
from mch_jax.agent import evidence
from mch_jax.evaluation import asymmetric, classifier, equal_cost, rival_table
from mch_jax.evaluation import rivals as choices
from mch_jax.files import codes_file
from mch_jax.index import BucketIndex

BITS = 10


def made_up(seed, count=9, regions=6):
    """Returns logits [n, t, q] with some equal codes, their packed codes and counts of codes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, regions, BITS)).astype(np.float32)
    logits[0, 3] = logits[0, 0]
    packed = np.asarray(codes.pack(codes.sign(logits)))
    return logits, packed, rng.integers(1, regions + 1, count)


def probed_by_sorting(database, item, query, margins, budget):
    """Items, codes read and buckets of a search that sorts all 2^q buckets for one query."""
    cost = {}
    for code, margin in zip(np.atleast_1d(query), margins, strict=True):
        for bucket in range(1 << BITS):
            mask = bucket ^ int(code)
            total = sum(float(margin[bit]) for bit in range(BITS) if mask >> bit & 1)
            cost[bucket] = min(cost.get(bucket, (np.inf, 0)), (total, mask))
    met, read = [], 0
    for bucket in sorted(cost, key=cost.__getitem__)[:budget]:
        inside = item[database == bucket]
        read += len(inside)
        met += [x for x in inside.tolist() if x not in met]
    return met, read


@pytest.mark.parametrize("num_codes", [1, 3])
def test_found_is_that_of_sorting_all_buckets(num_codes):
    rng = np.random.default_rng(num_codes)
    item = np.sort(np.concatenate([np.arange(40), rng.integers(0, 40, 60)]))
    words = rng.integers(0, 1 << BITS, len(item))
    labels, query_labels = (np.asarray(rng.random((n, 3)) < 0.4) for n in (40, 6))
    query_labels[5] = False  # no item is relevant to the last query
    query = rng.integers(0, 1 << BITS, (6, num_codes))
    margins = rng.random((6, num_codes, BITS)).astype(np.float32)
    relevant = np.asarray((query_labels[:, None] & labels).any(2))
    as_words = np.uint32(1) << np.arange(3, dtype=np.uint32)
    relevance = equal_cost.Relevance(
        (query_labels @ as_words).astype(np.uint32)[:, None],
        (labels @ as_words).astype(np.uint32)[:, None],
        relevant.sum(1),
    )
    as_bytes = [x.astype("<u2")[..., None].view(np.uint8) for x in (words, query)]
    index = BucketIndex.build(as_bytes[0], item, BITS)
    budgets = (1, 5, 60, 1 << BITS)
    found = equal_cost.probed(index, as_bytes[1], margins, relevance, budgets)
    counted = np.flatnonzero(relevant.any(1))
    assert found.f1.shape == (4, len(counted))
    for column, m in enumerate(counted):
        for row, budget in enumerate(budgets):
            met, read = probed_by_sorting(words, item, query[m], margins[m], budget)
            hits = relevant[m, met].sum()
            assert found.candidates[row, column] == read
            np.testing.assert_allclose(found.recall[row, column], hits / relevant[m].sum())
            harmonic = 2 * hits / (len(met) + relevant[m].sum())
            np.testing.assert_allclose(found.f1[row, column], harmonic)


def test_asymmetric_ranking_with_equal_margins_is_the_hamming_ranking():
    rng = np.random.default_rng(0)
    item = np.sort(np.concatenate([np.arange(30), rng.integers(0, 30, 25)]))
    packed = np.packbits(rng.random((len(item), BITS)) < 0.5, axis=1, bitorder="little")
    query = np.packbits(rng.random((5, BITS)) < 0.5, axis=1, bitorder="little")
    labels, query_labels = (np.asarray(rng.random((n, 3)) < 0.4) for n in (30, 5))
    relevant = np.asarray((query_labels[:, None] & labels).any(2))
    histogram = metrics.histogram(query, packed, item, relevant, BITS)
    expected = metrics.average_precision(histogram)[metrics.has_relevant(histogram)]
    logits = asymmetric.signs(query, BITS).astype(np.float32)[:, None]
    arrays = (packed, item, query_labels.astype(np.uint8), labels.astype(np.uint8))
    np.testing.assert_allclose(asymmetric.average_precision(logits, *arrays), expected)
    # Another set of margins, against a loop over all pairs; no two distances are equal.
    logits = logits * (1 + rng.random(logits.shape)).astype(np.float32)
    bits = asymmetric.signs(packed, BITS) > 0
    scores = []
    for m in np.flatnonzero(relevant.any(1)):
        differing = bits != (logits[m, 0] >= 0)
        cost = (differing * np.abs(logits[m, 0]).astype(np.float64)).sum(1)
        nearest = np.array([cost[item == i].min() for i in range(30)])
        groups = np.unique(nearest)
        counts = np.array([[((nearest == g) & (relevant[m] == r)).sum() for r in (0, 1)]
                           for g in groups])  # fmt: skip
        scores.append(metrics.average_precision(counts[None])[0])
    found = asymmetric.average_precision(logits, *arrays)
    np.testing.assert_allclose(found, scores)
    twice = np.concatenate([logits, logits], 1)
    np.testing.assert_array_equal(asymmetric.average_precision(twice, *arrays), found)


def test_every_choice_keeps_as_many_codes_as_it_is_told():
    logits, packed, counts = made_up(1)
    candidates = choices.distinct(packed)
    assert not candidates[0, 3]
    expected = np.minimum(counts, candidates.sum(1))
    rng = np.random.default_rng(0)
    for kept in (
        choices.surest(logits, candidates, counts),
        choices.surest_labels(logits, candidates, counts),
        choices.random(rng, candidates, counts),
        choices.medoid(packed, candidates, counts),
        choices.coverage(packed, candidates, counts),
    ):
        assert kept[:, 0].all()
        assert not (kept & ~candidates).any()
        np.testing.assert_array_equal(kept.sum(1), expected)


def test_surest_regions_have_the_largest_mean_logit():
    logits, packed, _ = made_up(2)
    kept = choices.surest(logits, choices.distinct(packed), np.full(len(logits), 2))
    for row, one in zip(kept, np.abs(logits).mean(2), strict=True):
        assert np.flatnonzero(row).tolist() == [0, 1 + int(one[1:].argmax())]


@pytest.mark.parametrize("name", ["medoid", "coverage"])
def test_greedy_choices_are_those_of_a_loop(name):
    logits, packed, _ = made_up(3)
    kept = getattr(choices, name)(packed, choices.distinct(packed), np.full(len(logits), 3))
    for n in range(1, len(packed)):
        between = np.bitwise_count(packed[n] ^ packed[n].T)
        chosen = [0]
        for _ in range(2):
            others = [t for t in range(6) if t not in chosen]
            if name == "medoid":
                score = [-between[:, [*chosen, t]].min(1).astype(int).sum() for t in others]
            else:
                score = [int(between[t, chosen].min()) for t in others]
            chosen.append(others[int(np.argmax(score))])
        assert np.flatnonzero(kept[n]).tolist() == sorted(chosen)


def test_spill_stores_the_buckets_that_gqr_would_look_at_first():
    logits, packed, counts = made_up(4, count=20)
    own = codes.to_bytes(packed[:, 0], BITS)
    flat, item = choices.spill(own, logits[:, 0], counts)
    np.testing.assert_array_equal(np.bincount(item), counts)
    words = codes.from_bytes(flat, BITS)[:, 0]
    for n in range(20):
        cost = {
            sum(1 << b for b in subset): sum(float(abs(logits[n, 0, b])) for b in subset)
            for size in range(5)
            for subset in itertools.combinations(range(BITS), size)
        }
        cheapest = sorted(cost, key=cost.__getitem__)[: counts[n]]
        assert (words[item == n] ^ packed[n, 0, 0]).tolist() == cheapest


def test_expected_reward_adds_the_best_region_while_it_gains():
    rng = np.random.default_rng(5)
    _, packed, _ = made_up(5, count=7)
    label_logits = rng.normal(size=(7, 6, 3)).astype(np.float32)
    labels = (rng.random((12, 3)) < 0.5).astype(np.uint8)
    reference = evidence.Reference(
        rng.integers(0, 1 << BITS, (12, 1)).astype(np.uint32),
        labels,
        rng.normal(size=(12, 2, BITS + 1)).astype(np.float32),
    )
    calibration = {
        "shared": np.array([0.5, 0.5, 0, 0, 0], np.float32),
        "own": np.zeros((3, 5), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    kept = choices.expected_reward(packed, label_logits, calibration, reference)
    similar = np.asarray(
        evidence.similarity_probability(
            evidence.posterior(jax.device_put(calibration), jnp.asarray(label_logits)), labels
        )
    )
    for n in range(7):
        distance = np.bitwise_count(packed[n] ^ reference.packed[:, 0]).astype(int)

        def total(chosen, n=n, distance=distance):
            near = distance[chosen].min(0)
            rows = np.arange(12)
            value = reference.values[rows, :, near]
            return (value[:, 1] * similar[n] + value[:, 0] * (1 - similar[n])).mean()

        chosen = [0]
        while True:
            gains = {t: total([*chosen, t]) - total(chosen) for t in range(6) if t not in chosen}
            best = max(gains, key=gains.__getitem__, default=None)
            if best is None or gains[best] <= 1e-7:
                break
            chosen.append(best)
        assert np.flatnonzero(kept[n]).tolist() == sorted(chosen)
    assert 1 < kept.sum() / 7 < 6


def test_lists_of_predicted_labels():
    probability = np.array([[0.9, 0.6, 0.1], [0.2, 0.1, 0.3]])
    members = classifier.lists(probability)
    assert members.tolist() == [[True, True, False], [False, False, True]]
    relevance = equal_cost.Relevance(
        np.array([[1]], np.uint32), np.array([[1], [2]], np.uint32), np.array([1])
    )
    found = classifier.probed(np.array([[0.5, 0.9, 0.7]]), members, relevance, (1, 2, 3))
    assert found.candidates.tolist() == [[1], [2], [3]]
    np.testing.assert_allclose(found.recall[:, 0], [1, 1, 1])
    np.testing.assert_allclose(found.f1[:, 0], [1, 2 / 3, 2 / 3])
    labels = np.array([[1, 0, 0], [0, 0, 1]], np.uint8)
    score = classifier.average_precision(
        np.array([[0.1, 0.1, 0.9]]), probability, labels[1:], labels
    )
    np.testing.assert_allclose(score, [1.0])


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory):
    """A copy of a finished run with its table; the run beside it has codes of twice the length."""
    root = tmp_path_factory.mktemp("rivals")
    shutil.copytree(finished, root / "one")
    (root / "one" / "codes" / "query_regions.npz").unlink()  # a run of an earlier version
    return root / "one", rival_table.compare(root / "one")


def test_the_table_of_a_finished_run(compared):
    workdir, result = compared
    assert result["budget"] == [1, 8, 33, 132]
    rows = result["rows"]
    assert {
        "base_hamming", "base_gqr", "mch_hamming", "mch_gqr", "mch_gqr_agent_query",
        "mch_gqr_all_query", "spill_gqr", "surest_gqr", "random_gqr", "classifier",
    } < set(rows)  # fmt: skip
    for name, row in rows.items():
        assert len(row["f1"]) == len(row["recall"]) == len(row["candidates"]) == 4, name
        assert np.all(np.diff(row["recall"]) >= 0), name
    stated = json.loads((workdir / "results.json").read_text())
    for kind in ("base", "mch"):
        row = rows[f"{kind}_hamming"]
        np.testing.assert_allclose(row["map"], stated[kind]["map"], rtol=1e-9)
        np.testing.assert_allclose(row["recall"][0], stated[kind]["r_at_h0"], rtol=1e-9)
        assert row["codes_per_image"] == stated[kind]["anhc"]
        assert row["bytes_per_image"] == 6 * stated[kind]["anhc"]
    for name in ("spill_gqr", "surest_gqr", "random_gqr", "medoid_gqr", "coverage_gqr"):
        assert rows[name]["codes_per_image"] == rows["mch_gqr"]["codes_per_image"], name
    assert json.loads((workdir / rival_table.FILE).read_text()) == result
    with np.load(workdir / rival_table.ARRAYS, allow_pickle=False) as arrays:
        for name, row in rows.items():
            np.testing.assert_allclose(arrays[f"{name}/f1"].mean(1), row["f1"], rtol=1e-5)


def test_the_command_prints_json_or_a_table(compared, capsys, monkeypatch):
    workdir, result = compared
    monkeypatch.setattr(rival_table, "compare", lambda *_: result)
    rivals.main([f"--run={workdir}", "--json"])
    assert json.loads(capsys.readouterr().out) == result
    rivals.main([f"--run={workdir}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(result["rows"])


def test_a_run_of_twice_the_length_is_found_beside_it(compared):
    workdir, _ = compared
    assert rival_table.find_long(workdir) is None
    other = workdir.parent / "two"
    shutil.copytree(workdir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_bits": 24}))
    assert rival_table.find_long(workdir) == other.resolve()
    (other / "config.json").write_text(json.dumps(config | {"num_bits": 24, "seed": 1}))
    assert rival_table.find_long(workdir) is None


def test_relevance_by_some_classes(compared):
    workdir, _ = compared
    material = rival_table.read_material(workdir)
    some = rival_table.of_classes(material, material.classes[:2])
    assert not some.labels[:, 2:].any()
    np.testing.assert_array_equal(some.labels[:, :2], material.labels[:, :2])
    np.testing.assert_array_equal(some.query_labels[:, :2], material.query_labels[:, :2])
    np.testing.assert_array_equal(some.train_labels, material.train_labels)
    every = rival_table.of_classes(material, [])
    np.testing.assert_array_equal(every.labels, material.labels)
    with pytest.raises(ValueError, match="^--classes has 'unicorn', expected names among "):
        rival_table.of_classes(material, ["unicorn"])


def test_wrong_input_is_one_line(compared, tmp_path):
    workdir, _ = compared
    with pytest.raises(ValueError, match="--run is missing"):
        rivals.main([])
    with pytest.raises(ValueError, match=r"query\.npz does not exist"):
        rivals.main([f"--run={tmp_path}"])
    with pytest.raises(ValueError, match="has codes of 12 bits; expected .* with 24 bits"):
        rivals.main([f"--run={workdir}", f"--long={workdir}"])
    changed = tmp_path / "changed"
    shutil.copytree(workdir, changed)
    path = changed / "codes" / "query.npz"
    file = codes_file.load(path)
    codes_file.save(path, file._replace(codes=file.codes ^ np.uint8(1)))
    with pytest.raises(ValueError, match="holds other codes than"):
        rivals.main([f"--run={changed}"])
