"""Values are what the standard library's frozen dataclasses with slots are."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, replace
from typing import Any, Generic, TypeVar

import pytest

from hansard_server.domain.values import dataclass

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ours:
    """A value."""

    a: int
    b: str = "x"
    c: list[int] = field(default_factory=list)
    d: int = field(default=1, compare=False, repr=False)
    e: int = field(default=2, kw_only=True)

    @property
    def twice(self) -> int:
        return 2 * self.a


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    """A value."""

    a: int
    b: str = "x"
    c: list[int] = field(default_factory=list)
    d: int = field(default=1, compare=False, repr=False)
    e: int = field(default=2, kw_only=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Its fields are given by name."""

    a: int
    b: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class One:
    """One field."""

    a: float


@dataclass(frozen=True, slots=True)
class Nothing:
    """No field."""


@dataclass(frozen=True, slots=True)
class Of(Generic[T]):
    """Of a type."""

    a: T


@pytest.mark.parametrize(
    "make",
    [
        lambda cls: cls(1),
        lambda cls: cls(1, "y", [3], 4, e=5),
        lambda cls: cls(a=1, d=7),
        lambda cls: replace(cls(1), b="z"),
    ],
)
def test_value_is_made_shown_and_taken_apart_as_theirs(make: Callable[[Any], Any]) -> None:
    ours, theirs = make(Ours), make(Theirs)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert Ours.__match_args__ == Theirs.__match_args__
    assert [f.name for f in dataclasses.fields(Ours)] == [f.name for f in dataclasses.fields(ours)]
    assert not hasattr(ours, "__dict__")


@pytest.mark.parametrize(
    "make",
    [
        lambda cls: cls(),
        lambda cls: cls(1, "y", [], 4, 5),
        lambda cls: cls(1, unknown=1),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_the_same_words(
    make: Callable[[Any], Any],
) -> None:
    with pytest.raises(TypeError) as ours:
        make(Ours)
    with pytest.raises(TypeError) as theirs:
        make(Theirs)
    assert str(ours.value) == str(theirs.value).replace("Theirs", "Ours")


def test_value_is_equal_to_one_of_its_class_with_the_same_fields() -> None:
    assert Ours(1, d=5) == Ours(1, d=6)
    assert Ours(1) != Ours(2)
    other: object = Theirs(1)
    assert Ours(1) != other
    assert Named(a=1) == Named(a=1)
    assert Nothing() == Nothing()
    missing = float("nan")
    assert One(missing) == One(missing)
    assert Of[int](1) == Of(1)


def test_value_is_a_key_unless_a_field_is_none() -> None:
    assert {Named(a=1, b=(2,)): 3}[Named(a=1, b=(2,))] == 3
    assert hash(One(1.0)) == hash((1.0,))
    assert hash(Nothing()) == hash(())
    with pytest.raises(TypeError, match="unhashable"):
        hash(Ours(1))


def test_value_stays_as_it_is() -> None:
    value = Ours(1)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'a'"):
        value.a = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'a'"):
        del value.a
    assert value.twice == 2


def test_defaults_that_are_made_are_made_for_each() -> None:
    assert Ours(1).c is not Ours(1).c


def test_value_is_copied() -> None:
    value = Ours(1, c=[2])
    assert copy.copy(value) == copy.deepcopy(value) == value
    assert copy.deepcopy(value).c is not value.c
    assert pickle.loads(pickle.dumps(One(1.0))) == One(1.0)  # noqa: S301


def test_value_that_holds_itself_is_shown() -> None:
    value: Of[list[Any]] = Of([])
    value.a.append(value)
    assert repr(value) == "Of(a=[...])"


def test_value_matches_by_position() -> None:
    match Ours(1, "y"):
        case Ours(1, b):
            assert b == "y"
        case _:
            pytest.fail("does not match")


def test_what_is_not_frozen_is_the_librarys() -> None:
    @dataclass(slots=True)
    class Open:
        a: int

    value = Open(1)
    value.a = 2
    assert value == Open(2)


@pytest.mark.parametrize(
    "members",
    [{"__post_init__": lambda _: None}, {"__eq__": lambda *_: True}, {"__repr__": lambda _: ""}],
)
def test_what_values_can_not_be_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        dataclass(frozen=True, slots=True)(type("Other", (), members))
    with pytest.raises(TypeError):
        dataclass(frozen=True, slots=True)(type("Other", (One,), {}))
