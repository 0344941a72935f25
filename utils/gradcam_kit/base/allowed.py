"""Allowed values that the engine and the flags share. This file imports nothing, so that `--help` is quick."""

AUTO = "auto"  # chosen causally, on the run's own data

TRANSPLANT = "transplant"
METHOD_NAMES = (  # a test compares them with the registered functions
    "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "contrast", "contrast_z",
    "legrad", "gradeclip", "attngrad", "rollout",
)  # fmt: skip
CLIP_METHODS = ("gradcam3d",)  # only for clips
SITES = ("layer_norm1", "residual")
BACKWARDS = ("plain", "balanced", "both")
BACKWARD_PRECISIONS = (AUTO, "fp32", "bf16", "tf32")  # auto: the fastest on the device, measured once
TARGETS = ("predicted", "fake", "real", "label", "margin", "both")

COLORMAPS = ("jet", "turbo", "viridis", "magma")
IMAGE_FORMATS = ("png", "jpg", "webp")
PRECISIONS = ("fp32", "bf16", "fp16")
FACE_CROPS = ("auto", "off", "largest", "all")  # auto: if an image is not a square face crop
FIGURE_FORMATS = (".pdf", ".svg", ".png")
FIGURE_FONTS = ("sans", "serif")
FIGURE_COLUMNS = {"single": 3.3, "double": 6.9}  # inches: the text columns of two-column proceedings
MEASUREMENTS = (
    "deletion",
    "saco",
    "transplant",
    "attack",
    "randomisation",
)  # of --evaluate_explanations; each is expensive

SELECTIONS = ("confident", "first", "random", "mixed")
MOST_MISTAKES = 50  # wrong predictions explained per dataset
DEFAULT_IMAGES = 32  # for choosing the map, or for judging a named one
DEFAULT_SAMPLES = 500  # detected fakes per dataset for measuring maps
