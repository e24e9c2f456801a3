#!/usr/bin/env bash
# pyflowreg 0.1.0a9: the constancy assumption has no effect, and the pipeline leaves the pre-alignment out.
#
# OFOptions checks and keeps `constancy_assumption` and `cc_initialization`. The function that computes a flow takes the
# first by the name const_assumption and computes gradient constancy whatever it says. The executors align frames rigidly
# first where their flow parameters say cc_initialization, but compensate_arr does not hand it to them. Neither is told.
#
# Seen with pyflowreg 0.1.0a9, opencv-contrib-python 4.14.0.94 (numpy and scipy as pip chooses):
#   get_displacement: gray equal to gc True
#   compensate_arr:   gray equal to gc True, pre-aligned equal to not pre-aligned True
#   executor:         pre-aligned equal to not pre-aligned False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyflowreg==0.1.0a9 opencv-contrib-python==4.14.0.94
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io

import numpy as np
from scipy.ndimage import gaussian_filter, shift

with contextlib.redirect_stdout(io.StringIO()):
    from pyflowreg.core.optical_flow import get_displacement
    from pyflowreg.core.warping import imregister_wrapper
    from pyflowreg.motion_correction.compensate_arr import compensate_arr
    from pyflowreg.motion_correction.OF_options import OFOptions
    from pyflowreg.motion_correction.parallelization.sequential import SequentialExecutor

scene = gaussian_filter(np.random.default_rng(0).standard_normal((64, 64)), 1.5, mode="wrap")
scene = (1000 + 4000 * (scene - scene.min())).astype(np.float32)[..., None]
movie = np.stack([shift(scene, (2.4 * t, -3.7 * t, 0), mode="grid-wrap") for t in range(4)])
planes = ((movie - scene.min()) / np.ptp(scene)).astype(np.float32)
parameters = {"alpha": (4, 4), "min_level": 2, "levels": 100, "eta": 0.8, "iterations": 20, "update_lag": 5}


def by_function(assumption):
    return get_displacement(planes[0], planes[1], **parameters, const_assumption=assumption)


def by_pipeline(**options):
    with contextlib.redirect_stdout(io.StringIO()):
        chosen = OFOptions(alpha=4, quality_setting="fast", save_meta_info=False, **options)
        return compensate_arr(movie, scene, chosen)[1]


def by_executor(**more):
    zero = np.zeros((64, 64, 2), np.float32)
    flow_params = {**parameters, "weight": np.ones(1), **more}
    with contextlib.redirect_stdout(io.StringIO()):
        return SequentialExecutor(n_workers=1).process_batch(
            movie, planes, scene, planes[0], zero, get_displacement, imregister_wrapper, "cubic", flow_params=flow_params
        )[1]


default, found = by_pipeline(), {}
found["get_displacement: gray equal to gc"] = np.array_equal(by_function("gc"), by_function("gray"))
found["compensate_arr: gray equal to gc"] = np.array_equal(default, by_pipeline(constancy_assumption="gray"))
aligned = by_pipeline(cc_initialization=True)
found["compensate_arr: pre-aligned equal to not pre-aligned"] = np.array_equal(default, aligned)
aligned = by_executor(cc_initialization=True, cc_hw=64, cc_up=1)
found["executor: pre-aligned equal to not pre-aligned"] = np.array_equal(by_executor(), aligned)
for name, equal in found.items():
    print(f"{name} {equal}")
assert list(found.values()) == [True, True, True, False], "this has changed"
PYTHON
