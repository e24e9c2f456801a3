"""A page that shows what a registration has done, and its pictures; matplotlib draws, Jinja fills the page."""

import importlib.util

for _library in ("matplotlib", "jinja2", "PIL"):
    if importlib.util.find_spec(_library) is None:
        raise ModuleNotFoundError(
            f'a report needs {_library}, which is not installed: pip install "flowreg-gpu[report]"', name=_library
        )
