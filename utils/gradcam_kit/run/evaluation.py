"""The run: datasets → predictions → metrics → chosen samples → heatmaps → report."""

from __future__ import annotations

import hashlib
import importlib
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from ..base.allowed import TRANSPLANT
from ..base.errors import InputError, RunError, run_checks
from ..base.text import printable, size_text
from ..base.version import VERSION
from ..data.clips import Clip, CutClips, read_clips
from ..data.folder_dataset import describe_images
from ..data.frame import Frame
from ..data.gaps import absent_frames, forgery_gaps
from ..data.readers import read_dataset, reader_of
from ..measure.comparison import Kept
from ..measure.evaluate import CSV_FILE, JSON_FILE, check_options, evaluate_explanations
from ..measure.samples import find_evidence
from ..model.detector import LoadedDetector, print_choices
from ..model.host.registry import preimport_detector
from ..model.load import find_device, load_detector
from ..settings.config import RunSettings
from ..settings.run_options import RunOptions
from ..store.manifest import METRICS, DatasetRecord, Manifest, Numbers, Weights
from ..store.run_folder import RunFolder, now
from ..store.sample_writer import expected_output
from ..store.tables import CALIBRATION_CSV, CALIBRATION_JSON, prediction_rows
from .calibration import Calibration, TrialPlan, calibrate, find_calibration, frame_order, set_bank
from .dataset_run import Context, DatasetRun, explains_every_frame, samples_at_most
from .disturbances import SignalGuard, SplitOnOutOfMemory, one_line_errors, resume_command
from .exports import TOP_FILES, check_exports, lacks_exports, lacks_files, write_exports, write_files
from .predictions import Predictions
from .processes import Processes
from .summary import check_finished, finish_run

PACKAGES = ("torch", "transformers", "numpy", "cv2", "sklearn")  # their versions are in the manifest

Datasets = Mapping[str, Sequence[Frame]]  # by name


def run(settings: RunSettings, options: RunOptions) -> None:
    """Evaluate, explain and report.

    Raises InputError before anything is written, Interrupted after SIGINT or SIGTERM, and RunError. Files on disk are
    complete in any case.
    """
    message = f"interrupted; continue with: {resume_command(options.command[1:])}"
    with Processes.start() as processes, SignalGuard(message, quiet=not processes.first) as guard:
        detector, (datasets, cut), _ = run_checks(
            lambda: _load_detector(settings, options, processes),
            lambda: _read_datasets(settings, options),
            lambda: check_exports(options.views, options.save_images),
        )
        if options.explanations is not None:  # unusable evidence raises now
            given, frames = options.explanations, [frame for some in datasets.values() for frame in some]
            find_evidence(given.masks, given.clicks, frames, settings.data.folders.values())
        if processes.first:
            for name, some in datasets.items():  # report missing frames before hours of work
                for gaps in forgery_gaps(some, absent_frames(some)):
                    print(printable(f"{name}: {gaps.line()}"), file=sys.stderr)
            for name in settings.data.folders if not cut else ():
                print(printable(f"{name}: {describe_images(datasets[name])}"))
            for name, clips in cut.items():
                print(printable(f"{name}: {'; '.join(clips.lines())}"))
            facts = ", ".join(f"{key} {value}" for key, value in detector.facts().items())
            print(f"detector {settings.detector.model_name}: {facts}")
        context = Context(detector, settings, options, processes, guard, SplitOnOutOfMemory("evaluating"), cut)
        folder, kept = processes.on_rank_zero(lambda: _open_folder(context, datasets))
        with folder:
            if folder.finished:
                if processes.first:
                    _report_finished(folder, options)
                return
            # Twice: while one error is handled, torch's signal handler may raise again for a dead worker.
            with one_line_errors(folder.path, guard), one_line_errors(folder.path, guard):
                problem = _run_in(folder, context, datasets, kept)
    if problem:
        raise RunError(problem)


def _run_in(folder: RunFolder, context: Context, datasets: Datasets, kept: Calibration | None) -> str:
    """Run everything. `kept`: an earlier choice. Return a description of what failed, or ""."""
    processes = context.processes
    folder.join(processes.rank)
    # Sums are split among threads, so another number of threads may change the last bit.
    torch.set_num_threads(folder.manifest.threads)
    context = replace(context, order=processes.on_rank_zero(lambda: frame_order(context, folder)))
    runs = [DatasetRun(context, folder, frames) for frames in datasets.values()]
    predicted = None
    if kept is None and _predicts_first(context):
        for one in runs:
            one.predict_all()
        predicted = {one.name: one.predictions for one in runs}
    calibration = processes.on_rank_zero(lambda: kept or _calibrate(folder, context, datasets, predicted))
    if calibration is not None:
        context.detector.model.set_gradcam_choice(calibration.choice)
        set_bank(context, calibration.choice, datasets)
    if processes.first:
        print("".join(f"{line}\n" for line in (context.order.lines() if context.order else ())), end="")
        print(_expected_output(context, datasets), end="")
    choice = calibration.choice if calibration else None
    if context.options.shard:
        for one in runs:
            one.evaluate_shard(choice)
        if processes.first:
            number, shards = context.options.shard
            print(f"shard {number} of {shards} is done; after all shards: python -m utils.run merge SHARD ... -o RUN")
        return ""
    results = [one.evaluate(choice) for one in runs]
    problem = processes.on_rank_zero(lambda: _measure(folder, context, datasets))
    how = context.options.views, context.options.max_unreadable
    processes.on_rank_zero(lambda: finish_run(folder, results, choice, *how))
    return problem


