"""Reads the tensors of other people's weight files without executing anything in them."""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from methods.errors import StageError
from methods.released import digest

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}

# What torch, pickle and zipfile raise on files that are torn, foreign or hostile.
BROKEN = (
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    SafetensorError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


def find_weights(root: Path, task: Any) -> Path:
    """The file `root`/`task.weights`; `task.fetch` says to a person what to fetch.

    Raises StageError("weights") when it is missing or its SHA-256 does not begin with
    `task.sha256`.
    """
    path = root / task.weights
    if not path.is_file():
        raise StageError("weights", f"{path} is missing: fetch {task.fetch} and place it there")
    if task.sha256 and not (found := digest(path)).startswith(task.sha256.lower()):
        raise StageError(
            "weights",
            f"{path}: SHA-256 begins with {found[:8]}, expected {task.sha256}; "
            f"fetch {task.fetch} again, or set sha256 = '' to take the file as it is",
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every tensor in a safetensors file, a TorchScript archive or a torch.save state dict.

    torch.jit.load would run the archive's own `__setstate__` code, so its pickle is read here by
    an unpickler that knows tensors and inert records only; state dicts go through `weights_only`.
    Nested "state_dict", "model", "module" and "teacher" (DINO) tables are opened.
    StageError("weights") otherwise.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            loaded = _read_torchscript(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN as error:
        line = str(error).strip().splitlines()[:1]
        raise StageError(
            "weights", f"{path}: cannot be read safely ({''.join(line)}); nothing was executed"
        ) from None
    return _state_of(loaded, path)


def _state_of(loaded: Any, path: Path) -> dict[str, Tensor]:
    for name in ("state_dict", "model", "module", "teacher"):
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    state = loaded if isinstance(loaded, dict) else {}
    tensors = {str(name): item for name, item in state.items() if isinstance(item, Tensor)}
    if not tensors:
        raise StageError("weights", f"{path}: holds no tensors")
    for name, item in tensors.items():
        if item.layout != torch.strided or item.device.type == "meta" or item.is_complex():
            raise StageError("weights", f"{path}: {name} is no plain tensor")
    return tensors


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name without the prefixes of networks around an encoder, to the one in the file.

    Where a prefix occurs, names without it are of other parts and left out.
    """
    found = {name: name for name in names}
    for prefix in ("module.", "backbone.", "encoder."):
        inside = {n.removeprefix(prefix): i for n, i in found.items() if n.startswith(prefix)}
        found = inside or found
    return found


def is_torchscript(path: Path) -> bool:
    """Whether the file is what torch.jit.save writes: a zip with a constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Record:
    """Stands for an object of any class in the archive: keeps its fields, runs nothing."""

    def __init__(self, *_: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = dict(state) if isinstance(state, dict) else {}


def _rebuild(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    outside = min((offset, *size, *stride)) < 0 or (all(size) and last >= storage.numel())
    # A stride of 0 would let a few bytes stand for any amount of memory.
    if outside or math.prod(size) > storage.numel():
        raise pickle.UnpicklingError("a tensor reaches outside its storage")
    return storage.as_strided(size, stride, offset).clone()


def _first(items: Any, *_: Any) -> Any:
    return items


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors whose bytes `read(key)` returns; every other class becomes inert.

    Only classes of the archive's own namespace (`inert` prefixes) become records; any other
    global raises UnpicklingError, so a pickle that calls os.system is refused before it runs.
    """

    def __init__(self, file: IO[bytes], read: Any, inert: tuple[str, ...]) -> None:
        super().__init__(file)
        self._read, self._inert = read, inert
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _first
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module in ("builtins", "__builtin__") and name == "set":
            return set
        if module == "torch.jit._pickle" and name in (*_LISTS, "restore_type_tag"):
            return _first
        if module.split(".")[0] in self._inert:
            return _Record
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if key not in self._storages:
            self._storages[key] = self._load(key, dtype, int(count))
        return self._storages[key]

    def _load(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        content = bytearray(self._read(key))
        if not content:
            return torch.empty(0, dtype=dtype)
        if len(content) < count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} is cut short")
        return torch.frombuffer(content, dtype=dtype, count=count)


def read_pickle(path: Path, inert: tuple[str, ...]) -> Any:
    """The object in a zip archive of torch.save or torch.jit.save, with records for classes."""
    with zipfile.ZipFile(path) as archive:
        data = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "")
        if not data:
            raise pickle.UnpicklingError("no archive of torch.save or torch.jit.save")
        root = data.removesuffix("data.pkl")
        with archive.open(data) as file:
            return TensorUnpickler(file, partial(_entry, archive, root), inert).load()


def _entry(archive: zipfile.ZipFile, root: str, key: str) -> bytes:
    entry = archive.getinfo(f"{root}data/{key}")
    if entry.compress_type != zipfile.ZIP_STORED:  # torch packs nothing, so this may unpack to more
        raise pickle.UnpicklingError(f"storage {key} is compressed")
    return archive.read(entry)


def read_module(path: Path, inert: tuple[str, ...]) -> dict[str, Tensor]:
    """The state of a whole nn.Module that torch.save pickled (a zip archive), or of a state dict.

    Classes of torch and of the packages `inert` become records; nothing is executed.
    StageError("weights") otherwise.
    """
    try:
        root = read_pickle(path, (*inert, "torch"))
        tensors: dict[str, Tensor] = {}
        if not isinstance(root, dict):
            _collect_module(root, "", tensors)
    except BROKEN as error:
        raise StageError(
            "weights", f"{path}: cannot be read safely ({error}); nothing was executed"
        ) from None
    return _state_of(root if isinstance(root, dict) else tensors, path)


def _collect_module(record: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    fields = getattr(record, "fields", {})
    for kind in ("_parameters", "_buffers"):
        for name, item in fields.get(kind, {}).items():
            if isinstance(item, Tensor):
                tensors[prefix + name] = item
    for name, child in fields.get("_modules", {}).items():
        _collect_module(child, f"{prefix}{name}.", tensors)


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    _collect(read_pickle(path, inert=("__torch__",)), "", tensors)
    return tensors


def _collect(record: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, item in getattr(record, "fields", {}).items():
        if isinstance(item, Tensor):
            tensors[prefix + name] = item
        elif isinstance(item, _Record):
            _collect(item, f"{prefix}{name}.", tensors)
