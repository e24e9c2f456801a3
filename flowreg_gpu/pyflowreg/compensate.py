"""pyflowreg's two functions, with its arguments and results, on our recording loop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowreg_gpu.executors import BaseExecutor
from flowreg_gpu.io import ArrayReader, ArrayWriter, FrameReader, PathLike, TiffReader, read_image
from flowreg_gpu.pyflowreg.fields import TYPENAMES, check_fields, flow_options
from flowreg_gpu.pyflowreg.library import check_opencv, part
from flowreg_gpu.pyflowreg.outputs import BatchCallback, Outputs, ProgressCallback
from flowreg_gpu.pyflowreg.video import BinnedReader, VideoSource
from flowreg_gpu.registration.loop import Registration
from flowreg_gpu.registration.reference import ReferenceLike
from flowreg_gpu.registration.start_flow import StartFlow

__all__ = ["compensate_arr", "compensate_recording"]

MOST_CHANNELS = 4  # of a three-dimensional array, as pyflowreg tells channels from columns


def compensate_arr(
    c1: NDArray[Any],
    c_ref: NDArray[Any],
    options: Any = None,
    progress_callback: ProgressCallback | None = None,
    *,
    flow_backend: str | None = None,
    backend_params: dict[str, Any] | None = None,
    get_displacement: Callable[..., Any] | None = None,
    get_displacement_factory: Callable[..., Any] | None = None,
    w_callback: BatchCallback | None = None,
    registered_callback: BatchCallback | None = None,
    registration_config: Any = None,
    executor: str | BaseExecutor = "gpu",
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Register an array, as pyflowreg's function of this name.

    Parameters
    ----------
    c1 : (T, H, W, C), (T, H, W), (H, W, C) or (H, W)
        Three axes are time and image where `c_ref` has two; otherwise the last one is the channels if it has at most
        four.
    c_ref : (H, W, C) or (H, W)
    options : pyflowreg OFOptions or None
    progress_callback : callable or None
        Called with finished and all frames.
    flow_backend, backend_params, get_displacement, get_displacement_factory
        Refused where they ask for another flow than that of the backend 'flowreg'.
    w_callback, registered_callback : callable or None
        Called with the flows, or the registered frames in the dtype of `c1`, of `buffer_size` frames, and the numbers
        of the first frame and of the one after the last. What a callback raises ends the run.
    registration_config : pyflowreg RegistrationConfig or None
        Its `n_jobs` is taken.
    executor : {'gpu', 'multiprocessing', 'threading', 'sequential', 'auto'} or BaseExecutor
        In the place of `registration_config.parallelization`.

    Returns
    -------
    registered : shape of `c1`, but (1, H, W, C) for (H, W, C)
        dtype as OFOptions.output_typename says, float64 by default; integers are rounded and saturated.
    w : (T, H, W, 2) float32, or (H, W, 2) for (H, W)
        u and v in pixels.

    Raises
    ------
    ImportError
        pyflowreg is missing or unusable.
    ValueError, TypeError
        Input that cannot be registered, or an option that cannot be honoured; raised before any work is done.
    """
    given = {
        "flow_backend": flow_backend,
        "backend_params": backend_params,
        "get_displacement_impl": get_displacement,
        "get_displacement_factory": get_displacement_factory,
    }
    options = part("motion_correction.OF_options", "OFOptions")() if options is None else options
    check_fields(options)
    options = _fresh(options, **{name: value for name, value in given.items() if value is not None})
    check_fields(options)
    check_opencv()
    c1, c_ref = np.asarray(c1), np.asarray(c_ref)
    if c1.ndim not in (2, 3, 4) or not c1.size:
        raise ValueError(f"c1 has shape {c1.shape}, expected (T, H, W, C), (T, H, W), (H, W, C) or (H, W)")
    reader = _binned(ArrayReader(_as_recording(c1, c_ref)), options.bin_size)
    registration = _registration(reader, c_ref, executor, options, registration_config)
    registered, flow = ArrayWriter(reader.shape, reader.dtype), ArrayWriter((*reader.shape[:3], 2), np.float32)
    with Outputs(reader) as outputs:
        outputs.registered.append(registered.write)
        if options.save_valid_idx:
            outputs.add_masks(Path(options.output_path))
        outputs.flow.append(flow.write)
        outputs.add_callbacks(registered_callback, w_callback, registration.options.buffer_size)
        outputs.run(registration, progress_callback)
    result = _cast(registered.array, options.output_typename)
    if c1.ndim == 2:
        return result[0, ..., 0], flow.array[0]
    return result[..., 0] if c1.ndim == 3 and c_ref.ndim == 2 else result, flow.array


