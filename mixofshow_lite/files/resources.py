"""Where the shipped files are: the pocket model and the concepts, in a checkout and in an installed wheel alike."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def data_dir() -> Path:
    """Folder that holds `pocket/` and `concepts/`: the wheel's own copy if there is one, else the checkout's `data/`.

    Raises FileNotFoundError when neither exists (a package copied without its data).
    """
    candidates = (_PACKAGE / "_data", _PACKAGE.parent / "data")
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"the shipped models and concepts are missing ({candidates[1]} does not exist): "
        "reinstall mixofshow_lite, or run from a complete checkout"
    )


def pocket_dir() -> Path:
    """The shipped Pocket Diffusion: a diffusers pipeline folder, with Pocket CLIP in `clip/`."""
    return _shipped("pocket", "run `make pretrain` to train it, or take a complete checkout")


def concepts_dir() -> Path:
    """The shipped concepts: one imagefolder (`metadata.jsonl`, pictures, masks) per concept."""
    return _shipped("concepts", "take a complete checkout or reinstall mixofshow_lite")


def _shipped(name: str, remedy: str) -> Path:
    folder = data_dir() / name
    if not folder.is_dir():
        raise FileNotFoundError(f"the shipped folder {folder} is missing: {remedy}")
    return folder
