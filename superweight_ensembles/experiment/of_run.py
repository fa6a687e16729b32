"""Members and cascades of a run folder as files."""

from __future__ import annotations

from pathlib import Path

from superweight_ensembles.anytime.predictor import AnytimePredictor
from superweight_ensembles.ensemble.ensemble import SuperWeightEnsemble
from superweight_ensembles.errors import SuperWeightError, unknown_name
from superweight_ensembles.experiment.result_files import naming_files
from superweight_ensembles.experiment.runs import arms_of, read_run, trained_arm
from superweight_ensembles.export.cascade import export_cascade, file_name
from superweight_ensembles.export.member import FORMATS, export_member
from superweight_ensembles.export.plain import checked_shape
from superweight_ensembles.storage.files import read_json


def export_run_member(
    run: Path, member: str, *, format: str, arm: str = "shared", out: Path | None = None, overwrite: bool = False
) -> Path:
    """Export one member of a trained run.

    Args:
        run: What ``superweights train`` made.
        member: Its name.
        format: Of :data:`FORMATS`.
        arm: ``shared`` or ``independent``.
        out: The file; RUN/export/MEMBER, or RUN/export/independent/MEMBER, with the format's ending where None.
        overwrite: Replace a file that is there.

    Returns:
        The file.

    Raises:
        SuperWeightError: An unknown format, arm or member, or whatever :func:`export_member` raises.
    """
    if format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    ensemble = SuperWeightEnsemble.load(_arm_folder(run, arm))
    return export_member(
        ensemble.materialize(member),
        out or _default_folder(run, arm) / f"{file_name(member)}{FORMATS[format].suffix}",
        format=format,
        input_shape=_image_shape(run),
        overwrite=overwrite,
    )


def export_run_cascade(run: Path, *, arm: str = "shared", out: Path | None = None, overwrite: bool = False) -> Path:
    """Export the calibrated cascade of a trained run.

    Args:
        run: What ``superweights train`` made and ``superweights evaluate`` calibrated.
        arm: ``shared`` or ``independent``.
        out: The folder; RUN/export/cascade, or RUN/export/independent/cascade, where None.
        overwrite: Replace an exported cascade that is there.

    Returns:
        The folder.

    Raises:
        SuperWeightError: An unknown arm, no calibrated cascade, or whatever :func:`export_cascade` raises.
    """
    folder = _arm_folder(run, arm)
    predictor = AnytimePredictor.load(folder) if (folder / "anytime.json").is_file() else None
    if predictor is None or predictor.policy is None:
        raise SuperWeightError(
            f"arm {arm!r} of {run} has no calibrated cascade yet: "
            f"superweights evaluate {run} with an anytime: section in its recipe"
        )
    return export_cascade(
        predictor.modules,
        predictor.policy,
        out or _default_folder(run, arm) / "cascade",
        input_shape=predictor.input_shape or _image_shape(run),
        flops=predictor.flops,
        overwrite=overwrite,
    )


def _arm_folder(run: Path, arm: str) -> Path:
    arms = arms_of(read_run(run))
    if arm not in arms:
        raise unknown_name("arm", arm, arms)
    return trained_arm(run, arm)


def _default_folder(run: Path, arm: str) -> Path:
    return run / "export" if arm == "shared" else run / "export" / file_name(arm)


def _image_shape(run: Path) -> tuple[int, ...]:
    """That of the run's data, from its results where there are any."""
    if (run / "results.json").is_file():
        dataset = read_json(run / "results.json").get("dataset")
        shape = dataset.get("image_shape") if isinstance(dataset, dict) else None
        if isinstance(shape, list):
            with naming_files(run / "results.json"):
                return checked_shape(shape)
    return tuple(read_run(run).load_data().image_shape)
