import dataclasses
import html.parser
import json
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import default
from mch_jax import codes, data, metrics, regions, report
from mch_jax.evaluation.measures import MEASURES
from mch_jax.files import code_sets, codes_file, write_json
from mch_jax.report import figures, gallery, markup, page

NUM_BITS = 12


def _measures(file, query, kept):
    relevant = (query.labels.astype(int) @ file.labels.T) > 0
    histogram = metrics.histogram(query.codes, file.codes, file.item, relevant, NUM_BITS)
    at0, at2 = metrics.within_radius(histogram, 0), metrics.within_radius(histogram, 2)
    k = [1, 5, 20]
    return {
        "map": metrics.mean_average_precision(histogram),
        "map_asymmetric": 0.5,
        "map_at_5000": metrics.mean_average_precision(histogram, 5000),
        "p_at_h0": at0.precision,
        "r_at_h0": at0.recall,
        "nonempty_at_h0": at0.nonempty,
        "p_at_h2": at2.precision,
        "r_at_h2": at2.recall,
        "anhc": float(kept.sum(1).mean()),
        "bytes_per_image": 6 * float(kept.sum(1).mean()),
        "f1_bucket": {
            "k": k,
            "f1": [metrics.f1_at(histogram, value) for value in k],
            "probed": [1.0, 13.5, 2.0**70],
            "nonempty": [1.0, 4.0, 9.5],
        },
    }


def _write_run(workdir, dataset):
    """Writes the files of a run with random codes, and returns its two codes files."""
    rng = np.random.default_rng(0)
    n = len(dataset.database)
    packed = rng.integers(0, 2**NUM_BITS, (n, 6, 1), dtype=np.uint32)
    reward = rng.normal(size=(n, 6)).astype(np.float32) * (np.arange(6) > 0)
    keep_prob = rng.random((n, 6), np.float32)
    keep_prob[:, 0] = 1
    boxes = np.tile(regions.region_boxes(0.5)[None], (n, 1, 1))
    sizes = dataset.sizes[dataset.database]
    boxes = np.asarray(regions.pixel_boxes(boxes, sizes[:, :1], sizes[:, 1:]), np.int32)
    code_set = codes.CodeSet(jnp.asarray(packed), jnp.asarray(keep_prob), keep_prob >= 0.5, boxes)
    labels, ids = dataset.labels, dataset.ids
    rows = dataset.database
    database = code_sets.flatten(code_set, ids[rows], labels[rows], NUM_BITS)
    never = code_sets.flatten(
        code_set._replace(kept=np.arange(6)[None] == np.zeros((n, 1))),
        ids[rows],
        labels[rows],
        NUM_BITS,
    )
    m = len(dataset.query)
    query = database._replace(
        codes=rng.integers(0, 256, (m, 2), dtype=np.uint8) & np.array([255, 15], np.uint8),
        item=np.arange(m),
        ids=ids[dataset.query],
        keep_prob=np.ones(m, np.float32),
        box=np.zeros((m, 4), np.int32),
        labels=labels[dataset.query],
    )
    codes_file.save(workdir / "codes" / "database.npz", database)
    codes_file.save(workdir / "codes" / "query.npz", query)
    np.savez(
        workdir / "codes" / "regions.npz",
        codes=np.asarray(codes.to_bytes(packed, NUM_BITS)),
        keep_prob=keep_prob,
        reward=reward,
        box=boxes,
    )
    results = {
        "dataset": {
            "name": dataset.name,
            "queries": m,
            "database": n,
            "train": len(dataset.train),
            "classes": len(dataset.classes),
            "queries_without_relevant": 0,
        },
        "method": "dch",
        "num_bits": NUM_BITS,
        "seed": 0,
        "chance_map": 0.2712345,
        "base": _measures(never, query, np.ones((n, 1))),
        "mch": _measures(database, query, keep_prob >= 0.5),
    }
    names = ("never", "always", "random", "oracle")
    results["controls"] = {
        name: {**results["base"], "map": 0.1 + i / 7} for i, name in enumerate(names)
    }
    write_json(workdir / "results.json", results)
    config: Any = default.get_config()
    config.method, config.num_bits, config.model.weights = "dch", NUM_BITS, "<script>1</script>"
    write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(150):
            row = {"step": step, "stage": "base", "base/loss": 1 / (1 + step)}
            file.write(json.dumps(row) + "\n")
        row = {"step": 1, "stage": "agent", "agent/reward": 0.5, "agent/keep_rate": 0.25}
        file.write(json.dumps(row) + "\n")
    return query, database


