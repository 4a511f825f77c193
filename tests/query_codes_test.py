"""Searches with several codes per query, against loops, and through every interface."""

import json
import shutil

import httpx
import numpy as np
import pytest
import small_run as small
from small_run import photo

import mch_jax
from mch_jax import query_codes, search, serve
from mch_jax.data import photos
from mch_jax.evaluation import evaluate, results
from mch_jax.files import codes_file
from mch_jax.index import BucketIndex
from mch_jax.query_codes import QueryRegions
from mch_jax.serving.gate import Limits
from mch_jax.serving.service import Service

BITS = 9


def made_up(seed):
    """Returns codes of 20 items and the regions of 5 queries, some with equal codes."""
    rng = np.random.default_rng(seed)
    item = np.sort(np.concatenate([np.arange(20), rng.integers(0, 20, 15)]))
    packed = np.packbits(rng.random((len(item), BITS)) < 0.5, axis=1, bitorder="little")
    logits = rng.normal(size=(5, 4, BITS)).astype(np.float32)
    logits[0, 2] = logits[0, 1]
    of_queries = np.packbits(logits >= 0, axis=-1, bitorder="little")
    kept = np.asarray(rng.random((5, 4)) < 0.5)
    kept[:, 0] = True
    return packed, item, QueryRegions(of_queries, kept, logits)


@pytest.mark.parametrize("choice", query_codes.CHOICES)
@pytest.mark.parametrize("k", [1, 6, 30])
def test_the_nearest_items_are_those_of_a_loop(choice, k):
    packed, item, regions = made_up(k)
    index = BucketIndex.build(packed, item, BITS)
    chosen = regions.chosen(choice)
    hits = query_codes.nearest(index, chosen.codes, k)
    for m in range(5):
        kept = {"one": [0], "agent": np.flatnonzero(regions.kept[m]), "all": range(4)}[choice]
        own = np.unique(regions.codes[m][list(kept)], axis=0)
        bits = np.bitwise_count(packed[:, None] ^ own[None]).sum(2).min(1)
        nearest = sorted((int(bits[item == i].min()), i) for i in range(20))[:k]
        found = [x for x in zip(hits.distance[m], hits.item[m], strict=True) if x[1] >= 0]
        assert found == nearest
        alone = index.search(own, k)
        assert hits.probed[m] == alone.probed.sum()
        assert hits.nonempty[m] == alone.nonempty.sum()


def test_the_histogram_of_several_codes_is_that_of_their_smallest_distance(finished):
    database = codes_file.load(finished / "codes" / "database.npz")
    query = codes_file.load(finished / "codes" / "query.npz")
    of_queries = results.read_query_regions(finished / "codes", query)
    assert of_queries is not None
    several = results.several_codes(query, of_queries, "all")
    counts = evaluate.histogram(several, database)
    relevant = np.any(query.labels[:, None] & database.labels, axis=2)
    for m in range(len(query.ids)):
        own = of_queries.codes[m]
        bits = np.bitwise_count(database.codes[:, None] ^ own[None]).sum(2).min(1)
        expected = np.zeros_like(counts[m])
        for i in range(len(database.ids)):
            expected[bits[database.item == i].min(), int(relevant[m, i])] += 1
        np.testing.assert_array_equal(counts[m], expected)
    one = results.several_codes(query, of_queries, "one")
    np.testing.assert_array_equal(one.codes, query.codes)
    np.testing.assert_array_equal(
        evaluate._histogram_of_several(query, database), evaluate.histogram(query, database)
    )


