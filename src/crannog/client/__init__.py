"""The client of the Admin API that every tool uses: standard library only.

For programs there is `crannog.client.disposable`: a VM for one piece of work (docs/untrusted.md).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crannog.client.disposables import disposable

__all__ = ["disposable"]


def __getattr__(name: str) -> object:
    """Load what programs use when they do: asyncio would cost each tool more than all else that it does."""
    if name != "disposable":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from crannog.client.disposables import disposable

    return disposable
