"""Programs that the image builder runs: their failures become one sentence."""

import os
from pathlib import Path

import pytest

from crannog.errors import NotFoundError, StorageError, ValueRefusedError
from crannog.images import tools
from crannog.images.builder import build_template
from crannog.images.kernel import build_kernel
from crannog.images.recipe import RECIPES, find_recipe
from crannog.images.tools import owner_prefix, run_tool, stage


def ignore(text: str) -> None:
    pass


def install(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def agent(tmp_path: Path) -> str:
    path = tmp_path / "agent.py"
    path.write_text("pass\n")
    return str(path)


def test_lines_are_handed_over(programs: Path) -> None:
    install(programs, "talk", "echo one; echo >&2 two; cat")
    lines: list[str] = []
    run_tool(["talk"], "talking", on_line=lines.append, stdin=b"three\n")
    assert lines == ["one", "two", "three"]


def test_silent_failure(programs: Path) -> None:
    install(programs, "fail", "exit 3")
    with pytest.raises(StorageError, match=r"^failing failed: fail ended with status 3 and said nothing$"):
        run_tool(["fail"], "failing")


def test_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "_SBIN", "/nonexistent")
    with pytest.raises(StorageError, match="needs the program sfdisk: install the package fdisk"):
        run_tool(["sfdisk"], "partitioning")


def test_program_that_hangs_up_on_its_group_does_not_hit_us(programs: Path) -> None:
    install(programs, "hangup", "echo 'E: no luck'; kill -HUP 0; sleep 10")
    with pytest.raises(StorageError, match="no luck"):
        run_tool(["hangup"], "trying")


def test_interrupted_program_is_stopped(programs: Path, tmp_path: Path) -> None:
    install(
        programs,
        "slow",
        f"trap 'touch {tmp_path}/cleaned; exit 1' TERM\necho up\nwhile :; do sleep 0.05; done",
    )

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tool(["slow"], "waiting", on_line=interrupt)
    assert (tmp_path / "cleaned").exists()


def test_stage_tells_seconds() -> None:
    told: list[str] = []
    times = iter([10.0, 12.5])
    with stage(told.append, "unpacking", lambda: next(times)):
        assert told == ["unpacking ..."]
    assert told[1:] == ["unpacking: done in 2.5 s"]


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (
            "Err: Temporary failure resolving 'mirror'\nE: Failed to fetch\nE: mmdebstrap failed to run",
            "resolving 'mirror'",
        ),
        (
            "tar: x: Cannot write: No space left on device\nE: mmdebstrap failed to run",
            "No space left on device",
        ),
        (
            "I: starting\nE: Unable to locate package nix\nE: mmdebstrap failed to run",
            "Unable to locate package nix",
        ),
    ],
)
def test_failed_mmdebstrap_leaves_no_image(
    programs: Path, tmp_path: Path, agent: str, monkeypatch: pytest.MonkeyPatch, output: str, cause: str
) -> None:
    monkeypatch.setattr("crannog.images.packages.owner_prefix", list)
    install(programs, "mmdebstrap", f'echo "{output}" >&2; exit 25')
    for build in (
        lambda: build_kernel(str(tmp_path), ignore),
        lambda: build_template("debian-12", "pv", str(tmp_path), ignore, agent_path=agent),
    ):
        with pytest.raises(StorageError, match="fetching packages for debian-12 failed") as caught:
            build()
        assert cause in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [name for name in os.listdir(tmp_path / "images") if not name.endswith(".lock")] == []


def test_root_needs_no_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert owner_prefix() == []


def test_user_without_subordinate_ids_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(tools, "find_tool", lambda name: name)
    monkeypatch.setattr(tools, "_login_name", lambda: "nobody-has-this-name")
    with pytest.raises(StorageError, match=r"nobody-has-this-name has no subordinate ids.*usermod"):
        owner_prefix()


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(NotFoundError, match=r"no template recipe 'beos': known are debian-12"):
        find_recipe("beos")


def test_mirror_replaces_the_recipes_own() -> None:
    assert find_recipe("debian-12", "http://mirror/debian").mirror == "http://mirror/debian"
    assert find_recipe(RECIPES["debian-12"]) is RECIPES["debian-12"]
    with pytest.raises(ValueRefusedError, match="not a URI"):
        find_recipe("debian-12", "mirror")


@pytest.mark.parametrize(("virt_mode", "size"), [("pvx", 2**30), ("pv", 2**20), ("hvm", 2**30 + 1), ("pv", 2**42)])
def test_impossible_disks_are_refused(tmp_path: Path, agent: str, virt_mode: str, size: int) -> None:
    with pytest.raises(ValueRefusedError, match=r"virt_mode 'pvx'|whole MiB"):
        build_template("debian-12", virt_mode, str(tmp_path), ignore, size=size, agent_path=agent)


def test_absent_agent_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the guest agent /nonexistent/agent\.py cannot be read"):
        build_template("debian-12", "pv", str(tmp_path), ignore, agent_path="/nonexistent/agent.py")
