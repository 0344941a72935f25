import torch

from detectors import DETECTOR

INDEX = torch.tensor([9]).to("cuda:99")  # at import: stops `import detectors` wherever there are fewer GPUs


@DETECTOR.register_module(module_name="needs_cuda")
class CUDADetector:
    pass
