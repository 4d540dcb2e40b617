"""Tell what operating systems, cloud drives and file servers put into folders of data."""

import os
from pathlib import Path, PurePosixPath

HIDDEN = "hidden"
OF_SYSTEM = "belongs to the system, not to the data"

FOLDERS = {
    "$recycle.bin", "system volume information", "found.000",  # Windows
    "__macosx", "network trash folder", "temporary items", "thefindbyconfigfolder",  # macOS
    "@eadir", "@tmp", "@sharebin", "@__thumb", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",  # servers
    "lost+found", "snapshot~",  # Unix
    "__pycache__", "node_modules",  # tools
}  # fmt: skip
FILES = {
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "icon\r",
    "picasa.ini",
    "zbthumbnail.info",
    "aquota.user",
    "aquota.group",
}
SUFFIXES = (":zone.identifier", "@synoresource", "@synoeastream")  # of what a system stores beside a file


def find_clutter(name: str, *, is_folder: bool) -> str:
    """Return why a file or folder of this name is left out, or ""."""
    if name.startswith("."):
        return HIDDEN
    lower = name.lower()
    if name == "RECYCLER" or lower in FILES or (lower in FOLDERS if is_folder else lower.endswith(SUFFIXES)):
        return OF_SYSTEM
    return ""


def find_clutter_in_path(name: str) -> str:
    """Return why a file at this path, with "/", is left out, or ""."""
    *folders, file = PurePosixPath(name).parts or ("",)
    reasons = (find_clutter(folder, is_folder=True) for folder in folders)
    return next(filter(None, reasons), "") or find_clutter(file, is_folder=False)


def count_files(path: str | Path) -> int:
    """Return the number of files in a folder, at any depth; 1 for anything else. Links are not followed."""
    if os.path.islink(path) or not os.path.isdir(path):
        return 1
    return sum(len(files) + sum(map(os.path.islink, (os.path.join(root, f) for f in folders)))
               for root, folders, files in os.walk(path))  # fmt: skip
