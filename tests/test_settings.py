"""Settings and the choice of a plug-in: a name, or {name: {settings}}."""

from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from stn_train.config import REGISTRIES
from stn_train.settings import Settings, chosen, name_and_settings, name_of


class Drink(Settings):
    """What there is to drink."""


class Water(Drink):
    """Nothing to choose."""


class Tea(Drink):
    """Hot."""

    minutes: Annotated[int, Field(ge=1)] = 3
    """How long it draws."""
    sugar: float = 0.0
    """In grams."""


DRINKS: dict[str, type[Drink]] = {"water": Water, "tea": Tea}


class Table(Settings):
    """For one."""

    drink: Annotated[Drink, *chosen(DRINKS)] = Water()
    """Always."""
    second: Annotated[Drink | None, *chosen(DRINKS, none=True)] = None
    """Perhaps."""


@pytest.mark.parametrize(
    ("written", "chosen_drink"),
    [
        ("water", Water()),
        ("tea", Tea()),
        ({"tea": {}}, Tea()),
        ({"tea": None}, Tea()),
        ({"tea": {"minutes": 5}}, Tea(minutes=5)),
        ({"water": {}}, Water()),
        (Tea(minutes=5), Tea(minutes=5)),
    ],
    ids=str,
)
def test_a_choice_is_a_name_with_or_without_settings_or_an_object(written, chosen_drink):
    table = Table.model_validate({"drink": written, "second": written})
    assert (table.drink, table.second) == (chosen_drink, chosen_drink)
    assert type(table.drink) is type(chosen_drink)
    assert Table.model_validate(table.model_dump(mode="json")) == table


@pytest.mark.parametrize("written", ["none", None, {"none": {}}, {"none": None}], ids=str)
def test_none_is_a_choice_where_the_field_allows_it(written):
    assert Table.model_validate({"second": written}).second is None
    with pytest.raises(ValidationError, match="water"):
        Table.model_validate({"drink": written})


def test_a_choice_is_dumped_as_its_name_where_there_is_nothing_to_set():
    assert Table().model_dump() == {"drink": "water", "second": "none"}
    table = Table(drink=Tea(minutes=5))
    assert table.model_dump()["drink"] == {"tea": {"minutes": 5, "sugar": 0.0}}


@pytest.mark.parametrize(
    "written",
    ["beer", 5, None, True, ["tea"], {}, {"tea": {}, "water": {}}, {"beer": {}}, {5: {}}, Table()],
    ids=str,
)
def test_what_is_no_choice_is_told_with_the_choices(written):
    with pytest.raises(ValidationError) as caught:
        Table.model_validate({"drink": written})
    (error,) = caught.value.errors()
    assert error["type"] == "literal_error"
    assert error["loc"] == ("drink",)
    assert error["ctx"] == {"expected": ["water", "tea"]}


@pytest.mark.parametrize(
    ("written", "kind", "location"),
    [
        ({"tea": {"minutes": 0}}, "greater_than_equal", ("drink", "tea", "minutes")),
        ({"tea": {"minutes": "5"}}, "int_type", ("drink", "tea", "minutes")),
        ({"tea": {"milk": 1}}, "extra_forbidden", ("drink", "tea", "milk")),
        ({"water": {"minutes": 5}}, "extra_forbidden", ("drink", "water", "minutes")),
        ({"tea": 5}, "model_type", ("drink", "tea")),
    ],
    ids=str,
)
def test_a_mistake_in_the_settings_is_told_with_its_place(written, kind, location):
    with pytest.raises(ValidationError) as caught:
        Table.model_validate({"drink": written})
    (error,) = caught.value.errors()
    assert (error["type"], error["loc"]) == (kind, location)


def test_none_has_no_settings():
    with pytest.raises(ValidationError, match="none has no settings"):
        Table.model_validate({"second": {"none": {"minutes": 5}}})


def test_what_is_added_to_a_registry_later_can_be_chosen(monkeypatch):
    class Coffee(Tea):
        """Darker."""

    with pytest.raises(ValidationError, match="tea"):
        Table(drink=Coffee())
    monkeypatch.setitem(DRINKS, "coffee", Coffee)
    assert Table.model_validate({"drink": {"coffee": {"minutes": 1}}}).drink == Coffee(minutes=1)
    assert Table(drink=Coffee()).model_dump()["drink"] == {"coffee": {"minutes": 3, "sugar": 0.0}}
    monkeypatch.undo()
    with pytest.raises(ValidationError, match="tea"):
        Table.model_validate({"drink": "coffee"})


def test_another_class_under_a_name_is_another_choice(monkeypatch):
    class GreenTea(Tea):
        """Shorter."""

        minutes: Annotated[int, Field(ge=1)] = 2
        """How long it draws."""

    assert Table.model_validate({"drink": {"tea": {"sugar": 1.0}}}).drink.minutes == 3
    monkeypatch.setitem(DRINKS, "tea", GreenTea)
    assert Table.model_validate({"drink": {"tea": {"sugar": 1.0}}}).drink.minutes == 2


def test_name_of_a_choice_is_that_of_its_class():
    assert name_of(DRINKS, Tea(minutes=7)) == "tea"
    assert name_of(DRINKS, Water()) == "water"
    assert name_of(DRINKS, None) == "none"


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("tea", ("tea", {})),
        ({"tea": None}, ("tea", {})),
        ({"tea": {"sugar": 1.0}}, ("tea", {"sugar": 1.0})),
    ],
    ids=str,
)
def test_name_and_settings_are_the_parts_of_a_choice(written, parts):
    assert name_and_settings(written) == parts


@pytest.mark.parametrize("written", [5, None, [], {}, {"a": 1, "b": 2}, Tea()], ids=str)
def test_nothing_else_has_a_name_and_settings(written):
    with pytest.raises(ValueError, match="name"):
        name_and_settings(written)


def test_settings_are_frozen_and_convert_and_ignore_nothing():
    with pytest.raises(ValidationError, match="frozen"):
        Tea().minutes = 4  # type: ignore[misc]
    for wrong in ({"minutes": 3.0}, {"minutes": True}, {"sugar": float("nan")}, {"sugar": "1"}):
        with pytest.raises(ValidationError):
            Tea.model_validate(wrong)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Tea.model_validate({"milk": 1})


@pytest.mark.parametrize(
    ("key", "name", "kind"),
    [
        (".".join(key), name, kind)
        for key, registry in REGISTRIES.items()
        for name, kind in registry.items()
    ],
)
def test_every_plug_in_and_each_of_its_settings_is_documented(key, name, kind):
    assert kind.__doc__ != kind.__mro__[1].__doc__
    assert all(field.description for field in kind.model_fields.values())
