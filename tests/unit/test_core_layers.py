"""Whose layer stays from start to start, and what the user is told of it (design.md, B2)."""

import pytest

from crannog.core.layers import in_session, keeps_layer
from crannog.core.plan import PrepareVolume
from crannog.core.startup import StartRequest, plan_start
from crannog.core.vms import LocalVM
from crannog.core.volumes import LayerState
from tests.fakes import add_vm, halted_facts, new_registry, template_and_app


def app_in_debug(mode: str) -> LocalVM:
    _, app = template_and_app(new_registry(), mode)
    app.set("debug", True)
    return app


@pytest.mark.parametrize(("mode", "stays"), [("hvm", True), ("pv", False), ("pvh", False)])
def test_only_one_layer_is_kept_and_only_in_debug_mode(mode: str, stays: bool) -> None:
    app = app_in_debug(mode)
    assert keeps_layer(app, app.volumes["root"]) is stays
    assert not keeps_layer(app, app.volumes["private"])
    app.set("debug", False)
    assert not in_session(app, app.volumes["root"]).keeps_layer


def test_a_template_has_no_layer_to_keep() -> None:
    template, _ = template_and_app(new_registry(), "hvm")
    template.set("debug", True)
    assert not any(keeps_layer(template, volume) for volume in template.volumes.values())


def test_a_disposable_keeps_nothing() -> None:
    registry = new_registry()
    _, app = template_and_app(registry, "hvm")
    app.set("template_for_dispvms", True)
    disposable = add_vm(registry, "DispVM", "disp1", app)
    disposable.set("debug", True)
    assert not any(keeps_layer(disposable, volume) for volume in disposable.volumes.values())


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (LayerState.ABSENT, "volume ready (debug mode: a new layer, which is kept)"),
        (LayerState.CURRENT, "volume ready (debug mode: the layer of its last start was kept)"),
        (LayerState.OUTDATED, "volume ready (debug mode: a new layer, as what is below the last one has changed)"),
    ],
)
def test_the_user_is_told_what_became_of_the_layer(state: LayerState, text: str) -> None:
    app = app_in_debug("hvm")
    plan = plan_start(app, StartRequest(), halted_facts(layer_state=lambda _volume: state))
    told = {step.volume.name: step.tell() for step in plan if isinstance(step, PrepareVolume)}
    assert told == {"root": text, "private": "volume ready"}
    app.set("debug", False)
    plan = plan_start(app, StartRequest(), halted_facts())
    assert [step.tell() for step in plan if isinstance(step, PrepareVolume)] == ["volume ready", "volume ready"]