class _Page(html.parser.HTMLParser):
    """Parses a page: its files, its table of results, its gallery and its open elements."""

    VOID = frozenset({"meta", "img", "source", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.files, self.images, self.lists, self.names = set(), [], [], set()
        self.numbers, self.row, self.open = {}, "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {name: value or "" for name, value in attrs}
        self.names.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name in ("src", "srcset", "href"):
            if name in attrs and not attrs[name].startswith("#"):
                self.files.add(attrs[name])
        if tag == "img":
            self.images.append(attrs)
        if tag == "ol":
            self.lists.append([])
        if tag == "li" and "ol" in self.open:
            self.lists[-1].append({"class": attrs["class"], "box": None})
        if tag == "img" and "ol" in self.open:
            self.lists[-1][-1] |= {"name": attrs["title"], "alt": attrs["alt"]}
        if attrs.get("class") == "box":
            self.lists[-1][-1]["box"] = [
                float(x) / 100 for x in re.findall(r"([\d.]+)%", attrs["style"])
            ]
        if tag == "tr":
            self.row = ""
        if tag == "data":
            self.numbers.setdefault(self.row, []).append(attrs["value"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["th"]:
            self.row = self.row or data


@pytest.fixture(scope="module")
def dataset():
    """Scenes, some of them not square, whose names would be HTML if they were not escaped."""
    scenes = data.load("scenes", size=64, num_train=16, num_database=24, num_query=12)
    ids = np.array([f"<b>{name}&\"'" for name in scenes.ids.tolist()])
    classes = (*scenes.classes[:-1], '<img src="http://x">')
    scenes = dataclasses.replace(
        scenes,
        name="<i>scenes</i>",
        ids=ids,
        classes=classes,
        read=lambda row, read=scenes.read: read(row)[: 64 - row % 3 * 8],
        sizes=np.zeros_like(scenes.sizes),  # to be measured; the reader knows those of uncut scenes
    )
    return data.audit(scenes)


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset):
    workdir = tmp_path_factory.mktemp("run")
    files = _write_run(workdir, dataset[0])
    path = report.write(workdir, *dataset)
    return workdir, path, _Page(path.read_text("utf-8")), files


def test_the_folder_holds_the_files_of_the_page_and_no_others(run):
    _, path, page, _ = run
    there = {str(p.relative_to(path.parent)) for p in path.parent.rglob("*") if p.is_file()}
    assert there == page.files | {"index.html"}
    figures = {name for name in page.files if name.endswith(".png")}
    assert len(figures) == 16
    assert {f"{name[:-4]}-dark.png" for name in figures if "-dark" not in name} < figures
    for name in page.files:
        with Image.open(path.parent / name) as image:
            image.load()
            if name in figures:  # sharp on a screen with two pixels per CSS pixel
                assert image.width >= 2 * 320
            else:
                assert max(image.size) <= gallery.THUMBNAIL


def test_page_needs_no_network_and_no_script(run):
    _, path, page, _ = run
    text = path.read_text("utf-8")
    assert not page.names & {"script", "link", "iframe", "i"}
    assert "url(" not in text
    assert "@import" not in text
    assert not page.open
    # The only address is a class's name, which is text.
    assert "http" not in text.replace("&lt;img src=&quot;http://x&quot;&gt;", "")


def test_names_are_escaped(run):
    _, path, page, _ = run
    text = path.read_text("utf-8")
    for dangerous in ("<script>", "<b>train", "<b>query", "<i>scenes", '<img src="http'):
        assert dangerous not in text
    assert "&lt;i&gt;scenes&lt;/i&gt;, DCH at 12 bits</h1>" in text
    assert all(hit["name"].startswith("<b>") for hits in page.lists for hit in hits)


def test_images_have_alternative_texts(run):
    _, _, page, _ = run
    assert all(image["alt"] for image in page.images)


def test_table_equals_results(run):
    workdir, _, page, _ = run
    results = json.loads((workdir / "results.json").read_text())
    expected = {"Chance": [results["chance_map"]]}
    expected["Base"] = [results["base"][measure.key] for measure in MEASURES]
    expected["MCH"] = [results["mch"][measure.key] for measure in MEASURES]
    for name, measures in results["controls"].items():
        expected[name.title()] = [measures[measure.key] for measure in MEASURES]
    assert {k: [float(x) for x in v] for k, v in page.numbers.items()} == expected


def _hits(query, file, k, only_first):
    """Returns item, distance and row of the nearest code of each item, by a plain double loop."""
    bits = np.unpackbits(file.codes, axis=1, bitorder="little")
    code = np.unpackbits(query, bitorder="little")
    best = {}
    for row, item in enumerate(file.item.tolist()):
        distance = int((bits[row] != code).sum())
        if item not in best or (not only_first and distance < best[item][0]):
            best[item] = (distance, row)
    order = sorted((distance, item, row) for item, (distance, row) in best.items())
    return [(item, distance, row) for distance, item, row in order[:k]]


def test_gallery_shows_the_nearest_photos_and_their_nearest_regions(run, dataset):
    _, _, page, (query, database) = run
    rows = {name: row for row, name in enumerate(dataset[0].ids.tolist())}
    asked = [x["title"] for x in page.images if x["alt"].startswith("Query: ")]
    assert len(asked) == len(set(asked)) == gallery.NUM_QUERIES
    assert len(page.lists) == 2 * len(asked)
    boxes = 0
    for shown, hits in enumerate(page.lists):
        row = query.ids.tolist().index(asked[shown // 2])
        expected = _hits(query.codes[row], database, gallery.NUM_NEAREST, shown % 2 == 0)
        assert [hit["name"] for hit in hits] == [database.ids[item] for item, _, _ in expected]
        for hit, (item, distance, code) in zip(hits, expected, strict=True):
            related = bool((query.labels[row] & database.labels[item]).any())
            assert hit["class"] == ("yes" if related else "no")
            word = "relevant" if related else "irrelevant"
            assert f"; {word}, at {distance} bit" in hit["alt"]
            if code == np.flatnonzero(database.item == item)[0]:
                assert hit["box"] is None
                assert hit["alt"].endswith("by its whole image")
                continue
            boxes += 1
            size = dataset[0].sizes[rows[hit["name"]]]
            left, top, right, bottom = database.box[code] / np.tile(size, 2)
            assert hit["box"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-4)
            all_boxes = regions.pixel_boxes(regions.region_boxes(0.5), *size[:, None])
            slot = (all_boxes == database.box[code]).all(1).argmax()
            assert hit["alt"].endswith(f"by its {regions.NAMES[slot]}")
    assert boxes > 20


def test_first_queries_are_those_with_the_largest_gain(run):
    _, _, page, (query, database) = run
    gain = []
    for row in range(len(query.ids)):
        found = [
            sum((query.labels[row] & database.labels[item]).any() for item, _, _ in
                _hits(query.codes[row], database, gallery.NUM_NEAREST, only_first))
            for only_first in (False, True)
        ]  # fmt: skip
        gain.append(int(found[0]) - int(found[1]))
    asked = [x["title"] for x in page.images if x["alt"].startswith("Query: ")]
    shown = [gain[query.ids.tolist().index(name)] for name in asked]
    assert shown[:4] == sorted(gain, reverse=True)[:4]


def test_choose_takes_the_most_and_spreads_the_rest():
    gain = np.array([0, 3, 9, 1, 3, 0, -1, 0])
    eligible = np.array([0, 1, 3, 4, 5, 6, 7])
    assert gallery.choose(gain, eligible, 2, 3) == [1, 4, 0, 5, 7]
    assert gallery.choose(gain, eligible, 0, 2) == [0, 7]
    assert gallery.choose(gain, eligible[:2], 4, 4) == [1, 0]
    assert gallery.choose(gain, eligible[:0], 4, 4) == []


def test_nearest_breaks_ties_by_item_then_by_code():
    packed = np.array([[0b11], [0b01], [0b10], [0b01], [0b111]], np.uint32)
    hits = gallery.nearest(np.array([0], np.uint32), packed, np.array([0, 3, 4]), 9)
    assert hits.item.tolist() == [0, 1, 2]
    assert hits.distance.tolist() == [1, 1, 3]
    assert hits.code.tolist() == [1, 3, 4]


def test_verdict_says_what_rises_and_what_falls():
    base = {"map": 0.5, "p_at_h0": 0.3, "r_at_h0": 0.002, "anhc": 1.0}
    mch = {"map": 0.45, "p_at_h0": 0.36, "r_at_h0": 0.00201, "anhc": 1.5}
    assert page.verdict({"base": base, "mch": mch}) == (
        "With 1.50 codes per photo instead of one, MCH raises P@H=0 from 0.300 to 0.360, lowers "
        "mAP from 0.500 to 0.450 and leaves R@H=0 at 0.0020."
    )
    mch = {"map": 0.45, "p_at_h0": 0.2, "r_at_h0": 0.003, "anhc": 1.5}
    assert page.verdict({"base": base, "mch": mch}) == (
        "With 1.50 codes per photo instead of one, MCH raises R@H=0 from 0.0020 to 0.0030, but "
        "lowers mAP from 0.500 to 0.450 and P@H=0 from 0.300 to 0.200."
    )
    assert page.verdict({"base": base, "mch": base}).startswith("This method has no agent: ")
    kept_none = page.verdict({"base": base, "mch": base, "controls": {"never": base}})
    assert kept_none.startswith("The agent kept no region: every photo has one code")


def test_small_numbers_are_not_shown_as_zero():
    assert [markup.show(x, 4) for x in (0.0, 0.00004, 0.00006, 0.25)] == [
        "0.0000", "4e-05", "0.0001", "0.2500",
    ]  # fmt: skip


def test_pair_order_equals_counting_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30) / 5.0, rng.integers(0, 6, 20) / 5.0
    expected = np.mean([(x > y) + 0.5 * (x == y) for x in a for y in b])
    assert figures.pair_order(a, b) == pytest.approx(expected)


def test_a_method_without_agent_and_log_has_a_report_that_replaces_the_old_one(tmp_path, dataset):
    query, database = _write_run(tmp_path, dataset[0])
    results = json.loads((tmp_path / "results.json").read_text())
    del results["controls"]
    results["mch"] = results["base"]
    write_json(tmp_path / "results.json", results)
    (tmp_path / "metrics.jsonl").unlink()
    _, first = np.unique(database.item, return_index=True)
    kept = {name: getattr(database, name)[first] for name in ("codes", "item", "keep_prob", "box")}
    codes_file.save(tmp_path / "codes" / "database.npz", database._replace(**kept))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.png").write_bytes(b"")
    (tmp_path / ".report-new").mkdir()  # left by a killed run

    page = _Page(report.write(tmp_path, *dataset).read_text("utf-8"))
    there = {p.name for p in (tmp_path / "report").iterdir()}
    assert {name for name in page.files if "/" not in name} | {"index.html", "thumbnails"} == there
    assert set(page.numbers) == {"Chance", "Base", "MCH"}
    assert len(page.lists) == gallery.NUM_QUERIES
    assert not list(tmp_path.glob(".report*"))


def test_the_model_card_repeats_results_and_escapes_names(run, dataset):
    workdir = run[0]
    text = (workdir / "model_card.md").read_text("utf-8")
    results = json.loads((workdir / "results.json").read_text())
    for measure in MEASURES:
        row = re.search(rf"^\| {re.escape(measure.title)} \| (\S+) \| (\S+) \|$", text, re.M)
        assert row
        for shown, choice in zip(row.groups(), ("base", "mch"), strict=True):
            assert shown == markup.show(results[choice][measure.key], measure.digits)
    assert "<" not in text.replace("\\<", "")
    assert len(dataset[0].train) == int(re.search(r": (\d+) to train", text)[1])
    assert not [line for line in text.splitlines() if line.startswith("|") and "||" in line]


def test_a_missing_stage_is_named_and_the_old_report_stays(tmp_path, dataset):
    _write_run(tmp_path, dataset[0])
    report.write(tmp_path, *dataset)
    before = (tmp_path / "report" / "index.html").read_bytes()

    def damaged(row):
        raise ValueError(f"photo {row} does not decode")

    with pytest.raises(ValueError, match="does not decode"):
        report.write(tmp_path, dataclasses.replace(dataset[0], read=damaged), dataset[1])
    (tmp_path / "results.json").unlink()
    with pytest.raises(ValueError, match=r"results.json does not exist; run the evaluate stage"):
        report.write(tmp_path, *dataset)
    assert (tmp_path / "report" / "index.html").read_bytes() == before
    assert not list(tmp_path.glob(".report*"))
