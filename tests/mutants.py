"""Are the tests able to fail? Mistakes put into copies of the project, one in each, each of which a test must catch.

    python tests/mutants.py [WORD ...]     # WORD: only mutants whose name contains one of them

Run by hand, about two minutes. Prints a Markdown table; exit code 1 if a mutant survives, 2 if one cannot be tried.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TESTS_FAILED = 1  # pytest's exit code; 0 is passed, all others mean that the tests did not run


class Mutant(NamedTuple):
    """A mistake: in `file` the one place that reads `old` becomes `new`. `test`: a test, or file of them, to catch it."""

    name: str
    file: str
    old: str
    new: str
    test: str


COMMANDS = "tests/run/test_commands.py"
COMPARISON, EVALUATE = "tests/explanation_metrics/test_comparison.py", "tests/explanation_metrics/test_evaluate.py"
BALANCED = "tests/cam/balanced"
PAGE = "tests/report/test_page_data.py"
METRICS = "utils/gradcam_kit/measure"

MUTANTS = [
    Mutant("least confident sample first", "utils/gradcam_kit/run/predictions.py",
           "np.argsort(doubt", "np.argsort(-doubt", f"{COMMANDS}::test_a_whole_evaluation"),
    Mutant("share of unreadable frames ignored", "utils/gradcam_kit/run/summary.py",
           "> max_unreadable * total", "> total", f"{COMMANDS}::test_unreadable_frames_are_listed_and_never_replaced"),
    Mutant("precision may differ on resume", "utils/gradcam_kit/settings/options.py",
           'default="fp32", choices=allowed.PRECISIONS)', 'default="fp32", choices=allowed.PRECISIONS, outputs=False)',
           "tests/run/test_options.py::test_a_resumed_run_may_change_what_no_output_depends_on"),
    Mutant("mean not subtracted", "utils/gradcam_kit/model/detector.py",
           ".sub_(mean)", "", f"{COMMANDS}::test_a_whole_evaluation"),
    Mutant("no batch is begun before the last is read", "utils/gradcam_kit/run/explainer.py",
           "self._begins = True", "self._begins = False", "tests/explaining/test_waits.py"),
    Mutant("a batch is read at once", "utils/gradcam_kit/run/dataset_run.py",
           "        self._left = second_half", "        second_half()", "tests/explaining/test_waits.py"),
    Mutant("the maps' checks are read on their own", "utils/gradcam_kit/explaining/capture.py",
           "        if checks is None:\n            left.read()\n        return in_order", "        left.read()\n        return in_order",
           "tests/explaining/test_waits.py"),
    Mutant("a gradient at other tokens is not looked at", "utils/gradcam_kit/engine/tokens.py",
           "joined.differs | of_rest.abs().gt(0).any()", "joined.differs", "tests/cam/test_class_token_path.py"),
    Mutant("QuickGELU's derivative without its slope", "utils/gradcam_kit/engine/hooks.py",
           "silu_backward(gradient, QUICK_GELU * x)", "silu_backward(gradient, x)",
           f"{BALANCED}/test_derivatives.py::test_quick_gelu_has_its_value_and_its_derivative"),
    Mutant("any QuickGELU counts as CLIP's", "utils/gradcam_kit/engine/hooks.py",
           "return torch.allclose(", "return True or torch.allclose(",
           f"{BALANCED}/test_derivatives.py::test_it_is_known_by_its_values_too"),
    Mutant("weights of attention not turned round", "utils/gradcam_kit/engine/backward/derivatives.py",
           "torch.bmm(P.transpose(1, 2), of_output)", "torch.bmm(P, of_output)",
           f"{BALANCED}/test_derivatives.py::test_attention_of_constant_weights"),
    Mutant("the class token's queries and keys are never constant", "utils/gradcam_kit/engine/hooks.py",
           "        if self.constant:", "        if False:",
           "tests/cam/towers/test_class_token_paths.py::test_maps_are_those_of_the_whole_block"),
    Mutant("LayerNorm's σ is left out", "utils/gradcam_kit/engine/backward/derivatives.py",
           "gradient * weight * inverse", "gradient * weight",
           f"{BALANCED}/test_backward.py::test_maps_equal_those_of_a_tower_with_constant_norms_and_attention"),
    Mutant("biases before a block count", "utils/gradcam_kit/engine/completeness.py",
           "if read > read_before and", "if", f"{BALANCED}/test_completeness.py::test_shares_and_biases_equal_the_score_of_a_linear_tower"),
    Mutant("ε's leftover counts as a map", "utils/gradcam_kit/engine/methods.py",
           "4 * norm_epsilon /", "0 * norm_epsilon /",
           f"{BALANCED}/test_artefacts.py::test_in_a_tower_it_is_the_last_block_of_a_plain_pass_alone"),
    Mutant("rounding counts as a map", "utils/gradcam_kit/engine/maps.py",
           "\nFLAT = 1e-4\n", "\nFLAT = 0.0\n", "tests/cam/test_numerics.py::test_tokens_that_are_all_equal_give_a_flagged_empty_map"),
    Mutant("products of the backward pass stay in float32", "utils/gradcam_kit/explaining/precision.py",
           "rounded = [each.bfloat16() if isinstance(each, Tensor) else each for each in args]", "rounded = list(args)",
           "tests/explaining/test_precision.py::test_maps_in_bf16_are_those_of_fp32_but_for_rounding"),
    Mutant("people are followed over a cut", "utils/gradcam_kit/media/tracks.py",
           "if self._shot is not None and is_cut(self._shot, shot):", "if False:",
           "tests/data/test_faces.py::test_nobody_is_followed_over_a_cut"),
    Mutant("photographs are squashed", "utils/gradcam_kit/media/faces.py",
           "if is_squarish(photo):\n        return View(", "if True:\n        return View(",
           "tests/data/test_faces.py::test_a_wide_photograph_is_padded_not_squashed_and_its_matrix_leads_back"),
    Mutant("the difference of two runs is not paired", "utils/gradcam_kit/report/comparison.py",
           "metric(frames.label, frames.prob_b, weight) - metric(frames.label, frames.prob_a, weight)",
           "metric(frames.label, frames.prob_b, weight)",
           "tests/report/test_comparison.py::test_metrics_are_scikit_learns_and_the_interval_is_a_bootstrap_over_videos"),
    Mutant("a changed row is believed", "utils/gradcam_kit/store/database.py",
           "            if unchanged:\n                yield", "            if True:\n                yield",
           "tests/report/test_damaged_runs.py::test_an_edited_row_is_found"),
    Mutant("a batch is not committed", "utils/gradcam_kit/store/database.py",
           '        self._execute("COMMIT")\n        self._execute("BEGIN IMMEDIATE")', "        pass",
           "tests/results/test_run_folder.py::test_a_killed_writer_leaves_whole_batches"),
    Mutant("deletion: higher is better", f"{METRICS}/comparison.py",
           'metric.startswith(("deletion", "distance"))', "False", f"{COMPARISON}::test_better_is_better_than_every_control"),
    Mutant("Holm's correction left out", f"{METRICS}/comparison.py",
           "holm(bootstrap.p_values(paired))", "bootstrap.p_values(paired)",
           f"{COMPARISON}::test_better_is_better_than_every_control"),
    Mutant("better than any control", f"{METRICS}/comparison.py",
           "return all(one.p < SIGNIFICANT", "return any(one.p < SIGNIFICANT",
           f"{COMPARISON}::test_better_is_better_than_every_control"),
    Mutant("worst IoU threshold", f"{METRICS}/comparison.py",
           ".argmax()", ".argmin()", f"{COMPARISON}::test_the_threshold_is_the_best_one_on_average"),
    Mutant("ranking reversed", f"{METRICS}/dataset_evaluation.py",
           "-_mean(column[recipe])", "_mean(column[recipe])", f"{EVALUATE}::test_without_masks_maps_are_ranked_by_what_the_detector_loses"),
    Mutant("strongest control for the weakest", f"{METRICS}/tables.py",
           "max(row.differences", "min(row.differences",
           f"{COMPARISON}::test_the_weakest_control_is_the_one_that_a_map_fails_against_by_most"),
    Mutant("screening: sign flipped", f"{METRICS}/perturbation.py",
           "(before - after)", "(after - before)", f"{EVALUATE}::test_without_masks_maps_are_ranked_by_what_the_detector_loses"),
    Mutant("segment attack counts the unfooled", f"{METRICS}/perturbation.py",
           "margin(after) <= 0", "margin(after) > 0", f"{EVALUATE}::test_only_an_attack_on_the_evidence_fools_the_detector"),
    Mutant("written config forgets fused", f"{METRICS}/evaluate.py",
           "[*sorted(fusable), FUSED]", "sorted(fusable)", f"{COMPARISON}::test_the_written_config"),
    Mutant("headline of the smallest group", "utils/gradcam_kit/report/face_regions.py",
           "group.samples > known.samples", "group.samples < known.samples", f"{PAGE}::test_headlines_are_of_detected_fakes_or_else_of_the_largest_group"),
    Mutant("histogram not in shares", "utils/gradcam_kit/report/page_parts/detection.py",
           "np.histogram(scores, edges)[0] / len(scores)", "np.histogram(scores, edges)[0]", f"{PAGE}::test_histogram_bars_are_shares_of_each_class"),
    Mutant("fused: signed maps not scaled", "utils/gradcam_kit/engine/maps.py",
           "shares = signed / torch.where(largest > 0, largest, torch.ones_like(largest))", "shares = signed",
           "tests/cam/test_fused.py"),
    Mutant("strip: the first frames", "utils/gradcam_kit/exports/formats.py",
           "np.linspace(0, len(samples) - 1, MOST_FRAMES)", "np.arange(min(len(samples), MOST_FRAMES))",
           "tests/report/test_video_strips.py"),
    Mutant("grey maps: signed scale off", "utils/gradcam_kit/store/sample_folder.py",
           "/ extreme * 127", "/ extreme * 120", "tests/results/test_grey_maps.py"),
    Mutant("an attention may differ by a tenth", "utils/gradcam_kit/engine/attention.py",
           "if coarse else 1e-3", "if coarse else 1e-1",
           "tests/cam/towers/test_plain_forward.py::test_an_attention_with_a_bias_nobody_knows_of_is_no_rollout"),
    Mutant("block N of N blocks", "utils/gradcam_kit/engine/layers.py",
           "<= int(layer) < len(blocks)", "<= int(layer) <= len(blocks)",
           "tests/cam/test_refusals.py::test_unusable_layer_names_are_explained"),
    Mutant("a single logit that speaks for real keeps its sign", "utils/gradcam_kit/engine/heads.py",
           "z = logits if self.fake[0] else -logits", "z = logits",
           "tests/cam/test_heads.py::test_one_logit_that_speaks_for_real_is_fake_below_zero"),
    Mutant("EXIF 5 and 7 do not turn", "utils/gradcam_kit/data/images.py",
           "in (5, 6, 7, 8)", "in (6, 8)", "tests/data/test_images.py::test_the_size_is_that_of_the_upright_image"),
    Mutant("float8 weights are converted", "utils/gradcam_kit/model/checkpoints.py",
           " or tensor.element_size() < 2", "", "tests/model/test_checkpoint_families.py::test_numbers_that_are_no_weights"),
    Mutant("a deleted original counts as replaced", "utils/gradcam_kit/store/sample.py",
           'if now not in ("", before)', "if now != before",
           f"{PAGE}::test_originals_that_were_replaced_are_told_and_those_that_are_gone_are_not"),
]  # fmt: skip


class Untriable(Exception):
    """A mutant whose place is gone, or whose tests do not run."""


def left_out(folder: str, names: Sequence[str]) -> set[str]:
    """Of a folder's entries those that no test needs: hidden ones, caches, and at the top what the examples write."""
    top = {"data", "runs"} if Path(folder) == ROOT else set()
    return {name for name in names if name.startswith(".") or name == "__pycache__" or name in top}


