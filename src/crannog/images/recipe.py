"""What a template image is made of. Adding a distribution is one entry in RECIPES."""

import dataclasses

from crannog.errors import NotFoundError, ValueRefusedError

VIRT_MODES = ("pv", "hvm")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One distribution: everything that decides what the base tree holds."""

    name: str
    distribution: str
    version: str
    suite: str
    architecture: str
    packages: tuple[str, ...]
    kernel_package: str
    default_user: str = "user"
    mirror: str = ""
    """URI of the package mirror; empty means mmdebstrap's default for the suite."""
    has_gui: bool = False
    """Whether the guest shows its windows on the host (docs/display.md)."""


# What guest/gui needs, and a terminal, so that there is something to show. xpra draws with python3-pil and asks the X
# server for its own fonts; openbox is the window manager of a desktop that is shown as one window.
_GUI_PACKAGES = ("openbox", "python3-pil", "xauth", "xclip", "xfonts-base", "xpra", "xterm", "xvfb")

_RECIPES = (
    Recipe(
        name="debian-12",
        distribution="debian",
        version="12",
        suite="bookworm",
        architecture="amd64",
        # usr-is-merged stands in for usrmerge, which would bring 48 MB of Perl.
        packages=(
            "busybox-static",
            "dmsetup",
            "e2fsprogs",
            "iproute2",
            "login",
            "mount",
            "passwd",
            "python3",
            "usr-is-merged",
            "util-linux",
        ),
        kernel_package="linux-image-cloud-amd64",
    ),
)


def _add_gui(recipe: Recipe) -> Recipe:
    packages = tuple(sorted({*recipe.packages, *_GUI_PACKAGES}))
    return dataclasses.replace(recipe, name=f"{recipe.name}-gui", packages=packages, has_gui=True)


RECIPES = {recipe.name: recipe for plain in _RECIPES for recipe in (plain, _add_gui(plain))}


def find_recipe(recipe: Recipe | str, mirror: str = "") -> Recipe:
    """Return the recipe named `recipe`, or the recipe itself, with `mirror` in place of its own if one is given.

    Raises NotFoundError, which lists the known names, and ValueRefusedError for a mirror that is not a URI.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise NotFoundError(f"there is no template recipe '{recipe}': known are {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if not mirror:
        return recipe
    if ":" not in mirror or any(character.isspace() for character in mirror):
        raise ValueRefusedError(f"the mirror '{mirror}' is not a URI such as http://host/debian")
    return dataclasses.replace(recipe, mirror=mirror)
