"""Kinds of hostile manifests for replay, and of regression suites."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from random import Random

from tests.campaign.kinds import Kind, Stock, as_json, change_json, damage, odd_path, write
from tests.campaign.safetensors_files import split_header

_ANSWERS = (
    ("label", 99), ("label", -1), ("sample_id", -5), ("sample_id", 2**62), ("tau", -1), ("tau", 0), ("tau",
    1e308),
    ("n_samples", 2**62), ("n_samples", 0), ("region_id", -5), ("region_id", 2**62), ("seed", -1), ("at",
    1e308),
    ("seconds", -1), ("round", 0), ("annotator", ""), ("annotator", "\x1b[2J"), ("undoes", 3),
)  # fmt: skip
_REGIONS = (
    ("label", 99), ("label", -1), ("tau", -1.0), ("tau", 0.0), ("tau", 1e308), ("n", 10**6), ("n", 0),
    ("n", 2**62),
    ("region_id", 2**62), ("region_id", -1), ("seed", 2**63), ("error", [0, 0, 0, -1]), ("error", [2, 0, 1,
    4]),
    ("name", "\x1b[2J"), ("name", "a" * 300),
)  # fmt: skip


def manifest_values(rng: Random, folder: Path, stock: Stock) -> Path:
    """A manifest with values changed anywhere."""
    return write(
        folder, "manifest.json", as_json(rng, change_json(rng, stock.manifest, rng.choice((1, 1, 2, 5))))
    )


def manifest_answers(rng: Random, folder: Path, stock: Stock) -> Path:
    """Answers, configs and sources that no workspace wrote."""
    manifest = json.loads(json.dumps(stock.manifest))
    name, value = rng.choice(_ANSWERS)
    manifest["logs"][0]["entries"][rng.choice((0, 3))][name] = value
    if rng.random() < 0.4:
        key, told = rng.choice(
            (
                ("code_path", "/tmp"), ("trust_program", True), ("weights", "corrected:1"), ("weights",
                "blob:" + "0" * 64),
                ("last_annotation", 5), ("architecture", "os:system"), ("beyond", 1),
            )
        )  # fmt: skip
        rng.choice(manifest["runs"])["config"][key] = told
    if rng.random() < 0.2:
        manifest["dataset"]["source"] = rng.choice(
            ("/etc/passwd", "../x.npz", "torchvision:MNIST:/", "blob:0")
        )
    return write(folder, "manifest.json", json.dumps(manifest).encode())


def manifest_damaged(rng: Random, folder: Path, stock: Stock) -> Path:
    """A good manifest with flipped bits, or spliced with another file."""
    return write(folder, "manifest.json", damage(rng, json.dumps(stock.manifest).encode(), stock.npz))


def manifest_odd(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """No usual file at all."""
    return odd_path(rng, folder, ".json")


def _suite(folder: Path, stock: Stock) -> Path:
    return Path(shutil.copytree(stock.root / "suite", folder / "suite"))


def _seal(suite: Path, manifest: dict[str, object]) -> None:
    """Write the manifest with the checksums of all files, as if Defuse had written it."""
    files = [path for path in suite.rglob("*") if path.is_file() and path.name != "manifest.json"]
    sums = {
        path.relative_to(suite).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    (suite / "manifest.json").write_text(json.dumps({**manifest, "files": sums}))


def suite_values(rng: Random, folder: Path, stock: Stock) -> Path:
    """A manifest of a suite with values changed anywhere."""
    suite = _suite(folder, stock)
    manifest = json.loads((suite / "manifest.json").read_text())
    (suite / "manifest.json").write_bytes(as_json(rng, change_json(rng, manifest, rng.choice((1, 1, 3)))))
    return suite


def suite_regions(rng: Random, folder: Path, stock: Stock) -> Path:
    """Regions that no suite has, with checksums as they should be."""
    suite = _suite(folder, stock)
    manifest = json.loads((suite / "manifest.json").read_text())
    name, value = rng.choice(_REGIONS)
    manifest["regions"][rng.randrange(2)][name] = value
    if rng.random() < 0.3:
        manifest["preprocessing"] = change_json(rng, manifest["preprocessing"], 2)
    if rng.random() < 0.2:
        manifest["class_names"] = manifest["class_names"][: rng.randrange(10)]
    _seal(suite, manifest)
    return suite


def suite_images(rng: Random, folder: Path, stock: Stock) -> Path:
    """Images of a suite that are damaged or others, with checksums as they should be."""
    suite = _suite(folder, stock)
    path = suite / "instances.safetensors"
    header, data = split_header(path.read_bytes())
    how = rng.randrange(3)
    if how == 0:
        path.write_bytes(damage(rng, path.read_bytes(), stock.weights["safetensors"]))
    else:
        content = json.dumps(change_json(rng, header) if how == 1 else header).encode(
            "utf-8", "surrogatepass"
        )
        path.write_bytes(
            len(content).to_bytes(8, "little") + content + (damage(rng, data) if how == 2 else data)
        )
    manifest = json.loads((suite / "manifest.json").read_text())
    if rng.random() < 0.8:
        _seal(suite, manifest)
    return suite


def suite_files(rng: Random, folder: Path, stock: Stock) -> Path:
    """Files of a suite that are missing, FIFOs, links or devices."""
    suite = _suite(folder, stock)
    name = rng.choice(("manifest.json", "instances.safetensors", "regions/0.png", "regions"))
    path = suite / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    how = rng.choice(("missing", "fifo", "folder", "loop", "zero"))
    if how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how in ("loop", "zero"):
        path.symlink_to(path if how == "loop" else Path("/dev/zero"))
    return suite if rng.random() < 0.9 else odd_path(rng, folder)


KINDS = (
    Kind("manifest-values", "manifest", manifest_values, 3),
    Kind("manifest-answers", "manifest", manifest_answers, 2),
    Kind("manifest-damaged", "manifest", manifest_damaged, 2),
    Kind("manifest-odd", "manifest", manifest_odd, 0.5),
    Kind("suite-values", "suite", suite_values, 2),
    Kind("suite-regions", "suite", suite_regions, 1.5),
    Kind("suite-images", "suite", suite_images),
    Kind("suite-files", "suite", suite_files),
)
