"""Our GPU executor as one of pyflowreg's, under the name 'gpu'."""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

from flowreg_gpu.executors.gpu import GPUExecutor
from flowreg_gpu.pyflowreg.library import check_opencv, part

__all__ = ["disable", "enable"]

NAME = GPUExecutor.name
PATH = f"{GPUExecutor.__module__}.{GPUExecutor.__qualname__}"  # as pyflowreg keeps executors
SESSIONS = "session.stage1_compensate"
REGISTRY, AVAILABLE = "parallelization_registry", "available_parallelization"


class _Former(NamedTuple):
    """What pyflowreg had under our executor's name."""

    path: str | None
    available: bool


_former: _Former | None = None
_extended: set[str] = set()
_session_config: Any = None


def enable(*, sessions: bool = False) -> None:
    """Make pyflowreg know this package's GPU executor: ``RegistrationConfig(parallelization="gpu")`` runs it.

    Nothing else changes: without that request pyflowreg chooses among its own executors as before. Without a usable
    GPU the executor warns and uses worker processes, so scripts start their work under
    ``if __name__ == "__main__":``. May be called again. Other flow backends than 'flowreg', and displacement functions
    of the caller, are refused when the run reaches them.

    Parameters
    ----------
    sessions : bool
        True has the recordings of sessions registered with it, too: `SessionConfig` cannot name an executor.

    Raises
    ------
    ImportError
        pyflowreg is missing or has no place for executors; the message names the command that installs it.

    Warns
    -----
    RuntimeWarning
        OpenCV 5 is installed, with which pyflowreg's own results are damaged.
    """
    global _former, _session_config
    register = part("_runtime", "RuntimeContext.register_parallelization_executor")
    config = part("_runtime", "RuntimeContext._config")
    list_backends = part("core", "list_backends")  # importing core enters the backends
    executors_of, get_backend, register_backend = (
        part("core.backend_registry", name) for name in ("get_backend_executors", "get_backend", "register_backend")
    )
    check_opencv()
    if config[REGISTRY].get(NAME) != PATH:
        _former = _Former(config[REGISTRY].get(NAME), NAME in config[AVAILABLE])
    register(NAME, GPUExecutor)
    for backend in list_backends():  # all of them: our executor refuses the others aloud, pyflowreg would fall back
        executors = executors_of(backend)
        if NAME not in executors:
            register_backend(backend, get_backend(backend), executors | {NAME})
            _extended.add(backend)
    if sessions and _session_config is None:
        _session_config = part(SESSIONS, "RegistrationConfig")
        ours = functools.partial(_session_config, parallelization=NAME)
        vars(sys.modules[f"pyflowreg.{SESSIONS}"])["RegistrationConfig"] = ours


def disable() -> None:
    """Undo `enable`: pyflowreg is as it was before. May be called at any time."""
    global _former, _session_config
    if _former is None:
        return
    config = part("_runtime", "RuntimeContext._config")
    if _former.path is None:
        config[REGISTRY].pop(NAME, None)
    else:
        config[REGISTRY][NAME] = _former.path
    if not _former.available:
        config[AVAILABLE].discard(NAME)
    executors_of, get_backend, register_backend, list_backends = (
        part("core.backend_registry", name)
        for name in ("get_backend_executors", "get_backend", "register_backend", "list_backends")
    )
    for backend in _extended.intersection(list_backends()):
        register_backend(backend, get_backend(backend), executors_of(backend) - {NAME})
    _extended.clear()
    if _session_config is not None:
        vars(sys.modules[f"pyflowreg.{SESSIONS}"])["RegistrationConfig"] = _session_config
    _former = _session_config = None
