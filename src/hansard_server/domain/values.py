"""Values: the dataclasses of the standard library, made in a third of the time.

For a class that is frozen it compiles six methods, and for all of ours that took half of the time
that a start spends on our modules. Here they are compiled for none but the constructors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import MISSING, FrozenInstanceError, fields
from functools import partial
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass"]

# For type checkers there is no difference.
if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool = False, slots: bool = False, **options: bool) -> Any:
        """Return what decorates a class, as `dataclasses.dataclass` does."""
        if frozen and slots:
            return partial(_value, **options)
        return dataclasses.dataclass(frozen=frozen, slots=slots, **options)


def _value(cls: type[Any], *, kw_only: bool = False) -> type[Any]:
    # What nobody has needed yet.
    if hasattr(cls, "__post_init__") or hasattr(cls, "__dataclass_fields__"):
        raise TypeError(f"{cls.__name__}: values neither inherit fields nor have __post_init__")
    if not cls.__doc__:
        # The library would make one of the constructor's signature, which takes long.
        cls.__doc__ = cls.__name__
    make = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)
    made: type[Any] = make(cls)
    values = _getter([field.name for field in fields(made) if field.compare])

    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        return values(self) == values(other) if other.__class__ is made else NotImplemented

    def __hash__(self: Any) -> int:  # noqa: N807
        return hash(values(self))

    methods: dict[str, Any] = {
        "__init__": _constructor(made),
        "__eq__": __eq__,
        "__hash__": __hash__,
        "__repr__": _show,
        "__setattr__": _refuse_set,
        "__delattr__": _refuse_delete,
        "__setstate__": _restore,
    }
    for name, method in methods.items():
        if name in vars(cls):
            raise TypeError(f"{cls.__name__}: values have no {name} of their own")
        setattr(made, name, method)
    return made


def _constructor(made: type[Any]) -> Callable[..., None]:
    scope: dict[str, Any] = {"_set": object.__setattr__, "_MISSING": MISSING}
    parameters, by_name = ["self"], ["*"]
    lines = []
    for field in fields(made):
        name = value = field.name
        parameter = name
        if field.default is not MISSING:
            scope[f"_default_{name}"] = field.default
            parameter = f"{name}=_default_{name}"
        elif field.default_factory is not MISSING:
            scope[f"_make_{name}"] = field.default_factory
            parameter = f"{name}=_MISSING"
            value = f"_make_{name}() if {name} is _MISSING else {name}"
        (by_name if field.kw_only else parameters).append(parameter)
        lines.append(f" _set(self, {name!r}, {value})")
    taken = ", ".join(parameters + (by_name if len(by_name) > 1 else []))
    text = "\n".join([f"def __init__({taken}):", *(lines or [" pass"])])
    exec(text, scope)  # noqa: S102 - as the library does: names of fields, nothing from outside
    constructor: Callable[..., None] = scope["__init__"]
    constructor.__qualname__ = f"{made.__qualname__}.__init__"
    return constructor


def _getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    match names:
        case []:
            return lambda _: ()
        case [name]:
            get = attrgetter(name)
            return lambda value: (get(value),)
    return attrgetter(*names)


@recursive_repr()
def _show(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse_set(_self: object, name: str, _value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(_self: object, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _restore(self: object, state: tuple[None, dict[str, Any]]) -> None:
    # Copies are made of what there is, and not by the constructor.
    for name, value in state[1].items():
        object.__setattr__(self, name, value)
