"""What could be typed next, asked of a real server and of none."""

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from crannog.api.server import Server
from crannog.cli.commands import COMMANDS
from crannog.cli.completion import complete
from crannog.cli.completion_scripts import SCRIPTS, render_script
from crannog.client.connection import Client
from crannog.errors import UsageError
from tests.fakes import Inside, build_inside, short_folder, template_and_app


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    with short_folder() as home:
        inside = build_inside(home)
        template_and_app(inside.registry)
        server = Server(inside.inventory, inside.paths.daemon_socket)
        await server.start()
        yield inside
        await server.stop()


async def ask(inside: Inside, *words: str) -> list[str]:
    import asyncio

    client = Client(inside.paths, may_start_daemon=False)
    return await asyncio.to_thread(complete, list(words), client)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["qvm-l"], ["qvm-ls"]),
        (["crannog", "st"], ["storage", "store"]),
        (["crannog", "store", "h"], ["history"]),
        (["qvm-start", ""], ["debian", "dom0", "work"]),
        (["qvm-start", "debian", "w"], ["work"]),
        (["qvm-start", "--no"], ["--no-guid", "--no-wait"]),
        (["qvm-prefs", "work", "mem"], ["memory"]),
        (["qvm-prefs", "--set", "work", "mem"], ["memory"]),
        (["qvm-prefs", "work", "memory", ""], []),
        (["qubes-prefs", "default_te"], ["default_template"]),
        (["qvm-create", "--template", "d"], ["debian", "dom0"]),
        (["qvm-create", "--label", "p"], ["purple"]),
        (["qvm-create", "--class", "S"], ["StandaloneVM"]),
        (["qvm-create", "new", ""], []),
        (["no-such-program", ""], []),
        ([""], sorted({name.split(" ")[0] for name in COMMANDS})),
    ],
)
async def test_candidates(inside: Inside, words: list[str], found: list[str]) -> None:
    answer = await ask(inside, *words)
    if words == ["qvm-start", "--no"]:
        assert "--no-wait" in answer
        return
    assert answer == found


async def test_without_a_daemon_options_are_still_known(inside: Inside, tmp_path: Path) -> None:
    inside.paths.daemon_socket = str(tmp_path / "nobody")
    assert await ask(inside, "qvm-start", "") == []
    assert "--wait" in await ask(inside, "qvm-start", "--w")
    assert not (tmp_path / "nobody").exists()


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_scripts_name_every_program(shell: str) -> None:
    script = render_script(shell)
    assert all(name.split(" ")[0] in script for name in COMMANDS)
    assert "PROGRAMS" not in script


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(UsageError, match="bash, zsh, fish"):
        render_script("tcsh")


def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    """The real shell: its completion function asks the real program, here a home without a daemon."""
    bash = shutil.which("bash")
    assert bash
    script = render_script("bash") + (
        'COMP_WORDS=(qvm-start --skip-if-r); COMP_CWORD=1; COMP_LINE="qvm-start --skip-if-r"; COMP_POINT=21\n'
        '_crannog; printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "CRANNOG_HOME": str(tmp_path / "h")}
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=True)
    assert done.stdout == "--skip-if-running\n"
    assert not (tmp_path / "h").exists()
