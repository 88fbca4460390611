"""Options of the command line: one for every field, and what is typed means what the help says."""

from __future__ import annotations

import copy
import re
from typing import Any, Literal, get_args

import pytest
import typer
from pydantic import BaseModel, ConfigDict
from typer.core import TyperOption
from typer.models import OptionInfo

from defuse_core.base.config import PRESETS
from defuse_core.cli.main import app
from defuse_core.cli.options import ConfigOption, OnceCommand, config_options, given_config, more_lambdas
from defuse_core.workspace.config_checks import ConfigError, check_config
from defuse_core.workspace.configs import STEPS, StepName, StepSpec, preset_values

ALL = [(step, name) for step in STEPS for name in config_options(step)]


def told(option: ConfigOption) -> OptionInfo:
    """What Typer is told of an option."""
    info = get_args(option.annotation)[1]
    assert isinstance(info, OptionInfo)
    return info


def flag_of(option: ConfigOption) -> str:
    """The flag; within Annotated Typer takes its first argument for it."""
    return str(told(option).default)


def leaves(schema: dict[str, Any], where: dict[str, Any], path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Paths of all values in a JSON schema: the reference, made by pydantic."""
    found: set[tuple[str, ...]] = set()
    for name, field in where.get("properties", {}).items():
        choices = [field, *field.get("anyOf", []), *field.get("allOf", [])]
        inner = next((c["$ref"].split("/")[-1] for c in choices if "$ref" in c), None)
        if inner is None:
            found.add((*path, name))
        else:
            found |= leaves(schema, schema["$defs"][inner], (*path, name))
    return found


def value_at(config: BaseModel, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("step", STEPS)
def test_every_field_of_a_config_has_one_option(step: StepName) -> None:
    options = config_options(step)
    schema = STEPS[step].config.model_json_schema()
    paths = [option.path for option in options.values()]
    assert set(paths) == leaves(schema, schema)
    assert len(set(paths)) == len(paths)
    assert len({flag_of(option) for option in options.values()}) == len(options)


@pytest.mark.parametrize("step", STEPS)
def test_options_leave_those_of_every_command_alone(step: StepName) -> None:
    taken = {"project", "seed", "device", "threads", "engine", "address", "cpus", "gpus", "preset"}
    assert not taken & set(config_options(step))
    assert all(name.isidentifier() for name in config_options(step))


@pytest.mark.parametrize(("step", "name"), ALL)
def test_an_option_is_written_as_its_name_and_says_what_it_takes(step: StepName, name: str) -> None:
    option = config_options(step)[name]
    info, flag = told(option), "--" + name.replace("_", "-")
    assert flag_of(option) == (flag if info.metavar else f"{flag}/--no-{flag[2:]}")
    default = value_at(STEPS[step].config(), option.path)
    assert (re.search(r"\(default: .+\)$", info.help or "") is not None) == (default is not None), info.help
    assert ("default: " in (info.help or "")) == (default is not None), info.help
    assert info.help, "one without a default is described"


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = 1
    seed: int = 2
    kind: Literal["a", "b"] | None = "a"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = 3
    seed: int = 4
    inner: Inner = Inner(epochs=10)
    other: Inner = Inner(kind=None)
    most: int | None = None
    shares: tuple[float, ...] = (0.5, 1e-10)
    sure: bool = False


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> dict[str, ConfigOption]:
    """Options of a step whose fields have names in common."""
    monkeypatch.setitem(STEPS, "crowd", StepSpec(Outer))
    return config_options("crowd")


def test_a_name_that_is_taken_gets_the_outer_one_before_it(crowded: dict[str, ConfigOption]) -> None:
    assert {name: option.path for name, option in crowded.items()} == {
        "epochs": ("epochs",),
        "crowd_seed": ("seed",),
        "inner_epochs": ("inner", "epochs"),
        "inner_seed": ("inner", "seed"),
        "kind": ("inner", "kind"),
        "other_epochs": ("other", "epochs"),
        "other_seed": ("other", "seed"),
        "other_kind": ("other", "kind"),
        "most": ("most",),
        "shares": ("shares",),
        "sure": ("sure",),
    }


def test_the_help_shows_kinds_and_the_defaults_that_are_in_force(crowded: dict[str, ConfigOption]) -> None:
    shown = {name: (told(o).metavar, (told(o).help or "").strip(" ()")) for name, o in crowded.items()}
    assert shown["epochs"] == ("N", "default: 3")
    assert shown["inner_epochs"] == ("N", "default: 10"), "of the instance, not of its class"
    assert shown["kind"] == ("a|b", "default: a")
    assert shown["shares"] == ("N,N,…", "default: 0.5,1e-10")
    assert shown["sure"] == (None, "default: False")
    assert shown["most"] == ("N", ""), "no default is shown where there is none"
    assert shown["other_kind"] == ("a|b", "")
    assert flag_of(crowded["sure"]) == "--sure/--no-sure"
    assert flag_of(crowded["other_kind"]) == "--other-kind"


@pytest.mark.parametrize(("step", "name"), ALL)
def test_typing_the_default_gives_the_default(step: StepName, name: str) -> None:
    """What the help shows, or where it shows none, "none"."""
    options = config_options(step)
    shown = re.search(r"\(default: (.+)\)$", told(options[name]).help or "")
    config = check_config(step, given_config(step, options, {name: shown[1] if shown else "none"}))
    assert config == check_config(step, {})
    assert (value_at(config, options[name].path) is None) == (shown is None)


@pytest.mark.parametrize(
    ("step", "given", "expected"),
    [
        ("identify", {"n_perturbations": "50", "noise_a": "1e2"}, {"n_perturbations": 50, "noise_a": 100.0}),
        ("identify", {"max_mistakes_per_image": "none"}, {"max_mistakes_per_image": None}),
        ("identify", {"max_mistakes_per_image": "None"}, {"max_mistakes_per_image": None}),
        ("identify", {"centred": True}, {"centred": True}),
        ("correct", {"lambdas": "0.1,1,"}, {"correction": {"lambdas": (0.1, 1.0)}}),
        ("correct", {"lambdas": "5"}, {"correction": {"lambdas": (5.0,)}}),
        ("correct", {"baseline_lambdas": "none"}, {"baseline_lambdas": ()}),
        ("vae", {"epochs": "2", "beta": "4"}, {"training": {"epochs": 2, "beta": 4.0}}),
        ("vae", {"weights": "shipped:mnist"}, {"weights": "shipped:mnist"}),
        ("classifier", {"mean": ".5", "std": ".25"}, {"mean": (0.5,), "std": (0.25,)}),
        ("classifier", {"mean": "none", "image_size": "32"}, {"image_size": 32}),
        ("classifier", {"augmentation": "none"}, {"training": {"augmentation": "none"}}),
        ("classifier", {"pretrained": "imagenet"}, {"pretrained": "imagenet"}),
        ("classifier", {"pretrained": "none"}, {}),
        ("identify", {"max_images": "150"}, {"max_images": 150}),
        ("correct", {"max_images": "90"}, {"correction": {"max_images": 90}}),
        ("correct", {"max_images": "none"}, {}),
        ("annotators", {"shipped": True, "epochs": "2"}, {"shipped": True, "training": {"epochs": 2}}),
        ("annotators", {"more_data": "digits", "shipped": False}, {"more_data": "digits"}),
        ("vae", {"latent_dim": "5", "depth": "4"}, {"latent_dim": 5, "depth": 4}),
    ],
)
def test_what_is_typed_is_what_the_config_holds(
    step: StepName, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Everything else has its default."""
    typed = {name: given.get(name) for name in config_options(step)}
    config = check_config(step, given_config(step, config_options(step), typed))
    assert config == STEPS[step].config.model_validate(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"noise_a": "much"}, "identify: noise_a should be a valid number.*got 'much'"),
        ({"n_perturbations": "1.5"}, "identify: n_perturbations should be a valid integer.*got '1.5'"),
        ({"n_perturbations": "0"}, "n_perturbations should be greater than or equal to 1, got '0'"),
        ({"n_perturbations": "none"}, "n_perturbations should be a valid integer.*got 'none'"),
        ({"noise_a": "None"}, "noise_a should be a valid number.*got 'None'"),
        ({"precision": "none"}, "precision should be 'auto', 'fp32' or 'bf16', got 'none'"),
        ({"precision": "fp16"}, "precision should be 'auto', 'fp32' or 'bf16', got 'fp16'"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_the_config(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config("identify", given_config("identify", config_options("identify"), given))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("step", STEPS)
def test_a_preset_is_taken_as_it_is_where_nothing_is_typed(step: StepName, preset: str) -> None:
    options = config_options(step)
    config = given_config(step, options, dict.fromkeys(options), preset=preset)
    assert config == preset_values(PRESETS[preset], step)
    assert given_config(step, options, {}) == {}


def test_what_is_typed_lies_over_the_preset_and_leaves_it_as_it_was() -> None:
    before = copy.deepcopy({name: preset.model_dump() for name, preset in PRESETS.items()})
    options = config_options("vae")
    config = check_config("vae", given_config("vae", options, {"epochs": "3", "depth": "2"}, preset="gtsrb"))
    preset = PRESETS["gtsrb"]
    assert value_at(config, ("training",)) == preset.vae_training.model_copy(update={"epochs": 3})
    shape = ("latent_dim", "hidden_channels", "hidden_units", "depth")
    assert [value_at(config, (name,)) for name in shape] == [15, 64, 256, 2]
    options = config_options("identify")
    given = given_config("identify", options, {"centred": False, "noise_a": "1"}, preset="svhn")
    assert (given["centred"], given["noise_a"], given["noise_b"]) == (False, "1", 75.0)
    assert given_config("identify", options, {"centred": False}) == {"centred": False}, "a no is an answer"
    assert {name: p.model_dump() for name, p in PRESETS.items()} == before


def test_a_preset_that_does_not_exist_is_an_error_that_lists_those_that_do() -> None:
    with pytest.raises(ConfigError, match="svhn, gtsrb, demo, photographs, got 'cifar'"):
        given_config("vae", config_options("vae"), {}, preset="cifar")


# An option given twice


def commands_of(group: Any, *path: str) -> list[tuple[tuple[str, ...], OnceCommand]]:
    """Every command of the command line, by the words that call it."""
    if not hasattr(group, "commands"):
        return [(path, group)]
    return [each for name, inner in group.commands.items() for each in commands_of(inner, *path, name)]


EVERY_OPTION = [
    pytest.param(command, option, id=f"{' '.join(path)} {option.opts[0]}")
    for path, command in commands_of(typer.main.get_command(app))
    for option in command.params
    if isinstance(option, TyperOption) and not option.is_eager
]


@pytest.mark.parametrize(("command", "option"), EVERY_OPTION)
def test_an_option_given_twice_is_refused_unless_it_is_a_list(
    command: OnceCommand, option: TyperOption
) -> None:
    once = [option.opts[0]] if option.is_flag else [option.opts[0], "1"]
    context = typer.Context(command)
    if option.multiple:
        opts, _, order = command.make_parser(context).parse_args([*once, *once])
        assert (opts[option.name], order[:2]) == (["1", "1"], [option, option])
        return
    with pytest.raises(typer.BadParameter, match="is given more than once; give it once") as refused:
        command.parse_args(context, [*once, *once])
    assert refused.value.param_hint == option.opts[0]


def test_there_is_an_option_of_a_list_and_of_one_value_among_them() -> None:
    assert {getattr(case.values[1], "multiple", None) for case in EVERY_OPTION} == {True, False}
    assert len(EVERY_OPTION) > 200


@pytest.mark.parametrize("typed", [["0.1", "1"], ["0.1,1"], ["0.1,", "none", "1"]])
def test_a_list_given_twice_takes_both(typed: list[str]) -> None:
    config = given_config("correct", config_options("correct"), {"lambdas": typed, "baseline_lambdas": []})
    assert value_at(check_config("correct", config), ("correction", "lambdas")) == (0.1, 1.0)
    assert "baseline_lambdas" not in config
    assert more_lambdas([1.0], typed[:1]) == [0.1, 1.0]
