"""Write a reproduction as Markdown: annotators, what differs, then our figures beside the paper's.

Every number comes from results-<dataset>.json: the mean over seeds and, in brackets, the range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from defuse_core.data.naming import FROM_TEST
from defuse_core.reproduction.goals import goals
from defuse_core.reproduction.paper import DECISIONS, PAPER, Model, PaperResult, Part, section_title
from defuse_core.reproduction.plans import VALIDATION, changes
from defuse_core.reproduction.results import KINDS, all_seeds

MODELS: dict[Model, str] = {"before": "before", "baseline": "identified mistakes", "defuse": "Defuse"}
"""Rows of figure 4, by their key in results.json."""

_PARTS: dict[Part, str] = {"validation": "validation", "test": "test", "region": "failure regions"}

_OURS = ("annotators.", "evaluate.", "classifier.pretrained")  # without settings in the paper, or told above

Results = Mapping[str, Any]


def write_section(results: Results, notes: str = "") -> str:
    """Write the section of one data set.

    Parameters
    ----------
    results : mapping
        Content of results-<dataset>.json.
    notes : str
        What people found out about it, in Markdown; stands before the tables.
    """
    paper, seeds = PAPER[results["dataset"]], results["seeds"]
    corrected = {
        "Null controls": _controls,
        "Figure 7: agreement of the annotators": lambda seeds: _figure7(seeds, paper),
        "Choice of λ, baseline, novelty": _rest,
    }
    parts = [
        f"## {section_title(results['dataset'], results['configs']['classifier']['architecture'])}",
        _conditions(results),
        *([notes.strip()] if notes.strip() else []),
        "### What it should show\n\n"
        + _table(
            ("", "measured", ""),
            [
                (goal.told, goal.measured, f"**{goal.answer}**" if goal.met is False else goal.answer)
                for goal in goals(results)
            ],
        ),
        "### Annotators\n\n"
        + _annotators(results["annotators"], results["configs"]["annotators"]["more_data"]),
        write_differences(results),
        "### Figure 4: accuracies\n\n" + _figure4(results),
        "### Scenarios and failure regions\n\n" + _regions(all_seeds(results), paper),
        *_broken_contract(results),
        "### Mistakes: how many, of which kind, and what the generator has to do with them\n\n"
        + _mistakes(all_seeds(results)),
        *(f"### {heading}\n\n{write(seeds)}" for heading, write in corrected.items() if seeds),
        "### Time\n\n" + _time(results),
    ]
    return "\n\n".join(parts) + "\n"


def write_comparison(results: Results) -> str:
    """Figure 4 and the number of regions beside the paper's, as Markdown tables."""
    regions = _regions(all_seeds(results), PAPER[results["dataset"]])
    return f"\n{_figure4(results)}\n\n{regions}\n"


def write_differences(results: Results) -> str:
    """What was done differently from the paper, and what a shortened run changes."""
    parts = ["### What differs from the paper\n\n" + _differences(results, PAPER[results["dataset"]])]
    rows = [
        (f"`{name}`", _short(name, was), _short(name, now))
        for name, was, now in changes(results["dataset"], results["length"], results["configs"])
        if not name.startswith(_OURS)
    ]
    if rows:
        heading = f"### What `--{results['length']}` changes\n\n"
        parts.append(heading + _table(("setting", "in the paper's length", "here"), rows))
    return "\n\n".join(parts)


def _conditions(results: Results) -> str:
    n, machine = len(all_seeds(results)), results["machine"]
    versions = ", ".join(sorted({f"torch {each.get('torch', '?')}" for each in machine["versions"]}))
    length = {
        "paper": "the paper's length",
        "cpu": "shortened by `--cpu`",
        "quick": "`--quick`: numbers mean nothing",
    }
    without = ", ".join(str(seed["seed"]) for seed in results.get("without_failures", ()))
    return (
        f"{n} seed{'s' if n > 1 else ''}, {length[results['length']]}; {results['data']['name']}; "
        f"{' and '.join(machine['devices'])}; {machine.get('processor', '?')}, {machine['cores']} cores, "
        f"{versions}." + (f" No failure region, so nothing to correct, on seed {without}." if without else "")
    )


def _annotators(summary: Mapping[str, Any], more_data: str | None) -> str:
    rows = [(name, f"{value:.3f}") for name, value in summary["accuracy"].items()]
    rows.append(("**vote of five**", f"**{summary['majority'][0]:.3f}**"))
    trained = summary["trained_on"]
    training = "The shipped ones, trained on all 60,000 digits: their cards are in models/."
    if trained:
        extra = f" and those of {more_data}" if more_data else ""
        training = f"Trained on {trained:,} images: the classifier's own, and those for validation{extra}."
    return (
        _table(("annotator", "accuracy on the test images"), rows)
        + f"\n\n{training} Together they say none of the above to {summary['none_of_the_above']:.1%} "
        "of the test images, which counts as wrong in their vote. No label of a region is worth more."
    )


