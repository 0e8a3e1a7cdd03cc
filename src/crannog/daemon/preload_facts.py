"""What decides about disposables that are started in advance: what the settings ask for, and what the host allows."""

import os
from collections.abc import Mapping
from contextlib import suppress

from crannog.core.domain import HostCapabilities
from crannog.core.memory import need_of
from crannog.core.memory_images import Prospect, may_restore
from crannog.core.preload import Host, Reserve, Wish
from crannog.core.preload_wishes import MAX, describe_recipe, wanted_delay, wanted_size, wanted_threshold
from crannog.core.templates import origin
from crannog.core.vms import LocalVM, QubeBase
from crannog.core.volumes import Volume
from crannog.daemon.lifecycle import Lifecycle
from crannog.editing.editor import Editor
from crannog.errors import CrannogError


class PreloadFacts:
    """Looks at the store, the pools and the host."""

    def __init__(self, lifecycle: Lifecycle, editor: Editor) -> None:
        self._lifecycle = lifecycle
        self._world = lifecycle.world
        self._registry = lifecycle.registry
        self._machines = lifecycle.machines
        self._editor = editor
        self._capabilities: HostCapabilities | None = None

    async def prepare(self) -> None:
        """Learn what the host can; before that, VMs seem to need no memory."""
        self._capabilities = await self._world.hypervisor.capabilities()

    def wishes(self) -> dict[str, Wish]:
        """Return what is asked for, by the UUID of the template."""
        registry = self._registry
        default = registry.get("default_dispvm")
        asked = [vm for vm in registry.local_vms() if MAX in vm.features or vm is default]
        return {vm.uuid: self.wish(vm, size) for vm in asked if (size := wanted_size(vm))}

    def wish(self, template: LocalVM, size: int) -> Wish:
        """Return what is asked of one template."""
        cost = need_of(template, self._capabilities).total if self._capabilities else 0
        return Wish(size, wanted_delay(template), self.recipe(template), cost, is_blocked=self.is_blocked(template))

    def prospects(self, wishes: Mapping[str, Wish], reserve: Reserve) -> list[Prospect]:
        """Return the disposable templates of which memory images could be made; a pool's come first."""
        templates = [vm for vm in self._registry.local_vms() if vm.is_disposable_template() and may_restore(vm)]
        found = [self._prospect(vm, wishes.get(vm.uuid), reserve) for vm in templates]
        return sorted(found, key=lambda prospect: -prospect.wanted)

    def _prospect(self, template: LocalVM, wish: Wish | None, reserve: Reserve) -> Prospect:
        chosen = wish or self.wish(template, 0)
        ready = len(reserve.ready_of(template.uuid))
        return Prospect(template.uuid, chosen.recipe, chosen.size, ready, chosen.cost, chosen.is_blocked)

    def recipe(self, template: LocalVM) -> str:
        """Return a text that changes whenever a new disposable of the template would be another one."""
        volumes = [origin(template, name)[1] for name in template.volumes]
        seen = [self._describe_content(volume) for volume in volumes if not volume.is_kernel and not volume.is_volatile]
        return describe_recipe(template, self._editor.firewall(template) or "", self._describe_kernel(template), *seen)

    def _describe_content(self, volume: Volume) -> str:
        """Return what tells the newest finished content of a volume from what comes after it."""
        try:
            return self._describe_file(self._world.pool_of(volume).newest(volume.vid).path)
        except CrannogError as error:
            return str(error)

    def _describe_kernel(self, template: LocalVM) -> str:
        if not template.mode.has_host_kernel():
            return ""
        with suppress(CrannogError):
            files = self._world.kernels.files(str(template.get("kernel")))
            return " ".join(map(self._describe_file, (files.kernel, files.initrd, files.modules)))
        return "no kernel"

    def _describe_file(self, path: str) -> str:
        """Return where a file or block device really is, and when it was changed last; layers stand on such files."""
        if not path:
            return ""
        try:
            facts = os.stat(path)
        except OSError:
            return f"{path} is not there"
        place = os.path.realpath(path).removeprefix(os.path.realpath(self._world.paths.home))
        return f"{place} {facts.st_size} {facts.st_rdev} {facts.st_mtime_ns}"

    def is_blocked(self, template: QubeBase) -> bool:
        """Tell whether its volumes, or those below, are in use: what starts now would be outdated soon, or refused."""
        holder: QubeBase | None = template
        while holder:
            is_held = self._machines.lock(holder.uuid).locked() or holder.uuid in self._machines.busy
            if is_held or holder.power_state != "Halted":
                return True
            holder = holder.template
        return False

    async def host(self, *, is_busy: bool) -> Host:
        """Return what the host allows now."""
        return Host(await self._lifecycle.ledger.headroom(), wanted_threshold(self._registry.dom0), is_busy)
