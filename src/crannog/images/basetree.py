"""The distribution's own tree, as a tar file: what changes only with the packages, not with Crannog."""

import dataclasses
import hashlib
import tarfile

from crannog.errors import StorageError
from crannog.images.cache import ImageCache, compute_key, read_json, write_json
from crannog.images.packages import make_tree
from crannog.images.recipe import Recipe

_PREFERENCES = "etc/apt/preferences.d/crannog-build"
_NO_USRMERGE = r"Package: usrmerge\nPin: release *\nPin-Priority: -1\n"
_OPTIONS = (
    *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "locale", "doc", "info")),
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    # Packages then unpack into a merged /usr from the start, and need no tool to convert it.
    '--setup-hook=for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d" || exit 1; done',
    f'--setup-hook=mkdir -p "$1/etc/apt/preferences.d" && printf "{_NO_USRMERGE}" > "$1/{_PREFERENCES}"',
    f'--customize-hook=rm "$1/{_PREFERENCES}"',
    '--customize-hook=rm -rf "$1/var/log"/*.log "$1/var/log/apt" "$1/var/cache/debconf"/*-old',
)
_DPKG_STATUS = "./var/lib/dpkg/status"


@dataclasses.dataclass(frozen=True)
class BaseTree:
    """A tar file of the tree, the packages in it (name -> version), and a digest that names this content."""

    tar: str
    packages: dict[str, str]
    identity: str


def provide_base(cache: ImageCache, recipe: Recipe, *, refresh: bool = False) -> BaseTree:
    """Return the recipe's tree from the cache, or newly made; `refresh` fetches the newest packages.

    Raises StorageError with one sentence for whatever fails.
    """
    source = [recipe.suite, recipe.architecture, recipe.packages, recipe.mirror, recipe.default_user]
    key = compute_key([source, _list_options(recipe)])

    def build(folder: str) -> None:
        tar = f"{folder}/base.tar"
        make_tree(recipe, "apt", recipe.packages, _list_options(recipe), tar, cache.report)
        with open(tar, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        write_json(f"{folder}/base.json", {"packages": read_packages(tar), "sha256": digest})

    path = cache.provide(f"base-{recipe.name}", key, build, refresh=refresh)
    facts = read_json(f"{path}/base.json")
    return BaseTree(f"{path}/base.tar", facts["packages"], facts["sha256"])


def _list_options(recipe: Recipe) -> list[str]:
    user = recipe.default_user
    return [
        *_OPTIONS,
        f'--customize-hook=chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash {user}',
        f'--customize-hook=chroot "$1" passwd --quiet --delete {user}',
        '--customize-hook=chroot "$1" passwd --quiet --lock root',
    ]


def read_packages(tar_path: str) -> dict[str, str]:
    """Return name and version of every package that dpkg's status file in the tar says is installed."""
    try:
        with tarfile.open(tar_path) as tar:
            status = tar.extractfile(_DPKG_STATUS)
            text = status.read().decode() if status else ""
    except (KeyError, tarfile.TarError) as error:
        raise StorageError(f"the tree {tar_path} holds no list of packages: {error}") from error
    found = {}
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return found
