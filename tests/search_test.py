import json
import subprocess
import sys

import numpy as np
import pytest

from mch_jax import queries
from mch_jax.files import codes_file
from mch_jax.files.codes_file import CodeFile

NUM_BITS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The codes of a run with three photos, of which the second has two codes."""
    run = tmp_path_factory.mktemp("run")
    (run / "codes").mkdir()
    write(run / "codes" / "database.npz", [0b0, 0b111, 0b1, 0b1111], [0, 1, 1, 2], "abc")
    write(run / "query.npz", [0b0, 0b111], [0, 1], "xy")
    return run


def write(path, words, item, names, num_bits=NUM_BITS):
    file = CodeFile(
        codes=np.array(words, "<u2")[:, None].view(np.uint8),
        item=np.array(item),
        ids=np.array([f"{name}.jpg" for name in names]),
        keep_prob=np.ones(len(words), np.float32),
        box=np.zeros((len(words), 4), np.int32),
        labels=np.zeros((len(names), 0), np.uint8),
        num_bits=num_bits,
    )
    codes_file.save(path, file)


def search(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mch_jax.search", *arguments], capture_output=True, text=True
    )


def test_json(run):
    result = search(f"--run={run}", f"--codes={run / 'query.npz'}", "--k=2", "--json")
    assert result.returncode == 0, result.stderr
    first, second = json.loads(result.stdout)
    assert first == {
        "query": "x.jpg",
        "probed": 2,
        "nonempty": 2,
        "hits": [
            {"item": 0, "id": "a.jpg", "distance": 0},
            {"item": 1, "id": "b.jpg", "distance": 1},
        ],
    }
    assert [hit["id"] for hit in second["hits"]] == ["b.jpg", "c.jpg"]


def test_table_with_fewer_photos_than_k(run):
    result = search(f"--run={run}", f"--codes={run / 'query.npz'}", "--k=9")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "x.jpg  (4,096 buckets probed, 4 not empty)",
        "  rank  bits  photo",
        "     1     0  a.jpg",
        "     2     1  b.jpg",
        "     3     4  c.jpg",
        "",
        "y.jpg  (4,096 buckets probed, 4 not empty)",
        "  rank  bits  photo",
        "     1     0  b.jpg",
        "     2     1  c.jpg",
        "     3     3  a.jpg",
    ]


def test_control_characters_of_names_are_escaped():
    name = "a\x1b[31m\n     1     0  b.jpg"
    found = [{"query": name, "probed": 1, "nonempty": 1, "hits": [{"distance": 0, "id": name}]}]
    lines = queries.table(found).splitlines()
    escaped = r"a\x1b[31m\n     1     0  b.jpg"
    assert lines[0] == f"{escaped}  (1 buckets probed, 1 not empty)"
    assert lines[2] == f"     1     0  {escaped}"


def test_probing_by_hamming_distance(run):
    arguments = [f"--run={run}", f"--codes={run / 'query.npz'}", "--probe=hamming", "--budget=3"]
    result = search(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [
        {
            "query": "x.jpg",
            "probed": 3,
            "nonempty": 2,
            "candidates": 2,
            "hits": [
                {"item": 0, "id": "a.jpg", "cost": 0},
                {"item": 1, "id": "b.jpg", "cost": 1},
            ],
        },
        {
            "query": "y.jpg",
            "probed": 3,
            "nonempty": 1,
            "candidates": 1,
            "hits": [{"item": 1, "id": "b.jpg", "cost": 0}],
        },
    ]
    assert search(*arguments, "--k=1").stdout.splitlines()[:3] == [
        "x.jpg  (1 buckets probed, 1 not empty, 1 codes read)",
        "  rank      cost  photo",
        "     1     0.000  a.jpg",
    ]


def test_another_database(run):
    write(run / "other.npz", [0b11], [0], "d")
    result = search(
        f"--run={run}", f"--codes={run / 'query.npz'}", f"--database={run / 'other.npz'}", "--json"
    )
    assert result.returncode == 0, result.stderr
    hits = [query["hits"] for query in json.loads(result.stdout)]
    assert hits == [[{"item": 0, "id": "d.jpg", "distance": n}] for n in (2, 1)]


@pytest.mark.parametrize("choice", ["one", "agent", "all"])
def test_a_photo_with_one_or_several_codes(small_run, choice, capsys):
    from mch_jax import search as command
    from mch_jax.data import photos
    from mch_jax.database import Database
    from mch_jax.encoder import Encoder

    path = small_run / "photos" / "00.jpg"
    arguments = [f"--run={small_run}", f"--image={path}", f"--query_codes={choice}", "--json"]
    encoder = Encoder.from_run(small_run)
    image = photos.resize(photos.decode(path.read_bytes()), encoder.image_size)
    query = encoder.query(image[None], choice)
    database = Database.open(small_run / "codes" / "database.npz")

    command.main([*arguments, "--probe=gqr", "--budget=33", "--k=22"])
    (record,) = json.loads(capsys.readouterr().out)
    found = database.index.probe(query.codes, query.margins, 33, 22)
    assert [hit["item"] for hit in record["hits"]] == found.item.tolist()
    np.testing.assert_allclose([hit["cost"] for hit in record["hits"]], found.cost, atol=1e-4)
    assert (record["probed"], record["candidates"]) == (found.probed[0], found.candidates[0])

    command.main([*arguments, "--k=5"])
    (record,) = json.loads(capsys.readouterr().out)
    itself = database.item_of(path)
    neighbours, _ = database.search(query.codes[0], 5, margins=query.margins[0], first=itself)
    assert [(h["item"], h["distance"]) for h in record["hits"]] == [x[:2] for x in neighbours]


@pytest.mark.parametrize("choice", ["one", "all"])
@pytest.mark.parametrize("rerank", [None, 9])
def test_asymmetric_distance_says_what_it_ranked(small_run, choice, rerank, capsys):
    from mch_jax import search as command
    from mch_jax.data import photos
    from mch_jax.database import Database
    from mch_jax.encoder import Encoder

    path = small_run / "photos" / "00.jpg"
    arguments = [f"--run={small_run}", f"--image={path}", "--rank=asymmetric", "--k=5"]
    arguments += [f"--query_codes={choice}"] + ([f"--rerank={rerank}"] if rerank else [])
    encoder = Encoder.from_run(small_run)
    image = photos.resize(photos.decode(path.read_bytes()), encoder.image_size)
    query = encoder.query(image[None], choice)
    index = Database.open(small_run / "codes" / "database.npz").index
    command.main([*arguments, "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    hits = index.search(query.codes, 5, margins=query.margins, rerank=rerank)
    assert record["ranked"] == (rerank or "all")
    assert [hit["item"] for hit in record["hits"]] == hits.item[0].tolist()
    np.testing.assert_allclose([hit["cost"] for hit in record["hits"]], hits.distance[0], atol=1e-4)
    command.main(arguments)
    among = f"the {rerank} nearest in bits" if rerank else "all photos, exactly"
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{path}  (by asymmetric distance among {among})"
    )


def test_searching_with_codes_does_not_import_jax(run):
    script = (
        "import sys; from mch_jax import search\n"
        "search.main(sys.argv[1:]); assert 'jax' not in sys.modules"
    )
    arguments = [f"--run={run}", f"--codes={run / 'query.npz'}"]
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--codes={run}/query.npz"], "--run is missing"),
        (["--run={run}"], "expected one of --image and --codes"),
        (["--run={run}", "--codes=a", "--image=b"], "expected one of --image and --codes"),
        (
            ["--run={run}/absent", "--codes={run}/query.npz"],
            "database.npz does not exist",
        ),
        (["--run={run}", "--codes={run}/absent.npz"], "absent.npz does not exist"),
        (["--run={run}", "--codes={run}/long.npz"], "long.npz has codes of 16 bits, "),
        (["--run={run}", "--codes={run}/query.npz", "--k=0"], "k"),
        (["--run={run}", "--image={run}/absent.jpg"], "absent.jpg"),
        (["--run={run}", "--other=1"], "other"),
        (["--run={run}", "--codes={run}/query.npz", "--probe=gqr"], "needs the logits"),
        (["--run={run}", "--codes={run}/query.npz", "--query_codes=all"], "needs --image"),
        (["--run={run}", "--codes={run}/query.npz", "--budget=3"], "--budget needs --probe"),
        (["--run={run}", "--codes={run}/query.npz", "--probe=best"], "probe"),
        (["--run={run}", "--codes={run}/query.npz", "--database=no.npz"], "no.npz does not exist"),
        (["--run={run}", "--codes={run}/query.npz", "--rank=asymmetric"], "needs --image"),
        (["--run={run}", "--image=a.jpg", "--rerank=20"], "--rerank=20 needs --rank=asymmetric"),
    ],
)
def test_wrong_arguments_get_one_line(run, arguments, reason):
    write(run / "long.npz", [1], [0], "x", num_bits=16)
    result = search(*(argument.format(run=run) for argument in arguments))
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert reason in result.stderr
