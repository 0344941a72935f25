"""The test whether a clip detector uses the order of frames, once per run, on a few of its clips."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch

from ..base.errors import RunError
from ..data.clips import clip_loader
from ..data.frame import evenly_spaced
from ..explaining.clips.checking import margins_of
from ..judge.time import Change, OrderTest, order_test
from ..store.run_folder import RunFolder
from .dataset_run import Context

FILE = "frame_order.json"
CLIPS = 8  # each from another video


def frame_order(context: Context, folder: RunFolder) -> OrderTest | None:
    """Run the order test, or read it from the run's database; None if the run explains or tries nothing.

    Raises RunError if none of the clips can be read.
    """
    if not (context.cut and context.settings.detector.gradcam.enabled and context.options.calibration_images):
        return None
    row = folder.database.first_row("measurement", "WHERE dataset = '' AND name = ? AND key = ?", FILE, folder.key)
    if row is not None:
        values = json.loads(row[2])
        changes = {name: Change(*values[name]) for name in ("order", "frozen")}
        return OrderTest(clips=values["clips"], videos=values["videos"], **changes)
    of_video = {clip.row.whole_video: clip for cut in context.cut.values() for clip in reversed(cut.clips)}
    chosen = evenly_spaced(list(of_video.values()), CLIPS)
    print(
        f"order of frames: testing on {len(chosen)} clips, each from another video ({5 * len(chosen)} forward passes"
        " of one clip)"
    )
    settings, detector = context.settings, context.detector
    (batch,) = clip_loader(chosen, settings.detector.resolution, len(chosen), settings.workers)
    if not batch.frames:
        raise RunError(f"order of frames: none of {len(chosen)} clips could be read, first: {batch.unreadable[0][1]}")
    margins = margins_of(detector.as_clip_subject(), settings.batch_size)
    with torch.no_grad():
        found = order_test(margins, detector.normalise(batch.pixels), [frame.whole_video for frame in batch.frames])
    text = json.dumps({**asdict(found), "word": found.word})
    folder.database.put("measurement", [("", FILE, text.encode())], folder.key)
    folder.database.commit()
    return found
