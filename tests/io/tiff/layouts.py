"""TIFF files of every layout that the tests write, and what their frames are."""

import numpy as np
import tifffile

from flowreg_gpu.io import TiffReader, TiffWriter

T, C, H, W = 5, 2, 18, 21
SCANIMAGE = "SI.VERSION_MAJOR = 2020\nSI.hChannels.channelSave = {channels}\nSI.hStackManager.framesPerSlice = 1000\n"
TCYX, TYX, CTYX = (T, C, H, W), (T, H, W), (C, T, H, W)


def pixels(shape, dtype="uint16"):
    """Random pixels over the whole range of the type, so that a byte or a sign out of place shows."""
    rng = np.random.default_rng(sum(shape))
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def by_pages(path, array, **kwargs):
    """One page a plane and no description, as cameras and LabVIEW write."""
    with tifffile.TiffWriter(path, **{k: kwargs.pop(k) for k in ("bigtiff", "byteorder") if k in kwargs}) as tif:
        for page in array:
            tif.write(page, photometric="minisblack", metadata=None, **kwargs)


def imagej_order(path, array, order, counts):
    """An ImageJ hyperstack whose planes are in another order than channels, slices, frames."""
    description = f"ImageJ=1.53t\nimages={array.shape[0] * array.shape[1]}\n{counts}hyperstack=true\norder={order}\n"
    planes = array.reshape(-1, *array.shape[-2:])
    tifffile.imwrite(path, planes, photometric="minisblack", description=description, metadata=None)


def imagej_one_page(path, array):
    """An ImageJ stack as ImageJ writes it above 4 GB: one page description, the pixels of all pages behind it."""
    description = f"ImageJ=1.53t\nimages={T * C}\nchannels={C}\nframes={T}\nhyperstack=true\n"
    tifffile.imwrite(path, array[0, 0], description=description, metadata=None, byteorder=">")
    with open(path, "ab") as file:
        file.write(array.reshape(-1, H, W)[1:].astype(">u2").tobytes())


def scanimage(path, array, header, bigtiff=True, descriptions=None):
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tif:
        for i, page in enumerate(array.reshape(-1, H, W)):
            description = f"frame = {i}" if descriptions is None else descriptions[i]
            tif.write(page, photometric="minisblack", metadata=None, software=header, description=description)


def scanimage_description(number, json=False):
    """What ScanImage writes into every page, in either of its forms: each channel has the number of its frame."""
    values = {
        "frameNumbers": number,
        "acquisitionNumbers": 1,
        "frameNumberAcquisition": number,
        "frameTimestamps_sec": f"{(number - 1) / 30:.9f}",
        "acqTriggerTimestamps_sec": "-0.000021560",
        "nextFileMarkerTimestamps_sec": "-1.000000000",
        "endOfAcquisition": 0,
    }
    if json:
        lines = ",\n".join(f'    "{name}": {value}' for name, value in values.items())
        return f'{{\n  "FrameHeader": {{\n{lines}\n  }}\n}}'
    return "".join(f"{name} = {value}\n" for name, value in values.items()) + "I2CData = {}\n"


def imwrite(shape, dtype="uint16", **kwargs):
    def write(path):
        array = pixels(shape, dtype)
        tifffile.imwrite(path, array, **{"photometric": "minisblack"} | kwargs)
        return array

    return write


def special(writer, shape, dtype="uint16", **kwargs):
    def write(path):
        array = pixels(shape, dtype)
        writer(path, array, **kwargs)
        return array

    return write


def frames_of(array, axes):
    """Independent statement of what (T, H, W, C) is, axis by axis."""
    for missing in set("TC") - set(axes):
        array, axes = array[np.newaxis], missing + axes
    return np.einsum(array, [ord(a) - 65 for a in axes], [ord(a) - 65 for a in "TYXC"])


