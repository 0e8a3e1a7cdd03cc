"""What is done to the volumes of VMs that exist: new content from an image."""

from collections.abc import Mapping

from crannog.core.vms import QubeBase
from crannog.editing.editor import Editor
from crannog.editing.hold import Hold, hold_nothing
from crannog.editing.population import find_pool
from crannog.errors import ValueRefusedError
from crannog.ports.storage import Pool


class Volumes:
    """The volumes of one registry's VMs."""

    def __init__(self, editor: Editor, pools: Mapping[str, Pool], hold: Hold = hold_nothing) -> None:
        self._editor = editor
        self._pools = pools
        self._hold = hold

    async def import_file(self, vm: QubeBase, name: str, path: str) -> None:
        """Make the raw image at `path` the content of a halted VM's volume; raises VMNotHaltedError or StorageError."""
        async with self._hold(vm.uuid):
            self._editor.check_halted(vm, "get another image")
            volume = vm.volumes[name]
            if not volume.save_on_stop:
                raise ValueRefusedError(
                    f"volume {name} of {vm.name} cannot be given an image: it is made anew from the template at each "
                    f"start; create the VM with '--class StandaloneVM' instead"
                )
            imported = await find_pool(self._pools, volume).import_file(volume, path)
            with self._editor.change(vm):
                vm.volumes[name] = imported
