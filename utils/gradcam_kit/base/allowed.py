"""What settings may be, and their defaults: the lists that flags, YAML keys and the engine share.

It imports nothing, so that a command can answer `--help` or a misspelt flag before anything heavy is loaded. Tests hold
the names of methods to the functions that compute them.
"""

AUTO = "auto"  # chosen by cause, on the data at hand

TRANSPLANT = "transplant"
METHOD_NAMES = (
    "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "legrad", "gradeclip", "attngrad", "rollout",
)  # fmt: skip
METHOD_CHOICES = (AUTO, *METHOD_NAMES, TRANSPLANT)

SITES = ("layer_norm1", "residual")
SITE_CHOICES = (AUTO, *SITES)

BACKWARDS = ("plain", "balanced")
BACKWARD_CHOICES = (AUTO, *BACKWARDS)
BACKWARD_PRECISIONS = (AUTO, "fp32", "bf16", "tf32")  # auto: the fastest on the device, measured once

TARGETS = ("predicted", "fake", "real", "label", "margin", "both")

COLORMAPS = ("jet", "turbo", "viridis", "magma")
IMAGE_FORMATS = ("png", "jpg", "webp")
PRECISIONS = ("fp32", "bf16", "fp16")
SELECTIONS = ("confident", "first", "random")
CHECK_MAPS = ("auto", "on", "off")  # auto: unless all samples are explained, not only wrong predictions

MOST_MISTAKES = 50  # wrong predictions explained per dataset
DEFAULT_IMAGES = 32  # on which the map is chosen, or a named one judged
DEFAULT_SAMPLES = 500  # detected fakes per dataset on which maps are measured

FACE_CROPS = ("auto", "off", "largest", "all")  # auto: where an image is no square face crop already

FIGURE_FORMATS = (".pdf", ".svg", ".png")
FIGURE_COLUMNS = {"single": 3.3, "double": 6.9}  # inches: the text columns of two-column proceedings

MEASUREMENTS = ("deletion", "saco", "transplant", "attack", "randomisation")  # of --evaluate_explanations, each dear
