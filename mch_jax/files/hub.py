"""Files of the Hugging Face Hub, named `hf:owner/name/file`."""

import re

PREFIX = "hf:"
_NAMES = re.compile(r"hf:([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?/([\w.-]+(?:/[\w.-]+)*)")


def local_path(path: str) -> str:
    """Returns the path of a file on this machine, which is downloaded first if the Hub has it.

    Downloads are kept by huggingface_hub, in HF_HUB_CACHE or its own default folder. A file that is
    there is found without a network.

    Args:
      path: `hf:owner/name/file`, `hf:owner/name@revision/file` with a branch, tag or commit, or any
        other path, which is returned as it is.

    Raises:
      ValueError: The name is malformed, the package huggingface_hub is not installed, or the file
        cannot be had.
    """
    if not path.startswith(PREFIX):
        return path
    names = _NAMES.fullmatch(path)
    if names is None or ".." in path:
        raise ValueError(
            f"{path!r} names no file of the Hub; expected hf:owner/name/file, such as "
            "hf:timm/vit_small_patch16_224.dino/model.safetensors"
        )
    repository, revision, file = names.groups()
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"{path} needs the package huggingface_hub; run pip install 'mch_jax[hub]', or give "
            "the path of a file"
        ) from None
    try:
        return hf_hub_download(repository, file, revision=revision)
    except Exception as error:  # noqa: BLE001 - the network and the Hub fail in many ways
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{path} cannot be downloaded ({type(error).__name__}: {text}); give the path of a file"
        ) from None
