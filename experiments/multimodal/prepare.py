"""What all runs share, made once: documents, the tokenizer of images and its codes, the tokenizer, the classifier."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.multimodal.arms import JOINT, READ_FOLDERS, TEXT_ONLY, Run, Workload, data_file, recipe_of
from experiments.multimodal.classifier import classify, save_classifier, train_classifier
from experiments.multimodal.datasets import DatasetsConfig, write_datasets
from experiments.multimodal.digits import numbers_of, on_canvas
from experiments.multimodal.documents import read_records, write_records
from experiments.multimodal.rows import without_media
from experiments.multimodal.sources import real_sources, synthetic_sources
from zoo.data import open_corpus, tokenizer_for
from zoo.data.images import read_image
from zoo.errors import UserError
from zoo.inference.image_tokens import codes_to_images, image_to_codes, load_image_tokenizer
from zoo.recipes import recipe

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Prepared:
    """What was found out on the way."""

    image_codes: int
    """Codes of the image tokenizer."""
    codes_per_image: int
    """Codes of one image."""
    documents: dict[str, int]
    """How many there are, by "speech/train" and so on."""
    real: bool
    """Whether they are of real data."""
    speaker: str
    """Who is held out."""
    classifier_real: float
    """The classifier's accuracy on real digits of the test part."""
    classifier_reconstructed: float
    """The same on what the image tokenizer makes of them: the ceiling for images that are drawn."""
    codes_used: int
    """Codes that occur among those of the training images."""


def prepare(out: Path, size: str, workload: Workload, shared: Path | None, say: Callable[[str], None]) -> Prepared:
    """Makes what is missing in `out`. Raises `UserError` if it was begun with other sizes or other data."""
    out.mkdir(parents=True, exist_ok=True)
    _check_same(out, size, workload, shared)
    data = out / "data"
    changed: dict[str, Any] = dict(workload.datasets)
    config = DatasetsConfig(data, shared, **changed)
    if not (out / "documents.json").is_file():
        say("documents")
        written = write_datasets(config)
        counts = {name: len(read_records(path)) for name, path in written.items()}
        for folder in READ_FOLDERS:
            records = map(without_media, read_records(data / folder / "train.jsonl"))
            write_records(data_file(data, TEXT_ONLY, folder), records)
        _write(out / "documents.json", counts)
    if not (out / "vq" / "done").is_file():
        say("image tokenizer")
        _train_image_tokenizer(out, workload)
    if not (out / "tokenizer").is_dir():
        say("tokenizer")
        taught = recipe_of(Run(TEXT_ONLY, 0), workload, out, 0, out).data
        taught = dataclasses.replace(taught, tokenizer=None)
        tokenizer_for(open_corpus(taught), taught).save(out / "tokenizer")
    if not (out / "prepared.json").is_file():
        say("codes of images, classifier")
        _write(out / "prepared.json", asdict(_codes_and_classifier(out, workload, config)))
    return Prepared(**json.loads((out / "prepared.json").read_text()))


def _check_same(out: Path, size: str, workload: Workload, shared: Path | None) -> None:
    setting = out / "setting.json"
    described = json.loads(json.dumps({"size": size, "workload": asdict(workload), "real": shared is not None}))
    described["workload"].pop("seeds")  # more of them may be added
    if not setting.is_file():
        _write(setting, described)
    before = json.loads(setting.read_text())
    for name, value in described.items():
        if before.get(name) != value:
            raise UserError(f"{out} holds runs with another {name}: give another --out, or remove it")


def _train_image_tokenizer(out: Path, workload: Workload) -> None:
    """By `zoo.train`, in a process of its own."""
    base = recipe("image-vq")
    command = [sys.executable, "-m", "zoo.train", base.name, "--data", str(out / "data" / "draw" / "train.jsonl")]
    command += ["--run-dir", str(out / "vq"), "--steps", str(workload.vq_steps)]
    # Sixteen codes of 8 x 8 pixels: digits need no more, and a short run learns a short sequence better.
    command += ["--model.patch-size", "8", "--data.media.patch-size", "8", "--data.media.max-patches", "16"]
    command += ["--model.num-codes", str(workload.image_codes), "--no-tensorboard"]
    command += ["--checkpoint-every", str(workload.vq_steps), "--evaluate-every", str(workload.vq_steps)]
    with open(out / "vq.log", "a") as log:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"{' '.join(command[1:])} ended with exit code {done.returncode}; {out / 'vq.log'} says why")
    (out / "vq" / "done").touch()


def _codes_and_classifier(out: Path, workload: Workload, config: DatasetsConfig) -> Prepared:
    data, vq = config.folder, load_image_tokenizer(out / "vq")
    media = recipe_of(Run(JOINT, 0), workload, out, 1, out).data.media
    used: set[int] = set()
    for split, name in (("train", "codes"), ("test", "test-codes")):
        records = read_records(data / "draw" / f"{split}.jsonl")
        for found in records:
            part = found["content"][1]
            part["codes"] = image_to_codes(vq, read_image(data / "draw" / part["image"], media)).tolist()
            used |= set(part["codes"]) if split == "train" else set()
        write_records(data / "draw" / f"{name}.jsonl", records)

    sources = synthetic_sources(config.seed) if config.shared is None else real_sources(config.shared)
    images, labels = sources.digits
    own, test = (numbers_of(part, len(images)) for part in ("classifier", "test"))
    classifier = train_classifier(images[own], labels[own], workload.classifier_steps)
    save_classifier(classifier, out / "classifier.npz")
    shown = np.stack([on_canvas(images[i]) for i in test])
    codes = np.stack([image_to_codes(vq, image) for image in shown])
    again = codes_to_images(vq, codes)
    return Prepared(
        image_codes=vq.config.num_codes,
        codes_per_image=vq.config.codes_per_image,
        documents=json.loads((out / "documents.json").read_text()),
        real=not sources.synthetic,
        speaker=config.speaker or max(clip.speaker for clip in sources.clips),
        classifier_real=float(np.mean(classify(classifier, shown) == labels[test])),
        classifier_reconstructed=float(np.mean(classify(classifier, again) == labels[test])),
        codes_used=len(used),
    )


def environment() -> dict[str, str]:
    """Of the processes that train. One thread for each product of numpy: log-mel features are many small ones, which
    threads make ten times as slow. Compiled programs are kept for the next seed."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {"OPENBLAS_NUM_THREADS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1", **os.environ,
            "PYTHONPATH": path}  # fmt: skip


def _write(path: Path, value: object) -> None:
    """One JSON file, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(value, indent=1) + "\n")
    unfinished.rename(path)
