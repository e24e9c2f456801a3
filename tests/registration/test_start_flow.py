"""Windows and the frames registered beforehand; what the loop makes of them is tested with the loop."""

import pytest

from flowreg_gpu.options import Options
from flowreg_gpu.registration.start_flow import StartFlow


@pytest.mark.parametrize("n_frames", [1, 4, 399, 400, 401, 1200])
@pytest.mark.parametrize("window", [1, 7, 400])
def test_windows_cover_every_frame_once(n_frames, window):
    windows = StartFlow(window, 22, 20).windows(n_frames)
    assert [frame for frames in windows for frame in frames] == list(range(n_frames))
    assert {len(frames) for frames in windows[:-1]} <= {window}
    assert 1 <= len(windows[-1]) <= window


@pytest.mark.parametrize(
    ("n_frames", "window", "first", "expected"), [(100, 400, 22, 22), (9, 4, 22, 4), (5, 400, 22, 5), (5, 400, 0, 0)]
)
def test_first_frames(n_frames, window, first, expected):
    assert StartFlow(window, first, 20).first_frames(n_frames) == range(expected)


def test_the_policy_of_the_options():
    assert StartFlow.from_options(Options()) == StartFlow(400, 22, 20)
    assert StartFlow.from_options(Options(buffer_size=50, update_initialization_w=False)) == StartFlow(50, 22, 0)
