"""The live app's page, built with Gradio. Everything it shows comes from `LiveDetector`."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..base.allowed import TARGETS
from ..base.errors import InputError, RunError
from ..base.text import one_line
from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import PastedCrop, encode
from ..media.video_files import UnreadableVideo
from .live_detector import LIVE_FILLS, LiveDetector, LiveMap, OpenedFile, region_of

LIVE_TARGETS = [target for target in TARGETS if target not in ("label", "both")]
NOTHING_YET = "Drop an image or a video."
Opened = OpenedFile | None  # None before anything was dropped
USER_ERRORS = (InputError, RunError, UnreadableImage, UnreadableVideo)


def serve(live: LiveDetector, host: str, port: int, max_upload: int) -> None:
    """Serve the page until interrupted; uploads of at most `max_upload` MB lie in a folder that is removed then."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed then, too
    with tempfile.TemporaryDirectory(prefix="gradcam_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(live, Path(folder))
        try:
            page.queue().launch(
                server_name=host, server_port=port, max_file_size=f"{max_upload}mb", show_error=True, quiet=True,
                prevent_thread_lock=True,
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"--port {port}: {one_line(error)}; give another port") from error
        print(f"open http://{host}:{port} in a browser; Ctrl-C ends it", flush=True)
        page.block_thread()


def build(live: LiveDetector, folder: Path) -> Any:
    """The page, a `gradio.Blocks`."""
    import gradio as gr

    handlers = Handlers(live, folder)
    with gr.Blocks(title="Heatmaps, live", analytics_enabled=False, delete_cache=(600, 600)) as page:
        page.theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        opened, shown = gr.State(None), gr.State(None)
        gr.Markdown(f"# Heatmaps, live\n{detector_line(live)}")
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label="Image or video", file_count="single", elem_id="file")
                frame = gr.Slider(0, 1, 0, step=1, label="Frame of the video", visible=False, elem_id="frame")
                face = gr.Dropdown([], label="Face", elem_id="face")
                layer = gr.Dropdown(live.layers(), value=live.layers()[0], label="Layer", elem_id="layer")
                method = gr.Dropdown(live.methods(), value=live.methods()[0], label="Method", elem_id="method")
                target = gr.Dropdown(LIVE_TARGETS, value="fake", label="Target", elem_id="target")
                opacity = gr.Slider(0, 1, 0.8, step=0.05, label="Opacity", elem_id="opacity")
            with gr.Column(scale=2):
                verdict = gr.Markdown(NOTHING_YET, elem_id="verdict")
                with gr.Row():
                    overlay = gr.Image(label="Map", interactive=False, elem_id="overlay")
                    whole = gr.Image(label="In the photograph", interactive=False, elem_id="whole")
                with gr.Row():
                    figure = gr.DownloadButton("Download the figure", elem_id="figure")
                    numbers = gr.DownloadButton("Download the numbers (JSON)", elem_id="numbers")
        gr.Markdown("## Brush out a region: what does the score become?")
        with gr.Row():
            editor = gr.ImageEditor(label="Paint over a region", type="numpy", elem_id="editor",
                                    brush=gr.Brush(default_size=24, colors=["#00d0ff"], color_mode="fixed"),
                                    eraser=gr.Eraser(), transforms=[], sources=[])  # fmt: skip
            with gr.Column():
                fill = gr.Radio(list(LIVE_FILLS), value=LIVE_FILLS[0], label="Filled by", elem_id="fill")
                origin = "The real image that the fake was made from"
                paired = gr.File(label=origin, elem_id="real", file_count="single")
                ask = gr.Button("Score without it", variant="primary", elem_id="ask")
                answer = gr.Markdown("", elem_id="answer")
        drawing = [opened, face, layer, method, target, opacity]
        drawn = [shown, verdict, overlay, whole, editor, figure, numbers]
        for event in (file.change, frame.release):
            event(handlers.open, [file, frame], [opened, face, frame, verdict]).then(handlers.explain, drawing, drawn)
        for control in (face, layer, method, target):
            control.input(handlers.explain, drawing, drawn)
        opacity.release(handlers.redraw, [shown, opened, face, opacity], [overlay, whole, figure])
        ask.click(handlers.brush, [opened, face, editor, fill, paired], answer)
    return page