# name: (writer, axes of the array that was written, arguments of the reader, kind)
LAYOUTS = {
    "pages": (special(by_pages, TYX), "TYX", {}, "plain"),
    "many-pages": (special(by_pages, (11, H, W)), "TYX", {}, "plain"),
    "pages-strips": (special(by_pages, TYX, rowsperstrip=4), "TYX", {}, "plain"),
    "pages-big-endian": (special(by_pages, (11, H, W), byteorder=">"), "TYX", {}, "plain"),
    "pages-bigtiff": (special(by_pages, TYX, bigtiff=True), "TYX", {}, "plain"),
    "pages-int16": (special(by_pages, TYX, "int16", byteorder=">"), "TYX", {}, "plain"),
    "pages-zlib": (special(by_pages, (11, H, W), compression="zlib"), "TYX", {}, "plain"),
    "pages-tiled": (special(by_pages, TYX, tile=(16, 16)), "TYX", {}, "plain"),
    "pages-rgb": (special(by_pages, (T, H, W, 2), planarconfig="contig"), "TYXC", {}, "plain"),
    "pages-interleaved": (special(by_pages, (T * C, H, W)), "TYX", {"channels": 2}, "plain"),
    "one-page": (special(by_pages, (1, H, W)), "TYX", {}, "plain"),
    "shaped-u8": (imwrite(TYX, "uint8"), "TYX", {}, "shaped"),
    "shaped-u16": (imwrite(TYX), "TYX", {}, "shaped"),
    "shaped-i16": (imwrite(TYX, "int16"), "TYX", {}, "shaped"),
    "shaped-f32": (imwrite(TYX, "float32", byteorder=">"), "TYX", {}, "shaped"),
    "shaped-tcyx": (imwrite(TCYX, metadata={"axes": "TCYX"}), "TCYX", {}, "shaped"),
    "shaped-ctyx": (imwrite(CTYX, metadata={"axes": "CTYX"}), "CTYX", {}, "shaped"),
    "shaped-zyx": (imwrite(TYX, metadata={"axes": "ZYX"}), "TYX", {}, "shaped"),
    "shaped-yxt": (imwrite((H, W, T), metadata={"axes": "YXT"}), "YXT", {}, "shaped"),
    "shaped-tyxc": (imwrite((T, H, W, C), metadata={"axes": "TYXC"}), "TYXC", {}, "shaped"),
    "shaped-tyxc-one-channel": (imwrite((T, H, W, 1), metadata={"axes": "TYXC"}), "TYXC", {}, "shaped"),
    "shaped-ytcx-zlib": (imwrite((H, T, C, W), metadata={"axes": "YTCX"}, compression="zlib"), "YTCX", {}, "shaped"),
    "shaped-4d": (imwrite(TCYX), "TCYX", {"axes": "TCYX"}, "shaped"),
    "shaped-singleton": (imwrite((T, 1, H, W), metadata={"axes": "TCYX"}), "TCYX", {}, "shaped"),
    "shaped-one-page": (imwrite(TYX, metadata={"axes": "TYX"}, truncate=True), "TYX", {}, "shaped"),
    "shaped-zlib": (imwrite(TYX, compression="zlib"), "TYX", {}, "shaped"),
    "shaped-lzw": (imwrite(TYX, compression="lzw", predictor=True, byteorder=">"), "TYX", {}, "shaped"),
    "shaped-zstd": (imwrite(TYX, compression="zstd"), "TYX", {}, "shaped"),
    "shaped-tiled-zlib": (imwrite(TYX, tile=(16, 16), compression="zlib"), "TYX", {}, "shaped"),
    "rgb-contig": (imwrite((T, H, W, 3), "uint8", photometric="rgb"), "TYXC", {}, "shaped"),
    "rgb-planar": (imwrite((T, 3, H, W), "uint8", photometric="rgb", planarconfig="separate"), "TCYX", {}, "shaped"),
    "rgb-planar-zlib": (
        imwrite((T, 3, H, W), photometric="rgb", planarconfig="separate", compression="zlib"),
        "TCYX",
        {},
        "shaped",
    ),
    "imagej-t": (imwrite(TYX, imagej=True, metadata={"axes": "TYX"}), "TYX", {}, "imagej"),
    "imagej-z": (imwrite(TYX, "float32", imagej=True, metadata={"axes": "ZYX"}), "TYX", {}, "imagej"),
    "imagej-tc": (imwrite(TCYX, imagej=True, byteorder=">", metadata={"axes": "TCYX"}), "TCYX", {}, "imagej"),
    "imagej-rgb": (
        imwrite((T, H, W, 3), "uint8", imagej=True, photometric="rgb", metadata={"axes": "TYXS"}),
        "TYXC",
        {},
        "imagej",
    ),
    "imagej-ct": (
        special(imagej_order, CTYX, order="ztc", counts="channels=2\nframes=5\n"),
        "CTYX",
        {},
        "imagej",
    ),
    "imagej-one-page": (special(imagej_one_page, TCYX), "TCYX", {}, "imagej"),
    "imagej-unnamed": (special(imagej_order, (1, T, H, W), order="czt", counts=""), "CTYX", {}, "imagej"),
    "imagej-c-is-time": (imwrite(TYX, imagej=True, metadata={"axes": "CYX"}), "TYX", {"axes": "TYX"}, "imagej"),
    "imagej-relabelled": (imwrite(TYX, imagej=True, metadata={"axes": "CYX"}), "TYX", {"channels": 1}, "imagej"),
    "ome-tyx": (imwrite(TYX, ome=True, metadata={"axes": "TYX"}), "TYX", {}, "ome"),
    "ome-tcyx": (imwrite(TCYX, ome=True, metadata={"axes": "TCYX"}), "TCYX", {}, "ome"),
    "ome-ctyx": (imwrite(CTYX, "int16", ome=True, metadata={"axes": "CTYX"}), "CTYX", {}, "ome"),
    "ome-z1": (imwrite((T, 1, C, H, W), "float32", ome=True, metadata={"axes": "TZCYX"}), "TZCYX", {}, "ome"),
    "ome-zlib-big": (
        imwrite(TCYX, ome=True, compression="zlib", byteorder=">", bigtiff=True, metadata={"axes": "TCYX"}),
        "TCYX",
        {},
        "ome",
    ),
    "ome-rgb": (
        imwrite((T, H, W, 3), "uint8", ome=True, photometric="rgb", metadata={"axes": "TYXS"}),
        "TYXC",
        {},
        "ome",
    ),
    "ome-planar": (
        imwrite((T, 3, H, W), ome=True, photometric="rgb", planarconfig="separate", metadata={"axes": "TSYX"}),
        "TCYX",
        {},
        "ome",
    ),
    "scanimage": (special(scanimage, TCYX, header=SCANIMAGE.format(channels="[1;3]")), "TCYX", {}, "scanimage"),
    "scanimage-classic": (
        special(scanimage, TCYX, header=SCANIMAGE.format(channels="[1 2]"), bigtiff=False),
        "TCYX",
        {},
        "scanimage",
    ),
    "scanimage-1": (special(scanimage, TYX, "int16", header=SCANIMAGE.format(channels="2")), "TYX", {}, "scanimage"),
    "scanimage-user": (special(scanimage, TCYX, header="SI.VERSION = 1"), "TCYX", {"channels": 2}, "scanimage"),
}


def write_layout(name, path):
    """Write a file of one layout; its frames (T, H, W, C), the arguments of the reader, and its kind."""
    writer, axes, arguments, kind = LAYOUTS[name]
    array = writer(path)
    if axes == "TYX" and arguments.get("channels", 1) > 1:
        array, axes = array.reshape(-1, arguments["channels"], H, W), "TCYX"
    if "Z" in axes and "T" in axes:
        array, axes = array[:, 0], axes.replace("Z", "")
    return frames_of(array, axes), arguments, kind


def rewrite(path, output, **arguments):
    with TiffReader(path, **arguments) as reader:
        size = dict(zip(("n_frames", "height", "width", "n_channels"), reader.shape, strict=True))
        with TiffWriter(output, **size, dtype=reader.dtype, like=reader) as writer:
            writer.write(reader.read(0, reader.n_frames))
