"""What error_feedback.py found, in tables and plain sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from feedback_claims import LOGISTIC_TARGET, STEP_TARGET, Floor, LargerStep
from feedback_descent import Descent
from feedback_trainings import Result, Training

TITLES = {"dense": "dense (ddp)", "none": "no feedback", "ef14": "EF14", "ef21_sgdm": "EF21-SGDM", "econtrol": "EControl"}
TITLES["ef14 two_phase"] = "EF14 in two phases"
CLOSE_POINTS = 0.5
"""Of accuracy, that EF14 may be below dense."""


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def count(value: float, unit: str = "") -> str:
    """A number of rounds or bits; a dash if it is infinite."""
    return "–" if math.isinf(value) else f"{value:,.0f}{unit}"


# --- logistic regression -----------------------------------------------------------------------------------------------------


def logistic_table(descents: Sequence[Descent]) -> str:
    """Bits to the target, and where each came to rest."""
    heads = ["logistic regression", "step / theory", f"rounds to {LOGISTIC_TARGET:g}", "kbit sent by then", "‖∇f‖² at the end"]
    return markdown(heads, [
        [each.title, f"{each.multiple:g}", count(each.rounds_to(LOGISTIC_TARGET)),
         count(each.bits_to(LOGISTIC_TARGET) / 1000), f"{each.floor:.1e}"]
        for each in descents
    ])  # fmt: skip


def logistic_sentences(descents: Sequence[Descent]) -> list[str]:
    """On the claims of the EF21 and the EControl papers."""
    by_title = {each.title: each for each in descents}
    dense_bits = by_title["dense"].bits_to(LOGISTIC_TARGET)
    sentences = []
    for title, paper in (("EF21", "arXiv 2106.05203"), ("EControl", "arXiv 2311.05645")):
        bits = by_title[title].bits_to(LOGISTIC_TARGET)
        claim = f"That {title} is exact where workers' data differ ({paper}) {reproduces(math.isfinite(bits))}"
        if math.isinf(bits):
            sentences.append(f"{claim}: it ended at {by_title[title].floor:.1e}.")
        else:
            sentences.append(
                f"{claim}: ‖∇f‖² ≤ {LOGISTIC_TARGET:g} after {bits / 1000:.1f} kbit, dense descent after "
                f"{count(dense_bits / 1000)}; EF14 ended at {by_title['EF14'].floor:.1e}, and top-1 without feedback at "
                f"{by_title['no feedback'].floor:.1e}."
            )
    return sentences


def step_table(steps: Sequence[LargerStep]) -> str:
    """EF21 at both proven step sizes."""
    heads = ["shards by", "γ, quadratic mean", "γ, arithmetic mean", "ratio", f"rounds to {STEP_TARGET:g}", "and", "EF21-W"]
    return markdown(heads, [
        [each.sharded_by, f"{each.quadratic:.3e}", f"{each.arithmetic:.3e}", f"{each.arithmetic / each.quadratic:.3f}",
         count(each.quadratic_rounds), count(each.arithmetic_rounds), count(each.weighted_rounds)]
        for each in steps
    ])  # fmt: skip


def step_sentences(steps: Sequence[LargerStep]) -> list[str]:
    """On the claim of the EF21-W paper."""
    return [
        f"That EF21-W's larger step needs as many times fewer rounds (arXiv 2402.10774) "
        f"{reproduces(abs(gain(each) * each.quadratic / each.arithmetic - 1) < 0.05)}, shards by {each.sharded_by}: a step "
        f"{each.arithmetic / each.quadratic:.3f} times EF21's, {gain(each):.3f} times fewer rounds to ‖∇f‖² ≤ {STEP_TARGET:g}; "
        f"EF21 itself takes {count(each.arithmetic_rounds)} with that step, EF21-W {count(each.weighted_rounds)}."
        for each in steps
    ]


def gain(each: LargerStep) -> float:
    """By how much fewer rounds are needed."""
    return each.quadratic_rounds / each.arithmetic_rounds


# --- quadratics --------------------------------------------------------------------------------------------------------------


def quadratic_table(floors: Sequence[Floor]) -> str:
    """‖∇f‖² at rest, by rule, for every noise and heterogeneity."""
    cases = sorted({(each.noise, each.heterogeneity) for each in floors})
    found = {(each.title, each.noise, each.heterogeneity): each.floor for each in floors}
    heads = ["quadratic, ‖∇f‖² at rest", *(f"σ={noise:g} ζ={heterogeneity:g}" for noise, heterogeneity in cases)]
    lines = []
    for title in dict.fromkeys(each.title for each in floors):
        cells = [found.get((title, *case)) for case in cases]
        lines.append([title, *("" if cell is None else f"{cell:.1e}" for cell in cells)])
    return markdown(heads, lines)


def quadratic_sentences(floors: Sequence[Floor]) -> list[str]:
    """On the claim of the EControl paper."""
    noises, heterogeneities = sorted({each.noise for each in floors}), sorted({each.heterogeneity for each in floors})
    exact, noisy, less, most = noises[0], noises[-1], heterogeneities[-2], heterogeneities[-1]
    found = {(each.title, each.noise, each.heterogeneity): each.floor for each in floors}
    slope = math.log(found["EF14", exact, most] / found["EF14", exact, less]) / math.log(most / less)
    ratios = {
        title: [found[title, noisy, heterogeneity] / found["dense", noisy, heterogeneity] for heterogeneity in heterogeneities]
        for title in ("EF14", "EF21", "EControl", "EF21-SGDM")
    }
    ends = {title: f"{each[0]:.2g} and {each[-1]:.2g}" for title, each in ratios.items()}
    return [
        f"Without noise EF14's floor grows as ζ to the power {slope:.2f} (2 is expected), to {found['EF14', exact, most]:.1e} at "
        f"ζ={most:g}, where EControl comes to {found['EControl', exact, most]:.1e} (arXiv 2311.05645).",
        f"With noise of σ={noisy:g}, ‖∇f‖² at rest as a multiple of dense descent's, at ζ={heterogeneities[0]:g} and ζ={most:g}: "
        f"EControl {ends['EControl']}, EF14 {ends['EF14']}: that EControl bears both noise and heterogeneity "
        f"{reproduces(max(ratios['EControl']) < 2 < ratios['EF14'][-1])} (arXiv 2311.05645).",
        f"Likewise EF21 {ends['EF21']}, EF21-SGDM {ends['EF21-SGDM']}: that EF21 keeps the noise and momentum removes it "
        f"{reproduces(min(ratios['EF21']) > 2 > max(ratios['EF21-SGDM']))} (arXiv 2305.15155).",
    ]


def reproduces(holds: bool) -> str:
    """A verdict; a factor of two is what counts as a difference."""
    return "reproduces" if holds else "does not reproduce"


# --- digits ------------------------------------------------------------------------------------------------------------------


def digits_table(finals: Sequence[Result]) -> str:
    """Means over seeds at tuned learning rates."""
    heads = ["digits, momentum SGD", "lr", "accuracy", "validation loss", "seeds", "sent", "of DDP's"]
    lines = []
    for method, results in by_method(finals).items():
        accuracies = [100 * (result.accuracy or 0.0) for result in results]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        first = results[0]
        lines.append([
            TITLES[method], f"{first.training.lr:g}", f"{statistics.mean(accuracies):.2f}{spread}",
            f"{statistics.mean(result.loss for result in results):.4f}", str(len(results)),
            f"{first.wire_bytes / 1e6:.2f} MB", f"{first.wire_bytes / first.ddp_wire_bytes:.2%}",
        ])  # fmt: skip
    return markdown(heads, lines)


def digits_sentences(finals: Sequence[Result]) -> list[str]:
    """Whether EF14 is within half a point of dense, and where the others are."""
    accuracies = {
        method: 100 * statistics.mean(result.accuracy or 0.0 for result in results)
        for method, results in by_method(finals).items()
    }
    sentences = []
    for method in [each for each in accuracies if each != "dense"]:
        gap = accuracies[method] - accuracies["dense"]
        judged = "within" if gap >= -CLOSE_POINTS else "not within"
        sentences.append(f"Digits: {TITLES[method]} at 1 % is {gap:+.2f} points from dense, {judged} {CLOSE_POINTS:g}.")
    return [
        *sentences,
        "One of the 360 images is 0.28 points, and rates were tuned on the same images: smaller gaps say nothing.",
    ]


def by_method(finals: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of all seeds, by the key of :data:`TITLES`."""
    found: dict[str, list[Result]] = {}
    for result in finals:
        training = result.training
        reducer = "" if training.reducer == "gather" else f" {training.reducer}"
        found.setdefault(training.method + reducer, []).append(result)
    return found


