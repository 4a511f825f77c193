"""Serves a run as a web page and a JSON API.

python -m mch_jax.serve --run=DIR --port=8000
python -m mch_jax.serve --run=DIR --database=codes.npz --images=FOLDER

The second form serves photos of one's own, which mch_jax.export has encoded.
"""

import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("run", None, "Workdir of a finished run.", flag_values=values)
    flags.DEFINE_string(
        "host", "127.0.0.1", "Address to listen on; 0.0.0.0 for all addresses of this machine.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "allowed_hosts", None, "Host names and addresses that requests may name, without port, "
        "besides localhost; * allows any.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "port", 8000, "Port to listen on; 0 for any free port.", 0, 65535, flag_values=values
    )
    flags.DEFINE_string(
        "database", None, "A codes file of mch_jax.export to serve instead of the run's.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_alias("codes", "database", flag_values=values)  # the former name
    flags.DEFINE_string(
        "images", None, "The exported photos, which the page shows.", flag_values=values
    )
    flags.DEFINE_string(
        "query_codes", "one", "Codes of a photo to search with unless a request says otherwise: "
        "one, agent (those that the agent keeps) or all six.", flag_values=values,
    )  # fmt: skip
    command.define_backbone(values)
    flags.DEFINE_integer(
        "max_pending", 128, "Requests in progress, beyond which further ones are refused.",
        lower_bound=1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "max_upload", 16, "Largest size of an uploaded photo, in MiB.", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "max_pixels", 50, "Largest number of pixels of a photo, in millions, at most 80.", 1, 80,
        flag_values=values,
    )  # fmt: skip


def _hosts(options: Any) -> list[str]:
    """Returns the hosts that requests may name, beside those of this machine's loopback."""
    named = [host.strip().lower() for host in options.allowed_hosts or ()]
    return named if options.host in ("0.0.0.0", "::") else [*named, options.host.lower()]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
        # Connections inherit it: answers to a client that never reads take little time and memory.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**17)
        return listener
    except OSError as error:
        raise ValueError(
            f"--host={host} --port={port}: {error.strerror or error}; expected an address of this "
            "machine and a free port"
        ) from None


def main(arguments: Sequence[str]) -> None:
    """Serves until the process is told to stop, then answers the requests that it has accepted."""
    options = command.parse(arguments, define_flags, __doc__)
    from mch_jax import query_codes

    command.require(options, run="the workdir of a finished run")
    if options.images and not options.database:
        raise ValueError("--images needs --database, the file that mch_jax.export wrote for them")
    query_codes.check(options.query_codes, "--query_codes")
    try:
        from mch_jax.serving import server
        from mch_jax.serving.limits import LOOPBACK, Limits
        from mch_jax.serving.service import Service
    except ImportError as error:
        raise ValueError(
            f"serving needs the package {error.name}; run pip install 'mch_jax[serve]'"
        ) from None

    command.keep_compiled()
    limits = Limits(
        pending=options.max_pending, upload_bytes=options.max_upload * 2**20,
        pixels=options.max_pixels * 10**6, hosts=(*LOOPBACK, *_hosts(options)),
    )  # fmt: skip
    service = Service.open(
        Path(options.run), limits, options.database, options.images, options.query_codes,
        options.backbone,
    )  # fmt: skip
    listener = _listen(options.host, options.port)
    service.warm_up()
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    command.show(f"{len(service.database):,} photos at http://{host}:{port}")
    with contextlib.suppress(KeyboardInterrupt):
        server.create(service).run(sockets=[listener])


if __name__ == "__main__":
    command.run(main)
