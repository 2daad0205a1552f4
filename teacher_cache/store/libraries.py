"""The versions of the libraries that decide what a cache holds: those installed here, and those that made a cache."""

from collections.abc import Mapping
from importlib import metadata

_LIBRARIES = ("numpy", "torch", "torchvision", "timm", "zarr", "pillow", "opencv-python-headless", "simplejpeg")
_RENDERING = ("numpy", "torch", "torchvision", "pillow", "opencv-python-headless", "simplejpeg")
"""Of these, the ones that decide pixels."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide pixels, logits and bytes; "absent" where one is not installed."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def rendering_remedy(made_with: Mapping[str, str]) -> str:
    """Return what to do where views have other pixels here than the cache's: the `pip install` line of what differs."""
    here = library_versions()
    # "2.8.0+cpu" names a build that pip does not find; the release has the same kernels.
    pinned = [
        f"{name}=={made_with[name].partition('+')[0]}"
        for name in _RENDERING
        if made_with.get(name, "absent") not in ("absent", here[name])
    ]
    if not pinned:
        return "the library versions are the same, so the processor or the build differs: make the cache here"
    return f"install the versions that made the cache (pip install {' '.join(pinned)}), or make the cache here"
