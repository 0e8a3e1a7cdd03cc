"""The tools against the real server: what they ask is what it knows."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

import pytest

from crannog.api.server import Server
from crannog.cli import ls_columns, qvm_ls, umbrella
from tests.fakes import Inside, build_inside, short_folder, template_and_app

PATIENCE = 60


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    with short_folder() as home:
        inside = build_inside(home)
        template_and_app(inside.registry)
        server = Server(inside.inventory, inside.paths.daemon_socket)
        await server.start()
        yield inside
        await server.stop()


async def start(inside: Inside, module: str, call: str, *words: str) -> asyncio.subprocess.Process:
    code = f"import sys; from crannog.cli import {module} as tool; sys.exit(tool.{call})"
    pipe = asyncio.subprocess.PIPE
    env = {**os.environ, "CRANNOG_HOME": inside.paths.home}
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, *words, stdout=pipe, stderr=pipe, env=env)


async def run(inside: Inside, module: str, *words: str) -> tuple[int | None, str, str]:
    """Run a tool; return its code, output and errors."""
    process = await start(inside, module, "main()", *words)
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    return process.returncode, out.decode(), err.decode()


async def ok(inside: Inside, module: str, *words: str) -> str:
    code, out, err = await run(inside, module, *words)
    assert (code, err) == (0, ""), (module, words, code, out, err)
    return out


async def test_all_formats_and_worked_out_columns(inside: Inside) -> None:
    for name, fields in qvm_ls.FORMATS.items():
        rows = json.loads(await ok(inside, "qvm_ls", "--json", "--format", name))
        assert [list(row) for row in rows] == [fields.split(",")] * 3
        assert [row["name"] for row in rows] == ["dom0", "debian", "work"]
    assert await ok(inside, "qvm_ls", "--raw-data", "-O", "flags", "work") == "a--------\n"


async def test_json_knows_the_type_of_each_property(inside: Inside) -> None:
    work = inside.registry.find_vm("work")
    kinds = {name: declared.kind.name for name, declared in work.declared().items()}
    [row] = json.loads(await ok(inside, "qvm_ls", "--json", "-O", ",".join(kinds), "work"))
    for name, kind in kinds.items():
        assert (name in ls_columns._INTS, name in ls_columns._BOOLS) == (kind == "int", kind == "bool"), name
        if kind == "bool":
            assert isinstance(row[qvm_ls._clean(name)], bool), name


async def test_filters_on_features_and_tags(inside: Inside) -> None:
    await ok(inside, "qvm_tags", "work", "add", "mail", "web")
    await ok(inside, "qvm_features", "work", "internal", "1")
    await ok(inside, "qvm_features", "debian", "internal", "")
    for words, expected in (
        (("--tags", "mail"), "work"), (("--exclude-tags", "web"), "dom0 debian"), (("--internal", "y"), "work"),
        (("--features", "internal="), "dom0"), (("--features", "internal=''"), "debian"),
        (("--internal", "n", "--servicevm", "n", "--halted"), "debian"), (("--pending-update",), ""),
        (("--class", "AppVM", "--template", "debian", "--netvm", "none"), "work"),
    ):  # fmt: skip
        assert " ".join((await ok(inside, "qvm_ls", "--raw-list", *words)).split()) == expected, words
    assert await ok(inside, "qvm_ls", "--raw-data", "-O", "tags,features.internal", "work") == "mail web|1\n"
    assert await ok(inside, "qvm_check", "--template", "debian") == "debian is a template\n"


async def test_events_of_one_vm_are_followed(inside: Inside) -> None:
    process = await start(inside, "events", "main(sys.argv[1:])", "--json", "--count", "2", "work")
    assert process.stdout
    first = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE))
    assert first == {"subject": "", "event": "connection-established", "details": {}}
    await ok(inside, "qvm_tags", "debian", "add", "unheard")
    await ok(inside, "qvm_prefs", "work", "memory", "512")
    lines = (await asyncio.wait_for(process.stdout.read(), PATIENCE)).splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["property-pre-set:memory", "property-set:memory"]
    assert await process.wait() == 0


async def test_tools_about_power_understand_the_refusals(inside: Inside) -> None:
    for module, words, code, sentence in (
        ("qvm_pause", ("work",), 5, "work"),
        ("qvm_console", ("work",), 5, "work"),
        ("qvm_console", ("nope",), 3, "there is no VM 'nope'"),
        ("events", ("nope",), 3, "there is no VM 'nope'"),
    ):
        call = "main(sys.argv[1:])" if module == "events" else "main()"
        process = await start(inside, module, call, *words)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert (process.returncode, out, err.count(b"\n")) == (code, b"", 1), (module, words, err)
        assert sentence in err.decode()


def test_help_lists_all_tools(capsys: pytest.CaptureFixture[str]) -> None:
    umbrella.print_help()
    text = capsys.readouterr().out
    for name in ("events", "qvm-check", "qvm-pause", "qvm-unpause", "qvm-console"):
        assert name in text
