"""The study: arms and seeds are trained and measured in a few processes; the tables are of what is there.

Two folders. `out` has what may be thrown away: vocabulary, pre-trained encoder, text, logs. `results` has one small
JSON for each finished run, figures only, which can be committed: on another machine the study goes on with what is
missing. (There the encoder is pre-trained anew, from the same text and seed.) Once the encoder is there, several
commands may work on the same two folders at once.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.kept import check_made_with
from experiments.kept import digest as made_of
from experiments.relation_extraction.arms import SIZES, Run, arm_named, arms_of, runs_of
from experiments.relation_extraction.corpus import Corpus
from experiments.relation_extraction.datasets import FOLDERS, MADE_UP, Dataset, read_dataset, speaks
from experiments.relation_extraction.encoders import check_folder
from experiments.relation_extraction.pretraining import pretrain, read_pretraining
from experiments.relation_extraction.report import Part
from experiments.relation_extraction.worker import (
    Job,
    Runs,
    Setting,
    carry_out_all,
    read_result,
    write_jobs,
    write_setting,
)
from experiments.runs import BENCHMARKS, run_in_process, say, single_thread, worker_environment, write_json
from experiments.shared_folder import training_novels
from zoo.errors import UserError

RESULTS = BENCHMARKS / "relation-extraction"
"""Where results lie that are committed, a folder for each data set that is known by name."""
WORKER = "experiments.relation_extraction.worker"
PRETRAINING = "pretraining.json"
ENCODER_SIZES = ("embed_dim", "num_layers", "num_heads", "hidden_dim", "vocab_size", "lowercase", "passage_tokens",
                 "mlm_steps", "mlm_rows", "mlm_tokens", "mlm_learning_rate", "mlm_long_steps",
                 "mlm_long_learning_rate", "novels_share")  # fmt: skip
"""Fields of `Size` that vocabulary and pre-trained encoder depend on."""


def setting_of(dataset: Dataset, encoder: Path | None) -> Setting:
    """Sizes and encoder for a data set."""
    quick = dataset.name == MADE_UP
    size = "bert" if encoder is not None else dataset.size
    return Setting(dataset, SIZES[size], None if encoder is None else str(encoder), novels=not quick)


def results_of(setting: Setting, out: Path) -> Path:
    """Where results go unless said otherwise: into the repository for our own encoder and data sets known by name."""
    committed = setting.encoder is None and setting.dataset.name in FOLDERS
    return RESULTS / setting.dataset.title if committed else out / "results"


def study(
    setting: Setting,
    out: Path,
    results: Path,
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    *,
    only_report: bool,
    jobs: int = 1,
    here: bool = False,
) -> Part:
    """Trains and measures what is missing, run by run, and tells what there is.

    Args:
      names: arms; none: those of the size.
      only_report: trains nothing.
      jobs: processes at a time, of one thread each if there are several.
      here: everything in this process, which saves the seconds that a process takes to start.

    Raises:
      UserError: wrong data, arm or encoder; results of other data, sizes or text; a run failed.
    """
    corpus = read_dataset(setting.dataset)
    size_name = "bert" if setting.encoder is not None else setting.dataset.size
    arms = arms_of(names, size_name, corpus.relations, speaks(corpus), setting.encoder is not None)
    if setting.encoder is not None:
        check_folder(Path(setting.encoder), setting.size)
    runs, fingerprint = runs_of(arms, seeds), setting.dataset.fingerprint()
    results.mkdir(parents=True, exist_ok=True)
    paths = {run.name: results / f"{run.name}.json" for run in runs}
    for run in runs:
        check_made_with(paths[run.name], made_with(setting, run.arm, fingerprint), "other data, sizes or novels")
    missing = [] if only_report else [run for run in runs if not paths[run.name].is_file()]
    if missing:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        write_setting_once(setting, fingerprint, out)
    if any(needs_pretraining(run, setting) for run in missing):
        prepare(setting, corpus, out, results, here=here)
    wanted = [Job(run, made_with(setting, run.arm, fingerprint), str(paths[run.name].resolve())) for run in missing]
    if here:
        carry_out_all(wanted, Runs(setting, corpus, out))
    elif wanted:
        in_processes(shared_out(wanted, jobs), out)
    found = [read_result(path) for path in paths.values() if path.is_file()]
    if not found:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    return Part(
        name=setting.dataset.title,
        bags=(len(corpus.train), len(corpus.val), len(corpus.test)),
        encoder=encoder_told(setting),
        size=setting.size,
        pretraining=read_pretraining(results / PRETRAINING) if (results / PRETRAINING).is_file() else None,
        runs=found,
        missing=[run.name for run in runs if not paths[run.name].is_file()],
    )


def shared_out(wanted: Sequence[Job], processes: int) -> list[list[Job]]:
    """The jobs of each process, in their order: whole arms, whose seeds share what is compiled, turn by turn; seeds
    where there are fewer arms than processes."""
    arms = list(dict.fromkeys(job.run.arm for job in wanted))
    whole = len(arms) >= processes
    turns = [arms.index(job.run.arm) if whole else number for number, job in enumerate(wanted)]
    parts = [[job for turn, job in zip(turns, wanted) if turn % processes == part] for part in range(processes)]
    return [part for part in parts if part]


def in_processes(parts: Sequence[Sequence[Job]], out: Path) -> None:
    """A process for each part, all at once. `UserError` if one fails; the others end what they have begun with."""
    environment = worker_environment(out) | (single_thread() if len(parts) > 1 else {})
    names = {Path(job.path).stem: Path(job.path) for part in parts for job in part}

    def work(number: int) -> None:
        jobs, log = (out / "runs" / f"{os.getpid()}-{number}.{kind}" for kind in ("jobs", "log"))
        write_jobs(parts[number], jobs)
        say(f"{len(parts[number])} runs, log in {log}")
        run_in_process(f"process {number + 1}", WORKER, [str(out), str(jobs)], log, environment)

    with ThreadPoolExecutor(len(parts)) as pool:
        futures, waiting = [pool.submit(work, number) for number in range(len(parts))], set(names)
        while waiting and not all(future.done() for future in futures):
            wait(futures, timeout=1)
            for name in sorted(name for name in waiting if names[name].is_file()):
                waiting.remove(name)
                say(f"{len(names) - len(waiting)} of {len(names)}: {name}")
        for future in futures:
            future.result()


def needs_pretraining(run: Run, setting: Setting) -> bool:
    """Whether a run begins with our own pre-trained encoder."""
    own = setting.encoder is None and setting.size.mlm_steps > 0
    return own and arm_named(run.arm).encoder in ("pre-trained", "pcnn")


def prepare(setting: Setting, corpus: Corpus, out: Path, results: Path, *, here: bool) -> None:
    """Vocabulary and pre-trained encoder in `out`; what the pre-training came to, in `results`."""
    kept = out / PRETRAINING
    if not kept.is_file():
        say("vocabulary and pre-training")
        if here:
            pretrain(corpus, setting.size, out, with_novels=setting.novels)
        else:
            log = out / "runs" / "pretraining.log"
            run_in_process("pre-training", WORKER, [str(out), "pretrain"], log, worker_environment(out))
    if not (results / PRETRAINING).is_file():
        write_json(json.loads(kept.read_text()), results / PRETRAINING)


def made_with(setting: Setting, arm: str, fingerprint: str) -> str:
    """A digest of everything that a run of an arm comes from, its seed apart."""
    return made_of([asdict(setting.size), asdict(arm_named(arm)), *sources_of(setting, fingerprint)])


def sources_of(setting: Setting, fingerprint: str) -> list[Any]:
    """[data, folder of the encoder, novels]."""
    encoder = None if setting.encoder is None else Path(setting.encoder).name
    novels = [Path(path).name for path in training_novels()] if setting.novels and encoder is None else []
    return [fingerprint, encoder, novels]


def write_setting_once(setting: Setting, fingerprint: str, out: Path) -> None:
    """Raises `UserError` if the folder's vocabulary and encoder are of another setting. Rates and epochs of what is
    trained on them may be others."""
    sizes = {name: value for name, value in asdict(setting.size).items() if name in ENCODER_SIZES}
    digest, kept = made_of([sizes, *sources_of(setting, fingerprint)]), out / "setting.digest"
    if kept.is_file() and kept.read_text().strip() != digest:
        raise UserError(f"{out} has a vocabulary and an encoder of other data, sizes or novels: give another --out")
    write_setting(setting, out)
    kept.write_text(digest + "\n")


def encoder_told(setting: Setting) -> str:
    """For the report."""
    size = setting.size
    if setting.encoder is not None:
        return f"the folder {Path(setting.encoder).name}"
    return f"a BERT of {size.num_layers} layers and width {size.embed_dim}, {size.vocab_size:,} pieces at most"
