"""The device of shapes alone counts the bytes that are in use."""

import numpy as np

from flowreg_gpu.cuda.paper import PaperDevice


def test_live_and_peak_bytes():
    """A buffer counts until it, its views and what a captured graph keeps are gone."""
    device = PaperDevice()
    buffer = device.empty((4, 2), np.float32)
    view = buffer[1:].reshape((6,))
    assert (view.shape, view.nbytes) == ((6,), 24)
    del buffer
    assert device.live_bytes == 32
    del view
    assert (device.live_bytes, device.peak_bytes) == (0, 32)
    result, replay = device.capture_graph(lambda: [device.empty((k,), np.uint8) for k in (50, 20)][1])
    assert (result.shape, device.live_bytes, device.peak_bytes) == ((20,), 70, 70)
    del replay
    assert device.live_bytes == 20
