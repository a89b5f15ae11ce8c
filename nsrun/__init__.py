# SPDX-License-Identifier: Apache-2.0
"""nsrun: pods without Docker and without a daemon.  See nsrun.library for what this package offers a program."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nsrun.errors import BadInput as BadInput
    from nsrun.errors import CommandError as CommandError
    from nsrun.errors import KernelError as KernelError
    from nsrun.errors import NsrunError as NsrunError
    from nsrun.errors import StepError as StepError
    from nsrun.errors import UnknownError as UnknownError
    from nsrun.errors import UsageError as UsageError
    from nsrun.library import Image as Image
    from nsrun.library import Member as Member
    from nsrun.library import Pod as Pod
    from nsrun.library import Result as Result
    from nsrun.library import images as images
    from nsrun.library import member as member
    from nsrun.library import plan_of as plan_of
    from nsrun.library import pods as pods
    from nsrun.library import prune as prune

_LIBRARY = ("Image", "Member", "Pod", "Result", "images", "member", "plan_of", "pods", "prune")
_ERRORS = ("BadInput", "CommandError", "KernelError", "NsrunError", "StepError", "UnknownError", "UsageError")
__all__ = [*_LIBRARY, *_ERRORS]


def __getattr__(name: str) -> object:
    """Lazily (PEP 562): the command line imports this package too, and needs none of it."""
    if name in _LIBRARY:
        from nsrun import library

        return getattr(library, name)
    if name in _ERRORS:
        from nsrun import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
