"""crannog template: build templates and hand them to the daemon."""

from __future__ import annotations

import os
import sys
import time

from crannog.cli.options import Command, Operand, Option, Values
from crannog.cli.tool import run, say
from crannog.client.connection import Client
from crannog.errors import CrannogError, FeatureNotFoundError, UsageError, VMNotFoundError

# Importing typing would cost each tool 8 ms; type checkers take this name for true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.cli.request import Caller
    from crannog.images.kernel import KernelImage

COMMAND = Command(
    "crannog template",
    "Build a template from a distribution's packages, or list what can be built.",
    Operand("action", "build|list", "what to do"),
    Operand("recipe", "RECIPE", "what to build, such as debian-12", "?"),
    Option(
        "--virt-mode", metavar="MODE", default="pv", help="pv: kernel from the host (default); hvm: boots by itself"
    ),
    Option("--name", metavar="VM", help="name of the TemplateVM (default: the recipe's, with -hvm for an hvm)"),
    Option("--size", metavar="GIB", default="10", help="size of the root disk in GiB (default: 10); it costs nothing"),
    Option("--mirror", metavar="URI", help="package mirror (default: the distribution's)"),
    Option("--refresh", help="fetch the newest packages instead of using the cache"),
    examples="  crannog template build debian-12\n  crannog template build debian-12 --virt-mode hvm",
)


class Progress:
    """Reports stages to standard error, each with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        print(f"[{time.monotonic() - self._began:5.1f} s] {text}", file=sys.stderr, flush=True)


def _act(options: Values) -> None:
    from crannog.images.recipe import RECIPES

    if options.action == "list":
        for recipe in RECIPES.values():
            say(f"{recipe.name}: {recipe.distribution} {recipe.version} ({recipe.architecture})")
    elif options.action != "build":
        raise UsageError(f"'{options.action}' is neither build nor list")
    elif not options.recipe:
        raise UsageError(f"name what to build: {', '.join(RECIPES)}")
    else:
        _build(options)


def _build(options: Values) -> None:
    """Build in this process, which may take a minute, then hand the finished images to the daemon."""
    from crannog.guest import agent
    from crannog.images.builder import build_template
    from crannog.images.kernel import build_kernel
    from crannog.images.recipe import find_recipe

    client, report = Client(), Progress()
    name = options.name or options.recipe + ("-hvm" if options.virt_mode == "hvm" else "")
    cache = client.paths.cache
    recipe = find_recipe(options.recipe, options.mirror)
    image = build_template(
        recipe,
        options.virt_mode,
        cache,
        report,
        agent_path=str(agent.__file__),
        size=_size(options.size),
        refresh=options.refresh,
    )
    settings = {"virt_mode": options.virt_mode, "default_user": str(image.manifest["default_user"])}
    if "accel=tcg" in client.text("crannog.Capabilities").split():
        # Emulated processors that wait for each other make a guest slower: it boots in 2.4 s with one, 3.4 s with two.
        settings["vcpus"] = "1"
    if options.virt_mode != "hvm":
        settings["kernel"] = hand_over_kernel(client, report, build_kernel(cache, report, recipe=recipe))
    _hand_over_template(client, report, name, image.root_img, settings, image.manifest["features"])


def _size(text: str) -> int:
    if not text.isdigit():
        raise UsageError(f"--size takes a whole number of GiB, not '{text}'")
    return int(text) * 2**30


def list_kernels(client: Caller) -> list[str]:
    """Return the names of the kernels in pool linux-kernel."""
    return client.text("admin.pool.volume.List", "dom0", "linux-kernel").split()


def hand_over_kernel(client: Caller, report: Progress, image: KernelImage, name: str = "") -> str:
    """Have a kernel be in pool linux-kernel, and return its name there: the image's own, if `name` is empty."""
    name = name or image.name
    if name not in list_kernels(client):
        report(f"adding kernel {name} to pool linux-kernel")
        client.text("crannog.kernel.Import", "dom0", name, image.path)
    return name


def _hand_over_template(
    client: Client, report: Progress, name: str, root: str, settings: dict[str, str], features: dict[str, str]
) -> None:
    key = os.path.basename(os.path.dirname(root))
    is_new, is_current = _look(client, name, key)
    if not is_current:
        if is_new:
            client.text("admin.vm.Create.TemplateVM", "dom0", "", f"name={name} label=black")
        try:
            for prop, value in settings.items():
                client.text("admin.vm.property.Set", name, prop, value)
            report(f"{name}: copying the root image")
            client.text("crannog.vm.volume.ImportFile", name, "root", root)
            for feature, value in {**features, "template-image": key}.items():
                client.text("admin.vm.feature.Set", name, feature, value)
        except (CrannogError, KeyboardInterrupt):
            if is_new:
                client.call("admin.vm.Remove", name)
            raise
    if not client.text("admin.property.Get", "dom0", "default_template").split(" ", 2)[2]:
        client.text("admin.property.Set", "dom0", "default_template", name)
    report(f"{name}: {'is up to date' if is_current else 'is ready'}")


def _look(client: Client, name: str, key: str) -> tuple[bool, bool]:
    """Return whether the TemplateVM does not exist yet, and whether it has this very image."""
    try:
        return False, client.text("admin.vm.feature.Get", name, "template-image") == key
    except VMNotFoundError:
        return True, False
    except FeatureNotFoundError:
        return False, False


def main(arguments: list[str]) -> int:
    """Run crannog template."""
    return run(COMMAND, _act, arguments)
