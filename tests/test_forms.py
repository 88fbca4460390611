"""Forms made of configs: every field has its widget, and what is shown is what is returned."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from defuse_core.base.config import PRESETS
from defuse_core.workspace.config_checks import ConfigError, check_config
from defuse_core.workspace.config_fields import choices, walk_fields
from defuse_core.workspace.configs import STEPS, preset_values


def page(step: str, options: dict) -> None:  # a script knows no other names
    """One form; what it returns is kept."""
    import streamlit as st

    from dashboard.shell.forms import config_form

    st.session_state["given"] = config_form(step, **{"key": "f", "main": (), **options})


def show(step: str, **options: Any) -> AppTest:
    app = AppTest.from_function(page, kwargs={"step": step, "options": options}, default_timeout=20).run()
    assert not app.exception
    return app


def given(app: AppTest) -> dict[str, Any]:
    """What the form returned."""
    found: dict[str, Any] = app.session_state["given"]
    return found


def widgets(app: AppTest) -> dict[str, Any]:
    """The form's widgets by field."""
    kinds = (app.number_input, app.selectbox, app.text_input, app.toggle)
    found = {w.key.removeprefix("f-"): w for kind in kinds for w in kind}
    found.pop("preset", None)
    return found


def field_names(step: Any) -> list[str]:
    return [".".join(path) for path, _, _ in walk_fields(STEPS[step].config())]


@pytest.mark.parametrize("step", STEPS)
def test_an_untouched_form_gives_the_defaults(step: Any) -> None:
    app = show(step)
    assert check_config(step, given(app)) == STEPS[step].config()
    assert sorted(widgets(app)) == sorted(field_names(step))


@pytest.mark.parametrize("step", STEPS)
def test_every_widget_is_explained_and_bounded_as_its_field(step: Any) -> None:
    shown = widgets(show(step))
    for path, field, _ in walk_fields(STEPS[step].config()):
        widget = shown[".".join(path)]
        assert widget.label == path[-1].replace("_", " ")
        assert (widget.help or None) == (field.description or None)
        if widget.type == "number_input":
            least = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
            most = next((m.le for m in field.metadata if hasattr(m, "le")), None)
            assert least is None or widget.min == least
            assert most is None or widget.max == most
        if widget.type == "selectbox":
            assert widget.options == list(choices(field))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("step", ["classifier", "vae", "identify", "distill", "annotate", "correct"])
def test_a_preset_sets_every_field_that_it_has(step: Any, preset: str) -> None:
    app = show(step)
    app.selectbox(key="f-preset").set_value(preset).run()
    assert not app.exception
    assert check_config(step, given(app)) == check_config(step, preset_values(PRESETS[preset], step))


def test_a_preset_overwrites_what_was_set_before_and_can_be_changed() -> None:
    app = show("identify")
    app.number_input(key="f-noise_scale").set_value(7.0).run()
    assert given(app)["noise_scale"] == 7.0
    app.selectbox(key="f-preset").set_value("svhn").run()
    assert (given(app)["noise_scale"], given(app)["noise_a"]) == (1.0, 75.0)
    app.number_input(key="f-noise_a").set_value(80.0).run()
    assert (given(app)["noise_a"], given(app)["noise_b"]) == (80.0, 75.0)
    app.selectbox(key="f-preset").set_value(None).run()
    assert given(app)["noise_a"] == 80.0  # no preset is no change


def test_a_form_begins_with_what_it_is_given() -> None:
    start = {"n_perturbations": 12, "centred": True, "max_mistakes_per_image": None, "precision": "bf16"}
    app = show("identify", start=start)
    assert check_config("identify", given(app)) == check_config("identify", start)


@pytest.mark.parametrize(
    "mean", [[0.5], [0.1307], [0.485, 0.456, 0.406], [0.13066047740239478], [1 / 255], [123456.5]]
)
def test_lists_of_numbers_are_returned_as_precise_as_they_were_given(mean: list[float]) -> None:
    start = {"mean": mean, "std": [1.0] * len(mean)}
    config = check_config("classifier", given(show("classifier", start=start)))
    assert config.model_dump()["mean"] == tuple(mean)


@pytest.mark.parametrize(
    ("typed", "values"),
    [("0.1,0.2 , 0.3", (0.1, 0.2, 0.3)), (" .5 ", (0.5,)), ("1e-3", (0.001,)), ("0.5,", (0.5,)), ("", None)],
)
def test_lists_of_numbers_are_typed_with_commas(typed: str, values: Any) -> None:
    app = show("classifier")
    app.text_input(key="f-mean").set_value(typed).run()
    assert check_config("classifier", given(app)).model_dump()["mean"] == values


@pytest.mark.parametrize("typed", ["a", "0.1; 0.2", "0,5 0,2", "<img src=x onerror=alert(1)>", "inf", ","])
def test_what_is_no_list_of_numbers_is_left_to_the_config_to_refuse(typed: str) -> None:
    app = show("correct")
    app.text_input(key="f-correction.lambdas").set_value(typed).run()
    assert not app.exception
    with pytest.raises(ConfigError, match=r"^correct: correction\.lambdas"):
        check_config("correct", given(app))


def test_what_is_left_out_is_neither_shown_nor_returned() -> None:
    app = show("classifier", leave_out=("weights", "training", "code_path"))
    assert sorted(given(app)) == [
        "architecture", "channel_order", "image_size", "mean", "pretrained", "std", "trust_program",
    ]  # fmt: skip
    assert widgets(app).keys() == given(app).keys()


def test_the_main_fields_come_first_in_their_order_and_the_rest_is_folded_away() -> None:
    app = show("identify", main=("noise_b", "n_perturbations", "noise_a"))
    (folded,) = app.expander
    inside = {w.key for w in folded.number_input}
    outside = [w.key for w in app.number_input if w.key not in inside]
    assert sorted(outside) == ["f-n_perturbations", "f-noise_a", "f-noise_b"]
    columns = [[w.key for w in column.number_input] for column in app.columns[:3]]
    assert columns == [["f-noise_b"], ["f-n_perturbations"], ["f-noise_a"]]
    whole = show("identify", main=tuple(field_names("identify")))
    assert not whole.expander


def test_without_presets_none_is_offered() -> None:
    labels = [box.label for box in show("inspect", presets=False).selectbox]
    assert "Start from" not in labels


def test_forms_of_other_keys_do_not_share_values() -> None:
    def two() -> None:
        import streamlit as st

        from dashboard.shell.forms import config_form

        for key in ("a", "b"):
            st.session_state[f"given-{key}"] = config_form("probe", key=key, main=("seconds",))

    app = AppTest.from_function(two).run()
    app.number_input(key="a-seconds").set_value(9.0).run()
    assert app.session_state["given-a"] == {"seconds": 9.0}
    assert app.session_state["given-b"] == {"seconds": 2.0}
