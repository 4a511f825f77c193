"""A run that took no training: a folder of photos, an encoder of random weights, and its codes."""

import contextlib
import socket
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import default
from mch_jax import data
from mch_jax.data import photos
from mch_jax.encoder import FILE, Encoder
from mch_jax.files import code_sets, codes_file
from mch_jax.models import AlexNet, Policy
from mch_jax.training.network import random_params

NUM_BITS, SIDE, HIDDEN = 12, 64, 16
CLASSES = ("red", "green", "blue")


def photo(seed, width=72, height=48):
    """Returns a photo of coarse colour noise, with one channel the brightest."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 160, (6, 8, 3))
    pixels[..., seed % 3] += 90
    image = Image.fromarray(pixels.astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encoder():
    model = AlexNet(num_bits=NUM_BITS, hidden=HIDDEN, width=1 / 16)
    policy = Policy((16, 8, 8, 4))
    params = random_params(model, SIDE - 1, 0)
    params["hash"]["kernel"] *= 30
    state = jnp.zeros((2, 2 * (HIDDEN + NUM_BITS)))
    variables = jax.tree.map(np.asarray, policy.init(jax.random.key(0), state))
    return Encoder(model, params, policy, variables, 0.5, 0.5, SIDE, SIDE - 1)


def make(workdir, count=24):
    """Writes the photos into `workdir/photos` and everything that serving needs."""
    folder, rows = workdir / "photos", ["file,split,red,green,blue"]
    (folder / "sub").mkdir(parents=True)
    for seed in range(count):
        name = f"{'sub/' if seed % 2 else ''}{seed:02d}.{'png' if seed % 4 else 'jpg'}"
        photo(seed, width=72 if seed % 5 else 96).save(folder / name)
        split = "query" if seed < 2 else "train"
        rows.append(",".join([name, split, *(str(int(seed % 3 == c)) for c in range(3))]))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    config: Any = default.get_config()
    config.method, config.num_bits = "dch", NUM_BITS
    config.dataset.update(name="folder", root=str(folder), settings={})
    (workdir / "config.json").write_text(config.to_json_best_effort())
    this = encoder()
    this.save(workdir / FILE)
    dataset = data.load("folder", folder)
    images = [dataset.read(int(row)) for row in dataset.database]
    packed, keep_prob = this.encode_regions(np.stack([photos.resize(x, SIDE) for x in images]))
    sizes = np.array([(x.shape[1], x.shape[0]) for x in images])
    code_set = this.code_set(packed, keep_prob, sizes)
    ids, labels = dataset.ids[dataset.database], dataset.labels[dataset.database]
    file = code_sets.flatten(code_set, ids, labels, NUM_BITS)
    codes_file.save(workdir / "codes" / "database.npz", file)
    return workdir


@contextlib.contextmanager
def serving(service, send_buffer=None):
    """Serves on a free port in a thread; yields the address.

    Args:
      service: The service.
      send_buffer: Size of each connection's buffer in bytes, if not the system's.
    """
    from mch_jax.serving import server as module  # here only: encoding needs no server

    server = module.create(service)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        if send_buffer:  # connections inherit it
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
