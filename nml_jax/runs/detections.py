"""The files of detectors in a run's folder, and which metrics are theirs."""

from pathlib import Path

FOLDER = "detect"
RESULTS = "results.json"  # the detections on the test split, in COCO's format
PICTURES = "pictures.jpg"  # test images with true and with found objects

# Metrics of detectors, COCO's average precision and recall of boxes and of masks -> their words.
WORDS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP small", "APm": "AP medium", "APl": "AP large",
         "AR100": "AR at 100"}  # fmt: skip
METRICS = {f"{kind}_{name}": f"{kind} {words}" for kind in ("box", "mask") for name, words in WORDS.items()}


def find_folder(workdir: Path, system: str, start: str) -> Path:
    """Return the folder of a detector that started from the encoder, or from random weights."""
    return workdir / FOLDER / (system if start == "encoder" else f"{system},{start}")