def mutated(mutant: Mutant) -> str:
    """The text of the mutant's file with the mistake in it. Raises Untriable."""
    path = ROOT / mutant.file
    if not path.is_file():
        raise Untriable(f"{mutant.name}: {mutant.file} is gone: name the file that has {mutant.old!r} now")
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        places = text.count(mutant.old)
        raise Untriable(f"{mutant.name}: {mutant.file} has {places} places that read {mutant.old!r}: anchor it anew")
    return text.replace(mutant.old, mutant.new)


def check_places(mutants: Sequence[Mutant]) -> None:
    """Raises Untriable with every mutant that has no place any more."""
    lost = []
    for mutant in mutants:
        try:
            mutated(mutant)
        except Untriable as error:
            lost.append(str(error))
    if lost:
        raise Untriable("\n".join(lost))


def failing_test(copy: Path, tests: Sequence[str]) -> str | None:
    """Run some tests in `copy` up to the first failure: its name, or None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, TESTS_FAILED):
        raise Untriable(
            f"pytest {' '.join(tests)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return failed.group(1) if failed else None


def tried(mutant: Mutant) -> tuple[bool, str]:
    """Put a mutant into a new copy of the project: whether a test caught it, and its row of the table."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "project", ignore=left_out))
        (copy / mutant.file).write_text(mutated(mutant), encoding="utf-8")
        test = failing_test(copy, [mutant.test])
    verdict = "**survived**" if test is None else f"`{test}`"
    return test is not None, f"| {mutant.name} | `{mutant.file}` | {verdict} | {time.monotonic() - start:.0f} |"


def main(words: Sequence[str]) -> int:
    mutants = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    caught = []
    try:
        check_places(mutants)  # before minutes are spent
        broken = failing_test(ROOT, list(dict.fromkeys(mutant.test for mutant in mutants)))
        if broken is not None:
            raise Untriable(f"{broken}: fails without any mutant, and would catch everything")
        print("| mutant | file | caught by | seconds |\n|---|---|---|---|", flush=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for was_caught, row in pool.map(tried, mutants):
                caught.append(was_caught)
                print(row, flush=True)
    except Untriable as error:
        print(error, file=sys.stderr)
        return 2
    print(f"\n{sum(caught)} of {len(caught)} caught")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