# --- PLM ---------------------------------------------------------------------------------------------------------------------


def optimizer_of(result: Result) -> str:
    """Its name."""
    return "Muon" if "optimizer.name=muon" in result.training.settings else "AdamW"


def plm_title(result: Result) -> str:
    """What tells it from the optimizer's others."""
    training = result.training
    if training.method == "dense":
        return TITLES["dense"]
    warmup = f", {training.warmup_steps} dense steps first" if training.warmup_steps else ""
    bare = ", optimizer without momentum" if training.method == "ef21_sgdm" else ""
    bare += ", unclipped" if "training.clip_norm=null" in training.settings else ""
    what = f"{training.ratio:.0%}" if training.compressor == "block_top_k" else training.compressor
    return f"{TITLES[training.method]} {what}{warmup}{bare}"


def plm_table(results: Sequence[Result]) -> str:
    """Gaps to DDP at equal steps."""
    dense = {optimizer_of(result): result.loss for result in results if result.training.method == "dense"}
    lines = []
    for result in sorted(results, key=optimizer_of):
        gap = result.loss - dense.get(optimizer_of(result), math.nan)
        shown = "" if result.training.method == "dense" else f"{gap:+.3f}"
        lines.append([
            optimizer_of(result), plm_title(result), f"{result.training.lr:g}", f"{result.loss:.4f}", shown,
            f"{result.wire_bytes / 1e6:.2f} MB", f"{result.wire_bytes / max(1, result.ddp_wire_bytes):.2%}",
        ])  # fmt: skip
    return markdown(["PLM", "gradients", "lr", "validation loss", "gap to ddp", "sent", "of DDP's"], lines)


