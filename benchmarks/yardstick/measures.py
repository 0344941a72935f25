"""How faithful are N maps? Pointing, energy, cut, and agreement with patch transplant, one value per image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.yardstick.heads import BATCH
from benchmarks.yardstick.towers import Case
from utils.gradcam_kit.engine.recipe import Recipe
from utils.gradcam_kit.judge.controls import gaussian_map, random_maps
from utils.gradcam_kit.judge.localisation import energy_in_mask
from utils.gradcam_kit.judge.transplant import patch_of_pixel
from utils.gradcam_kit.measure.perturbation import changed_patches, transplant_agreement, transplanted
from utils.gradcam_kit.measure.sweep import resized

Maps = dict[str, Tensor]  # name → raw maps (N, h, w)
Columns = dict[str, np.ndarray]  # measure → (N,)
FORGED = 0.5  # share of a patch in the mask from which it counts as forged, for how many patches `cut` replaces


class Yardstick:
    """What the maps of one case are measured by; keeps what many maps share."""

    def __init__(self, case: Case, causal: int) -> None:
        """`causal`: on how many images, evenly over the case, cut and transplant are computed."""
        self.case = case
        side = case.fakes.shape[-1]
        self.grid: tuple[int, int] = case.detector.model.patch_grid(side, side)
        self.share = F.interpolate(case.masks.float().unsqueeze(1), size=self.grid, mode="area").squeeze(1)
        self.causal = torch.linspace(0, len(case.fakes) - 1, min(causal, len(case.fakes))).round().long()
        self.patch = patch_of_pixel(self.grid, (side, side), torch.device("cpu"))
        reals, part = case.reals[self.causal], case.fakes[self.causal]
        usable = torch.ones(len(part), dtype=torch.bool)
        self.changed = changed_patches(part, reals, case.masks[self.causal], usable, self.grid)
        self.gold = transplanted(case.detector, part, reals, self.changed, BATCH)
        self.whole, self.none = self._margins(part), self._margins(reals)
        self._known: dict[tuple[int, tuple[int, ...]], float] = {}  # margin of image i with these patches cut

    def controls(self) -> Maps:
        """A random map, a centred blob, the mask, and transplant itself."""
        count, side = len(self.case.fakes), self.case.fakes.shape[-1]
        blob = F.interpolate(gaussian_map((side, side))[None, None], size=self.grid, mode="area")[0]
        gold = torch.zeros(count, *self.grid)
        gold[self.causal] = self.gold.relu()
        return {
            "random map": random_maps(count, self.grid, 0),
            "centred blob": blob.expand(count, -1, -1),
            "the mask itself": self.share,
            "transplant": gold,
        }

    def measure(self, name: str, raw: Tensor) -> Columns:
        """All measures of the maps (N, h, w) of that name; NaN where an image has none.

        pointing: the centre of the hottest patch lies in the mask, 0 for an empty map. energy: the map's share in the
        mask, as it is drawn. cut: as many of the hottest patches as are forged get the pixels of the real frame; the
        margin's fall as a share of its fall with the whole real frame. transplant: rank correlation with it over the
        forged patches.
        """
        case, count = self.case, len(self.case.fakes)
        drawn = resized(case.detector, raw)
        cut, agreement = np.full(count, np.nan), np.full(count, np.nan)
        cut[self.causal] = self._cut(raw[self.causal])
        spec = Recipe.control("map")
        agreement[self.causal] = transplant_agreement(self.gold, self.changed, {spec: raw[self.causal]})[spec]
        pointing = self.points(raw).double().numpy()
        energy = energy_in_mask(drawn, case.masks).double().numpy()
        if name == "transplant":  # it is 0 outside the forged patches, where it was not computed
            pointing, energy = np.full(count, np.nan), np.full(count, np.nan)
        return {"pointing": pointing, "energy": energy, "cut": cut, "transplant": agreement}

    def points(self, raw: Tensor) -> Tensor:
        """(N,) bool: whether the centre of the hottest patch lies in the mask."""
        hottest = raw.flatten(1).argmax(dim=1)
        size = self.case.fakes.shape[-1] // self.grid[0]
        row, column = (place * size + size // 2 for place in (hottest // self.grid[1], hottest % self.grid[1]))
        inside = self.case.masks[torch.arange(len(raw)), row, column]
        return inside & (raw.flatten(1).amax(dim=1) > 0)

    def _cut(self, raw: Tensor) -> np.ndarray:
        forged = (self.share[self.causal] >= FORGED).flatten(1).sum(dim=1).clamp(min=1).tolist()
        keys = [
            (i, tuple(sorted(one.flatten().topk(k).indices.tolist())))
            for i, (one, k) in enumerate(zip(raw, forged, strict=True))
        ]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        fakes, reals = self.case.fakes[self.causal], self.case.reals[self.causal]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            images = [
                torch.where(torch.isin(self.patch, torch.tensor(patches)), reals[i], fakes[i]) for i, patches in part
            ]
            self._known.update(zip(part, self._margins(torch.stack(images)).tolist(), strict=True))
        after = torch.tensor([self._known[key] for key in keys])
        return ((self.whole - after) / (self.whole - self.none)).double().numpy()

    @torch.no_grad()
    def _margins(self, pixels: Tensor) -> Tensor:
        logits = torch.cat([self.case.detector.predict(part)[0] for part in pixels.split(BATCH)])
        return logits[:, 1] - logits[:, 0]
