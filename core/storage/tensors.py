"""Tensors of a safetensors file, and their shapes from its header alone, before anything is allocated."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from core.errors import DataError, ResourceError, blamed
from core.estimate import machine_bytes

Shapes = dict[str, tuple[int, ...]]


def read_shapes(file: Path) -> Shapes:
    """The shape of each tensor by its name. DataError if the file is missing or damaged."""
    with blamed(DataError, str(file), "damaged or not a safetensors file"):
        if not file.is_file():
            raise DataError(f"{file}: no such file; a finished run has it in its model/ directory")
        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All of them, on the CPU. Raises also ResourceError if they do not fit into this machine's memory."""
    read_shapes(file)
    if (size := file.stat().st_size) > machine_bytes():
        raise ResourceError(f"{file}: its {size / 1e9:,.1f} GB do not fit into this machine's memory")
    with blamed(DataError, str(file), "damaged or not a safetensors file"):
        return dict(load_file(file))


def require_shapes(found: Shapes, wanted: Shapes, file: Path) -> None:
    """DataError that names the first tensor which is missing, of another shape, or of no use to the model."""
    for name, shape in wanted.items():
        if name not in found:
            raise DataError(f"{file}: lacks {name}; the file is not of this config.json")
        if found[name] != shape:
            raise DataError(f"{file}: {name} has shape {list(found[name])}, config.json says {list(shape)}")
    if extra := sorted(set(found) - set(wanted)):
        raise DataError(f"{file}: holds {extra[0]}, which a model of this config.json does not have")