def plm_sentences(results: Sequence[Result]) -> list[str]:
    """The gap of the plainest choice, EF14 from the first step at the optimizer's own learning rate."""
    sentences = []
    for optimizer in ("AdamW", "Muon"):
        own = [result for result in results if optimizer_of(result) == optimizer]
        dense = next((result for result in own if result.training.method == "dense"), None)
        if dense is None:
            continue
        plain = {
            result.training.ratio: result.loss - dense.loss for result in own if is_plain(result.training, dense.training.lr)
        }
        listed = ", ".join(f"{gap:+.2f} nats at {ratio:.0%}" for ratio, gap in plain.items())
        best = min((result for result in own if result is not dense), key=lambda result: result.loss, default=dense)
        sentences.append(
            f"PLM with {optimizer}, {dense.training.steps} steps: EF14 is {listed} from ddp's {dense.loss:.3f}; the best of all "
            f"that was tried, {plm_title(best)} at rate {best.training.lr:g}, {best.loss - dense.loss:+.2f}."
        )
    return [*sentences, "The PLM's are single short runs, of one seed: gaps of a few hundredths say nothing."]


def is_plain(training: Training, lr: float) -> bool:
    """Whether it is EF14 with block top-k from the first step, at the rate ``lr``, and nothing else is changed."""
    chosen = (training.method, training.compressor, training.lr, training.warmup_steps, len(training.settings))
    return chosen == ("ef14", "block_top_k", lr, 0, 1)
