"""The table of options: a flag, a YAML key, what it may be, its default and its help are written here alone.

It makes the flags, the check of a YAML, what a resumed run may change and docs/options.md. It loads nothing heavy.
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

    With a key, a flag that is not given leaves what the YAML says, and only without that the default counts.
    """

    names: str
    help: str
    type: Any = str
    default: Any = None
    _: KW_ONLY
    least: float = 0  # of a number
    most: float = LARGEST
    choices: Sequence[str] = ()
    words: str = ""  # what is allowed, where the type does not say it
    otherwise: str = ""  # the default in words
    metavar: str | None = None
    dest: str = ""  # the attribute, where it is neither the key nor the first flag
    sets: bool = True  # what a switch sets
    bare: str | None = None  # what the flag means without a value
    required: bool = False
    needs: str = ""  # the flag without which this one means nothing
    path: bool = False  # of a file or folder, in which `~` and `$VARIABLES` are replaced
    basic: bool = False  # `--help` shows it
    outputs: bool = True  # whether outputs depend on it: if not, a resumed run may change it

    @property
    def flags(self) -> list[str]:
        return [name for name in self.names.split() if name.startswith("-")]

    @property
    def key(self) -> str:
        """In the YAML; "" where it has none."""
        return "" if self.names.startswith("-") else self.names.split()[0]

    @property
    def name(self) -> str:
        """The attribute of the parsed flags."""
        return self.dest or self.key or self.flags[0].lstrip("-")

    @property
    def default_text(self) -> str:
        """The default in words; "" where there is none."""
        if self.otherwise or self.default is None:
            return self.otherwise
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return "off" if self.default is False else " ".join(map(str, values))


METHODS = (
    AUTO,
    *allowed.METHOD_NAMES,
    *allowed.CLIP_METHODS,
    allowed.TRANSPLANT,
)  # and what is registered: `method_names`
RGB = tuple[float, float, float]
CHANNELS = "three numbers, one per colour channel"
STRINGS = "a list of strings that is not empty"
MEASURE = "--evaluate_explanations"