def _read_datasets(settings: RunSettings, options: RunOptions) -> tuple[Datasets, Mapping[str, CutClips]]:
    """Read the datasets by name. For a clip detector, a frame represents each clip. Raises InputError."""
    names = dict.fromkeys(settings.datasets)
    if settings.data.clip_size is None:
        return {name: read_dataset(name, settings.data) for name in names}, {}
    if options.explanations is not None and options.explanations.clicks is not None:
        raise InputError("--clicks are places in images: leave them out for a clip detector")
    if options.shard is not None:  # no shard holds the facts about clips for a merged run
        raise InputError("--shard splits images: leave it out for a clip detector; torchrun splits such a run")
    cut = {name: read_clips(name, settings.data) for name in names}
    return {name: [clip.row for clip in clips.clips] for name, clips in cut.items()}, cut


def _load_detector(settings: RunSettings, options: RunOptions, processes: Processes) -> LoadedDetector:
    """Load the detector and test everything that the run will need. Raises InputError."""
    device = find_device(processes.device_name(options.device))
    torch.manual_seed(settings.seed)  # for random weights
    preimport_detector(settings.detector)
    detector = load_detector(settings.detector, device, options.precision, options.random_weights)
    detector.check_predictions()
    if settings.detector.gradcam.enabled:
        detector.dry_run()
        if processes.first:
            print_choices(detector)
    if options.save_features:
        detector.check_features()
    if options.explanations is not None:
        check_options(detector)
    if not options.compile:
        return detector
    if explains_every_frame(settings, options):
        raise InputError(
            "--compile: if all samples are explained, heatmaps come from the predicting pass, which needs hooks that a"
            " compiled model does not allow; leave --compile out, or give --gradcam_samples"
        )
    return detector.with_compiled(settings.batch_size)


def _open_folder(context: Context, datasets: Datasets) -> tuple[RunFolder, Calibration | None]:
    """Open the folder. Return also the choice of an earlier run with the same weights, data and candidates."""
    detector, settings, options = context.detector, context.settings, context.options
    found = detector.found_layer if settings.detector.gradcam.enabled else None  # otherwise no tower is needed
    if found is not None and not detector.model.gradcam.needs_choice and not settings.detector.gradcam.recipe.layers:
        config = {**settings.detector.config, "gradcam_layers": [found.name]}
        settings = settings._replace(detector=settings.detector._replace(config=config))
    manifest = run_manifest(settings, options, detector, datasets, context.cut)
    kept = None
    if _draws_gradients(settings) and options.calibration_images:
        key = TrialPlan.of(detector, options.calibration_images).key(manifest)
        kept = find_calibration(key, options.output_dir)  # before --overwrite removes it
    how = options.overwrite, options.resume, options.run_database
    folder = RunFolder.open(options.output_dir, manifest, *how, manifest.key(code_sha256(detector, settings)))
    if kept is not None and not folder.finished:
        kept.keep(folder)
    return folder, kept