def test_results_have_the_measures_at_equal_cost(finished):
    found = json.loads((finished / "results.json").read_text())
    for kind in ("base", "mch"):
        row = found[kind]
        assert row["probe"]["budget"] == [1, 8, 33, 132]
        for order in ("hamming", "gqr"):
            curve = row["probe"][order]
            assert set(curve) == {"f1", "recall", "candidates"}
            np.testing.assert_allclose(curve["recall"][0], row["r_at_h0"], rtol=1e-9)
        assert row["bytes_per_image"] == pytest.approx(6 * row["anhc"])
        assert 0 < row["map_asymmetric"] <= 1
    several = found["several_query_codes"]
    assert several["all"]["codes_per_query"] >= several["agent"]["codes_per_query"] >= 1
    assert several["all"]["r_at_h0"] >= several["agent"]["r_at_h0"] >= found["mch"]["r_at_h0"]


def test_a_run_of_an_earlier_version_is_measured_and_verified(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "codes" / "query_regions.npz").unlink()
    assert results.verify(tmp_path / "run") == []
    config = json.loads((finished / "config.json").read_text())
    found = results.measure_run(tmp_path / "run", config)
    assert "map_asymmetric" not in found["base"]
    assert set(found["base"]["probe"]) == {"budget", "hamming"}


def test_query_regions_that_are_not_of_the_queries_are_refused(finished, tmp_path):
    query = codes_file.load(finished / "codes" / "query.npz")
    other = query._replace(codes=query.codes ^ np.uint8(1))
    with pytest.raises(ValueError, match=r"query_regions\.npz does not hold the regions"):
        results.read_query_regions(finished / "codes", other)


def test_every_interface_takes_several_codes(small_run, tmp_path, capsys):
    photo(3).save(tmp_path / "cat.png")
    retriever = mch_jax.load(small_run)
    image = photos.resize(np.asarray(photo(3)), 64)
    found = {}
    for choice in query_codes.CHOICES:
        search.main([
            f"--run={small_run}", f"--image={tmp_path / 'cat.png'}", "--k=24", "--json",
            f"--query_codes={choice}",
        ])  # fmt: skip
        (record,) = json.loads(capsys.readouterr().out)
        hits = retriever.search(tmp_path / "cat.png", 24, query_codes=choice)
        assert [hit.id for hit in hits] == [hit["id"] for hit in record["hits"]]
        assert [hit.distance for hit in hits] == [hit["distance"] for hit in record["hits"]]
        found[choice] = {hit.id: hit.distance for hit in hits}
    for fewer, more in (("one", "agent"), ("agent", "all")):
        assert all(found[more][name] <= bits for name, bits in found[fewer].items())
    (regions,) = retriever.encoder.query(image[None], "all").codes
    database = retriever.database
    bits = np.bitwise_count(database.codes[:, None] ^ regions[None]).sum(2).min(1)
    nearest = [int(bits[database.item == i].min()) for i in range(len(database.ids))]
    assert found["all"] == dict(zip(database.ids.tolist(), nearest, strict=True))


def test_a_wrong_choice_is_one_line(small_run):
    message = "is 'two', expected one .*, agent .* or all"
    with pytest.raises(ValueError, match="^--query_codes " + message):
        search.main([f"--run={small_run}", "--image=cat.jpg", "--query_codes=two"])
    with pytest.raises(ValueError, match="--query_codes=all needs --image"):
        search.main([f"--run={small_run}", "--codes=q.npz", "--query_codes=all"])
    with pytest.raises(ValueError, match="^--query_codes " + message):
        serve.main([f"--run={small_run}", "--query_codes=two"])
    with pytest.raises(ValueError, match="^query_codes " + message):
        mch_jax.load(small_run).search(photo(3), query_codes="two")


def test_the_server_sets_the_codes_that_queries_have(small_run):
    service = Service.open(small_run, Limits(), query_codes="all")
    with small.serving(service) as url, httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/health").json()["query_codes"] == "all"
        assert client.get("/probe?item=3").json()["codes"] > 1
        assert client.get("/probe?item=3&query_codes=one").json()["codes"] == 1
        found = client.get("/search?item=3").json()
        assert found == client.get("/search?item=3&query_codes=all").json()
        assert found != client.get("/search?item=3&query_codes=one").json()
    assert Service.open(small_run, Limits()).health().query_codes == "one"
