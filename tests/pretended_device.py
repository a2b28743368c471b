"""A device that is none: its tensors lie in the CPU's memory and refuse those of the CPU.

What runs on it gives the CPU's numbers, and fails where a tensor was left behind, as on a GPU.
Without CUDA torch can make tensors that say they are on "cuda", but not differentiate them (also
those of `FakeTensorMode`, which have no numbers). "lazy" is a kind of device that torch knows by
name and that nothing else here uses.
"""

from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map, tree_map_only

THERE = torch.device("lazy")
HERE = torch.device("cpu")
COPY = torch.ops.aten.copy_.default
MOVES = frozenset({COPY, torch.ops.aten._to_copy.default})


class TensorThere(Tensor):
    """What says that it is on `THERE`."""

    memory: Tensor

    @staticmethod
    def __new__(cls, memory: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            device=THERE,
        )
        made.memory = memory
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _carry_out(operation, args, kwargs or {})

    def __repr__(self) -> str:
        return f"TensorThere({self.memory!r})"


class PretendedDevice(TorchDispatchMode):
    """While it is entered tensors can be made on `THERE`, and moved there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds

    def __enter__(self):
        # What a list or a number becomes is made on the CPU first, and then moved.
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # noqa: FBT003 — it has no name
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self._before)
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _carry_out(operation, args, kwargs or {})


def _carry_out(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation whose tensors all lie on one device."""
    kind = _kind(operation, args, kwargs)
    inner_args, inner_kwargs = tree_map(_memory, (args, kwargs))
    result = operation(*inner_args, **inner_kwargs)
    if operation is COPY:
        return args[0]
    if kind != THERE.type:
        return result
    there = tree_map_only(Tensor, TensorThere, result)
    return return_and_correct_aliasing(operation, args, kwargs, there)


def _kind(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The kind of device that an operation's result is on.

    A number of the CPU may meet tensors of any device, element by element, if it is only read.
    """
    strict, numbers = set[str](), set[str]()
    for place, (name, read) in enumerate(_arguments(operation)):
        given = args[place] if place < len(args) else kwargs.get(name)
        for tensor in given if isinstance(given, list | tuple) else (given,):
            if isinstance(tensor, Tensor):
                number = read and tensor.dim() == 0 and tensor.device == HERE
                (numbers if number else strict).add(tensor.device.type)
    if len(strict) > 1 and operation not in MOVES:
        raise RuntimeError(f"{operation} of tensors on {' and '.join(sorted(strict))}")
    if (wanted := kwargs.get("device")) is not None:
        return torch.device(wanted).type
    return next(iter(strict or numbers), HERE.type)


@cache
def _arguments(operation: Any) -> list[tuple[str, bool]]:
    """Each argument's name, and whether it may be a number of the CPU."""
    pointwise = torch.Tag.pointwise in operation.tags
    return [
        (argument.name, pointwise and not (argument.alias_info and argument.alias_info.is_write))
        for argument in operation._schema.arguments
    ]


def _memory(value: Any) -> Any:
    if isinstance(value, TensorThere):
        return value.memory
    return HERE if isinstance(value, torch.device) and value.type == THERE.type else value
