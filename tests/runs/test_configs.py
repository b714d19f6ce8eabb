"""Whatever a person types becomes a configuration, or one sentence."""

import dataclasses
import re
import typing
from typing import Any

import pytest

from precisionlab.runs.configs import ConfigError, config_as_dict, parse_config, parse_settings


@dataclasses.dataclass(frozen=True)
class Inner:
    size: int = 1
    name: str = "x"


@dataclasses.dataclass(frozen=True)
class Config:
    formats: tuple[str, ...] = ("float32",)
    widths: tuple[int, ...] = (64,)
    rates: tuple[float, float] = (0.1, 0.2)
    rate: float = 0.1
    steps: int = 3
    flag: bool = False
    inner: Inner = dataclasses.field(default_factory=Inner)
    limit: int | None = None
    choice: typing.Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}, allowed is 0 or more.")


@dataclasses.dataclass(frozen=True)
class Needy:
    size: int


def test_defaults_lists_and_nesting() -> None:
    assert parse_config(Config, {}, "f") == Config()
    given = {"formats": ["a", "b"], "rates": [1, 0.5], "rate": 2, "inner": {"size": 4}, "limit": None, "choice": "b"}
    expected = Config(("a", "b"), rates=(1.0, 0.5), rate=2.0, inner=Inner(4), choice="b")
    found = parse_config(Config, given, "f")
    assert found == expected
    assert type(found.rate) is float
    assert type(found.formats) is tuple
    assert parse_config(Config, config_as_dict(found), "f") == found
    assert parse_config(Config, {"rate": float("inf")}, "f").rate == float("inf")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"step": 3}, 'f.toml: unknown key "step"; allowed are formats, .*; did you mean "steps"?'),
        ({"inner": {"nmae": 3}}, 'f.toml: unknown key "inner.nmae"; allowed are size, name; did you mean "name"?'),
        ({"steps": True}, 'f.toml: "steps" is true, allowed is a whole number.'),
        ({"steps": 1.0}, 'f.toml: "steps" is 1.0, allowed is a whole number.'),
        ({"steps": 1.5}, 'f.toml: "steps" is 1.5, allowed is a whole number.'),
        ({"steps": "3"}, 'f.toml: "steps" is "3", allowed is a whole number.'),
        ({"steps": None}, 'f.toml: "steps" is null, allowed is a whole number.'),
        ({"rate": True}, 'f.toml: "rate" is true, allowed is a number.'),
        ({"flag": 1}, 'f.toml: "flag" is 1, allowed is true or false.'),
        ({"formats": "float32"}, 'f.toml: "formats" is "float32", allowed is a list.'),
        ({"formats": ["a", 3]}, r'f.toml: "formats\[1\]" is 3, allowed is text.'),
        ({"widths": [1, True]}, r'f.toml: "widths\[1\]" is true, allowed is a whole number.'),
        ({"rates": [1]}, r'f.toml: "rates" is \[1\], allowed is a list of another length.'),
        ({"rates": [1, 2, 3]}, r'f.toml: "rates" is \[1, 2, 3\], allowed is a list of another length.'),
        ({"inner": 3}, 'f.toml: "inner" is 3, allowed is a table of keys.'),
        ({"inner": {"size": "big"}}, 'f.toml: "inner.size" is "big", allowed is a whole number.'),
        ({"choice": "c"}, "f.toml: \"choice\" is \"c\", allowed is 'a' or 'b'."),
        ({"steps": -1}, "f.toml: steps is -1, allowed is 0 or more."),
        ({"rate": object()}, "f.toml: .*use text, numbers, true or false"),
        ({"formats": "x" * 500}, r'f.toml: "formats" is "x{50,60}\.\.\., allowed is a list.'),
    ],
)
def test_mistakes_are_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Config, given, "f.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert re.match(sentence, message), message


def test_missing_field() -> None:
    with pytest.raises(ConfigError, match='"size" has no default and was not given'):
        parse_config(Needy, {}, "f")


def test_settings() -> None:
    texts = ["formats=a,b", "widths=64, 32", "rates=1,2", "rate=1e-3", "steps=1", "steps=2", "flag=true"]
    texts += ["inner.size=4", "inner.name=12", "limit=null", "choice=b"]
    found = parse_config(Config, parse_settings(Config, texts), "--set")
    assert found == Config(("a", "b"), (64, 32), (1.0, 2.0), 1e-3, 2, True, inner=Inner(4, "12"), limit=None, choice="b")
    assert parse_settings(Config, ['formats=["a=b"]', "limit=5", "widths=7"]) == {
        "formats": ["a=b"],
        "limit": 5,
        "widths": [7],
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps", '--set: "steps" has no value; write it as key=value'),
        ("stps=3", '--set: unknown key "stps".*did you mean "steps"'),
        ("inner.sze=3", '--set: unknown key "sze".*did you mean "size"'),
        ("steps.x=3", '--set: "x" is set inside something that has no keys'),
        ("steps=many", '--set: "steps" is "many", allowed is a whole number'),
    ],
)
def test_wrong_settings(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_config(Config, parse_settings(Config, [text]), "--set")


def test_what_json_cannot_hold_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd:
        thing: Any = dataclasses.field(default_factory=object)

    with pytest.raises(ConfigError, match="Odd: "):
        config_as_dict(Odd())
