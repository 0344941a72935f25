"""The live app's page, built with Gradio."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..base.allowed import TARGETS
from ..base.errors import InputError, RunError
from ..base.files import TRAINING_FOLDER
from ..base.text import one_line
from ..data.images import UnreadableImage, decode_image, read_file
from ..drawing.overlays import PastedCrop, encode
from ..media.video_files import UnreadableVideo
from .guard import EVERYWHERE, Guard
from .live_detector import AS_CONFIGURED, LIVE_FILLS, LiveDetector, region_of
from .sessions import MOST_SESSIONS, Session, Sessions

LIVE_TARGETS = [target for target in TARGETS if target not in ("label", "both")]
NOTHING_YET = "Drop an image or a video."
TOY = TRAINING_FOLDER / "assets" / "demo_detector"
EXAMPLE = ("example_fake.webp", "example_real.webp")  # a forged mouth, and the real face it was made from
THUMBNAIL = 320  # pixels
MOST_WAITING = 32  # maximum events in the queue
MOST_UPLOADS = 32  # uploads on disk may take so many times the largest upload
USER_ERRORS = (InputError, RunError, UnreadableImage, UnreadableVideo)


def serve(live: LiveDetector, host: str, port: int, max_upload: int) -> None:
    """Serve the page until interrupted. Uploads, at most `max_upload` MB each, are deleted at the end."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = os.environ["GRADIO_SSR_MODE"] = "False"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the folder is removed then too
    with tempfile.TemporaryDirectory(prefix="gradcam_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        from starlette.middleware import Middleware

        page = build(live, Path(folder))
        guard = Middleware(Guard, host=host, folder=Path(folder), most_bytes=MOST_UPLOADS * max_upload * 10**6)
        try:
            page.queue(max_size=MOST_WAITING, default_concurrency_limit=1).launch(
                server_name=host, server_port=port, max_file_size=f"{max_upload}mb", show_error=True, quiet=True,
                prevent_thread_lock=True, app_kwargs={"middleware": [guard]}, state_session_capacity=MOST_SESSIONS,
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"--port {port}: {one_line(error)}; give another port") from error
        shown = "localhost" if host in EVERYWHERE else host  # a browser cannot open 0.0.0.0 everywhere
        print(f"open http://{shown}:{port} in a browser; stop with Ctrl-C", flush=True)
        page.block_thread()


def build(live: LiveDetector, folder: Path) -> Any:
    """Build the page, a `gradio.Blocks`."""
    import gradio as gr

    handlers = Handlers(live, Sessions(folder))
    for method in (Handlers.open, Handlers.explain, Handlers.redraw, Handlers.brush, Handlers.leave):
        method.__annotations__["request"] = gr.Request  # tells Gradio to pass the request
    with gr.Blocks(title="Heatmaps, live", analytics_enabled=False, delete_cache=(600, 600)) as page:
        page.theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        gr.Markdown(f"# Heatmaps, live\n{detector_line(live)}")
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label="Image or video", file_count="single", elem_id="file")
                thumbnail = gr.Image(
                    label="As uploaded", interactive=False, height=160, visible=False, elem_id="thumbnail"
                )
                example = gr.Button("Try an example", visible=has_example(live), elem_id="example")
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
                    whole = gr.Image(label="In the photograph", interactive=False, visible=False, elem_id="whole")
                with gr.Row():
                    figure = gr.DownloadButton("Download the figure", elem_id="figure")
                    numbers = gr.DownloadButton("Download the numbers (JSON)", elem_id="numbers")
        gr.Markdown("## Paint over a region to see how the score changes")
        with gr.Row():
            editor = gr.ImageEditor(label="Paint over a region", type="numpy", elem_id="editor",
                                    brush=gr.Brush(default_size=24, colors=["#00d0ff"], color_mode="fixed"),
                                    eraser=gr.Eraser(), transforms=[], sources=[])  # fmt: skip
            with gr.Column():
                hint = "The real image is the fair comparison: some detectors call blur or grey fake themselves."
                fill = gr.Radio(list(LIVE_FILLS), value=LIVE_FILLS[0], label="Filled by", info=hint, elem_id="fill")
                origin = "The real image that the fake was made from"
                paired = gr.File(label=origin, elem_id="real", file_count="single")
                ask = gr.Button("Recompute score", variant="primary", elem_id="ask")
                answer = gr.Markdown("", elem_id="answer")
        drawing = [face, layer, method, target, opacity]
        drawn = [verdict, overlay, whole, editor, figure, numbers]
        for event in (file.change, frame.release):
            event(handlers.open, [file, frame], [face, frame, verdict, thumbnail]).then(
                handlers.explain, drawing, drawn
            )
        for control in (face, layer, method, target):
            control.input(handlers.explain, drawing, drawn)
        opacity.release(handlers.redraw, [face, opacity], [overlay, whole, figure])
        ask.click(handlers.brush, [face, editor, fill, paired], answer)
        example.click(lambda: [str(TOY / name) for name in EXAMPLE], None, [file, paired])
        page.unload(handlers.leave)
    return page


