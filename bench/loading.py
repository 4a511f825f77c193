"""Photos per second that the loader delivers, and the cores that keep an accelerator busy.

python -m bench.loading --root=COCO18 [--photos=600] [--out=bench/results]

Each worker process is pinned to a core and reads its own photos in batches: decoding, resizing to
256 x 256 and batching. `large` are coco18's photos, enlarged to 640 pixels on the longer side as
COCO's are and saved as JPEG with quality 90. `jpeg` and `raw` are array_record files of photos
already resized to 256 x 256, as JPEG with quality 95 (as `mch_jax.prepare` writes them) and as
pixels. Rates by the clock depend on what else the machine does; those by CPU time hardly do.

The rates that an accelerator needs are those of `launch/aot_check.py` (bench/results/aot.json): the
photos of a step, divided by the larger of its compute and memory seconds. These are the fewest
seconds that published peaks allow, so the rates and the cores are upper bounds.
"""

import argparse
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import (  # pyright: ignore[reportMissingImports]
    array_record_module as array_record,  # pyright: ignore[reportAttributeAccessIssue]
)
from PIL import Image

from mch_jax import data
from mch_jax.data import loader, photos
from mch_jax.machine import cores

RESULTS = Path(__file__).parent / "results"
SIDE, LONG_SIDE, BATCH = 256, 640, 32
NUM_COCO = 117_218 + 5_000  # database and queries
FORMS = ("tar", "large", "jpeg", "raw")
# Photos that one device takes in a step of `launch/aot_check.py`, by the number of devices.
STEPS = {
    "base_step": lambda devices: 256 // devices,
    "agent_step": lambda devices: 256 // devices,
    "encoder": lambda devices: 256,
}


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """Returns an image as JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def records(dataset: data.Dataset, rows: np.ndarray, form: str) -> Iterator[bytes]:
    """Yields the photos in one of the forms that are files of array_record."""
    for row in rows:
        image = dataset.read(int(row))
        if form == "large":
            scale = LONG_SIDE / max(image.shape[:2])
            size = round(scale * image.shape[1]), round(scale * image.shape[0])
            yield jpeg(np.asarray(Image.fromarray(image).resize(size)), 90)
        else:
            small = photos.resize(image, SIDE)
            yield small.tobytes() if form == "raw" else jpeg(small, 95)


def write(dataset: data.Dataset, rows: np.ndarray, folder: Path) -> dict[str, float]:
    """Writes the files of array_record and returns their bytes per photo."""
    found = {}
    for form, options in (
        ("large", "group_size:1"), ("jpeg", "group_size:1"), ("raw", "group_size:1"),
        ("uncompressed", "group_size:1,uncompressed"),
    ):  # fmt: skip
        writer = array_record.ArrayRecordWriter(str(folder / form), options)
        for record in records(dataset, rows, "raw" if form == "uncompressed" else form):
            writer.write(record)
        writer.close()
        found[form] = (folder / form).stat().st_size / len(rows)
    return found


def opened(form: str, root: str, folder: Path, count: int) -> tuple[data.Dataset, np.ndarray]:
    """Returns the photos in a form, and their rows."""
    if form == "tar":
        dataset = data.load("coco18", root)
        return dataset, dataset.database[:count]
    reader = array_record.ArrayRecordReader(str(folder / form))

    def read(row: int) -> np.ndarray:
        (record,) = reader.read([row])
        if form == "raw":
            return np.frombuffer(record, np.uint8).reshape(SIDE, SIDE, 3)
        return photos.decode(record)

    rows = np.arange(count)
    dataset = data.Dataset(
        name="bench", classes=("a",), ids=rows.astype(np.str_),
        labels=np.ones((count, 1), np.uint8), query=rows[:0], database=rows, train=rows,
        read=read, sizes=np.zeros((count, 2), np.int32),
    )  # fmt: skip
    return dataset, rows


def work(barrier: Any, queue: Any, number: int, arguments: tuple[Any, ...]) -> None:
    """Reads a worker's photos and puts their number, wall seconds and CPU seconds in a queue."""
    os.sched_setaffinity(0, {cores()[number]})
    dataset, rows = opened(*arguments)
    for _ in loader.epoch(dataset, rows[:BATCH], SIDE, BATCH):
        pass
    barrier.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in loader.epoch(dataset, rows, SIDE, BATCH):
        pass
    queue.put((len(rows), time.perf_counter() - wall, time.process_time() - cpu))


def rate(num_workers: int, *arguments: Any) -> dict[str, Any]:
    """Returns photos per second of some workers, by the clock and by their CPU time."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(num_workers), context.Queue()
    workers = [
        context.Process(target=work, args=(barrier, queue, number, arguments))
        for number in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    counts, wall, cpu = np.array([queue.get() for _ in workers]).T
    for worker in workers:
        worker.join()
    return {
        "form": arguments[0], "workers": num_workers, "per_second": counts.sum() / wall.max(),
        "per_cpu_second": counts.sum() / cpu.sum(),
    }  # fmt: skip


def needed(rows: list[dict[str, Any]], aot: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rate that each program needs on each accelerator, and the cores that make it.

    Args:
      rows: Rows of `rate`.
      aot: Rows of `launch/aot_check.py`.
    """
    of_one_core = {row["form"]: row["per_cpu_second"] for row in rows if row["workers"] == 1}
    found = []
    for row in aot:
        name, target = row["program"], row["target"]
        if name not in STEPS or target not in ("v5e-4", "h100-1") or not row["ok"]:
            continue
        least = max(row["compute_seconds"], row["memory_seconds"])
        per_second = STEPS[name](int(target.rpartition("-")[2])) / least
        found.append(
            {
                "program": name, "target": target.partition("-")[0], "per_second": per_second,
                "cores": {form: per_second / of_one_core[form] for form in FORMS},
            }
        )  # fmt: skip
    return found


def markdown(record: dict[str, Any]) -> str:
    """Returns the tables of a result."""
    lines = [
        "| form | workers | photos/s by the clock | photos/s by CPU time |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['form']} | {row['workers']} | {row['per_second']:,.0f} | "
        f"{row['per_cpu_second']:,.0f} |"
        for row in record["rates"]
    ]
    lines += ["", "| array_record | kB per photo | COCO (GB) |", "| --- | ---: | ---: |"]
    lines += [
        f"| {form} | {size / 1e3:.1f} | {size * NUM_COCO / 1e9:.1f} |"
        for form, size in record["bytes_per_photo"].items()
    ]
    lines += [
        "", f"| accelerator | program | photos/s at most | {' | '.join(FORMS)} |",
        "| --- | --- | ---: |" + " ---: |" * len(FORMS),
    ]  # fmt: skip
    lines += [
        f"| {row['target']} | `{row['program']}` | {row['per_second']:,.0f} | "
        + " | ".join(f"{row['cores'][form]:,.1f}" for form in FORMS) + " |"
        for row in record["needed"]
    ]  # fmt: skip
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, prints and writes loading.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--root", required=True, help="folder of coco18")
    parser.add_argument("--photos", type=int, default=600, help="number of photos for each worker")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    dataset = data.load("coco18", arguments.root)
    rows = dataset.database[: arguments.photos]
    with tempfile.TemporaryDirectory() as name:
        sizes = write(dataset, rows, Path(name))
        rates = [
            rate(num_workers, form, arguments.root, Path(name), len(rows))
            for form in FORMS
            for num_workers in (1, 2)
        ]
    aot = json.loads((RESULTS / "aot.json").read_text())
    record = {"rates": rates, "bytes_per_photo": sizes, "needed": needed(rates, aot)}
    (arguments.out / "loading.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "loading.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
