"""The SQL export, loaded into a real PostgreSQL server where there is one."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mch_jax import sql
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BucketIndex


@pytest.fixture(scope="module")
def file():
    rng = np.random.default_rng(0)
    item = np.sort(np.concatenate([np.arange(300), rng.integers(0, 300, 150)]))
    centres = rng.integers(0, 256, (6, 8), np.uint8)
    codes = centres[rng.integers(0, 6, 450)] ^ (np.uint8(1) << rng.integers(0, 8, (450, 8))).astype(
        np.uint8
    ) * (rng.random((450, 8)) < 0.4)
    ids = np.array([f"photo\t{i}\\{i}.jpg" for i in range(300)])
    return CodeFile(
        codes=codes.astype(np.uint8), item=item, ids=ids, keep_prob=np.ones(450, np.float32),
        box=np.zeros((450, 4), np.int32), labels=np.zeros((300, 1), np.uint8), num_bits=64,
    )  # fmt: skip


def test_rows_lie_in_their_rings(file):
    text = "".join(sql.statements(file))
    tables = {}
    for part in text.split("COPY ")[1:]:
        name, rows = part.split(" FROM stdin;\n")
        tables[name] = [line.split("\t") for line in rows.split("\\.\n")[0].splitlines()]
    assert tables["mch_images"][3] == ["3", "photo\\t3\\\\3.jpg"]
    pivots = [int(code) for _, code in tables["mch_pivots"]]
    assert len(tables["mch_codes"]) == 450
    for row, (pivot, ring, code, image) in enumerate(tables["mch_codes"]):
        word = int.from_bytes(file.codes[row].tobytes(), "little", signed=True)
        assert (int(code), int(image)) == (word, file.item[row])
        distances = [((p ^ word) & (2**64 - 1)).bit_count() for p in pivots]
        assert distances[int(pivot)] == int(ring) == min(distances)


def binaries():
    found = shutil.which("initdb") or next(
        iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
    )
    return Path(found).parent if found else None


@pytest.fixture(scope="module")
def psql(tmp_path_factory):
    """Runs SQL in a server of its own, that listens to nothing but a socket in its directory."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed: no initdb")
    place = Path("/tmp") / f"mch-sql-{os.getpid()}"  # short: a socket's path has 107 characters
    place.mkdir(mode=0o777)
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        if subprocess.run(["id", "postgres"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = "postgres"
        shutil.chown(place, "postgres")

    def call(name, *arguments, **options):
        program = binaries() / name
        command = [str(program if program.exists() else name), *arguments]
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=place, user=user, **options
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def run(*arguments, **options):
        return call("psql", "-X", "-q", "-A", "-t", "-h", str(place), "-d", "postgres",
                    "-v", "ON_ERROR_STOP=1", *arguments, **options)  # fmt: skip

    call("initdb", "-D", str(place / "data"), "-A", "trust", "--no-sync", "-E", "UTF8")
    settings = f"-c listen_addresses='' -c unix_socket_directories={place} -c fsync=off"
    call(
        "pg_ctl", "-D", str(place / "data"), "-w", "-o", settings, "-l", str(place / "log"), "start"
    )
    try:
        yield run
    finally:
        call("pg_ctl", "-D", str(place / "data"), "-m", "immediate", "stop")
        shutil.rmtree(place)


def test_postgresql_gives_the_answers_of_the_index(file, psql, tmp_path):
    sql.export(file, tmp_path / "codes.sql")
    psql("-f", "-", input=(tmp_path / "codes.sql").read_text())
    index = BucketIndex.build(file.codes, file.item, 64)
    rng = np.random.default_rng(1)
    queries = np.concatenate([file.codes[:6], rng.integers(0, 256, (4, 8), np.uint8)])
    hits = index.search(queries, 7)
    ball = index.within(queries, 5)
    for m, query in enumerate(sql.signed(queries, 64).tolist()):
        rows = psql("-c", f"SELECT * FROM mch_nearest({query}, 7)").split()
        found = [tuple(map(int, row.split("|"))) for row in rows]
        assert found == list(zip(hits.item[m].tolist(), hits.distance[m].tolist(), strict=True))
        rows = psql("-c", f"SELECT * FROM mch_within({query}, 5)").split()
        part = slice(ball.offsets[m], ball.offsets[m + 1])
        expected = zip(ball.item[part].tolist(), ball.distance[part].tolist(), strict=True)
        assert [tuple(map(int, row.split("|"))) for row in rows] == list(expected)
    assert psql("-c", "SELECT id FROM mch_images WHERE image = 3").rstrip("\n") == file.ids[3]
    assert len(psql("-c", "SELECT * FROM mch_nearest(0, 999)").split()) == 300


NAMES = [
    "a\rb",
    "c\nd",
    "e\r\nf",
    "\r",
    "\\r",
    "\\.",
    "\\N",
    "g\x0bh",
    "i\x85j",
    "k\u2028l",
    "\x1b[2J",
]


def test_names_come_back_byte_for_byte(file, psql, tmp_path):
    """psql and Python read line ends in several ways; the names are therefore compared in hex."""
    few = file._replace(
        codes=file.codes[: len(NAMES)], item=np.arange(len(NAMES)), ids=np.array(NAMES)
    )
    sql.export(few, tmp_path / "names.sql")
    for _ in range(2):  # also over an earlier export
        psql("-f", "-", input=(tmp_path / "names.sql").read_bytes().decode())
        query = "SELECT encode(convert_to(id, 'UTF8'), 'hex') FROM mch_images ORDER BY image"
        found = [bytes.fromhex(line).decode() for line in psql("-c", query).split()]
        assert found == NAMES


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_names_that_postgresql_cannot_store_are_refused(file, tmp_path, name):
    few = file._replace(codes=file.codes[:1], item=np.arange(1), ids=np.array([name]))
    with pytest.raises(ValueError, match="PostgreSQL cannot store"):
        sql.export(few, tmp_path / "names.sql")
    assert not (tmp_path / "names.sql").exists()