def compensate_recording(
    options: Any,
    reference_frame: NDArray[Any] | None = None,
    config: Any = None,
    *,
    progress_callback: ProgressCallback | None = None,
    w_callback: BatchCallback | None = None,
    registered_callback: BatchCallback | None = None,
    executor: str | BaseExecutor = "gpu",
) -> NDArray[np.float64]:
    """Register a recording from file to file, as pyflowreg's function of this name.

    Files are read and written by pyflowreg, but TIFF is read by this package; they appear under their names when
    they are complete. With the output format ARRAY, `options.get_video_writer().get_array()` has the frames.

    Parameters
    ----------
    options : pyflowreg OFOptions
        `input_file` may also be a `FrameReader` of this package. The registered frames keep the dtype of the input,
        as pyflowreg's do; `output_typename` concerns `compensate_arr`.
    reference_frame : (H, W, C) or (H, W), or None
        In the place of `options.reference_frames`.
    config : pyflowreg RegistrationConfig or None
        Its `n_jobs` is taken.
    progress_callback, w_callback, registered_callback, executor
        As in `compensate_arr`.

    Returns
    -------
    reference : (H, W, C) or (H, W) float64
        The raw reference used.

    Raises
    ------
    ImportError
        pyflowreg is missing or unusable.
    ValueError, TypeError, OSError
        Input that cannot be registered, an option that cannot be honoured, or an output that cannot be written;
        raised before any work is done. A fault in the middle leaves nothing under the final names; the frames
        finished by then are kept in files with ``.partial`` before the extension, and a RuntimeWarning names them.
    """
    check_fields(options)
    check_opencv()
    with contextlib.ExitStack() as stack:
        reader = _open(options, stack)
        reference = _reference(options, reference_frame, reader)
        registration = _registration(reader, reference, executor, options, config)
        outputs = stack.enter_context(Outputs(reader, _inputs(options)))
        folder = Path(options.output_path)
        if options.save_valid_idx:
            outputs.add_masks(folder)
        if options.save_w and options.output_format != "ARRAY":
            outputs.add_flow(folder)
        outputs.add_video(_video_writer(options))
        outputs.add_callbacks(registered_callback, w_callback, registration.options.buffer_size)
        summary = outputs.run(registration, progress_callback)
        image = np.asarray(reference if isinstance(reference, np.ndarray) else summary.reference, np.float64)
        if options.save_meta_info:
            outputs.write_meta(folder, summary, image)
    return image


def _fresh(options: Any, **changes: Any) -> Any:
    """Copy of options without the readers and writers that pyflowreg keeps in them."""
    kept = {name: getattr(options, name) for name in type(options).model_fields}
    return type(options).model_construct(**{**kept, **changes})


def _registration(
    reader: FrameReader, reference: ReferenceLike, executor: str | BaseExecutor, options: Any, config: Any
) -> Registration:
    n_jobs = getattr(config, "n_jobs", -1)
    n_workers = None if n_jobs == -1 or isinstance(executor, BaseExecutor) else n_jobs
    flow = flow_options(options, *reader.shape[1:])
    source = options.input_file
    if _is_video(source):  # pyflowreg takes the batches of a reader that it is given
        flow = flow.replace(buffer_size=source.buffer_size)
    start = StartFlow.from_options(flow)
    if not flow.update_initialization_w:  # pyflowreg then starts every frame from zero
        start = dataclasses.replace(start, first=0)
    return Registration(
        reader,
        reference,
        executor,
        flow,
        n_workers=n_workers,
        bad_frames=None,  # pyflowreg knows none
        start_flow=start,
        least_frames=1,
    )