def _differences(results: Results, paper: PaperResult) -> str:
    sizes, shape = results["data"]["sizes"], results["data"]["image_shape"]
    apart = sizes.get("validation", 0)
    ours = {"train": 0, "test": 0}
    ours["test" if results["data"].get("validation") == FROM_TEST else "train"] = apart
    theirs = paper.n_test // 2 if VALIDATION[results["dataset"]] == FROM_TEST else 0
    rows = [
        ("training images", f"{paper.n_train:,}", _images(sizes["train"], ours["train"])),
        ("test images", _images(paper.n_test - theirs, theirs), _images(sizes["test"], ours["test"])),
        ("pixels", f"{paper.image_size}×{paper.image_size}", f"{shape[1]}×{shape[2]}"),
        ("annotators", paper.annotators, "five networks"),
        *(("choice of λ", f"best {paper.chosen_by} accuracy", seed["rule"]) for seed in results["seeds"][:1]),
        ("classifier", paper.classifier, _classifier(results)),
        ("decoder", "256 units, then transposed convolutions; no layer is named between", _decoder(results)),
    ]  # fmt: skip
    rows += [(what, was, now) for sets, what, was, now in DECISIONS if results["dataset"] in sets]
    return _table(("", "the paper", "here"), [row for row in rows if row[1] != row[2]])


def _images(n: int, apart: int) -> str:
    return f"{n + apart:,}" + (f", of which {apart:,} for validation" if apart else "")


def _classifier(results: Results) -> str:
    config = results["configs"]["classifier"]
    if config["pretrained"] is None:
        return f"{config['architecture']}, from random weights"
    if config["pretrained"] == "imagenet":
        return f"{config['architecture']}, from ImageNet's weights"
    afresh = ", ".join(results["began_afresh"])
    return f"{config['architecture']}, from a file of weights; began afresh: {afresh}"


def _decoder(results: Results) -> str:
    if results["configs"]["vae"].get("decoder", "linear") == "linear":
        return (
            "a linear layer between them, which makes the feature map, and as many transposed convolutions "
            "as the encoder has convolutions"
        )
    return "none between: the units are reshaped, (64, 2, 2) for 32 pixels, (16, 4, 4) for 128"


def _figure4(results: Results) -> str:
    """Of the seeds with failure regions; where no seed has any, the accuracies before correction."""
    seeds, paper = results["seeds"] or results["without_failures"], PAPER[results["dataset"]]
    rows = []
    for part, words in _PARTS.items():
        cells = []
        for key in MODELS:
            ours = [model[part] for seed in seeds if (model := seed.get(key)) and part in model]
            cells += [over_seeds(ours), over_seeds([paper.accuracy.get(key, {}).get(part)])]
        rows.append((words, *cells))
    head = [cell for name in MODELS.values() for cell in (name, "the paper")]
    return _table(("accuracy on", *head), rows)


def _figure7(seeds: Sequence[Results], paper: PaperResult) -> str:
    """Share of the annotators who voted for the majority label, mean ± standard error.

    The paper's are of "identified classifier mistakes", in regions and not.
    """
    rows = []
    for key, words in (("failure", "of failure regions"), ("other", "of others"), ("all", "of both")):
        ours = [shares[key] for seed in seeds if (shares := seed["agreement"].get("majority"))]
        cells = [_plus_minus(mean, error) for mean, error, n in ours if n]
        theirs = _plus_minus(*paper.agreement[key]) if paper.agreement else "–"
        rows.append((f"draws {words}", "; ".join(cells) or "–", theirs))
    return _table(("votes for the majority label", "a seed", "the paper"), rows)


def _plus_minus(mean: float, error: float | None) -> str:
    return f"{mean:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _regions(seeds: Sequence[Results], paper: PaperResult) -> str:
    rows = [(f"seed {seed['seed']}", str(seed["scenarios"]), str(seed["failure_regions"])) for seed in seeds]
    return _table(
        ("", "scenarios", "failure regions"),
        [("the paper", str(paper.scenarios), str(paper.failures)), *rows],
    )


def _broken_contract(results: Results) -> list[str]:
    """Scenarios and failures where decoded images were not normalised, if that was measured."""
    counts = ("mistakes", "scenarios", "failure_regions")
    rows = [
        (f"seed {seed['seed']}", *(f"{seed[name]:,}" for name in counts), over_seeds([seed["error"]]))
        for seed in results.get("unnormalised", ())
    ]
    if not rows:
        return []
    told = (
        "The same search, grouping and labelling, but for one thing: decoded images reach the classifier "
        "without the normalisation that it was trained with. These regions are failures of the code around "
        "the classifier; the contract test is there to find them."
    )
    head = ("", "mistakes", "scenarios", "failure regions", "mean error of the scenarios")
    return [f"### The contract broken\n\n{told}\n\n" + _table(head, rows)]