# Heading, the commands that have these flags, the options: a table, so its layout is its own.
# fmt: off
TABLE: tuple[tuple[str, tuple[str, ...], tuple[Option, ...]], ...] = (
    ("images", (DEMO,), (
        Option("--input", "image, video, folder of them, or a quoted pattern such as 'faces/*.png'",
               required=True, path=True, basic=True),
        Option("--face_crop", "find and align faces; auto: where an image is not a square face crop",
               choices=allowed.FACE_CROPS, otherwise="auto", basic=True),
        Option("--face_confidence", "how sure dlib has to be of a face: one seen from the front has above 1, a round"
               " badge 0.1", float, 0.3, metavar="X"),
        Option("--landmark_model", "shape_predictor_81_face_landmarks.dat, instead of face_recognition_models' model",
               Path, metavar="FILE"),
    )),
    ("detector", (EVALUATE, DEMO, APP), (
        Option("--detector_path", "the detector's YAML, e.g. config/detector/clip_gradcam.yaml",
               metavar="YAML", path=True, basic=True),
        Option("weights_path --weights_path", "checkpoint of the whole detector: .pth or .safetensors; nothing is"
               " downloaded then", default="", metavar="FILE", path=True, basic=True),
        Option("--device", "auto, cpu, cuda or cuda:<n>", default="auto", outputs=False),
        Option("--precision", "of the detector; maps are always float32", default="fp32", choices=allowed.PRECISIONS),
    )),
    ("detector", (EVALUATE,), (
        Option("--detector", "a function of yours that returns the model, my_module:build; or hf:FOLDER; needs no YAML",
               metavar="MODULE:FUNCTION", basic=True),
        Option("--random_weights", "evaluate an untrained detector, and mark every output", bool, False),
        Option("--list_layers", "print every layer name of the detector and exit", bool, False),
        Option("--compile", "predict full batches through torch.compile (heatmaps never are)", bool, False),
    )),
    ("data", (EVALUATE,), (
        Option("test_dataset --test_dataset", "names of dataset JSON files; or folders, or CSV files",
               list[str], words=STRINGS, metavar="NAME", required=True, path=True, basic=True),
        Option("--test_config", "read after the detector's YAML, and wins", metavar="YAML", path=True,
               otherwise="config/test_config.yaml beside this script"),
        Option("mean --mean", "images become (x / 255 - mean) / std", RGB, (0.5,) * 3, words=CHANNELS, metavar="M"),
        Option("std --std", "see --mean", RGB, (0.5,) * 3, words=CHANNELS, metavar="S"),
        Option("resolution --resolution", "to which images are resized", int, 224, least=1, most=8_192, metavar="N"),
        Option("test_batchSize --batch_size", "images per batch", int, 32, least=1, most=1_000_000, metavar="N"),
        Option("clip_size --clip_size", "frames of a clip, for a detector of clips (video_mode: true)", int, least=1,
               most=1_000, metavar="N", otherwise="what the YAML says; a detector of images takes none"),
        Option("clips_per_video --clips_per_video", "at most so many clips of a video, spread evenly", int, least=1,
               metavar="N", otherwise="as many as DeepfakeBench takes"),
        Option("workers --workers", "processes that decode images", int, 2, most=1_000, metavar="N", outputs=False),
        Option("manualSeed --seed", "for --gradcam_select random", int, 1024, metavar="N"),
        Option("--max_unreadable", "share of unreadable frames that fails the run (exit 1), after everything is"
               " written; frames whose folder is not there do not count", percent, "5%", outputs=False),
    )),
    ("heatmaps", (EVALUATE,), (
        Option("gradcam_enabled --gradcam_enabled", "render heatmaps", bool, False, basic=True),
        Option("gradcam_enabled --no-gradcam_enabled --no_gradcam", "a plain evaluation, whatever the YAML says",
               bool, sets=False),
        Option("gradcam_samples --gradcam_samples", "maximum samples per dataset", int, least=1, metavar="N",
               otherwise=f"{allowed.MOST_MISTAKES} wrong predictions", basic=True),
        Option("--save_all_predictions", "explain all samples, or --gradcam_samples, not only wrong predictions",
               bool, False, dest="save_all", basic=True),
        Option("--gradcam_select", "which samples where there are more than N; mixed: fakes that were found, two of"
               " five, and wrong predictions", default="confident", choices=allowed.SELECTIONS, dest="select"),
        Option("--paired_reals", "auto: compare a fake with the real frame that it was made from, if the dataset has"
               " it; off: with other real frames only", default=AUTO, choices=(AUTO, "off")),
    )),
    ("heatmaps", (EVALUATE, DEMO), (
        Option("gradcam_layers --gradcam_layers --layers", "auto, or e.g. encoder.layers.23 encoder.layers.20, or"
               " 23 20, or -1", list[str | int], words=STRINGS, metavar="LAYER",
               otherwise="auto; the last block where a method is named", basic=True),
        Option("gradcam_method --gradcam_method --method", "how maps are made; auto: chosen causally, for these"
               " weights and images", choices=METHODS, otherwise="auto; gradcam where layers are named", basic=True),
        Option("gradcam_recipes --gradcam_recipes --recipes", "several kinds of map from one run, instead of one"
               " method, each named by its own; auto: the chosen one", list[str], words=STRINGS, metavar="METHOD",
               otherwise="one"),
        Option("gradcam_target --gradcam_target --target", "what maps explain: predicted, fake, real, label (of a"
               " dataset), margin, both, or the name of a class", default="predicted", metavar="TARGET", basic=True),
        Option("gradcam_site --gradcam_site --site", "where in a block; auto: where the method's formula holds",
               choices=(AUTO, *allowed.SITES), otherwise="auto; layer_norm1 for a named map"),
        Option("gradcam_backward --gradcam_backward --backward", "what the gradient holds constant; balanced:"
               " attention weights, norms, gates of squeeze-and-excitation",
               choices=(AUTO, *allowed.BACKWARDS), otherwise="auto; plain for a named map"),
        Option("gradcam_backward_precision --backward_precision", "of the backward pass's matrix products; auto: the"
               " fastest on the device", default="fp32", choices=allowed.BACKWARD_PRECISIONS),
        Option("gradcam_signed --gradcam_signed --signed", "evidence for fake red, for real blue, of the margin"
               " fake - real", bool, False),
        Option("gradcam_colormap --gradcam_colormap --colormap", "of the overlays",
               default=allowed.COLORMAPS[0], choices=allowed.COLORMAPS),
        Option("--calibration_images", "images on which the map is chosen, or a named one judged; 0: neither",
               int, allowed.DEFAULT_IMAGES, metavar="N"),
        Option("--check_maps", "on: replace each map's hottest patches, too, before its verdict; auto: only where some"
               " samples are explained and no real images are there to compare with; off: no verdicts",
               default="auto", choices=("auto", "on", "off"), bare="on"),
        Option("--image_format", "of overlays and comparisons", default="png", choices=allowed.IMAGE_FORMATS),
        Option("--save_raw", "also keep the raw maps, one .npz per sample", bool, False),
        Option("gradcam_pp_epsilon", "of Grad-CAM++: how far its denominator is kept from zero; 0 is the paper's"
               " formula", float, 0.1),
        Option("gradcam_classes", "names of the logits, in their order, where a head has one, or more than two, or"
               " [fake, real]; --gradcam_target takes such a name", Any, otherwise="real, fake"),
    )),
    ("heatmaps", (DEMO, APP), (
        Option("--bank", "a folder of real images that maps and verdicts compare patches with; otherwise those among"
               " the given images that the detector calls real", Path, metavar="FOLDER"),
    )),
    ("outputs", (EVALUATE, DEMO), (
        Option("gradcam_save_dir --gradcam_output_dir --output", "where everything is written",
               default="./gradcam_visualizations", metavar="DIR", path=True, basic=True, outputs=False),
    )),
    ("outputs", (EVALUATE,), (
        Option("--overwrite", "rename an earlier run in the output folder to NAME.before-<time>, and begin again", bool,
               False, outputs=False),
        Option("--resume", "continue this run where it was interrupted", bool, False, outputs=False),
        Option("--save_images", "which samples get a folder of images: all, wrong predictions, or none; their maps"
               " are in run.sqlite in any case", default="all", choices=("all", "wrong", "none"), outputs=False),
        Option("--shard", "evaluate this part of the batches alone (3/8: the third of eight), in an output folder"
               " of its own; python -m utils.run merge makes one run of them", shard, metavar="K/N", outputs=False),
        Option("--run_database", "where run.sqlite lies, for an output folder on a file system without locks", Path,
               metavar="PATH", otherwise="in the output folder", outputs=False),
        Option("--save_features", "also features.npz: what the head reads of every frame, for t-SNE and the page's"
               " scatter", bool, False),
        Option("--video_strips", "also one image per video: its explained frames", bool, False, outputs=False),
        Option("--fiftyone", "also fiftyone_samples.json, for FiftyOne to open", bool, False, outputs=False),
        Option("--tensorboard", "also metrics, curves, overlays for TensorBoard", Path, metavar="DIR", outputs=False),
    )),
    ("are the heatmaps faithful?", (EVALUATE,), (
        Option(MEASURE, "measure the maps of detected fakes against controls", bool, False, basic=True),
        Option("--explanation_samples", "maximum fakes per dataset", int, least=1, metavar="N", dest="samples",
               otherwise=str(allowed.DEFAULT_SAMPLES), needs=MEASURE),
        Option("--sweep", "try all methods and sites on all blocks or --gradcam_layers", bool, False, needs=MEASURE),
        Option("--leave_out", "measurements to leave out; the estimated time is printed first",
               list[str], choices=allowed.MEASUREMENTS, metavar="NAME", needs=MEASURE),
        Option("--write_config", "write the best map of the sweep as a config that runs", Path, metavar="YAML",
               needs=MEASURE),
        Option("--masks", "masks in a folder of any layout", Path, metavar="FOLDER", otherwise="beside the frames",
               needs=MEASURE),
        Option("--clicks", "where people saw the forgery, as in ExDDV", Path, metavar="CSV", needs=MEASURE),
    )),
    ("server", (APP,), (
        Option("--host", "address to listen on; 0.0.0.0 lets other machines in", default="127.0.0.1"),
        Option("--port", "port to listen on", int, 7860, least=1, metavar="N"),
        Option("--max_upload", "largest file that is taken", int, 50, least=1, metavar="MB"),
    )),
    ("keys of the YAML files that have no flag", (EVALUATE,), (
        Option("model_name", "the name under which the detector is registered", required=True),
        Option("backbone_config", "name_or_path: hub name or local folder; architecture: fields of CLIPVisionConfig;"
               " pretrained: whether published weights are loaded", dict, otherwise="empty"),
        Option("dataset_json_folder", "where the datasets' JSON files are", required=True, path=True),
        Option("dataset_root_rgb", "where relative paths of images start; DeepfakeBench calls it rgb_dir", Any),
        Option("label_dict", "what a label of the JSON files means: 0 real, 1 fake", dict, required=True),
        Option("compression", "of the FaceForensics++ family: c23, c40, raw", default="c23"),
        Option("frame_num", "frames taken of each video; {test: N} is understood, too", int, least=1,
               otherwise="all"),
        Option("frame_sampling", "which frames: even: spread over the video; host: the first ones, as DF40;"
               " host_sorted: the first ones by number, as DeepfakeBench",
               default="even", choices=("even", "host", "host_sorted")),
        Option("video_mode", "the detector reads clips of clip_size frames, not images", bool, False),
        Option("lmdb", "read images from the LMDB files in lmdb_dir", bool, False),
        Option("lmdb_dir", "where DeepfakeBench's LMDB files are", path=True, otherwise="the working directory"),
    )),
)
# What an option is in one command only.
HERE: dict[tuple[str, str], dict[str, Any]] = {
    (DEMO, "check_maps"): {"default": "on"},
    (DEMO, "gradcam_save_dir"): {
        "names": "--gradcam_output_dir --output", "help": "for the heatmaps, one folder per image",
        "default": None, "dest": "output", "required": True,
    },
}
# fmt: on
OPTIONS = {option.name: option for *_, options in TABLE for option in options if option.sets}
FREE_KEYS = [option.key for option in OPTIONS.values() if option.key and not option.outputs]


def options_of(command: str) -> Iterator[tuple[str, Option]]:
    """The heading and the option of everything that a command knows, also of keys without a flag."""
    for heading, commands, options in TABLE:
        for option in options if command in commands else ():
            yield heading, replace(option, **HERE.get((command, option.name), {}))


def method_names() -> Sequence[str]:
    """What `gradcam_method` may be, with what was registered: without the engine nothing was, and it stays unloaded."""
    engine = f"{__package__.rpartition('.')[0]}.engine"
    methods = sys.modules.get(f"{engine}.methods")
    return METHODS if methods is None else (AUTO, *methods.method_names(), *allowed.CLIP_METHODS, allowed.TRANSPLANT)