def _is_video(source: Any) -> bool:
    return isinstance(source, part("util.io._base", "VideoReader"))


def _inputs(options: Any) -> list[PathLike]:
    """Files that an output must not replace."""
    named = (options.input_file, options.reference_frames)
    inputs = [source for source in named if isinstance(source, str | os.PathLike)]
    return [*inputs, *getattr(options.input_file, "paths", ())]


def _open(options: Any, stack: contextlib.ExitStack) -> FrameReader:
    """Return the recording; what is opened here is closed with `stack`."""
    source = options.input_file
    if source is None:
        raise ValueError("OFOptions.input_file is None, expected a recording")
    if isinstance(source, FrameReader):
        return _binned(source, options.bin_size)
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in (".tif", ".tiff"):
        try:
            return _binned(stack.enter_context(TiffReader(source)), options.bin_size)
        except ValueError as error:
            help_out = "options.input_file may be a flowreg_gpu.io.TiffReader with axes or channels, or pyflowreg's own"
            raise ValueError(f"{error} ({help_out})") from error
    reader = _fresh(options).get_video_reader()
    if not _is_video(source):
        stack.callback(reader.close)
    return VideoSource(reader)


def _binned(reader: FrameReader, bin_size: int) -> FrameReader:
    return reader if bin_size == 1 else BinnedReader(reader, bin_size)


def _video_writer(options: Any) -> Any:
    """pyflowreg's writer for the registered frames; one in memory stays with the caller's options."""
    if options.output_format not in ("ARRAY", "NULL"):
        source = options.input_file
        Path(options.output_path).mkdir(parents=True, exist_ok=True)
        return _fresh(
            options, input_file=source.paths[0] if isinstance(source, TiffReader) else source
        ).get_video_writer()
    writer = options.get_video_writer()
    if writer.initialized:
        raise ValueError(
            f"these options hold the frames of an earlier run (output_format={options.output_format.value}); "
            "take new ones for the next"
        )
    return writer


def _reference(options: Any, given: NDArray[Any] | None, reader: FrameReader) -> ReferenceLike:
    """The image, or the frames to build it from: clipped to the recording, each once where that was needed."""
    if given is not None:
        return np.asarray(given)
    wanted = options.reference_frames
    if isinstance(wanted, np.ndarray):
        return wanted
    if isinstance(wanted, str | os.PathLike):
        image = np.asarray(_fresh(options).get_reference_frame())
        misread = image.shape not in (reader.shape[1:], reader.shape[1:3])
        return read_image(wanted) if misread and Path(wanted).suffix.lower() in (".tif", ".tiff") else image
    last = reader.n_frames - 1
    frames = [index + reader.n_frames if index < 0 else index for index in wanted]
    return list(dict.fromkeys(min(index, last) for index in frames)) if max(frames, default=0) > last else frames


def _as_recording(c1: NDArray[Any], c_ref: NDArray[Any]) -> NDArray[Any]:
    """(T, H, W, C), as pyflowreg takes arrays with fewer axes."""
    if c1.ndim == 2:
        return c1[None, ..., None]
    if c1.ndim == 3:
        return c1[None] if c_ref.ndim != 2 and c1.shape[-1] <= MOST_CHANNELS else c1[..., None]
    return c1


def _cast(frames: NDArray[Any], typename: str | None) -> NDArray[Any]:
    """Frames in the dtype that pyflowreg means by `typename`; integers are rounded and saturated."""
    if not typename:
        return frames
    dtype: np.dtype[Any] = np.dtype(TYPENAMES[typename])
    if dtype.kind == "f" or np.can_cast(frames.dtype, dtype):
        return frames.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    rounded: NDArray[Any] = np.clip(np.rint(frames), limits.min, limits.max).astype(dtype)
    return rounded
