"""An accelerator that is none: tensors on a device of their own, with their values on the CPU, to
see what a GPU would.

As on a GPU an operation on tensors of both devices is an error, and the times that the host has to
wait for values are counted in `waits`, for the operations that are named here. The device stays
registered as long as the process lives: use it in a process of its own.
"""

from collections import Counter

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "pretend"
# since torch 2.10
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
# What has a result whose size, or whose value on the host, depends on the values of a tensor.
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "allclose",
    "repeat_interleave",
    "bincount",
)
WAITS += ("_unique2", "unique_consecutive", "unique_dim", "multinomial", "histc")
# a mask is looked up, indices on the CPU are copied
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
COPIES = ("_to_copy", "copy_")
waits: Counter[str] = Counter()


class DeviceTensor(torch.Tensor):
    """A tensor on the device: `values` `[...]`, on the CPU, are what is computed with."""

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "DeviceTensor":
        layout = {
            "strides": values.stride(),
            "storage_offset": values.storage_offset(),
            "dtype": values.dtype,
        }
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), device=torch.device(DEVICE, 0), **layout
        )

    def __init__(self, values: torch.Tensor):
        self.values_on_cpu = values

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """What is created on the device goes through here; all else through `DeviceTensor`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return run(function, args, kwargs or {})


def run(function, args: tuple, kwargs: dict):
    """One operation, on the values; what it gives is on the device of its arguments, or on the one
    it is told."""
    name = function._schema.name.removeprefix("aten::")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    told = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    on_device = (
        isinstance(args[0], DeviceTensor)
        if name == "copy_"
        else told == DEVICE
        if told
        else bool(there)
    )
    if there:
        check_devices(name, tensors)
    if there or on_device:
        count_wait(name, args, kwargs, on_device)
    plain_args, plain_kwargs = tree_map(
        lambda leaf: getattr(leaf, "values_on_cpu", leaf), (args, kwargs)
    )
    if told:
        plain_kwargs |= (
            {"device": "cpu", "pin_memory": False} if "pin_memory" in kwargs else {"device": "cpu"}
        )
    with _disable_current_modes():
        result = function(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    known = {id(tensor.values_on_cpu): tensor for tensor in there}  # changed in place

    def place(leaf):
        if not on_device or not isinstance(leaf, torch.Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else DeviceTensor(leaf)

    return tree_map(place, result)


def check_devices(name: str, tensors: list[torch.Tensor]) -> None:
    """Raises `RuntimeError` for tensors of both devices; numbers may come from the CPU, and so may
    indices."""
    if name in INDEXED:  # by indices of either device
        tensors = [
            tensor for tensor in tensors if tensor.dtype not in (torch.int64, torch.bool)
        ] or tensors[:1]
    strangers = [
        tensor for tensor in tensors if tensor.dim() and not isinstance(tensor, DeviceTensor)
    ]
    if strangers and name not in COPIES:
        shapes = [list(tensor.shape) for tensor in strangers]
        raise RuntimeError(
            f"{name}: all tensors must be on one device, those of shapes {shapes} are not."
        )


def count_wait(name: str, args: tuple, kwargs: dict, on_device: bool) -> None:
    """Counts `name` in `waits` if the host waits: for values, or for the end of a copy that it does
    not leave alone."""
    waited = name in WAITS
    if name in INDEXED:
        indices = [index for index in args[1] if index is not None]
        waited = any(
            index.dtype == torch.bool or not isinstance(index, DeviceTensor) for index in indices
        )
    elif name in COPIES:
        source = args[1] if name == "copy_" else args[0]
        left_alone = on_device and (kwargs.get("non_blocking") or args[2:3] == (True,))
        waited = isinstance(source, DeviceTensor) != on_device and not left_alone
    if waited:
        waits[name] += 1


def start() -> torch.device:
    """Registers the device, for the rest of the process."""
    backend = backend_registration._DummyBackendModule()
    backend.get_amp_supported_dtype = lambda: [torch.bfloat16]  # gradient checkpointing asks for it
    backend.get_rng_state = lambda device=None: torch.get_rng_state()
    backend_registration._setup_privateuseone_for_python_backend(DEVICE, backend_module=backend)
    # torch.tensor(values, device=...) then passes through the mode
    torch._C._set_only_lift_cpu_tensors(True)
    PretendDevice().__enter__()
    return torch.device(DEVICE, 0)