def _mistakes(seeds: Sequence[Results]) -> str:
    rows = [
        *(
            (
                f"ε = 0: of those classified correctly, still classified correctly, {words}",
                over_seeds([s["control"][part][0] for s in seeds]),
            )
            for part, words in (("train", "training"), ("test", "test"))
        ),
        ("mistakes", over_seeds([sum(seed["mistakes"].values()) for seed in seeds], "{:,.0f}")),
    ]
    for kind in KINDS:
        rows.append((f"… of kind {kind}", over_seeds([_share(seed["mistakes"], kind) for seed in seeds])))
    caption = "of the mistakes in failure regions, misclassified after reconstruction alone"
    inside = [seed["failure_kinds"] for seed in seeds if "failure_kinds" in seed]
    rows.append((caption, over_seeds([_share(kinds, "reconstruction") for kinds in inside])))
    for noise in ("raw", "centred"):
        counts = [seed["noise"][noise] for seed in seeds if "noise" in seed]
        if counts:
            caption = f"codes misclassified around the same {counts[0]['images']} images, {noise} noise"
            rows.append((caption, over_seeds([each["misclassified"] / each["codes"] for each in counts])))
    return _table(("", "mean (range)"), rows)


def _controls(seeds: Sequence[Results]) -> str:
    rows = []
    for key, words in (
        ("lam=0", "λ = 0: tuned on the data alone"),
        ("random", "random regions of equal size"),
    ):
        controls = [seed["controls"][key] for seed in seeds if key in seed.get("controls", {})]
        if controls:
            cells = [over_seeds([each[part][0] for each in controls]) for part in ("test", "region")]
            rows.append((words, *cells))
    rows.append(
        ("Defuse", *(over_seeds([seed["defuse"][part] for seed in seeds]) for part in ("test", "region")))
    )
    return _table(("", "test", "failure regions"), rows)


def _rest(seeds: Sequence[Results]) -> str:
    of_mistakes = all(seed["novelty"]["reference"]["misclassified"] for seed in seeds)
    singles = [baseline["labelled_images"] for seed in seeds if (baseline := seed.get("baseline"))]
    rows = [
        ("single mistakes that the baseline is tuned on", over_seeds(singles, "{:,.0f}")),
        ("λ chosen", _lambdas(seeds, "defuse")),
        ("λ by the paper's rule", _lambdas(seeds, "paper_rule")),
        ("… region accuracy there", over_seeds([seed["paper_rule"]["region"] for seed in seeds])),
        ("… test accuracy there", over_seeds([seed["paper_rule"]["test"] for seed in seeds])),
        ("test images fixed", over_seeds([seed["change"]["fixed"] for seed in seeds], "{:.0f}")),
        ("test images broken", over_seeds([seed["change"]["broken"] for seed in seeds], "{:.0f}")),
        ("images on which all agree", over_seeds([seed["agreement"]["unanimous"] for seed in seeds])),
        ("two annotators agree", over_seeds([seed["agreement"]["pairwise"] for seed in seeds])),
        ("draws whose own label is the region's", over_seeds([seed["label_agreement"] for seed in seeds])),
        ("nearest real test images of the regions: with their label", over_seeds(map(_same_label, seeds))),
        *(
            (f"… classified correctly {when}", over_seeds([s["nearest"]["pooled"][when][0] for s in seeds]))
            for when in ("before", "after")
        ),
    ]  # fmt: skip
    for space in ("pixels", "latent"):
        curves = [seed["novelty"][space] for seed in seeds]
        for name in dict.fromkeys(name for each in curves for name in each):
            known = "misclassified " if of_mistakes else ""
            caption = f"ℓ2 in {space} to the nearest {known}training image, median: {name}"
            medians = [each[name]["median"] for each in curves if name in each]
            rows.append((caption, over_seeds(medians, "{:.2f}")))
    return _table(("", "mean (range)"), rows)


def _same_label(seed: Results) -> float:
    regions = seed["nearest"]["regions"]
    return float(sum(r["same_label"] for r in regions) / sum(len(r["index"]) for r in regions))


def _lambdas(seeds: Sequence[Results], of: str) -> str:
    return ", ".join(f"{seed[of]['lam']:g} (seed {seed['seed']})" for seed in seeds)


def _time(results: Results) -> str:
    shared, seeds = results["seconds_shared"], [seed["seconds_by_step"] for seed in all_seeds(results)]
    rows = [(f"{step}, once", f"{seconds:,.0f} s") for step, seconds in shared.items()]
    rows += [
        (f"{step}, a seed", over_seeds([each.get(step) for each in seeds], "{:,.0f} s"))
        for step in max(seeds, key=len)
    ]
    return _table(("step", "time"), rows)


def over_seeds(values: Iterable[float | None], form: str = "{:.3f}") -> str:
    """Return mean and range of the values that are not None, a dash where there are none.

    Parameters
    ----------
    values : iterable of float or None
    form : str
        Format of each number.

    Examples
    --------
    >>> over_seeds([0.5, 0.75]), over_seeds([0.5]), over_seeds([None])
    ('0.625 (0.500–0.750)', '0.500', '–')
    """
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    mean, low, high = (form.format(value) for value in (sum(there) / len(there), min(there), max(there)))
    return mean if low == high else f"{mean} ({low}–{high})"


def _share(counts: Mapping[str, int], kind: str) -> float | None:
    total = sum(counts.values())
    return counts[kind] / total if total else None


def _short(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)} values, {min(value):g} … {max(value):g}"
    if value is None:
        return "all" if ".max_" in name else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