def detector_line(live: LiveDetector) -> str:
    """Which detector answers."""
    settings = live.detector.settings
    weights = Path(settings.weights_name).name or "random weights: its scores and maps mean nothing"
    toy = ", trained on drawn faces: for trying out only" if "demo" in weights else ""
    return f"Detector **{settings.model_name}**, weights {weights}{toy}. Nothing that you drop here is kept."


class Handlers:
    """What the page's events do. Errors of the user's become sentences on the page."""

    def __init__(self, live: LiveDetector, folder: Path) -> None:
        self.live, self.folder = live, folder

    def open(self, file: str | None, frame: float) -> tuple[Any, ...]:
        """A file was dropped, or another frame picked: its faces."""
        import gradio as gr

        nothing = (None, gr.update(choices=[], value=None), gr.update(visible=False))
        if not file:
            return *nothing, NOTHING_YET
        try:
            opened = self.live.open(file, int(frame))
        except USER_ERRORS as error:
            return *nothing, f"**{Path(file).name} cannot be used**: {error}"
        names = [f"face {i}" for i in range(1, len(opened.views) + 1)]
        slider = gr.update(visible=opened.frames > 1, maximum=max(1, opened.frames - 1))
        return opened, gr.update(choices=names, value=names[0]), slider, opened.remark

    def explain(
        self, opened: Opened, face: str | None, layer: str, method: str, target: str, opacity: float
    ) -> tuple[Any, ...]:
        """The chosen face explained."""
        import gradio as gr

        if opened is None:
            return None, gr.update(), *[None] * 5
        view = opened.views[number_of(face)]
        try:
            shown = self.live.explain(view, layer, method, target)
        except USER_ERRORS as error:
            return None, f"**{error}**", *[None] * 5
        verdict = "\n\n".join(filter(None, [f"**{shown.verdict()}**", opened.remark]))
        numbers = self._file("numbers.json", json.dumps(shown.report, indent=1, default=str).encode())
        overlay, whole, figure = self.redraw(shown, opened, face, opacity)
        editor = {"background": view.image, "layers": [], "composite": view.image}
        return shown, verdict, overlay, whole, editor, figure, numbers

    def redraw(self, shown: LiveMap | None, opened: Opened, face: str | None, opacity: float) -> tuple[Any, ...]:
        """The map over the crop and in the photograph, and the figure's file."""
        if shown is None or opened is None:
            return None, None, None
        overlay = shown.drawn(opacity)
        matrix = opened.views[number_of(face)].matrix
        whole = None if matrix is None else PastedCrop(opened.photo, matrix).over(overlay)
        side_by_side = np.hstack([shown.image, np.full((len(overlay), 8, 3), 255, np.uint8), overlay])
        return overlay, whole, self._file("figure.png", encode(side_by_side))

    def brush(
        self, opened: Opened, face: str | None, editor: dict[str, Any] | None, fill: str, paired: str | None
    ) -> str:
        """The score with and without what was painted over."""
        if opened is None or editor is None:
            return NOTHING_YET
        try:
            real = decode_image(read_file(paired), None) if paired else None
            region = region_of(editor["layers"])
            before, after = self.live.without(opened.views[number_of(face)], region, fill, real)
        except USER_ERRORS as error:
            return f"**{error}**"
        scores = f"Fake probability **{before:.3f}**, without the region **{after:.3f}** ({after - before:+.3f})"
        return f"{scores}; {region.mean():.0%} of the image filled by {fill}."

    def _file(self, name: str, data: bytes) -> str:
        path = Path(tempfile.mkdtemp(dir=self.folder)) / name
        path.write_bytes(data)
        return str(path)


def number_of(face: str | None) -> int:
    """`"face 2"` → 1."""
    return int(face.split()[-1]) - 1 if face else 0
