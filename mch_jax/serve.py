"""Serves a run: a web page and a JSON API.

python -m mch_jax.serve --run=DIR --port=8000
python -m mch_jax.serve --run=DIR --codes=codes.npz --images=FOLDER

The second form serves photos of one's own, as `mch_jax.export` encoded them.
"""

import contextlib
import socket
from pathlib import Path

from absl import flags

from mch_jax.main import keep_compiled, run_command

_RUN = flags.DEFINE_string("run", None, "Workdir of a finished run.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for every one.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0 for any that is free.", 0, 65535)
_CODES = flags.DEFINE_string("codes", None, "A codes file of mch_jax.export instead of the run's.")
_IMAGES = flags.DEFINE_string("images", None, "The photos that were exported, to show them.")
_MAX_PENDING = flags.DEFINE_integer(
    "max_pending", 128, "Requests at one time; further ones are refused.", lower_bound=1
)
_MAX_UPLOAD = flags.DEFINE_integer("max_upload", 16, "MiB of a photo's file.", lower_bound=1)
_MAX_PIXELS = flags.DEFINE_integer(
    "max_pixels", 50, "Millions of pixels of a photo, at most 80.", 1, 80
)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ValueError(
            f"--host={host} --port={port}: {error.strerror or error}; expected an address of this "
            "machine and a free port"
        ) from None


def main(_: list[str]) -> None:
    """Serves until it is told to stop, then answers what it has accepted."""
    if not _RUN.value:
        raise ValueError("--run is missing; expected the workdir of a finished run")
    if _IMAGES.value and not _CODES.value:
        raise ValueError("--images goes with --codes, the file that mch_jax.export made of them")
    try:
        import uvicorn

        from mch_jax.serving import api
    except ImportError as error:
        raise ValueError(
            f"serving needs the package {error.name}; run pip install 'mch_jax[serve]'"
        ) from None
    from mch_jax.serving import catalogue
    from mch_jax.serving.gate import Limits
    from mch_jax.training.encode import Encoder

    keep_compiled()
    run = Path(_RUN.value)
    encoder = Encoder.from_run(run)
    if _CODES.value:
        database = catalogue.of_files(Path(_CODES.value), _IMAGES.value)
    else:
        database = catalogue.of_run(run)
    if database.file.num_bits != encoder.model.num_bits:
        raise ValueError(
            f"--codes={_CODES.value} has codes of {database.file.num_bits} bits, the run's have "
            f"{encoder.model.num_bits}; export the photos with this run"
        )
    limits = Limits(
        pending=_MAX_PENDING.value, upload=_MAX_UPLOAD.value * 2**20,
        pixels=_MAX_PIXELS.value * 10**6,
    )  # fmt: skip
    service = api.Service(encoder, database, catalogue.method_of(run), limits)
    listener = _listen(_HOST.value, _PORT.value)
    service.warm_up()
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    print(f"{len(database):,} photos at http://{host}:{port}", flush=True)  # noqa: T201
    config = uvicorn.Config(
        api.create_app(service), log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=30, timeout_graceful_shutdown=60,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    run_command(main)