def code_sha256(detector: LoadedDetector, settings: RunSettings) -> str:
    """Hash the code that predictions depend on: this library, and the files of the detector's modules."""
    files = {*Path(__file__).resolve().parents[1].rglob("*.py")}
    module = sys.modules.get(settings.detector.build.partition(":")[0])
    for code in {module, *(sys.modules.get(type(one).__module__) for one in detector.model.modules())}:
        if code is not None and getattr(code, "__file__", None):
            files.add(Path(str(code.__file__)))
    digest = hashlib.sha256()
    for path in sorted(file for file in files if file.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def run_manifest(
    settings: RunSettings,
    options: RunOptions,
    detector: LoadedDetector,
    datasets: Datasets,
    cut: Mapping[str, CutClips] | None = None,
) -> Manifest:
    hashed = {name: clips.clips for name, clips in cut.items()} if cut else datasets
    device, weights = detector.device, settings.detector.weights_name
    return Manifest(
        command=list(options.command),
        started=now(),
        config=settings.detector.config,
        settings=Numbers(settings.batch_size, settings.seed),
        detector=detector.facts(),
        weights=Weights(weights, detector.weights_sha256) if weights else None,
        datasets={
            name: DatasetRecord(
                len(frames), reader_of(name, settings.data).sha256(name, settings.data), _frames_sha256(hashed[name])
            )
            for name, frames in datasets.items()
        },
        options=options.for_manifest(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        versions={
            "gradcam_extension": VERSION,
            "python": platform.python_version(),
            **{name: _version_of(name) for name in PACKAGES},
        },
        top_files=[METRICS, *TOP_FILES, CSV_FILE, JSON_FILE, CALIBRATION_JSON, CALIBRATION_CSV],
    )


def _version_of(package: str) -> str:
    """Return a package's version. scikit-learn is not imported for it, which would take a second."""
    return version("scikit-learn") if package == "sklearn" else str(importlib.import_module(package).__version__)


def _frames_sha256(frames: Sequence[Frame] | Sequence[Clip]) -> str:
    """Hash everything that identifies the frames or clips, in order."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(repr(tuple(frame)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _expected_output(context: Context, datasets: Datasets) -> str:
    """Return the line that announces number and size of the heatmaps; "" if none are drawn."""
    detector, settings, options = context.detector, context.settings, context.options
    samples = sum(samples_at_most(len(frames), settings, options) for frames in datasets.values())
    if not samples:
        return ""
    layers, resolution = len(detector.model.map_names()), settings.detector.resolution
    files, size = expected_output(samples, layers, resolution, options.image_format, options.save_raw)
    most = f"up to {samples:,} samples, {layers} {'map' if layers == 1 else 'maps'} each"
    if options.save_images == "none":
        return f"heatmaps: {most}, only in the run's database\n"
    return f"heatmaps: {most} (up to {files:,} files, about {size_text(size)}) in {options.output_dir}\n"


def _predicts_first(context: Context) -> bool:
    """Tell whether a trial can use the run's predictions: not for clips, in a shard, or if one pass does both."""
    settings, options = context.settings, context.options
    tries = _draws_gradients(settings) and options.calibration_images > 0
    return tries and not context.cut and not options.shard and not explains_every_frame(settings, options)


def _calibrate(
    folder: RunFolder, context: Context, datasets: Datasets, predicted: Mapping[str, Predictions] | None
) -> Calibration | None:
    """Choose or judge the run's map; None for an evaluation without maps, and for transplant."""
    if not _draws_gradients(context.settings):
        return None
    plan = TrialPlan.of(context.detector, context.options.calibration_images)
    if not plan.images and context.settings.detector.gradcam.compares:
        raise InputError(
            "--gradcam_method contrast compares patches with real images, which the calibration selects:"
            " leave --calibration_images 0 out"
        )
    if not plan.images:
        untried = Calibration("", plan.untried("--calibration_images 0"))
        untried.keep(folder)
        return untried
    print(plan.announcement(predicted is not None))
    found = Calibration(plan.key(folder.manifest), calibrate(context, plan, datasets, predicted))
    found.keep(folder)
    return found


def _draws_gradients(settings: RunSettings) -> bool:
    return settings.detector.gradcam.enabled and settings.detector.gradcam.recipe.method != TRANSPLANT


def _report_finished(folder: RunFolder, options: RunOptions) -> None:
    print(f"{folder.path}: this run is already complete")
    lacks = lacks_files(folder.path) or options.save_images != folder.manifest.options["save_images"]
    if lacks:
        write_files(folder.path, options.save_images)
        folder.manifest.options["save_images"] = options.save_images
    if lacks or lacks_exports(folder.path, options.views):
        print("\n".join(write_exports(folder.path, options.views)))
        folder.record(exported=True)
    check_finished(folder.metrics or {}, folder.manifest.heatmaps or {}, options.max_unreadable)


def _measure(folder: RunFolder, context: Context, datasets: Datasets) -> str:
    """Run --evaluate_explanations and print the result. Return a description of what failed, or ""."""
    options = context.options.explanations
    if options is None:
        return ""
    database, how = folder.database, (folder.path, context.settings, options)
    rows, kept = partial(prediction_rows, database), partial(_kept_steps, folder, astuple(options))
    evaluated = evaluate_explanations(context.detector, datasets, rows, *how, kept, context.cut)
    for file in evaluated.files:
        dataset = "" if file.parent == folder.path else file.parent.name
        database.put("measurement", [(dataset, file.name, file.read_bytes())], folder.key)
    database.commit()
    print(evaluated.text, end="")
    return evaluated.problem


def _kept_steps(folder: RunFolder, options: Sequence[object], dataset: str) -> Kept:
    """Return the saved steps of a dataset's measurement with the same predictions, maps and options."""
    database, chosen = folder.database, folder.database.first_row("calibration")
    key = folder.manifest.key(folder.key, options, database.hash_of("frame", dataset), chosen and chosen[1])

    def get(step: str) -> str | None:
        row = database.first_row("measurement", "WHERE dataset = ? AND name = ? AND key = ?", dataset, step, key)
        return None if row is None else str(row[2])

    def put(step: str, text: str) -> None:
        database.put("measurement", [(dataset, step, text)], key)
        database.commit()

    return Kept(get, put)