def detector_line(live: LiveDetector) -> str:
    settings = live.detector.settings
    weights = Path(settings.weights_name).name or "random weights: its scores and maps mean nothing"
    toy = ", the toy detector, trained on synthetic faces; for demonstration only" if is_toy(live) else ""
    drawn = f"“{AS_CONFIGURED}” is {live.detector.gradcam.recipe}"
    kept = "Uploaded files are deleted when you close this page."
    return f"Detector **{settings.model_name}**, weights {weights}{toy}. {drawn}. {kept}"


def is_toy(live: LiveDetector) -> bool:
    """True if the app runs the embedded toy detector, by the folder of its weights."""
    weights = live.detector.settings.weights_path
    return weights is not None and Path(weights).resolve().parent == TOY.resolve()


def has_example(live: LiveDetector) -> bool:
    """True for the toy detector if its example faces are there."""
    return is_toy(live) and all((TOY / name).is_file() for name in EXAMPLE)


class Handlers:
    """The handlers of the page's events. User errors become sentences on the page. `request` identifies the session."""

    def __init__(self, live: LiveDetector, sessions: Sessions) -> None:
        self.live, self.sessions = live, sessions

    def _session(self, request: Any) -> Session:
        return self.sessions.of(str(request.session_hash))

    def open(self, file: str | None, frame: float, request: Any) -> tuple[Any, ...]:
        """Open a dropped file, or another frame of it, and list its faces."""
        import gradio as gr

        session = self._session(request)
        session.opened = session.shown = None
        nothing = (gr.update(choices=[], value=None), gr.update(visible=False))
        hidden = gr.update(value=None, visible=False)
        if not file:
            return *nothing, NOTHING_YET, hidden
        session.uploads.add(Path(file))
        try:
            opened = self.live.open(file, int(frame))
        except USER_ERRORS as error:
            return *nothing, f"**{Path(file).name} cannot be used**: {error}", hidden
        names = [f"face {i}" for i in range(1, len(opened.views) + 1)]
        slider = gr.update(visible=opened.frames > 1, maximum=max(1, opened.frames - 1))
        session.opened = opened
        shown = gr.update(value=thumbnail_of(opened.photo), visible=True)
        return gr.update(choices=names, value=names[0]), slider, opened.remark, shown

    def explain(
        self, face: str | None, layer: str, method: str, target: str, opacity: float, request: Any
    ) -> tuple[Any, ...]:
        import gradio as gr

        session = self._session(request)
        opened, session.shown = session.opened, None
        if opened is None:
            return gr.update(), *[None] * 5
        view = opened.views[number_of(face)]
        try:
            shown = self.live.explain(view, layer, method, target)
        except USER_ERRORS as error:
            return f"**{error}**", *[None] * 5
        session.shown = shown
        verdict = "\n\n".join(filter(None, [f"**{shown.verdict()}**", opened.remark]))
        numbers = session.file("numbers.json", json.dumps(shown.report, indent=1, default=str).encode())
        overlay, whole, figure = self.redraw(face, opacity, request)
        editor = {"background": view.image, "layers": [], "composite": view.image}
        return verdict, overlay, whole, editor, figure, numbers

    def redraw(self, face: str | None, opacity: float, request: Any) -> tuple[Any, ...]:
        """Draw the map over the crop and in the photograph, and write the figure's file."""
        session = self._session(request)
        import gradio as gr

        shown, opened = session.shown, session.opened
        if shown is None or opened is None:
            return None, gr.update(value=None, visible=False), None
        overlay = shown.overlay(opacity)
        matrix = opened.matrix_in_photo(number_of(face))
        whole = None if matrix is None else PastedCrop(opened.photo, matrix).over(overlay)
        side_by_side = np.hstack([shown.image, np.full((len(overlay), 8, 3), 255, np.uint8), overlay])
        in_photo = gr.update(value=whole, visible=whole is not None)
        return overlay, in_photo, session.file("figure.png", encode(side_by_side))

    def brush(
        self, face: str | None, editor: dict[str, Any] | None, fill: str, paired: str | None, request: Any
    ) -> str:
        """Compare the score without and with the painted region replaced."""
        session = self._session(request)
        opened = session.opened
        session.uploads |= {Path(paired)} if paired else set()
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

    def leave(self, request: Any) -> None:
        self.sessions.leave(str(request.session_hash))


def thumbnail_of(photo: np.ndarray) -> np.ndarray:
    """Shrink a photo (H, W, 3) uint8 to at most THUMBNAIL pixels per side."""
    scale = min(1.0, THUMBNAIL / max(photo.shape[:2]))
    return cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def number_of(face: str | None) -> int:
    """Parse `"face 2"` as 1."""
    return int(face.split()[-1]) - 1 if face else 0
