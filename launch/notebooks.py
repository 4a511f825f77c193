"""Executes the notebooks and saves their outputs in them, for people to see before they run them.

python launch/notebooks.py [NAME ...]

Needs `pip install nbclient ipykernel`. Each notebook runs in a new kernel with the settings of its
first cell; scenes.ipynb makes the run that own_photos.ipynb searches with. What a notebook logs is
left out. Figures are stored as JPEG where that is smaller.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import nbclient  # pyright: ignore[reportMissingImports]
import nbformat  # pyright: ignore[reportMissingImports]
from PIL import Image

LAUNCH = Path(__file__).parent
NAMES = ("scenes", "own_photos", "bring_your_network")


def smaller(png: str) -> dict[str, str]:
    """Returns a figure, a PNG in base64, in the smaller of two formats."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    found = {"image/png": base64.b64decode(png), "image/jpeg": b""}
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80, optimize=True)
    found["image/jpeg"] = stream.getvalue()
    kind = min(found, key=lambda name: len(found[name]))
    return {kind: base64.b64encode(found[kind]).decode()}


def kept(output: Any) -> dict[str, Any] | None:
    """Returns an output as it is saved, or None for a part of the log."""
    if output.output_type == "stream":
        lines = output.text.splitlines(keepends=True)
        is_log = output.name == "stderr"
        return None if is_log else {"name": "stdout", "output_type": "stream", "text": lines}
    data = dict(output.data)
    figure = smaller(data.pop("image/png")) if "image/png" in data else {}
    return {"data": figure | data, "metadata": {}, "output_type": output.output_type}


def main() -> None:
    """Executes the notebooks that are named, or all."""
    for name in sys.argv[1:] or NAMES:
        path = LAUNCH / f"{name}.ipynb"
        notebook = json.loads(path.read_text())
        executed = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(LAUNCH)}}
        nbclient.NotebookClient(executed, timeout=None, resources=resources).execute()
        for cell, done in zip(notebook["cells"], executed.cells, strict=True):
            if cell["cell_type"] == "code":
                cell["execution_count"] = done.execution_count
                cell["outputs"] = [x for output in done.outputs if (x := kept(output))]
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
